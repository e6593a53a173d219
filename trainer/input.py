"""Shards in, batches out: by random access, so that step s is a function of (seed, s).

Every epoch is shuffled anew over all samples. Position p of the endless stream is row
p mod B of batch p div B; which sample stands there, which box is cut from its image and
which captions it shows depend on the seed, the epoch and the sample alone. Batches are
therefore the same for any number of workers, hosts and restarts.
"""

import dataclasses
from collections.abc import Mapping

import grain
import numpy as np
from absl import flags

from pipeline.records import Sample
from trainer import captions, crops, images
from trainer.chance import uniforms
from trainer.config import DataConfig, RunConfig
from trainer.shards import RecordError, Shards
from trainer.tokenizer import Tokenizer

# image: uint8 (b, h, w, 3); alt_text and synthetic_caption: int32 (b, t) token ids;
# sample_id: uint8 (b, 16).
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ViewSample:
    """Maps a position of the stream and the sample there to one row of a batch."""

    shards: Shards
    tokenizer: Tokenizer
    config: DataConfig
    rng_seed: int

    def __call__(self, position: int, index: int) -> Batch:
        """Raises RecordError when the record is broken."""
        sample = self.shards[index]
        epoch = position // len(self.shards)
        try:
            return self._view(sample, f"{self.rng_seed}:{epoch}")
        except ValueError as error:
            raise RecordError(f"{self.shards.place(index)}: {error}") from error

    def _view(self, sample: Sample, salt: str) -> Batch:
        config = self.config
        crop_draws = uniforms(crops.N_DRAWS, f"{salt}:crop", sample.sample_id)
        text_draws = uniforms(captions.N_DRAWS, f"{salt}:text", sample.sample_id)
        texts = captions.choose(sample, text_draws, config.granularity_weights)
        alt_text, synthetic_caption = self.tokenizer(texts)
        image = images.decode(sample.image, sample.image_format)
        return {
            "image": crops.global_crop(image, crop_draws, config.global_crop),
            "alt_text": alt_text,
            "synthetic_caption": synthetic_caption,
            "sample_id": np.frombuffer(sample.sample_id, np.uint8),
        }


def batches(view: ViewSample, run: RunConfig) -> grain.DatasetIterator[Batch]:
    """An endless stream of batches, whose state is the position in it."""
    if run.n_workers:
        # Grain's workers read absl flags, which a program without absl never parses.
        flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers=run.n_workers)
    else:
        processes = None
    stream = (
        grain.MapDataset.range(len(view.shards))
        .seed(view.rng_seed)
        .shuffle()
        .repeat()
        .map_with_index(view)
    )
    elastic = grain.experimental.ElasticIterator(
        stream,
        view.config.batch_size,
        grain.sharding.ShardOptions(shard_index=0, shard_count=1),
        read_options=grain.ReadOptions(
            num_threads=run.n_threads, prefetch_buffer_size=run.n_threads
        ),
        multiprocessing_options=processes,
    )
    return iter(elastic)


def check_request(shards: Shards, config: DataConfig) -> None:
    """Raises ValueError when the shards cannot serve what the configuration asks."""
    for name in config.granularity_weights:
        if name not in shards.granularities:
            found = ", ".join(shards.granularities) or "none"
            raise ValueError(
                f"data.granularity_weights: {name}, expected granularities of the"
                f" shards: {found}"
            )
    if config.batch_size > len(shards):
        raise ValueError(
            f"data.batch_size={config.batch_size}: expected at most {len(shards)},"
            " the number of samples"
        )
