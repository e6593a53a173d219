"""The captions of kept pairs, and how many pairs have one.

In: the tables of pairs, decisions and captions. Out: the captions of the kept pairs of
a lot, and counts of them. Imports neither Beam nor a model, so that `status` can use
it.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from pipeline.captioning import flag_counts
from pipeline.captioning.flag_counts import FlagCounts
from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.config.curation import Limits
from pipeline.engine.caption_tables import CaptionTables, Key, captions_of
from pipeline.engine.kept_pairs import iterate_kept_pairs
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Pair
from pipeline.sources.shards import Lot
from pipeline.storage.tables import LotTables

_COLUMNS = ("sample_id", "key", "image_hash", "shard", "offset", "n_bytes")
_MAX_COUNTED = 10  # lots whose tables the launcher reads, one by one


@dataclasses.dataclass(frozen=True)
class CaptionInputs:
    """The tables of earlier stages, small enough to travel to every worker."""

    source_to_pairs: Mapping[str, LotTables]
    decisions: LotTables
    granularity_to_folder: Mapping[Granularity, str]
    limits: Limits

    @classmethod
    def of(cls, run: RunFolder) -> "CaptionInputs":
        """The tables of a run."""
        source_to_pairs = {s.name: run.pairs(s) for s in run.config.sources}
        folders = {g: run.captions(g) for g in run.config.granularities}
        return cls(source_to_pairs, run.decisions, folders, run.config.limits)

    @property
    def granularities(self) -> tuple[Granularity, ...]:
        """The granularities of the recipe, in its order."""
        return tuple(self.granularity_to_folder)

    def open_captions(self, lot: Lot | None = None) -> dict[str, CaptionTables]:
        """The tables of captions, of all lots or of one, by granularity.

        Lists a folder for each.
        """
        base = lot.base if lot else ""
        return {
            granularity.name: CaptionTables.open(folder, base)
            for granularity, folder in self.granularity_to_folder.items()
        }

    def kept_pairs(self, lot: Lot) -> Iterator[list[Pair]]:
        """Yields the kept pairs of a lot in its order, some thousands at a time.

        They have what a captioner needs, the alt text only if a prompt names it.
        """
        columns = [*_COLUMNS]
        if any(prompts.has_alt_text(one.prompt) for one in self.granularities):
            columns.append("alt_text")
        pairs = self.source_to_pairs[lot.source.name]
        return iterate_kept_pairs(pairs, self.decisions, lot, columns)

    def texts(
        self, lot: Lot, tables: Mapping[str, CaptionTables]
    ) -> dict[str, dict[Key, tuple[str, ...]]]:
        """The captions of a lot that exist, by granularity."""
        return {name: found.texts(lot) for name, found in tables.items()}


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How many kept pairs there are, and how many have captions."""

    n_kept: int
    name_to_n_captioned: Mapping[str, int]  # by granularity
    name_to_flags: Mapping[str, FlagCounts]  # none before all captions are checked

    def counts(self, name: str) -> tuple[int, int]:
        """The number of pairs with captions of a granularity, and of all kept pairs."""
        return self.name_to_n_captioned[name], self.n_kept

    def is_complete(self, name: str) -> bool:
        """Whether pairs are kept, and each has captions of a granularity."""
        return 0 < self.n_kept == self.name_to_n_captioned[name]


def count_captioned(run: RunFolder) -> Coverage | None:
    """Counts the kept pairs of a run, and those with captions.

    Lots without decisions have no kept pairs yet. From summaries alone if all captions
    are checked; else from the tables. Those of many lots would take hours: None.
    """
    if run.config.granularities and flag_counts.is_complete(run):
        summaries = flag_counts.read_summaries(run)
        counts = flag_counts.sum_counts(summaries)
        names = [granularity.name for granularity in run.config.granularities]
        return Coverage(
            sum(summary[flag_counts.KEPT_PAIRS] for summary in summaries),
            {name: counts[name].n_pairs if name in counts else 0 for name in names},
            counts,
        )
    return _count_in_tables(run) if len(run.lots) <= _MAX_COUNTED else None


def _count_in_tables(run: RunFolder) -> Coverage:
    inputs = CaptionInputs.of(run)
    tables = inputs.open_captions()
    decided = inputs.decisions.lot_names()
    name_to_n = dict.fromkeys(tables, 0)
    n_kept = 0
    for lot in run.lots:
        if lot.name in decided:
            texts = inputs.texts(lot, tables)
            for pairs in inputs.kept_pairs(lot):
                n_kept += len(pairs)
                for captions in captions_of(pairs, inputs.granularities, texts):
                    for name in captions:
                        name_to_n[name] += 1
    return Coverage(n_kept, name_to_n, {})


def find_incomplete(
    run: RunFolder, granularities: Iterable[Granularity]
) -> list[Granularity]:
    """Finds the granularities that `caption` may have work for.

    Before `select`, for imported captions and for many lots whose captions are not all
    checked yet, that is all of them.
    """
    granularities = list(granularities)
    names = {lot.name for lot in run.lots}
    if not run.decisions.lot_names(known=names) >= names:
        return granularities
    tables = (CaptionTables.open(run.captions(g), known=names) for g in granularities)
    if not any(found.name_to_tables for found in tables):
        return granularities  # none has a caption: nothing to count
    coverage = count_captioned(run)
    return [
        one
        for one in granularities
        if coverage is None
        or one.captioner == "imported"
        or not coverage.is_complete(one.name)
    ]
