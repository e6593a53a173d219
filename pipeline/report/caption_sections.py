"""The section of the page on captions, as plain values for the template.

In: the data of the page, and the kept pairs to show. Out: texts, numbers and
coordinates. Every text from the web has gone through `visible`.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.report import caption_facts, charts
from pipeline.report.page_data import PageData
from pipeline.report.pair_facts import PairFacts
from recipes.safe_text import visible


def list_captions(data: PageData, kept: Sequence[PairFacts]) -> list[dict[str, Any]]:
    """Returns the captions of kept pairs, one entry per pair."""
    key_to_captions = caption_facts.read_captions(data.run, kept)
    return [
        {
            "key": one.location.key,
            "text": visible(one.pair.alt_text),
            "captions": [
                dataclasses.replace(caption, text=visible(caption.text))
                for caption in key_to_captions[one.location.key]
            ],
        }
        for one in kept
    ]


def describe_texts(data: PageData, kept: Sequence[PairFacts]) -> dict[str, Any]:
    """Returns lengths and words of alt texts and captions.

    Words of captions are those of the lots of `kept`.
    """
    last = caption_facts.MAX_LENGTH
    n_words = [min(one.n_words, last) for one in data.sample]
    alt_texts = np.bincount(np.array(n_words, np.int64), minlength=last + 1)
    no_flags = caption_facts.CaptionLengths(alt_texts, collections.Counter())
    lengths = {caption_facts.ALT_TEXT: no_flags, **caption_facts.read_lengths(data.run)}
    lots = list(dict.fromkeys(one.lot for one in kept))
    words = caption_facts.Vocabulary.from_texts(
        one.pair.alt_text for one in data.sample
    )
    vocabularies = {caption_facts.ALT_TEXT: words}
    vocabularies |= caption_facts.read_vocabularies(data.run, lots)
    return {
        "lengths": [_describe_lengths(name, one) for name, one in lengths.items()],
        "vocabularies": [
            (name, _shorten_words(one)) for name, one in vocabularies.items()
        ],
    }


def _describe_lengths(name: str, found: caption_facts.CaptionLengths) -> dict[str, Any]:
    is_alt_text = name == caption_facts.ALT_TEXT
    return {
        "name": name,
        "n_captions": found.n_captions,
        "median": found.median,
        "n_flagged": found.n_flagged,
        "flags": None if is_alt_text else found.flags.most_common(),
    } | charts.draw_lengths(found.counts.tolist())


def _shorten_words(words: caption_facts.Vocabulary) -> caption_facts.Vocabulary:
    most = tuple((visible(word, 40), n) for word, n in words.most_frequent)
    return dataclasses.replace(words, most_frequent=most)
