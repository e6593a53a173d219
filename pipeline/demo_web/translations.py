"""Descriptions of a drawn scene in nine languages other than English.

In: a `Scene` and a language. Out: one or two sentences on its two largest objects
and its background. Each language has a wording in which no word depends on the gender
or the case of another: colors follow their shape as "of red color".
"""

# ruff: noqa: RUF001 (Cyrillic letters that look like Latin ones are meant)

import dataclasses

from pipeline.demo_web.descriptions import by_visible_area
from pipeline.demo_web.scene import (
    BACKGROUND_TO_RGB,
    COLOR_TO_RGB,
    SHAPE_TO_CONTOURS,
    Scene,
)


@dataclasses.dataclass(frozen=True)
class _Wording:
    """Words in the order of the tables of `drawing`, and the sentences around them."""

    alone: str  # with {first} and {ground}
    beside: str  # with {first}, {second} and {ground}
    thing: str  # with {color} and {shape}
    colors: tuple[str, ...]
    shapes: tuple[str, ...]
    grounds: tuple[str, ...]


_GERMAN = _Wording(
    alone="Bild mit {first} auf einem Hintergrund in der Farbe {ground}",
    beside="Bild mit {first} neben {second} auf einem Hintergrund in der Farbe "
    "{ground}",
    thing="{shape} in der Farbe {color}",
    colors=(
        *("Rot", "Orange", "Gelb", "Grün", "Türkis"),
        *("Blau", "Lila", "Rosa", "Weiß"),
    ),
    shapes=(
        *("einem Kreis", "einem Quadrat", "einem Dreieck", "einem Stern"),
        *("einem Kreuz", "einem Ring", "einem Herzen"),
    ),
    grounds=(
        *("Grau", "Beige", "Hellbraun", "Schiefergrau", "Olivgrün"),
        *("Hellmint", "Altrosa", "Hellblau"),
    ),
)
_FRENCH = _Wording(
    alone="Image montrant {first} sur un fond de couleur {ground}",
    beside="Image montrant {first} à côté d'{second} sur un fond de couleur {ground}",
    thing="{shape} de couleur {color}",
    colors=(
        *("rouge", "orange", "jaune", "verte", "cyan"),
        *("bleue", "violette", "rose", "blanche"),
    ),
    shapes=(
        *("un cercle", "un carré", "un triangle", "une étoile"),
        *("une croix", "un anneau", "un cœur"),
    ),
    grounds=(
        *("grise", "beige", "brun clair", "gris ardoise", "vert olive"),
        *("menthe pâle", "vieux rose", "bleu pâle"),
    ),
)
_SPANISH = _Wording(
    alone="Imagen de {first} sobre un fondo de color {ground}",
    beside="Imagen de {first} junto a {second} sobre un fondo de color {ground}",
    thing="{shape} de color {color}",
    colors=(
        *("rojo", "naranja", "amarillo", "verde", "cian"),
        *("azul", "morado", "rosa", "blanco"),
    ),
    shapes=(
        *("un círculo", "un cuadrado", "un triángulo", "una estrella"),
        *("una cruz", "un anillo", "un corazón"),
    ),
    grounds=(
        *("gris", "beige", "marrón claro", "gris pizarra", "verde oliva"),
        *("menta pálido", "rosa viejo", "azul pálido"),
    ),
)
_CZECH = _Wording(
    alone="Na tomto obrázku je {first} na pozadí, které je {ground} barvy",
    beside="Na tomto obrázku je {first} a vedle je {second} na pozadí {ground} barvy",
    thing="{shape} {color} barvy",
    colors=(
        *("červené", "oranžové", "žluté", "zelené", "tyrkysové"),
        *("modré", "fialové", "růžové", "bílé"),
    ),
    shapes=(
        *("kruh", "čtverec", "trojúhelník", "hvězda"),
        *("kříž", "prstenec", "srdce"),
    ),
    grounds=(
        *("šedé", "béžové", "světle hnědé", "břidlicové", "olivové"),
        *("světle mátové", "starorůžové", "světle modré"),
    ),
)
_RUSSIAN = _Wording(
    alone="На этой картинке есть {first} на фоне {ground} цвета",
    beside="На этой картинке есть {first}, а рядом {second} на фоне {ground} цвета",
    thing="{shape} {color} цвета",
    colors=(
        *("красного", "оранжевого", "жёлтого", "зелёного", "бирюзового"),
        *("синего", "фиолетового", "розового", "белого"),
    ),
    shapes=(
        *("круг", "квадрат", "треугольник", "звезда"),
        *("крест", "кольцо", "сердце"),
    ),
    grounds=(
        *("серого", "бежевого", "светло-коричневого", "сланцевого"),
        *("оливкового", "бледно-мятного", "пыльно-розового", "бледно-голубого"),
    ),
)
_CHINESE = _Wording(
    alone="这张图片中有{first}。背景的颜色是{ground}。",
    beside="这张图片中有{first}。旁边还有{second}。背景的颜色是{ground}。",
    thing="一个{color}的{shape}",
    colors=(
        *("红色", "橙色", "黄色", "绿色", "青色"),
        *("蓝色", "紫色", "粉色", "白色"),
    ),
    shapes=("圆形", "正方形", "三角形", "星形", "十字形", "圆环", "心形"),
    grounds=(
        *("灰色", "米色", "浅棕色", "石板灰色", "橄榄绿色"),
        *("淡薄荷绿色", "灰粉色", "淡蓝色"),
    ),
)
_ARABIC = _Wording(
    alone="صورة تحتوي على {first} على خلفية باللون {ground}",
    beside="صورة تحتوي على {first} بجانب {second} على خلفية باللون {ground}",
    thing="{shape} باللون {color}",
    colors=(
        *("الأحمر", "البرتقالي", "الأصفر", "الأخضر", "السماوي"),
        *("الأزرق", "البنفسجي", "الوردي", "الأبيض"),
    ),
    shapes=("دائرة", "مربع", "مثلث", "نجمة", "صليب", "حلقة", "قلب"),
    grounds=(
        *("الرمادي", "البيج", "البني الفاتح", "الأردوازي", "الزيتوني"),
        *("النعناعي الباهت", "الوردي المغبر", "الأزرق الباهت"),
    ),
)
_HINDI = _Wording(
    alone="इस चित्र में {first} है और पृष्ठभूमि {ground} रंग में है",
    beside="इस चित्र में {first} और उसके पास {second} है और पृष्ठभूमि {ground} रंग में है",
    thing="{color} रंग में एक {shape}",
    colors=(
        *("लाल", "नारंगी", "पीले", "हरे", "फ़िरोज़ी"),
        *("नीले", "बैंगनी", "गुलाबी", "सफ़ेद"),
    ),
    shapes=("वृत्त", "वर्ग", "त्रिभुज", "तारा", "क्रॉस", "छल्ला", "दिल"),
    grounds=(
        *("धूसर", "बेज", "हल्के भूरे", "स्लेटी", "जैतूनी हरे"),
        *("हल्के पुदीना", "मटमैले गुलाबी", "हल्के नीले"),
    ),
)
_JAPANESE = _Wording(
    alone="この画像には{first}があります。背景は{ground}です。",
    beside="この画像には{first}があり、その隣には{second}があります。背景は{ground}です。",
    thing="{color}の{shape}",
    colors=(
        *("赤色", "オレンジ色", "黄色", "緑色", "シアン色"),
        *("青色", "紫色", "ピンク色", "白色"),
    ),
    shapes=("円", "正方形", "三角形", "星", "十字", "輪", "ハート"),
    grounds=(
        *("灰色", "ベージュ色", "薄茶色", "スレート色", "オリーブ色"),
        *("淡いミント色", "くすんだバラ色", "淡い青色"),
    ),
)
_LANGUAGE_TO_WORDING = {
    "de": _GERMAN,
    "fr": _FRENCH,
    "es": _SPANISH,
    "cs": _CZECH,
    "ru": _RUSSIAN,
    "zh": _CHINESE,
    "ar": _ARABIC,
    "hi": _HINDI,
    "ja": _JAPANESE,
}

LANGUAGES = tuple(_LANGUAGE_TO_WORDING)  # ISO 639-1


def translate(scene: Scene, language: str) -> str:
    """True alt text of a scene in one of `LANGUAGES`."""
    wording = _LANGUAGE_TO_WORDING[language]
    colors = dict(zip(COLOR_TO_RGB, wording.colors, strict=True))
    shapes = dict(zip(SHAPE_TO_CONTOURS, wording.shapes, strict=True))
    grounds = dict(zip(BACKGROUND_TO_RGB, wording.grounds, strict=True))
    things = [
        wording.thing.format(color=colors[obj.color], shape=shapes[obj.shape])
        for obj in by_visible_area(scene)
    ]
    ground = grounds[scene.background.name]
    if len(things) == 1:
        return wording.alone.format(first=things[0], ground=ground)
    return wording.beside.format(first=things[0], second=things[1], ground=ground)
