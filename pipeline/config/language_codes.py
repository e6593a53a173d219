"""Codes of the languages that each detector knows: ISO 639-1, or its own."""

from collections.abc import Iterable

from recipes.validation import expect

_FASTTEXT = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce
ceb ckb co cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl
gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko
krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl
my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru
rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk
ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
_LANGDETECT = """
af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk
ml mr ne nl no pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh
"""
DETECTOR_TO_CODES = {
    "fasttext": frozenset(_FASTTEXT.split()),
    "langdetect": frozenset(_LANGDETECT.split()),
}


def expect_codes(languages: Iterable[str], detector: str = "fasttext") -> None:
    """Raises ValueError on a code that no text would be given; fastText has all."""
    codes = DETECTOR_TO_CODES[detector]
    for code in languages:
        expect(code in codes, "languages", code, f"codes such as 'en' of {detector}")
