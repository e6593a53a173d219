"""Alt texts in other languages are detected as such."""

import re

from pipeline.demo_web import descriptions
from pipeline.demo_web.scene import sample_scene
from pipeline.demo_web.translations import LANGUAGES, translate
from pipeline.models.language import FastText


def test_every_word_of_every_language_has_a_place(rng):
    for language in LANGUAGES:
        text = translate(sample_scene(rng), language)
        assert not re.search(r"[{}]", text)


def test_translations_are_detected_as_their_language(rng):
    detector = FastText()
    drawn = [sample_scene(rng) for _ in range(25)]
    for language in LANGUAGES:
        texts = [translate(scene, language) for scene in drawn]
        found = [answer.code for answer in detector.detect(texts)]
        assert found.count(language) >= 24, (language, found)


def test_english_alt_text_is_detected_as_english(rng):
    texts = [descriptions.alt_text(sample_scene(rng), rng) for _ in range(50)]
    found = [answer.code for answer in FastText().detect(texts)]
    assert found.count("en") >= 47
