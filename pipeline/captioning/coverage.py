"""The captions of kept pairs, and how many pairs have one.

In: the tables of pairs, decisions and captions. Out: the captions of the kept pairs of
a unit, and counts of them. Imports neither Beam nor a model, so that `status` can use
it.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from pipeline.config.captions import Granularity
from pipeline.config.curation import Limits
from pipeline.engine.caption_tables import CaptionTables, captions_of
from pipeline.engine.kept_pairs import read_kept_pairs
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Pair
from pipeline.sources.shards import Unit
from pipeline.storage.tables import UnitTables


@dataclasses.dataclass(frozen=True)
class CaptionInputs:
    """The tables of earlier stages, small enough to travel to every worker."""

    source_to_pairs: Mapping[str, UnitTables]
    decisions: UnitTables
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

    def open_captions(self) -> dict[str, CaptionTables]:
        """The tables of captions by granularity; lists one folder for each."""
        return {
            granularity.name: CaptionTables.open(folder)
            for granularity, folder in self.granularity_to_folder.items()
        }

    def kept_pairs(self, unit: Unit) -> list[Pair]:
        """The kept pairs of a unit, in its order."""
        pairs = self.source_to_pairs[unit.source.name]
        return read_kept_pairs(pairs, self.decisions, unit)

    def captions(
        self, unit: Unit, pairs: Sequence[Pair], tables: Mapping[str, CaptionTables]
    ) -> list[dict[str, tuple[str, ...]]]:
        """The captions of each pair that exist, by granularity."""
        texts = {name: found.texts(unit) for name, found in tables.items()}
        return captions_of(pairs, self.granularities, texts)


def coverage(
    run: RunFolder, granularity: Granularity, units: Iterable[Unit]
) -> tuple[int, int]:
    """The number of kept pairs with a caption, and the number of all kept pairs.

    Units without decisions have no kept pairs yet.
    """
    inputs = CaptionInputs.of(run)
    tables = inputs.open_captions()
    decided = inputs.decisions.unit_names()
    n_captioned = n_kept = 0
    for unit in units:
        if unit.name in decided:
            pairs = inputs.kept_pairs(unit)
            captions = inputs.captions(unit, pairs, tables)
            n_captioned += sum(granularity.name in found for found in captions)
            n_kept += len(pairs)
    return n_captioned, n_kept
