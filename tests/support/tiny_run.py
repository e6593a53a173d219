"""A run folder whose scores and decisions are written by hand, and a fake captioner."""

import collections
import dataclasses
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from pipeline import records
from pipeline.captioning.captioner_handler import CaptionerHandler
from pipeline.config import curation
from pipeline.config.captions import Granularity
from pipeline.config.prompts import prompt_hash
from pipeline.config.selection import SelectionConfig
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.lot_plan import singles
from pipeline.engine.run_folder import RunFolder
from pipeline.images import decoder as images
from pipeline.models.interfaces import Caption
from pipeline.records import FinishReason
from pipeline.sources import shards
from pipeline.storage.tables import to_table

SHORT = Granularity("short", "tiny", "cap en", max_new_tokens=4, batch_size=4)
LONG = Granularity("long", "tiny", "describe en", max_new_tokens=9, batch_size=4)


@dataclasses.dataclass(frozen=True)
class Row:
    """One pair of a source shard, and what was decided on it."""

    image: bytes
    alt_text: str = "a text"
    outcome: str = records.KEPT
    score: float = 0.25
    seeds: tuple[str, ...] = ()
    url: str = ""


def encoded(color: Sequence[int], size: tuple[int, int] = (12, 8), **options) -> bytes:
    """A plain image as a PNG, unless `format` says otherwise."""
    file = io.BytesIO()
    Image.new("RGB", size, tuple(color)).save(file, **{"format": "PNG"} | options)
    return file.getvalue()


def plain_rows(n_rows: int, first: int = 0) -> list[Row]:
    """Rows whose red channel is their number."""
    return [Row(encoded((first + i, 7, 9)), f"text {first + i}") for i in range(n_rows)]


def write_shard(path: Path, rows: Iterable[Row]) -> None:
    """Writes an img2dataset tar; its time depends on its bytes, so that a shard that is
    written again is the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            for suffix, data in (("jpg", row.image), ("txt", row.alt_text.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    time_s = int.from_bytes(records.content_hash(path.read_bytes())[:4], "big")
    os.utime(path, (time_s, time_s))


def make_run(
    root: Path, stem_to_rows: Mapping[str, Sequence[Row]], **changes
) -> RunFolder:
    """A run over `root/crawl/<stem>.tar` with pairs, scores and decisions.

    `changes` are fields of the configuration.
    """
    source = curation.ImageTextSource("web", str(root / "crawl" / "*.tar"))
    settings = curation.CurationConfig(
        encoder=curation.EncoderConfig("tiny"),
        sources=(source,),
        granularities=(SHORT, LONG),
        selection=SelectionConfig(),
    )
    settings = dataclasses.replace(settings, **changes)
    for stem, rows in stem_to_rows.items():
        write_shard(root / "crawl" / f"{stem}.tar", rows)
    lots = tuple(u for s in settings.sources for u in singles(s))
    checkpoints = {"tiny": "d0"} | {g.checkpoint: "d1" for g in settings.granularities}
    run = RunFolder(str(root / "run"), settings, lots, (), (), checkpoints)
    for lot in lots:
        write_tables(run, lot, stem_to_rows[Path(lot.shards[0].uri).stem])
    return run


def write_tables(run: RunFolder, lot: shards.Lot, rows: Sequence[Row]) -> None:
    """What `score` and `select` would write of a lot."""
    with tarfile.open(lot.shards[0].uri) as tar:
        offsets = [m.offset_data for m in tar.getmembers() if m.name.endswith(".jpg")]
    pairs = [
        _pair(str(number), row, offset)
        for number, (row, offset) in enumerate(zip(rows, offsets, strict=True))
    ]
    decisions = [
        records.Decision(pair.sample_id, row.outcome, None, None, "", row.seeds)
        for pair, row in zip(pairs, rows, strict=True)
    ]
    scores = pa.array([row.score for row in rows], pa.float32())
    embedding = pa.FixedSizeListArray.from_arrays(np.zeros(2 * len(rows), "f2"), 2)
    embeddings = pa.table({"embedding": embedding, "alignment_score": scores})
    run.pairs(lot.source).write(lot.name, to_table(pairs, records.Pair))
    run.embeddings(lot.source).write(lot.name, embeddings)
    outcomes = collections.Counter(row.outcome for row in rows)
    table = to_table(decisions, records.Decision)
    run.decisions.write(lot.name, table, {"outcomes": outcomes})


def _pair(key: str, row: Row, offset: int) -> records.Pair:
    try:
        decoded = images.decode(row.image, curation.Limits())
        (height, width, _), image_format = decoded.rgb.shape, decoded.format
    except images.ImageError:  # so that a later stage meets it
        height, width, image_format = 8, 8, "jpeg"
    return records.Pair(
        sample_id=records.sample_id(row.image, row.alt_text.encode()),
        key=key,
        url=row.url,
        alt_text=row.alt_text,
        image_hash=records.content_hash(row.image),
        image_format=image_format,
        width=width,
        height=height,
        n_bytes=len(row.image),
        offset=offset,
        error="",
    )


def write_captions(
    run: RunFolder,
    stem_to_rows: Mapping[str, Sequence[Row]],
    granularities: Iterable[Granularity],
) -> None:
    """What `caption` with a FakeCaptioner would add."""
    for granularity in granularities:
        tables = CaptionTables.open(run.captions(granularity))
        for lot in run.lots:
            done = {image_hash for image_hash, _ in tables.keys(lot)}
            captions = [
                _caption(row.image, granularity)
                for row in stem_to_rows[Path(lot.shards[0].uri).stem]
                if row.outcome == records.KEPT
                and records.content_hash(row.image) not in done
            ]
            if captions:
                tables.add(lot.base, captions)


def _caption(image: bytes, granularity: Granularity) -> records.SyntheticCaption:
    try:
        color = images.decode(image, curation.Limits()).rgb[0, 0]
    except images.ImageError as error:
        text, reason = str(error), "error"
    else:
        text, reason = f"{granularity.prompt} {' '.join(map(str, color))}", "stop"
    image_hash = records.content_hash(image)
    key = (image_hash, prompt_hash(granularity.prompt))
    return records.SyntheticCaption(*key, 0, text, 4, reason, -0.5)


def run_stage(stage: beam.PTransform, lots: Sequence[shards.Lot]) -> dict[str, int]:
    """Runs one stage in memory; gives its counters."""
    pipeline = beam.Pipeline(FnApiRunner(), options=PipelineOptions([]))
    _ = pipeline | "Lots" >> beam.Create(list(lots), reshuffle=False) | stage
    result = pipeline.run()
    result.wait_until_finish()
    totals: collections.Counter[str] = collections.Counter()
    for counter in result.metrics().query()["counters"]:
        totals[counter.key.metric.name] += counter.committed
    return dict(+totals)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Relative path to content of all files under a folder."""
    found = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def outputs_of(folder: Path) -> dict[str, bytes]:
    """`bytes_of` a run folder, without the files that hold times."""
    return {
        name: data
        for name, data in bytes_of(folder).items()
        if name != "progress.json" and not name.startswith("report/")
    }


class FakeCaptioner:
    """Writes the prompt and the mean color; logs its calls in `calls`."""

    batch_size = 4
    image_size_px = 1

    def __init__(self, calls: list[tuple], refuses: Callable[[str], bool]) -> None:
        self._calls = calls
        self._refuses = refuses

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        return rgb.mean(axis=(0, 1), keepdims=True).astype(np.uint8)

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self._calls.append(("encode", len(images)))
        return np.stack(images)[:, 0, 0]

    def caption(
        self,
        features: np.ndarray,
        prompts: Sequence[str],
        granularity: Granularity,
        keys: np.ndarray,
    ) -> list[tuple[Caption, ...]]:
        """A sampled caption ends with its key."""
        is_greedy = granularity.decoding.temperature == 0
        self._calls.append((granularity.name, len(features)))
        return [
            tuple(self._said(prompt, color, None if is_greedy else key) for key in row)
            for prompt, color, row in zip(prompts, features, keys, strict=True)
        ]

    def _said(self, prompt: str, color: np.ndarray, key: np.ndarray | None) -> Caption:
        text = f"{prompt} {' '.join(map(str, color))}"
        if self._refuses(text):
            raise ValueError(f"no caption {text!r}")
        if key is not None:
            text += f" {key[0]:x}"
        return Caption(text, len(text.split()), FinishReason.STOP, -0.5)


class FakeHandler(CaptionerHandler):
    """Loads a FakeCaptioner; the class has the log, as Beam copies handlers."""

    calls: ClassVar[list[tuple]] = []
    refuses: ClassVar[Callable[[str], bool]] = staticmethod(lambda text: False)

    def load_model(self) -> FakeCaptioner:
        self.calls.append(("load", self.granularity.checkpoint))
        return FakeCaptioner(self.calls, type(self).refuses)
