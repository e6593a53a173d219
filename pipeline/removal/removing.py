"""A removal from its first step to its last, so that it can be killed at any of them.

1. The pairs and shards that are meant are found; nothing is changed yet.
2. The record names them, and which lot succeeds which. From here on the removal is
   begun: no other command works on the run before it is complete.
3. The successors' tables are written, and captions of images that are gone removed.
4. The plan has the successors in the place of the lots.
5. The tables of those lots are deleted, with all else that shows a removed pair, and
   the training shards that held one are written again.
6. The record says that the removal is complete.

Steps 3 to 5 do nothing where they were done before.
"""

import collections
import dataclasses
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.captioning import flag_counts
from pipeline.config.curation import ImageTextSource
from pipeline.engine import listed_lots, lot_plan
from pipeline.engine.listed_lots import counted
from pipeline.engine.lot_plan import LotPlan, PlannedLot
from pipeline.engine.removals import (
    Removals,
    Succession,
    Unfinished,
    delete_other_tables,
)
from pipeline.engine.run_folder import RunFolder
from pipeline.engine.stage_runner import Counters, run_job
from pipeline.export.shard_formats import NAME_TO_FORMAT, ShardFormat
from pipeline.removal import leftovers
from pipeline.removal.lot_tables import Folders
from pipeline.removal.stage import STAGE, FindRemoved, LotCounts, RewriteLots
from pipeline.selection import ledger
from pipeline.sources.drop_tables import DIGEST_DTYPE
from pipeline.storage import files

Reopen = Callable[[], RunFolder]
Flag = Callable[[RunFolder, PipelineOptions], Counters]
Export = Callable[[RunFolder, PipelineOptions, ShardFormat], Counters]


@dataclasses.dataclass(frozen=True)
class Found:
    """What removals mean in the lots of a run."""

    counts: Mapping[str, LotCounts]

    @property
    def matched(self) -> np.ndarray:
        """The hashes that pairs have; those of several lots are there several times."""
        data = b"".join(bytes.fromhex(hashes) for _, _, hashes in self.counts.values())
        return np.frombuffer(data, DIGEST_DTYPE)

    def n_pairs(self, lot_name: str) -> int:
        """How many pairs of a lot are removed."""
        n_named, n_dropped, _ = self.counts.get(lot_name, (0, 0, ""))
        return n_named + n_dropped


def begin(
    run: RunFolder, removals: Removals, found: Found, summary: dict[str, Any]
) -> bool:
    """Records what a removal means; False if nothing in the run is meant.

    Args:
      run: with the lots of the last command.
      removals: the record, with what is to be removed.
      found: of these removals.
      summary: the line of the record: when, what kinds.
    """
    named = {name for name, (n_named, *_) in found.counts.items() if n_named}
    lots = _succeeding(run.plan, removals, named)
    samples = found.counts.keys() - {lot.name for lot in run.plan.lots}
    is_meant = lots or samples
    if not is_meant and not leftovers.has_listed(
        run.root, removals.open_names(run.root)
    ):
        return False
    successions = [
        Succession(old.name, new.name if new else "", _dropped(old, removals))
        for old, new in lots
    ]
    successions += [Succession(name, "") for name in samples]
    facts = {
        "pairs": sum(found.n_pairs(old.name) for old, _ in lots),
        "shards": sum(len(one.dropped) for one in successions),
        "lots": len(lots),
    }
    unfinished = Unfinished(
        removal=removals.identity,
        successions=tuple(sorted(successions, key=lambda one: one.old)),
        is_decided=ledger.read(run) is not None,
        is_flagged=bool(run.config.granularities) and flag_counts.is_complete(run),
        with_sets=any(old.role != "pool" for old, _ in lots),
        summary={**summary, **facts},
    )
    dataclasses.replace(removals, unfinished=unfinished).write(run.root)
    return True


def find(run: RunFolder, removals: Removals, options: PipelineOptions) -> Found:
    """Looks through the pairs of all lots for what is to be removed."""
    names = {n for t in Folders.of(run.root).pairs for n in t.lot_names()}
    name_to_dropped: dict[str, tuple[int, ...]] = {}
    for lot in run.plan.lots:
        if dropped := _dropped(lot, removals):
            name_to_dropped[lot.name] = dropped
            name_to_dropped |= dict.fromkeys(_samples_of(lot, dropped), (0,))
    works = [
        (name, dropped)
        for name in sorted(names)
        if (dropped := name_to_dropped.get(name, ())) or removals.kinds
    ]
    if not works:
        return Found({})
    path = files.join(run.root, "lots", "removed.json")
    transform = FindRemoved(run.root, removals, works, path)
    run_job(run.root, STAGE, transform, options)
    counts = json.loads(files.read(path))
    files.delete(*_folder_and_names(path))
    return Found(counts)


def _samples_of(lot: PlannedLot, numbers: Sequence[int]) -> list[str]:
    """The lots that samples make of some shards of a lot."""
    shards = lot.to_lot(ImageTextSource(lot.source_name, lot.places[0][0])).shards
    return [lot_plan.single(shards[number]).name for number in numbers]


def _folder_and_names(path: str) -> tuple[str, list[str]]:
    folder, name = files.split(path)
    return folder, [name]


def _succeeding(
    plan: LotPlan, removals: Removals, names: Collection[str]
) -> list[tuple[PlannedLot, PlannedLot | None]]:
    """The lots that lose pairs or shards, each with its successor."""
    found = []
    for lot in plan.lots:
        dropped = {lot.places[number] for number in _dropped(lot, removals)}
        if dropped or lot.name in names:
            removal = removals.identity if lot.name in names else ""
            found.append((lot, lot.without(dropped, removal)))
    return found


def _dropped(lot: PlannedLot, removals: Removals) -> tuple[int, ...]:
    is_pool = lot.role == "pool"
    return tuple(
        number
        for number, (uri, _) in enumerate(lot.places)
        if is_pool and removals.is_out(lot.source_name, uri)
    )


def finish(
    root: str, reopen: Reopen, options: PipelineOptions, flag: Flag, export: Export
) -> Iterator[str]:
    """Does what is left of a removal; yields lines that say what was done.

    Args:
      reopen: opens the run with the lots that it has by then.
      flag: flags captions.
      export: writes training shards.

    Raises:
      ValueError: if training shards cannot be written.
    """
    removals = Removals.read(root)
    unfinished = removals.unfinished
    if unfinished is None:
        return
    plan = LotPlan.read(root)
    names = {lot.name for lot in plan.lots}
    olds = [one.old for one in unfinished.successions]
    if not names.isdisjoint(olds):
        works = _works(plan, unfinished.successions)
        run_job(root, STAGE, RewriteLots(root, works), options)
        old_to_new = dict(_succeeding_as_recorded(plan, removals, unfinished))
        listed_lots.replace(
            root, {k: v.name if v else "" for k, v in old_to_new.items()}
        )
        plan.succeeded(old_to_new).write(root)
    leftovers.delete_lots(root, olds)
    bases = {old.rpartition("-")[0] for old in olds}
    leftovers.delete_parts(root, removals.open_names(root), bases)
    yield from leftovers.delete_pictures(root, with_indexes=unfinished.with_sets)
    run = reopen()
    is_decided = unfinished.is_decided and leftovers.restore_ledger(run)
    if is_decided and unfinished.is_flagged:
        flag(run, options)
    yield from _finish_shards(run, options, export, is_decided=is_decided)
    done = (*removals.done, unfinished.summary)
    dataclasses.replace(removals, done=done, unfinished=None).write(root)
    delete_other_tables(root)
    pairs, shards, lots = (
        counted(unfinished.summary[f"{name}s"], name)
        for name in ("pair", "shard", "lot")
    )
    yield f"removed: {pairs} and {shards}, of {lots}"


def _works(plan: LotPlan, successions: Sequence[Succession]) -> list[tuple]:
    """The lots of each base name that are succeeded, and those that stay."""
    base_to_lots = collections.defaultdict(list)
    for lot in successions:
        fields = (lot.old, lot.new, lot.dropped)
        base_to_lots[lot.old.rpartition("-")[0]].append(fields)
    olds = {lot.old for lot in successions}
    base_to_others = collections.defaultdict(list)
    for planned in plan.lots:
        if planned.name not in olds:
            base_to_others[planned.base].append(planned.name)
    return [(base, lots, base_to_others[base]) for base, lots in base_to_lots.items()]


def _succeeding_as_recorded(
    plan: LotPlan, removals: Removals, unfinished: Unfinished
) -> Iterator[tuple[str, PlannedLot | None]]:
    name_to_succession = {one.old: one for one in unfinished.successions}
    for lot in plan.lots:
        if one := name_to_succession.get(lot.name):
            dropped = {lot.places[number] for number in one.dropped}
            of_pairs = lot.without(dropped, unfinished.removal)
            of_shards = lot.without(dropped, "")
            is_of_pairs = of_pairs is not None and of_pairs.name == one.new
            yield lot.name, of_pairs if is_of_pairs else of_shards


def _finish_shards(
    run: RunFolder, options: PipelineOptions, export: Export, *, is_decided: bool
) -> Iterator[str]:
    """Training shards of what is left, if all of it is decided."""
    there = files.folders(run.root)
    formats = [one for one in NAME_TO_FORMAT.values() if one.folder in there]
    if not is_decided:
        for one in formats:
            files.delete_folder(run.root, one.folder)
            yield f"removed: {one.path(run.root)}; `curate` makes it again"
        return
    for one in formats:
        n_shards = export(run, options, one).get("shards_written", 0)
        shards = counted(n_shards, "training shard")
        yield f"written: {shards} in {one.path(run.root)}"


def today() -> str:
    """The date of a removal, for its record."""
    return time.strftime("%Y-%m-%d", time.gmtime())
