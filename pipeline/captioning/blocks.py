"""Cuts the images of a lot that lack captions into blocks.

In: the tables of a lot. Out: blocks of images that lack the same captions, from all
shards of the lot. A block is what a worker captions at a stretch, and the most that one
loses when it dies.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import apache_beam as beam

from pipeline.captioning.captioner_handler import CaptionTarget
from pipeline.captioning.coverage import CaptionInputs
from pipeline.captioning.missing import Missing, find_missing
from pipeline.engine.caption_tables import STAGE
from pipeline.engine.counters import add_to_counter
from pipeline.records import Pair
from pipeline.sources.shards import Lot

# A multiple of usual batch sizes times devices, so that all batches of a block are
# full; at 20 images a second a worker that dies loses less than two minutes.
MAX_IMAGES = 2_048


@dataclasses.dataclass(frozen=True)
class Request:
    """A kept image, and the prompts of its missing captions."""

    pair: Pair  # without what captions do not need
    prompts: tuple[str, ...]  # one per target of the block


@dataclasses.dataclass(frozen=True)
class Block:
    """Images of a lot, in its order, that lack captions of the same targets.

    One without images stands for a lot that lacks no caption.
    """

    lot: Lot
    targets: tuple[CaptionTarget, ...] = ()
    requests: tuple[Request, ...] = ()


class PlanBlocks(beam.DoFn):
    """Yields the blocks of a lot; all but the last with the same targets are full.

    What is done before shifts no block: a run that is killed cuts the same ones again.
    """

    def __init__(
        self,
        inputs: CaptionInputs,
        targets: Sequence[CaptionTarget],
        max_images: int = MAX_IMAGES,
    ) -> None:
        self._inputs = inputs
        self._granularity_to_target = {one.granularity: one for one in targets}
        self._max_images = max_images

    def process(self, lot: Lot) -> Iterator[Block]:
        tables = self._inputs.open_captions(lot)
        granularities = tuple(self._granularity_to_target)
        found = find_missing(self._inputs, tables, granularities, lot)
        waiting: dict[tuple[CaptionTarget, ...], list[Request]]
        waiting = collections.defaultdict(list)
        is_done = True
        for _, of_pair in itertools.groupby(found, lambda one: one.number):
            targets, request = self._request(list(of_pair))
            if not targets:
                continue
            is_done = False
            waiting[targets].append(request)
            if len(waiting[targets]) == self._max_images:
                yield Block(lot, targets, tuple(waiting.pop(targets)))
        for targets, requests in waiting.items():
            yield Block(lot, targets, tuple(requests))
        if is_done:
            add_to_counter(STAGE, "lots_skipped")
            yield Block(lot)

    def _request(
        self, missing: Sequence[Missing]
    ) -> tuple[tuple[CaptionTarget, ...], Request]:
        """The captions that a pair lacks and that can be asked for, each once."""
        n_waiting = sum(one.prompt is None for one in missing)
        if n_waiting:
            add_to_counter(STAGE, "captions_waiting", n_waiting)
        asked = {
            self._granularity_to_target[one.granularity]: one.prompt
            for one in missing
            if one.prompt is not None and one.is_first
        }
        return tuple(asked), Request(missing[0].pair, tuple(asked.values()))
