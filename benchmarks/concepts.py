"""Measures how many alt texts per second are searched for a long list of concepts.

Draws words as languages use them (Zipf), concepts of one to four words and texts of
ten. For a short list, the same texts are also searched with one regular expression of
all concepts. Prints JSON.

    python -m benchmarks.concepts --concepts 500000
"""

import argparse
import json
import re
import time
import tracemalloc

import numpy as np

from pipeline.selection.concepts import Concepts

_N_WORDS = 300_000  # size of the vocabulary
_N_TEXTS = 20_000
_N_REGEX = 2_000  # concepts in the regular expression


def draw(n: int, lengths: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Draws phrases; the r-th most frequent word has a share of about 1/r."""
    ranks = np.exp(rng.random(lengths.sum()) * np.log(_N_WORDS)).astype(int)
    words = iter([f"w{rank}" for rank in ranks.tolist()])
    return [" ".join(next(words) for _ in range(k)) for k in lengths[:n].tolist()]


def by_regex(names: list[str], texts: list[str]) -> tuple[float, int]:
    """Returns the seconds, and the number of texts that name a concept."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")
    start_s = time.perf_counter()
    n_found = sum(pattern.search(text) is not None for text in texts)
    return time.perf_counter() - start_s, n_found


def by_ours(concepts: Concepts, texts: list[str]) -> tuple[float, int]:
    start_s = time.perf_counter()
    n_found = sum(bool(concepts.find(text)) for text in texts)
    return time.perf_counter() - start_s, n_found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=500_000)
    n_concepts = parser.parse_args().concepts
    rng = np.random.default_rng(0)
    texts = draw(_N_TEXTS, np.full(_N_TEXTS, 10), rng)
    names = draw(n_concepts, rng.integers(1, 5, n_concepts), rng)
    tracemalloc.start()
    start_s = time.perf_counter()
    concepts = Concepts(names)
    build_s, mib = time.perf_counter() - start_s, tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    time_s, n_found = by_ours(concepts, texts)
    few = names[:_N_REGEX]
    few_s, few_found = by_ours(Concepts(few), texts)
    regex_s, regex_found = by_regex(few, texts)
    found = {
        "concepts": len(concepts.names),
        "build_s": round(build_s, 1),
        "mib": round(mib / 2**20),
        "texts_per_s": round(_N_TEXTS / time_s),
        "texts_with_a_concept": n_found / _N_TEXTS,
        f"texts_per_s_of_{_N_REGEX}": round(_N_TEXTS / few_s),
        "texts_per_s_of_a_regex": round(_N_TEXTS / regex_s),
        "is_equal": few_found == regex_found,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
