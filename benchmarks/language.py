"""Measures language detectors on short alt text; prints a Markdown table.

Takes a Parquet file with columns `lang` (ISO 639-1) and `text`, cuts every text to its
first words, and counts the texts detected as English among English texts (which are
kept) and among others (which should not be). Chinese has no spaces, so two characters
count as a word. Texts are taken evenly from each language. Speed is texts per second of
CPU time on one core.

    python -m benchmarks.language --data captions.parquet
"""

import argparse
import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence

import pyarrow.parquet as pq

from pipeline.models import language

N_WORDS = (2, 3, 5, 8, None)  # None: the whole text
CHARACTERS_PER_WORD = {"zh": 2}

HEADER = """\
| detector | words | texts | English kept | others called English | most of them | \
texts/s |
| --- | --- | --- | --- | --- | --- | --- |"""


@dataclasses.dataclass(frozen=True)
class Result:
    """Results of one detector on all texts of one length."""

    language_to_share: Mapping[str, float]  # of texts detected as English
    n_texts: int
    texts_per_s: float

    @property
    def cells(self) -> tuple[str, ...]:
        others = {c: s for c, s in self.language_to_share.items() if c != "en"}
        worst = max(others, key=others.__getitem__)
        return (
            str(self.n_texts),
            f"{self.language_to_share['en']:.1%}",
            f"{sum(others.values()) / len(others):.1%}",
            f"{worst} {others[worst]:.1%}",
            f"{self.texts_per_s:,.0f}",
        )


def cut(text: str, code: str, n_words: int | None) -> str:
    """Returns the first words of a text."""
    if n_words is None:
        return text
    if code in CHARACTERS_PER_WORD:
        return text[: n_words * CHARACTERS_PER_WORD[code]]
    return " ".join(text.split()[:n_words])


def read_texts(path: str, texts_per_language: int) -> dict[str, list[str]]:
    """Maps a language to at most so many of its texts."""
    texts = collections.defaultdict(list)
    table = pq.read_table(path, columns=["lang", "text"])
    for row in table.to_pylist():
        texts[row["lang"]].append(row["text"])
    return {
        code: all_texts[:: max(1, len(all_texts) // texts_per_language)][
            :texts_per_language
        ]
        for code, all_texts in sorted(texts.items())
    }


def measure(
    detector: language.Detector,
    texts: Mapping[str, Sequence[str]],
    n_words: int | None,
) -> Result:
    shares, seconds = {}, 0.0
    for code, whole in texts.items():
        short = [cut(text, code, n_words) for text in whole]
        start = time.process_time()
        answers = detector.detect(short)
        seconds += time.process_time() - start
        shares[code] = sum(answer.code == "en" for answer in answers) / len(answers)
    n_texts = sum(map(len, texts.values()))
    return Result(shares, n_texts, n_texts / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="Parquet with lang and text")
    parser.add_argument("--texts-per-language", type=int, default=500)
    flags = parser.parse_args()
    texts = read_texts(flags.data, flags.texts_per_language)
    print(HEADER)
    for name in ("fasttext", "langdetect"):
        detector = language.detector(name)
        for n_words in N_WORDS:
            result = measure(detector, texts, n_words)
            cells = (name, str(n_words or "all"), *result.cells)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
