"""Texts that two tokenizers of one vocabulary must agree on, of every odd kind."""
# ruff: noqa: RUF001 (letters that look alike are meant)

import unicodedata

_COMPOSED = "Un café crème, tiếng Việt, Ångström, 한국어, ガギグ, Ελλάδα, ймовірність"

TEXTS = (
    "",
    " ",
    "a",
    "A red circle left of two GREEN triangles",
    "Photo #12: 3.5 x 4,000 px (c) 2019 — \"quoted\" & 'single'",
    "https://example.com/a_b.jpg?x=1&y=2#z user@example.com",
    "  spaces  at   both ends, twice  ",
    "tab\tnew line\nCR LF\r\nvertical\x0bform feed\x0cend",
    "next\x85line no\u00a0break thin\u2009space wide\u3000space ogham\u1680space",
    "line\u2028separator paragraph\u2029separator zero\u200bwidth joiner\u200d\u200c",
    "\x85\u00a0 odd whitespace around \u3000\x85",
    "nul\x00 bell\x07 delete\x7f soft\u00adhyphen bom\ufeff replacement\ufffd",
    "\x01",
    "<pad> <unk> <s> </s> <PAD> a<pad>b <0x41> [PAD] [UNK]",
    "\u2581a\u2581\u2581b \u2581 c\u2581",
    "ΟΔΟΣ ΟΔΥΣΣΕΥΣ Σ ΑΣ. ΑΣΑ ς σ ΑΣ\u0301 ΑΣ’Α",
    "İSTANBUL ISPARTA ıi STRASSE ẞ ß ǅ ŉ ﬁ ﬀ K Å",
    "Ｆｕｌｌ　ｗｉｄｔｈ ～ ｶﾞｷﾞﾊﾟ ㈱ ① ½ ² ™ … ª\u0300 º",
    _COMPOSED,
    unicodedata.normalize("NFD", _COMPOSED),
    "مُحَمَّدٌ رَسُولٌ שָׁלוֹם עֲלֵיכֶם हिन्दी क़ ไทย กำ বাংলা தமிழ்",
    "漢字 かな 汉语 русский язык, Ёлка і їжак",
    "emoji 😀😀 👩\u200d👩\u200d👧 ☝🏽 ❤\ufe0f 🇩🇪 1\ufe0f\u20e3",
    "\U000e0001\ue000\U0010ffff\u0378 unassigned and private",
    "nothing known: \u2603\u2603 \u2603 x\u2603",
    "a" * 200,
    "word " * 500,
    "no spaces at all " * 3 + "antidisestablishmentarianism" * 20,
)
