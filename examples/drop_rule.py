"""A drop rule of your own, and a recipe that uses it.

    python -m pipeline.run curate --config examples/drop_rule.py --output RUN \
        --input 'CRAWL/*.tar'

A rule is a frozen dataclass that maps a pair to a `Drop`, or to None to keep the pair.
Its fields are part of what names the decisions, so another value is another decision.
They hold numbers, texts, tuples or dataclasses, with the annotated types.
"""

import dataclasses

from curation_configs import demo
from pipeline.config.curation import CurationConfig
from pipeline.config.selection import SelectionConfig
from pipeline.records import Drop, DropReason, Pair
from pipeline.selection.rules import FewWords


@dataclasses.dataclass(frozen=True)
class Shouting:
    """Drops alt text of which more than `max_share` of the letters are capitals."""

    max_share: float  # in [0, 1]

    def __call__(self, pair: Pair) -> Drop | None:
        letters = [c for c in pair.alt_text if c.isalpha()]
        share = sum(c.isupper() for c in letters) / max(len(letters), 1)
        if share <= self.max_share:
            return None
        reason = DropReason.BOILERPLATE_ALT_TEXT
        return Drop(reason, value=share, threshold=self.max_share, detail="shouting")


def get_config() -> CurationConfig:
    """The demo's models, with two rules on the alt text and no other step."""
    rules = (FewWords(min_words=2), Shouting(max_share=0.9))
    return dataclasses.replace(
        demo.get_config(), selection=SelectionConfig(drop_rules=rules)
    )
