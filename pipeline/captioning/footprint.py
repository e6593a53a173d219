"""Images, bytes and tables of the stage caption, for the forecast.

In: a run, its kept pairs and the captions that exist. Out: how many images it captions,
and what its tables take.
"""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence

from pipeline.captioning.blocks import MAX_IMAGES
from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Pair
from pipeline.sources.shards import Lot
from pipeline.storage.tables import FILES_PER_TABLE


def count_images(granularity: Granularity, kept: Sequence[Pair]) -> int:
    """Images of a shard that a granularity captions.

    Equal images with equal prompts are captioned once, imported captions cost nothing.
    """
    if granularity.captioner == "imported":
        return 0
    nothing: Mapping[str, str] = collections.defaultdict(str)
    template = granularity.prompt
    return len(
        {(p.image_hash, prompts.filled(template, p.alt_text, nothing)) for p in kept}
    )


def n_image_reads(config: CurationConfig) -> int:
    """How often each kept image is read: once per captioner."""
    captioners = {
        (g.checkpoint, g.revision)
        for g in config.granularities
        if g.captioner != "imported"
    }
    return len(captioners)


def n_shuffles(config: CurationConfig) -> int:
    """How often all lots are shuffled: twice per model, and once before."""
    return 1 + 2 * len({g.checkpoint for g in config.granularities})


def caption_bytes(run: RunFolder, lots: Iterable[Lot]) -> dict[str, float]:
    """Returns granularity to bytes per caption, of granularities with captions of the
    lots."""
    lots, found = set(lots), {}
    for granularity in run.config.granularities:
        captions = CaptionTables.open(run.captions(granularity))
        names = [name for lot in lots for name in captions.names(lot)]
        n_bytes = captions.tables.sizes(names).sum()
        rows = sum(captions.tables.read_summary(name)["rows"] for name in names)
        if rows:
            found[granularity.name] = float(n_bytes / rows)
    return found


def n_blocks(images_per_lot: float) -> int:
    """Blocks in which a lot is captioned, of which only the last is not full."""
    return math.ceil(images_per_lot / MAX_IMAGES)


def n_files(config: CurationConfig, images_per_lot: float) -> int:
    """Files of one lot: its flags, and for each block and granularity a table of
    captions, of their languages and, if it is measured, of their alignment."""
    n_granularities = len(config.granularities)
    n_each = 3 if config.caption_quality.measure_alignment else 2
    n_tables = n_granularities * n_each * n_blocks(images_per_lot)
    return FILES_PER_TABLE * (n_tables + bool(n_granularities))
