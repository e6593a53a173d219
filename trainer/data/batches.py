"""Shards in, batches out, by random access: step s is a function of (seed, s).

Every epoch of a set is shuffled again, over all its samples or, to spare an object
store requests, in blocks of them. Several sets take turns by their weights. Position p
of the endless stream is row p mod B of batch p div B. The sample at a position, the
boxes cut from its image, its hidden patches and its captions depend on the seed, the
epoch and the sample alone. Batches are therefore the same for any number of workers,
hosts and restarts.

A record that cannot be used is skipped: another one of its set, drawn from the seed
and the position, takes its row, and the row reports which were skipped.
"""

import dataclasses
import logging
from collections.abc import Mapping

import grain
import numpy as np
from absl import flags
from jaxtyping import UInt8

from pipeline.images import decoder
from pipeline.records import Sample
from trainer.config import DataConfig, RunConfig, SelfSupervisionConfig
from trainer.data import caption_choice, crops, patch_masks
from trainer.data.block_shuffle import BlockOrder
from trainer.data.hashed_random import many_uniforms, uniforms
from trainer.data.mixture import Mixture
from trainer.data.shards import RecordError, check_share
from trainer.data.text_tokenizer import Tokenizer

# image: uint8 (b, h, w, 3); alt_text and synthetic_caption: int32 (b, t) token ids;
# sample_id: uint8 (b, 16); skipped: int32 (b, MAX_SKIPPED), numbers of the records that
# were skipped for this row, then -1. With the loss that needs it, local_crops: uint8
# (b, crops, h, w, 3); mask: bool (b, rows, columns) of patches, True = hidden.
Batch = Mapping[str, np.ndarray]

MAX_SKIPPED = 7  # in a row; more are not by chance


@dataclasses.dataclass(frozen=True)
class ViewSample:
    """Maps a position of a set's stream and the sample there to one row of a batch."""

    shards: Mixture
    tokenizer: Tokenizer
    config: DataConfig
    rng_seed: int
    self_supervision: SelfSupervisionConfig
    patch_size_px: int

    def __call__(self, position: int, index: int) -> Batch:
        """Returns one row.

        Raises RecordError if too many records in a row are broken.
        """
        part = self.shards.part(index)
        skipped: list[int] = []
        while True:
            try:
                row = self.view(position // len(part), index)
            except RecordError as error:
                if len(skipped) == MAX_SKIPPED:
                    n = f"{MAX_SKIPPED} others, drawn before it, are broken too"
                    raise RecordError(f"{error}; {n}") from error
                salt = f"{self.rng_seed}:{position}:skipped:{len(skipped)}"
                skipped.append(index)
                (draw,) = uniforms(1, salt, index.to_bytes(8))
                index = part[int(draw * len(part))]
            else:
                filled = [*skipped, *[-1] * (MAX_SKIPPED - len(skipped))]
                return {**row, "skipped": np.array(filled, np.int32)}

    def view(self, epoch: int, index: int) -> Batch:
        """Returns one sample as an epoch shows it.

        Raises RecordError if it is broken.
        """
        sample = self.shards[index]
        try:
            return self._view(sample, f"{self.rng_seed}:{epoch}")
        except ValueError as error:
            raise RecordError(f"{self.shards.place(index)}: {error}") from error

    def _view(self, sample: Sample, salt: str) -> Batch:
        text_draws = uniforms(caption_choice.N_DRAWS, f"{salt}:text", sample.sample_id)
        weights = self.config.granularity_weights
        texts = caption_choice.choose_texts(sample, text_draws, weights)
        alt_text, synthetic_caption = self.tokenizer(texts)
        return {
            **self._crops(sample, salt),
            **self._mask(sample, salt),
            "alt_text": alt_text,
            "synthetic_caption": synthetic_caption,
            "sample_id": np.frombuffer(sample.sample_id, np.uint8),
        }

    def _crops(self, sample: Sample, salt: str) -> Batch:
        """Decodes once, at no more than the resolution that the crops need."""
        config = self.config
        opened = decoder.open_image(sample.image, formats=(sample.image_format,))
        size = opened.size
        draws = uniforms(crops.N_DRAWS, f"{salt}:crop", sample.sample_id)
        global_crop = crops.random_crop(*size, draws, config.global_crop)
        local_crops = self._local_crops(size, salt, sample.sample_id)
        image, factor = opened.decode_fast(crops.reduction([global_crop, *local_crops]))
        views = {"image": cut_crops(image, [global_crop], factor)[0]}
        if local_crops:
            views["local_crops"] = cut_crops(image, local_crops, factor)
        return views

    def _local_crops(
        self, size: tuple[int, int], salt: str, sample_id: bytes
    ) -> list[crops.Crop]:
        if not self.self_supervision.distillation_weight:
            return []
        n = self.config.n_local_crops
        draws = many_uniforms(n * crops.N_DRAWS, f"{salt}:local_crops", sample_id)
        draws = draws.reshape(n, crops.N_DRAWS)
        return crops.random_crops(*size, draws, self.config.local_crop)

    def _mask(self, sample: Sample, salt: str) -> Batch:
        config = self.self_supervision
        if not config.patch_weight:
            return {}
        side = self.config.global_crop.size_px // self.patch_size_px
        grid = (side, side)
        draws = many_uniforms(
            patch_masks.n_draws(grid), f"{salt}:mask", sample.sample_id
        )
        return {
            "mask": patch_masks.draw_mask(
                config.masking, grid, config.mask_ratio, draws
            )
        }


def cut_crops(
    image: UInt8[np.ndarray, "h w 3"], chosen: list[crops.Crop], factor: int
) -> UInt8[np.ndarray, "crops size size 3"]:
    """Cuts crops of one size, each written directly to its place."""
    size_px = chosen[0].size_px
    views = np.empty((len(chosen), size_px, size_px, 3), np.uint8)
    for crop, out in zip(chosen, views, strict=True):
        crops.cut(image, crop, factor, out)
    return views


def stream_batches(
    view: ViewSample, run: RunConfig, *, shard_index: int = 0, shard_count: int = 1
) -> grain.DatasetIterator[Batch]:
    """Returns an endless iterator of batches, whose state is the position in it.

    With `shard_count` processes, process `shard_index` reads rows `shard_index`,
    `shard_index + shard_count` and so on of each batch of `batch_size` rows. The state
    depends on neither. Raises ValueError if the processes cannot share a batch evenly.
    """
    n_rows = view.config.batch_size
    if n_rows % shard_count:
        raise ValueError(
            f"data.batch_size={n_rows}: expected a multiple of {shard_count}, the"
            " number of processes"
        )
    if run.n_workers:
        # Grain's workers read absl flags, which a program without absl never parses.
        flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers=run.n_workers)
    else:
        processes = None
    shards = view.shards.in_blocks(
        view.config.n_records_per_block,
        # Each thread reads its own window, and one of them starts the next.
        (run.n_threads + 1) * view.config.n_blocks_per_window,
    )
    elastic = grain.experimental.ElasticIterator(
        _stream_rows(dataclasses.replace(view, shards=shards)),
        n_rows,
        grain.sharding.ShardOptions(shard_index, shard_count),
        read_options=grain.ReadOptions(
            num_threads=run.n_threads, prefetch_buffer_size=run.n_threads
        ),
        multiprocessing_options=processes,
    )
    return iter(elastic)


def _stream_rows(view: ViewSample) -> grain.MapDataset:
    """Rows without end. Sets take turns, evenly, within 1 % of their weights.

    Each set has its own seed: otherwise two recipes of one pool would show their
    versions of a sample side by side.
    """
    streams = [
        _shuffle(part, (view.rng_seed + number) % 2**32, view.config)
        for number, part in enumerate(view.shards.parts)
    ]
    rows = [stream.map_with_index(view) for stream in streams]
    if len(rows) == 1:
        return rows[0]
    return grain.MapDataset.mix(rows, view.shards.weights)


def _shuffle(part: range, seed: int, config: DataConfig) -> grain.MapDataset[int]:
    """The samples of a set without end, each epoch in its own order."""
    samples = grain.MapDataset.range(part.start, part.stop)
    if config.n_records_per_block == 1:
        return samples.seed(seed).shuffle().repeat()
    order = BlockOrder(
        part, config.n_records_per_block, config.n_blocks_per_window, seed
    )
    return samples.repeat().map_with_index(order)


class SkippedRecords:
    """Counts the skipped records of this process's rows, and warns once of each.

    `n_shown` and `n_skipped` are the counts of the steps before.
    """

    def __init__(
        self,
        view: ViewSample,
        max_share: float = RunConfig.max_skipped_share,
        *,
        n_shown: int = 0,
        n_skipped: int = 0,
    ):
        self._view = view
        self._max_share = max_share
        self._n_shown = n_shown
        self._n_skipped = n_skipped
        self._named: set[int] = set()

    def count(self, batch: Batch) -> int:
        """Returns how many records were skipped for this batch.

        Raises RecordError if more than `max_share` of all records were skipped.
        """
        skipped = batch["skipped"][batch["skipped"] >= 0].tolist()
        for index in sorted({*skipped} - self._named):
            logging.warning("skipped %s", self._reason(index))
        self._named.update(skipped)
        self._n_shown += len(batch["skipped"])
        self._n_skipped += len(skipped)
        n_drawn, n_records = self._n_shown + self._n_skipped, len(self._view.shards)
        check_share(self._n_skipped, n_drawn, n_records, self._max_share)
        return len(skipped)

    def _reason(self, index: int) -> str:
        """Reads the record again: loaders in other processes report only its number."""
        try:
            self._view.view(0, index)
        except RecordError as error:
            return str(error)
        return f"{self._view.shards.place(index)}: broken when it was first read"


def check_request(shards: Mixture, config: DataConfig) -> None:
    """Raises ValueError if the shards cannot serve the configuration."""
    for name in config.granularity_weights:
        if name not in (*shards.granularities, caption_choice.ALT_TEXT):
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
