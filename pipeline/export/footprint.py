"""Bytes and files of the stage export, for the forecast.

In: a run whose pairs are decided. Out: the size of its training records, which takes
making some of them, and the number of its files.
"""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.config.curation import ExportConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.export import manifest, tfrecords
from pipeline.export.samples import KeptPair, LotSamples, SampleTables, with_image
from pipeline.sources import shards
from pipeline.sources.shards import Lot

N_SHUFFLES = 1  # of all lots
_N_WEIGHED = 256  # kept pairs of a lot that are made into records to weigh them


def record_bytes(run: RunFolder, name_to_lot: Mapping[str, Lot]) -> np.ndarray:
    """Mean bytes of a kept pair in the training shards, by lot: float64 [lots].

    Makes records of some pairs of each lot, with the captions that exist.

    Args:
      run: a sample of a run.
      name_to_lot: name of each lot of the sample to the lot of the run that has its
        shard, and captions.
    """
    tables = SampleTables.of(run)
    captions = {
        granularity: found.of_samples(name_to_lot)
        for granularity, found in tables.open_captions().items()
    }
    found = []
    for lot in run.lots:
        chunks = LotSamples(tables, captions, lot).read()
        kept = [one for chunk in chunks for one in chunk.kept]
        by_chance = sorted(kept, key=lambda one: one.pair.sample_id)
        some = sorted(by_chance[:_N_WEIGHED], key=lambda one: one.row)
        found.append(_weigh(run, lot, some) / max(len(some), 1))
    return np.array(found)


def _weigh(run: RunFolder, lot: Lot, kept: Sequence[KeptPair]) -> int:
    """Bytes of the records of some pairs and of their index."""
    encoded = shards.read_images(lot, [one.pair for one in kept])
    records = (
        with_image(one.sample, image, run.config.export, run.config.limits)
        for one, image in zip(kept, encoded, strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "records")
        index = tfrecords.write_local(path, records)
        return os.path.getsize(path) + index.nbytes


def count_weighed(n_kept: np.ndarray) -> int:
    """Records that `record_bytes` makes; `n_kept` has the kept pairs of each lot."""
    return int(np.minimum(n_kept, _N_WEIGHED).sum())


def n_shards(config: ExportConfig, kept_per_lot: float) -> int:
    """Training shards of one lot, of which only the last is not full."""
    return math.ceil(kept_per_lot / config.samples_per_shard)


def n_files(config: ExportConfig, kept_per_lot: float) -> int:
    """Files of one lot: its training shards and its receipt."""
    return n_shards(config, kept_per_lot) * len(manifest.file_names(["train"])) + 1
