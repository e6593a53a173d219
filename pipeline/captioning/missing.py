"""The captions that kept images lack, as the stage makes them and as they are counted.

In: the tables of pairs, decisions and captions. Out: each missing caption once.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from pipeline.captioning import imported
from pipeline.captioning.coverage import CaptionInputs
from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.config.prompts import prompt_hash
from pipeline.engine.caption_tables import CaptionTables, Key, captions_of, prompt_of
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Pair
from pipeline.sources.shards import Lot


@dataclasses.dataclass(frozen=True)
class Missing:
    """An image without a caption of a granularity, or that shares a missing one.

    Attributes:
      number: of the pair among the kept ones of its lot.
      prompt: None while captions that it names are missing.
      waits_for: the granularities of those captions.
      is_first: whether no pair before lacks the same caption.
    """

    number: int
    pair: Pair
    granularity: Granularity
    prompt: str | None
    waits_for: tuple[str, ...] = ()
    is_first: bool = True


def find_missing(
    inputs: CaptionInputs,
    tables: Mapping[str, CaptionTables],
    granularities: Sequence[Granularity],
    lot: Lot,
) -> Iterator[Missing]:
    """Yields what kept pairs lack, pair by pair, in the order of the granularities."""
    done = {g.name: tables[g.name].keys(lot) for g in granularities}
    asked: set[tuple[str, Key]] = set()
    for number, (pair, known) in enumerate(
        _with_captions(inputs, tables, granularities, lot)
    ):
        for granularity in granularities:
            prompt = prompt_of(granularity, pair, known)
            if prompt is None:
                names = prompts.upstream(granularity.prompt)
                waits_for = tuple(name for name in names if not known.get(name))
                yield Missing(number, pair, granularity, None, waits_for)
                continue
            key = (pair.image_hash, prompt_hash(prompt))
            if key not in done[granularity.name]:
                is_first = (granularity.name, key) not in asked
                asked.add((granularity.name, key))
                yield Missing(number, pair, granularity, prompt, (), is_first)


def _with_captions(
    inputs: CaptionInputs,
    tables: Mapping[str, CaptionTables],
    granularities: Sequence[Granularity],
    lot: Lot,
) -> Iterator[tuple[Pair, Mapping[str, Sequence[str]]]]:
    """Yields kept pairs with their captions, as far as a prompt may name them."""
    if not any(prompts.upstream(granularity.prompt) for granularity in granularities):
        for pairs in inputs.kept_pairs(lot):
            yield from zip(pairs, itertools.repeat({}))
        return
    texts = inputs.texts(lot, tables)
    for pairs in inputs.kept_pairs(lot):
        captions = captions_of(pairs, inputs.granularities, texts)
        yield from zip(pairs, captions, strict=True)


@dataclasses.dataclass
class Count:
    """How many captions of one granularity are missing.

    Attributes:
      lot_to_n: prompts of images by lot, without lots that lack nothing.
      n_images: images that lack a caption; those of several lots count in each.
      is_exact: whether no prompt waits for a caption that is itself missing. Otherwise
        the numbers are the most there can be.
    """

    lot_to_n: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    n_images: int = 0
    is_exact: bool = True


def count_missing(
    run: RunFolder, granularities: Sequence[Granularity]
) -> dict[Granularity, Count]:
    """Counts what `caption` would make; imported captions are none.

    All pairs have to be decided. Reads the kept pairs of the run in this process.
    """
    inputs = CaptionInputs.of(run)
    tables = inputs.open_captions()
    levels = prompts.levels(run.config.granularities)
    ordered = [g for level in levels for g in level if g in granularities]
    granularity_to_count = {g: Count() for g in ordered if g.captioner != "imported"}
    # Whether a text comes is seen when all files are read: any image may get one.
    coming = {
        g.name
        for g in ordered
        if g.captioner == "imported" and not imported.is_complete(run, g)
    }
    made = tuple(granularity_to_count)
    for lot in run.lots:
        for granularity, keys in _keys_of(inputs, tables, made, lot, coming):
            count = granularity_to_count[granularity]
            count.lot_to_n[lot.name] += len(keys)
            count.n_images += len({key[0] for key in keys})
            count.is_exact &= all(len(key) == 2 for key in keys)
    return granularity_to_count


def _keys_of(
    inputs: CaptionInputs,
    tables: Mapping[str, CaptionTables],
    granularities: Sequence[Granularity],
    lot: Lot,
    imports: set[str],
) -> Iterator[tuple[Granularity, set[tuple]]]:
    """What identifies the missing captions of a lot, for granularities that lack any.

    A caption whose prompt is not known yet is identified by the prompts that lead to
    it, as far as they are known: as many as there can be.
    """
    keys: dict[Granularity, set[tuple]] = collections.defaultdict(set)
    number, coming = -1, set(imports)
    for one in find_missing(inputs, tables, granularities, lot):
        if one.number != number:  # of the next pair
            number, coming = one.number, set(imports)
        granularity, pair = one.granularity, one.pair
        if one.prompt is not None:
            keys[granularity].add((pair.image_hash, prompt_hash(one.prompt)))
        elif not coming.issuperset(one.waits_for):
            continue  # what it waits for has failed, or is not asked for
        else:
            path = _path(granularity, pair, inputs.granularities)
            keys[granularity].add((pair.image_hash, "waits", path))
        coming.add(granularity.name)
    yield from keys.items()


def _path(
    granularity: Granularity, pair: Pair, known: Sequence[Granularity]
) -> tuple[str, ...]:
    """The prompts that lead to a caption, without the captions that they name."""
    nothing: Mapping[str, str] = collections.defaultdict(str)
    name_to_granularity = {one.name: one for one in known}
    names = prompts.upstream(granularity.prompt)
    before = [_path(name_to_granularity[name], pair, known) for name in names]
    own = prompts.filled(granularity.prompt, pair.alt_text, nothing)
    return (own, *(prompt for path in before for prompt in path))
