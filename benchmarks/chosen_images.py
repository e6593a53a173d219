"""Measures what reading the kept images of shards costs: bytes, requests and time.

    python -m benchmarks.chosen_images

Shards of drawn bytes lie in the S3 of the tests, in this process, which answers after
60 ms, and on the disk. Prints a row for each form of shard and keep rate: megabytes
that are read for one that is wanted, requests, the most at once, and seconds.
"""

import argparse
import io
import random
import tarfile
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.curation import ImageTextSource
from pipeline.records import Pair, content_hash
from pipeline.sources.shards import Shard, read_images_of
from pipeline.storage import files
from tests.support import served_store
from tests.support.fake_object_store import FakeObjectStore

KEEP_RATES = (0.0117, 0.003)  # of TIPS, and of a stricter recipe
LATENCY_S = 0.06
_TEXT = "a dog that runs on the beach"
_EXACT = {"max_rows_per_page": 1, "use_dictionary": False, "write_statistics": False}
# The form of a shard to its options; None is a tar.
FORM_TO_OPTIONS: dict[str, dict[str, Any] | None] = {
    "tar": None,
    "Parquet, pages of one image, index, 1,000 rows a group": {
        **_EXACT,
        "write_page_index": True,
        "row_group_size": 1000,
    },
    "Parquet, pages of one image, index, 100 rows a group": {
        **_EXACT,
        "write_page_index": True,
        "row_group_size": 100,
    },
    "Parquet, index, 100 rows a group, no dictionary": {
        "write_page_index": True,
        "row_group_size": 100,
        "use_dictionary": False,
    },
    "Parquet, no index, 100 rows a group": {"row_group_size": 100},
    "Parquet, no index, one group": {},
}
Chosen = list[tuple[Shard, list[Pair]]]


def _write_shard(
    path: str, images: Sequence[bytes], options: dict[str, Any] | None
) -> tuple[Shard, list[Pair]]:
    buffer = io.BytesIO()
    if options is None:
        offsets = list(_write_tar(buffer, images))
    else:
        table = pa.table({"jpg": images, "caption": [_TEXT] * len(images)})
        pq.write_table(table, buffer, **options)
        offsets = list(range(len(images)))
    files.write(path, buffer.getvalue())
    pairs = [
        Pair(
            sample_id=b"",
            key=str(key),
            url="",
            alt_text=_TEXT,
            image_hash=content_hash(image),
            image_format="jpeg",
            width=1,
            height=1,
            n_bytes=len(image),
            offset=offset,
            error="",
        )
        for key, (image, offset) in enumerate(zip(images, offsets, strict=True))
    ]
    return Shard(ImageTextSource("web", path), path), pairs


def _write_tar(buffer: io.BytesIO, images: Sequence[bytes]) -> Sequence[int]:
    offsets = []
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, image in enumerate(images):
            offsets.append(buffer.tell() + 512)
            parts = {"jpg": image, "txt": _TEXT.encode(), "json": bytes(1000)}
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{key:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return offsets


def _write_shards(place: str, form: str, flags: argparse.Namespace) -> Chosen:
    rng = random.Random(0)
    data = rng.randbytes(1 << 24)

    def draw() -> bytes:
        n_bytes = max(1000, int(rng.lognormvariate(0, 0.7) * 0.78 * flags.image_bytes))
        start = rng.randrange(len(data) - n_bytes)
        return data[start : start + n_bytes]

    suffix = "tar" if FORM_TO_OPTIONS[form] is None else "parquet"
    return [
        _write_shard(
            files.join(place, f"{number}.{suffix}"),
            [draw() for _ in range(flags.pairs)],
            FORM_TO_OPTIONS[form],
        )
        for number in range(flags.shards)
    ]


def _keep(shards: Chosen, rate: float) -> Chosen:
    rng = random.Random(1)
    kept = []
    for lot, pairs in shards:
        rows = sorted(rng.sample(range(len(pairs)), round(rate * len(pairs))))
        kept.append((lot, [pairs[row] for row in rows]))
    return kept


def _read(kept: Chosen) -> tuple[int, int, float]:
    """Images, their bytes, and seconds."""
    start_s = time.perf_counter()
    images = list(read_images_of(kept))
    wall_s = time.perf_counter() - start_s
    lengths = [len(image) for image in images if isinstance(image, bytes)]
    if len(lengths) < len(images):
        raise RuntimeError(f"{len(images) - len(lengths)} errors: expected images")
    return len(images), sum(lengths), wall_s


def _measure_store(server: FakeObjectStore, form: str, shards: Chosen) -> None:
    for rate in KEEP_RATES:
        server.forget_requests()
        server.latency_s = LATENCY_S
        n_images, n_bytes, wall_s = _read(_keep(shards, rate))
        server.latency_s = 0.0
        n_requests = sum(server.counts().values())
        print(
            f"| {form} | {100 * rate:g} % | {n_images} | {n_bytes / 1e6:.2f} |"
            f" {server.n_bytes_read / 1e6:.2f} | {server.n_bytes_read / n_bytes:.2f} |"
            f" {n_requests} | {server.max_open} | {wall_s:.2f} |",
            flush=True,
        )


def _measure_disk(form: str, flags: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = _write_shards(folder, form, flags)
        for rate in (*KEEP_RATES, 1.0):
            kept = _keep(shards, rate)
            walls_s = sorted(_read(kept)[2] for _ in range(5))
            n_images = sum(len(pairs) for _, pairs in kept)
            each_us = 1e6 * walls_s[2] / n_images
            print(f"| {form} | {100 * rate:g} % | {each_us:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=10_000, help="of a shard")
    parser.add_argument("--image-bytes", type=int, default=40_000, help="on average")
    flags = parser.parse_args()
    print(
        "| shards | kept | images | MB wanted | MB read | read / wanted | requests |"
        " at once | s |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for form in FORM_TO_OPTIONS:
        with served_store.serve("s3") as server:
            shards = _write_shards(f"{server.bucket_url('s3')}/web", form, flags)
            _measure_store(server, form, shards)
    print("\n| shards on the disk | kept | us an image |\n| --- | --- | --- |")
    for form in FORM_TO_OPTIONS:
        _measure_disk(form, flags)


if __name__ == "__main__":
    main()
