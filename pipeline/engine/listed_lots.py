"""Which lots the last command of a run had, and the patterns that found their shards.

In: a run. Out: RUN/lots/listed.json, and from it the lots of the run without another
listing of its shards. A listing that shrank though its pattern is the same is told from
one that a user changed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config.curation import CurationConfig, ImageTextSource
from pipeline.engine import lot_plan
from pipeline.engine.lot_plan import LotPlan, Role
from pipeline.sources.shards import Lot
from pipeline.storage import files, patterns
from pipeline.storage.json_files import read_json, write_json
from recipes.safe_text import visible

NAME = "lots/listed.json"

_N_NAMED = 2  # shards in one line
_MAX_CHARS = 120  # of a path in it


class Listed(NamedTuple):
    """The lots of one source or set."""

    pattern: list[str]
    lots: list[str]  # names, in the order of the run


Listing = Mapping[Role, Mapping[str, Listed]]  # by name of the source


def read(root: str) -> Listing:
    """What the last command listed; nothing before the first."""
    content = read_json(_path(root)) or {}
    return {
        role: {name: Listed(*found) for name, found in listed.items()}
        for role, listed in content.items()
    }


def count(root: str) -> int:
    """How many lots the last command had."""
    return sum(len(one.lots) for by in read(root).values() for one in by.values())


def write(
    root: str, config: CurationConfig, role_to_lots: Mapping[Role, Iterable[Lot]]
) -> None:
    """Writes down the lots of a run."""
    content: dict[Role, dict[str, Any]] = {}
    for role, sources in sets_of(config).items():
        names: dict[str, list[str]] = {source.name: [] for source in sources}
        for lot in role_to_lots[role]:
            names[lot.source.name].append(lot.name)
        content[role] = {
            s.name: (patterns.as_tuple(s.pattern), names[s.name]) for s in sources
        }
    _write(root, content)


def replace(root: str, old_to_new: Mapping[str, str]) -> None:
    """Writes down successors of lots; "" is none."""
    content = {
        role: {
            name: (one.pattern, [n for x in one.lots if (n := old_to_new.get(x, x))])
            for name, one in listed.items()
        }
        for role, listed in read(root).items()
    }
    _write(root, content)


def lots_of(
    config: CurationConfig, plan: LotPlan, root: str
) -> dict[Role, tuple[Lot, ...]]:
    """The lots that the last command had, by role."""
    listing = read(root)
    name_to_lot = {lot.name: lot for lot in plan.lots}
    role_to_lots: dict[Role, tuple[Lot, ...]] = {}
    for role, sources in sets_of(config).items():
        lots: list[Lot] = []
        for source in sources:
            one = listing.get(role, {}).get(source.name)
            names = one.lots if one else []
            planned = (name_to_lot[name] for name in names if name in name_to_lot)
            lots += (one.to_lot(source) for one in planned)
        role_to_lots[role] = tuple(lots)
    return role_to_lots


def expect_all(
    config: CurationConfig,
    plan: LotPlan,
    root: str,
    role_to_lots: Mapping[Role, Sequence[Lot]],
) -> None:
    """Raises ValueError if shards are gone that the same pattern found before."""
    for line in describe_gone(config, plan, root, role_to_lots):
        raise ValueError(line)


def describe_gone(
    config: CurationConfig,
    plan: LotPlan,
    root: str,
    role_to_lots: Mapping[Role, Sequence[Lot]],
) -> Iterator[str]:
    """Yields a line on each source that lacks shards the same pattern found before."""
    listing = read(root)
    for role, sources in sets_of(config).items():
        names = {lot.name for lot in role_to_lots[role]}
        for source in sources:
            before = listing.get(role, {}).get(source.name)
            pattern = list(patterns.as_tuple(source.pattern))
            if before is not None and before.pattern == pattern:
                lots = set(before.lots) - names
                known = {u for x in plan.lots if x.name in lots for u, _ in x.places}
                if known:
                    yield from _describe_gone(source.name, known, role_to_lots[role])


def _describe_gone(name: str, known: set[str], lots: Sequence[Lot]) -> Iterator[str]:
    of_source = (lot for lot in lots if lot.source.name == name)
    gone = sorted(known - {shard.uri for lot in of_source for shard in lot.shards})
    if gone:
        is_one = len(gone) == 1
        yield (
            f"{name}: {counted(len(gone))} of the run {'is' if is_one else 'are'} not"
            f" listed any more: {shown(gone)}; expected all that the same pattern found"
            f" before. `remove --shards` takes {'it' if is_one else 'them'} out"
        )


def counted(n: int, name: str = "shard") -> str:
    """A number of things by their name, which is that of one of them."""
    return f"{n:,} {name}" if n == 1 else f"{n:,} {name}s"


def shown(uris: Sequence[str]) -> str:
    """The first of them, in a line."""
    paths = [_shortened(uri) for uri in uris[:_N_NAMED]]
    return ", ".join([*paths, "..."] if len(uris) > _N_NAMED else paths)


def _shortened(path: str) -> str:
    return visible(path if len(path) <= _MAX_CHARS else f"...{path[-_MAX_CHARS:]}")


def sets_of(config: CurationConfig) -> dict[Role, tuple[ImageTextSource, ...]]:
    """The sources of a recipe and the sets that they are compared with, by role."""
    each = (config.sources, config.evaluation_sets, config.seed_sets)
    return dict(zip(lot_plan.ROLES, each, strict=True))


def _write(root: str, content: Mapping[Role, Any]) -> None:
    write_json(_path(root), content)


def _path(root: str) -> str:
    return files.join(root, *NAME.split("/"))
