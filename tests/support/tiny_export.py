"""Writes small exports as the pipeline does: shards, indexes and a manifest."""

import hashlib
import io
import json
import pathlib
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter

from pipeline import records

GRANULARITIES = ("short", "detailed")
VOCABULARY_SIZE = 64
COLORS = ("red", "green", "blue", "white", "black", "cyan", "pink", "gray")


def picture(number: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A gradient over noise, so that every box of it is different."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str = "jpeg", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, quality=95, **options)
    return file.getvalue()


def sample(number: int, **changes) -> records.Sample:
    color = COLORS[number % len(COLORS)]
    image = encoded(picture(number))
    fields = {
        "sample_id": records.sample_id(image, b""),
        "image": image,
        "image_format": "jpeg",
        "width": 40,
        "height": 32,
        "alt_text": f"photo {number} of something {color}",
        "captions": {
            "short": (f"{color} picture",),
            "detailed": (f"a {color} picture, number {number}", f"{color} {number}"),
        },
        "alignment_score": 0.5,
        "source": "web",
        "seeds": (),
    }
    return records.Sample(**fields | changes)


def write(
    folder: pathlib.Path, samples: Sequence[records.Sample], n_shards: int = 2
) -> pathlib.Path:
    """An export of `samples`, cut into shards of contiguous order."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, len(samples), n_shards + 1).astype(int)
    shards = [
        _write_shard(
            folder / f"train-{shard:05d}-of-{n_shards:05d}.tfrecord",
            samples[bounds[shard] : bounds[shard + 1]],
        )
        for shard in range(n_shards)
    ]
    write_manifest(folder, shards=shards)
    return folder


def write_manifest(folder: pathlib.Path, **fields) -> None:
    manifest = {
        "schema_version": records.SCHEMA_VERSION,
        "granularities": list(GRANULARITIES),
    }
    path = folder / "manifest.json"
    if path.exists():
        manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | fields))


def _write_shard(path: pathlib.Path, samples: Sequence[records.Sample]) -> dict:
    index = np.zeros(len(samples), records.INDEX_DTYPE)
    writer = RecordWriter(path.open("wb"))
    position = 0
    for number, one in enumerate(samples):
        payload = serialized(one)
        index[number] = (position + 12, len(payload))
        position += 12 + len(payload) + 4
        writer.write(payload)
    writer.close()
    path.with_name(f"{path.name}.index").write_bytes(index.tobytes())
    return {
        "name": path.name,
        "n_samples": len(samples),
        "n_bytes": position,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def serialized(one: records.Sample) -> bytes:
    """A `tf.train.Example`, without the seconds that importing TensorFlow takes."""
    entries = (
        _field(1, _field(1, name.encode()) + _field(2, _feature(values)))
        for name, values in records.to_features(one).items()
    )
    return _field(1, b"".join(entries))


def _feature(values: list) -> bytes:
    if not values or isinstance(values[0], bytes):
        return _field(1, b"".join(_field(1, value) for value in values))
    if isinstance(values[0], float):
        return _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
    return _field(3, _field(1, b"".join(map(_varint, values))))


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
