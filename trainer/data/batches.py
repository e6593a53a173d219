"""Shards in, batches out, by random access: step s is a function of (seed, s).

`trainer.data.row_order` says which sample a row shows. The boxes cut from its image,
its hidden patches and its captions depend on the seed, the epoch and the sample alone.
Batches are therefore the same for any number of workers, hosts and restarts.

A record that cannot be used is skipped: another one of its set, drawn from the seed
and the position, takes its row, and the row reports which were skipped.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.images import decoder
from pipeline.images.interface import ImageFile
from pipeline.records import Sample
from trainer.config import CropConfig, DataConfig, RunConfig, SelfSupervisionConfig
from trainer.data import caption_choice, crops, patch_masks
from trainer.data.hashed_random import many_uniforms, uniforms
from trainer.data.mixture import Mixture
from trainer.data.row_order import Row
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
        """Returns one row, of a sample at a position of its set's stream.

        Raises RecordError if too many records in a row are broken.
        """
        batch = self.empty_rows(1)
        self.fill(batch, [Row(position, index, range(index, index + 1))])
        return {name: rows[0] for name, rows in batch.items()}

    def view(self, epoch: int, index: int) -> Batch:
        """Returns one sample as an epoch shows it.

        Raises RecordError if it is broken.
        """
        row = {name: rows[0] for name, rows in self.empty_rows(1).items()}
        self._write(_Work(row, index, range(index, index + 1), self._salt(epoch)))
        return row

    def empty_rows(self, n: int) -> Batch:
        """Returns room for `n` rows."""
        config, ssl = self.config, self.self_supervision
        tokens = np.int32, (n, self.tokenizer.max_tokens)
        rows: dict[str, tuple[type, tuple[int, ...]]] = {
            "image": (np.uint8, (n, *_pixels(config.global_crop))),
            "alt_text": tokens,
            "synthetic_caption": tokens,
            "sample_id": (np.uint8, (n, 16)),
            "skipped": (np.int32, (n, MAX_SKIPPED)),
        }
        if self._n_local_crops:
            shape = (n, self._n_local_crops, *_pixels(config.local_crop))
            rows["local_crops"] = np.uint8, shape
        if ssl.patch_weight:
            rows["mask"] = np.bool_, (n, *self._grid)
        return {name: np.empty(shape, dtype) for name, (dtype, shape) in rows.items()}

    def fill(self, batch: Batch, rows: Sequence[Row]) -> None:
        """Writes rows into a batch that `empty_rows` made for them.

        Each step is done for all rows before the next: code that takes turns with
        decoding is never in the processor's caches, which costs a tenth of all time.
        Raises RecordError if too many records in a row are broken.
        """
        works: dict[int, _Work] = {}
        for number, row in enumerate(rows):
            out = {name: values[number] for name, values in batch.items()}
            salt = self._salt(row.position // len(self.shards.part(row.record)))
            works[number] = _Work(out, row.record, row.block, salt)
        broken: list[tuple[Batch, Row]] = []
        for step in self._steps:
            for number, work in [*works.items()]:
                try:
                    step(work)
                except ValueError:
                    broken.append((works.pop(number).out, rows[number]))
        for unwritten, row in broken:
            self._replace(unwritten, row)

    @property
    def _steps(self) -> "Sequence[Callable[[_Work], None]]":
        """Each raises ValueError if the record is broken."""
        return self._read, self._write_texts, self._write_mask, self._plan, self._cut

    def _salt(self, epoch: int) -> str:
        return f"{self.rng_seed}:{epoch}"

    def _replace(self, out: Batch, row: Row) -> None:
        """Writes a row whose record is broken, from another one of its set."""
        part = self.shards.part(row.record)
        salt = self._salt(row.position // len(part))
        index, block = row.record, row.block
        skipped: list[int] = []
        while True:
            try:
                self._write(_Work(out, index, block, salt))
            except RecordError as error:
                if len(skipped) == MAX_SKIPPED:
                    n = f"{MAX_SKIPPED} others, drawn before it, are broken too"
                    raise RecordError(f"{error}; {n}") from error
                draw_salt = f"{self.rng_seed}:{row.position}:skipped:{len(skipped)}"
                skipped.append(index)
                (draw,) = uniforms(1, draw_salt, index.to_bytes(8))
                index = part[int(draw * len(part))]
                block = range(index, index + 1)
            else:
                out["skipped"][: len(skipped)] = skipped
                return

    def _write(self, work: "_Work") -> None:
        self._read(work)
        try:
            for step in self._steps[1:]:
                step(work)
        except ValueError as error:
            raise RecordError(f"{self.shards.place(work.index)}: {error}") from error

    def _read(self, work: "_Work") -> None:
        work.sample = self.shards.read(work.index, work.block)

    def _write_texts(self, work: "_Work") -> None:
        out, sample = work.out, work.sample
        salt = f"{work.salt}:text"
        draws = uniforms(caption_choice.N_DRAWS, salt, sample.sample_id)
        weights = self.config.granularity_weights
        texts = caption_choice.choose_texts(sample, draws, weights)
        for name, text in zip(("alt_text", "synthetic_caption"), texts, strict=True):
            self.tokenizer.write(text, out[name])
        out["sample_id"][:] = np.frombuffer(sample.sample_id, np.uint8)
        out["skipped"][:] = -1

    def _write_mask(self, work: "_Work") -> None:
        if "mask" in work.out:
            work.out["mask"][:] = self._mask(work.sample, work.salt)

    def _plan(self, work: "_Work") -> None:
        """Draws the crops of an image, by its size."""
        sample = work.sample
        work.image = decoder.open_image(sample.image, formats=(sample.image_format,))
        size = work.image.size
        draws = uniforms(crops.N_DRAWS, f"{work.salt}:crop", sample.sample_id)
        work.global_crop = crops.random_crop(*size, draws, self.config.global_crop)
        work.local_crops = self._local_crops(size, work.salt, sample.sample_id)

    def _cut(self, work: "_Work") -> None:
        """Decodes once, at no more than the resolution that the crops need."""
        reduction = crops.reduction([work.global_crop, *work.local_crops])
        image, factor = work.image.decode_fast(reduction)
        crops.cut(image, work.global_crop, factor, work.out["image"])
        for number, crop in enumerate(work.local_crops):
            crops.cut(image, crop, factor, work.out["local_crops"][number])

    @property
    def _n_local_crops(self) -> int:
        is_used = self.self_supervision.distillation_weight > 0
        return self.config.n_local_crops if is_used else 0

    @property
    def _grid(self) -> tuple[int, int]:
        side = self.config.global_crop.size_px // self.patch_size_px
        return side, side

    def _local_crops(
        self, size: tuple[int, int], salt: str, sample_id: bytes
    ) -> list[crops.Crop]:
        n = self._n_local_crops
        if not n:
            return []
        draws = many_uniforms(n * crops.N_DRAWS, f"{salt}:local_crops", sample_id)
        draws = draws.reshape(n, crops.N_DRAWS)
        return crops.random_crops(*size, draws, self.config.local_crop)

    def _mask(self, sample: Sample, salt: str) -> patch_masks.Mask:
        config, grid = self.self_supervision, self._grid
        n = patch_masks.n_draws(grid)
        draws = many_uniforms(n, f"{salt}:mask", sample.sample_id)
        return patch_masks.draw_mask(config.masking, grid, config.mask_ratio, draws)


@dataclasses.dataclass(slots=True)
class _Work:
    """A row in the making: each step sets what the next ones need."""

    out: Batch
    index: int
    block: range
    salt: str
    sample: Sample = dataclasses.field(init=False)
    image: ImageFile = dataclasses.field(init=False)
    global_crop: crops.Crop = dataclasses.field(init=False)
    local_crops: list[crops.Crop] = dataclasses.field(init=False)


def _pixels(config: CropConfig) -> tuple[int, int, int]:
    return config.size_px, config.size_px, 3


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
