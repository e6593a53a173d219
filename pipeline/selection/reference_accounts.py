"""Accounts of evaluation and seed sets: which images the pool is compared with.

In: the scored images of the sets. Out: their part of the ledger, in which read =
compared + the sum of `not_compared` for each set; a file that names each image that
nothing is compared with, and why; and lines that warn of such images.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config.duplicates import ENCODER, Descriptor
from pipeline.config.selection import SelectionConfig, needs_seeds
from pipeline.engine.run_folder import SET_ROLES, RunFolder
from pipeline.selection.lot_decisions import to_objects
from pipeline.selection.search.embeddings import normalize, read_matrix_blocks
from pipeline.sources.shards import Lot
from pipeline.storage import files
from recipes.safe_text import visible

FILE_NAME = "not_compared.jsonl"  # beside the decisions
UNUSED = "no step of the recipe compares with them"

_ROLE_TO_NAME = {"evaluation": "evaluation_sets", "seeds": "seed_sets"}
_ROLE_TO_IMAGES = {"evaluation": "evaluation images", "seeds": "seed images"}
_VARIES = re.compile(
    r"b'[^']*'|b\"[^\"]*\"|\d+"
)  # from image to image, in an error, in an error
_MAX_REASON_CHARS = 100
_N_REASONS = 20  # in the ledger; all others are one
_N_SHOWN = 3  # reasons and keys in a line


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An image of a set that nothing is compared with, and the reason."""

    role: str
    set_name: str
    shard: str
    key: str  # "" stands for the part of a shard that cannot be read
    error: str


@dataclasses.dataclass(frozen=True)
class _Set:
    """The account of one set."""

    role: str
    name: str
    n_read: int
    n_unused: int  # readable ones, if no step compares with them
    left_out: tuple[LeftOut, ...]
    n_unreadable: int  # of those

    def to_json(self) -> dict[str, Any]:
        n_left_out = len(self.left_out) + self.n_unused
        reasons = _group_errors([one.error for one in self.left_out])
        if self.n_unused:
            reasons[UNUSED] = self.n_unused
        return {
            "read": self.n_read,
            "compared": self.n_read - n_left_out,
            "unreadable": self.n_unreadable,
            "not_compared": reasons,
            "broken_shards": sum(not one.key for one in self.left_out),
            "such_as": [visible(one.key, 60) for one in self.left_out if one.key][
                :_N_SHOWN
            ],
        }


def make_accounts(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Counts the images of all sets by role and set; lists the others in a file.

    Raises:
      ValueError: if more of a set is not compared than the recipe allows.
    """
    sets = list(_read_sets(run))
    max_share = run.config.selection.max_unreadable_reference_share
    for one in sets:
        _expect_enough(one.role, one.name, one.to_json(), max_share)
    lines = [
        json.dumps(dataclasses.asdict(left_out)) + "\n"
        for one in sets
        for left_out in one.left_out
    ]
    if lines:
        files.write(_path(run), "".join(lines).encode())
    return {
        role: {one.name: one.to_json() for one in sets if one.role == role}
        for role in SET_ROLES
    }


def warnings(run: RunFolder, ledger: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each set with images that were not compared."""
    for role in SET_ROLES:
        for name, counts in ledger.get(role, {}).items():
            if counts["not_compared"] and UNUSED not in counts["not_compared"]:
                yield f"{name}: {describe_missing(role, counts)}; all in {_path(run)}"


def describe_missing(role: str, counts: Mapping[str, Any]) -> str:
    """How many images of a set were not compared, and why, in one line."""
    n_left_out, n_unreadable = counts["read"] - counts["compared"], counts["unreadable"]
    cannot = "cannot be read and were not compared"
    if n_unreadable < n_left_out:
        cannot = f"were not compared, {n_unreadable:,} cannot be read"
    shown = list(counts["not_compared"].items())[:_N_SHOWN]
    reasons = ", ".join(f"{reason} ({n:,})" for reason, n in shown)
    more = ", ..." if len(counts["not_compared"]) > _N_SHOWN else ""
    text = f"{n_left_out:,} of {counts['read']:,} {_ROLE_TO_IMAGES[role]} {cannot}:"
    text += f" {reasons}{more}"
    if counts["such_as"]:
        text += f"; such as {', '.join(counts['such_as'])}"
    if n_shards := counts["broken_shards"]:
        text += f"; {n_shards:,} of its shards cannot be read to the end, so that it"
        text += " is not known how many more there are"
    return text


def _path(run: RunFolder) -> str:
    return files.join(run.decisions.folder, FILE_NAME)


def _read_sets(run: RunFolder) -> Iterator[_Set]:
    descriptors = _descriptors(run.config.selection)
    role_to_lots = zip(SET_ROLES, (run.evaluation_lots, run.seed_lots), strict=True)
    for role, lots in role_to_lots:
        name_to_lots = collections.defaultdict(list)
        for lot in lots:
            name_to_lots[lot.source.name].append(lot)
        for name, mine in sorted(name_to_lots.items()):
            yield _read_set(run, role, name, mine, descriptors[role])


def _descriptors(selection: SelectionConfig) -> dict[str, tuple[Descriptor, ...]]:
    """The descriptors by which images are compared with the sets of each role."""
    bounds = selection.evaluation_bounds
    is_searched = selection.retrieval or needs_seeds(selection.balance)
    by_bounds = tuple(bound.descriptor for bound in bounds)
    by_role = (by_bounds, (ENCODER,) if is_searched else ())
    return dict(zip(SET_ROLES, by_role, strict=True))


def _read_set(
    run: RunFolder,
    role: str,
    name: str,
    lots: Sequence[Lot],
    descriptors: Sequence[Descriptor],
) -> _Set:
    """Counts the images of a set, shard by shard, and those without a vector."""
    n_read = n_unreadable = 0
    left_out: list[LeftOut] = []
    for lot in lots:
        table = run.pairs(lot.source).read(lot.name, ["key", "error", "shard"])
        keys, errors = to_objects(table["key"]), to_objects(table["error"])
        shards = table["shard"].to_pylist()
        n_read += len(errors)
        n_unreadable += int((errors != "").sum())
        for descriptor in descriptors:
            blocks = read_matrix_blocks(run.comparing(descriptor), lot)
            has_direction = [
                errors[:0] == "",
                *(normalize(block)[1] for block in blocks),
            ]
            is_lost = (errors == "") & ~np.concatenate(has_direction)
            errors[is_lost] = f"no embedding by {descriptor.name}"
        left_out += [
            LeftOut(role, name, lot.shards[shards[row]].uri, keys[row], errors[row])
            for row in np.flatnonzero(errors != "")
        ]
    n_unused = 0 if descriptors else n_read - len(left_out)
    return _Set(role, name, n_read, n_unused, tuple(left_out), n_unreadable)


def expect_enough(run: RunFolder, ledger: Mapping[str, Any]) -> None:
    """Raises ValueError if a ledger has a set of which too little was compared."""
    max_share = run.config.selection.max_unreadable_reference_share
    for role in SET_ROLES:
        for name, counts in ledger.get(role, {}).items():
            _expect_enough(role, name, counts, max_share)


def _expect_enough(
    role: str, set_name: str, counts: Mapping[str, Any], max_share: float
) -> None:
    n_read = counts["read"]
    n_left_out = n_read - counts["compared"]
    if UNUSED in counts["not_compared"] or n_left_out == 0:
        return
    if n_left_out == n_read:
        expected = "at least one readable image"
    elif n_left_out > max_share * n_read:
        bound = f"max_unreadable_reference_share={max_share}"
        expected = f"{bound} of it at most to be left out"
    else:
        return
    name, missing = _ROLE_TO_NAME[role], describe_missing(role, counts)
    raise ValueError(f"{name}={set_name}: expected {expected}: {missing}")


def _group_errors(errors: Sequence[str]) -> dict[str, int]:
    """The number of errors of each kind, the most frequent kind first."""
    kinds = (visible(_VARIES.sub("...", e), _MAX_REASON_CHARS) for e in errors)
    counts = collections.Counter(kinds)
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_N_REASONS]
    n_others = len(errors) - sum(n for _, n in most)
    return dict(most) | ({"other reasons": n_others} if n_others else {})
