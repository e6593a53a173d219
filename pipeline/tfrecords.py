"""TFRecord files with an index: written locally, then put in their place at once."""

import hashlib
import mmap
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from pipeline import files
from pipeline.records import INDEX_DTYPE, Sample, to_features

_HEADER_BYTES = 12  # before a payload: its length and the CRC of the length
_FOOTER_BYTES = 4  # behind it: its CRC


def write_local(path: str, samples: Iterable[Sample]) -> np.ndarray:
    """Writes a file of this machine; returns its index, `INDEX_DTYPE` `[n]`.

    TensorFlow's writer, as Beam's takes the CRC with whatever package is installed, at
    worst one of pure Python.
    """
    import tensorflow as tf  # takes seconds, which only writers should pay

    index, position = [], 0
    with tf.io.TFRecordWriter(path) as writer:
        for sample in samples:
            payload = _example(tf.train, sample).SerializeToString(deterministic=True)
            writer.write(payload)
            index.append((position + _HEADER_BYTES, len(payload)))
            position += _HEADER_BYTES + len(payload) + _FOOTER_BYTES
    return np.array(index, INDEX_DTYPE)


def publish(local: str, path: str) -> tuple[int, str]:
    """Copies a file of this machine to any file system; gives its size and SHA-256.

    It is mapped rather than read: a shard may be larger than a worker's memory.
    """
    with (
        open(local, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        files.write(path, cast(bytes, data))  # which only has to be a buffer
        return len(data), hashlib.sha256(data).hexdigest()


def _example(train: Any, sample: Sample) -> Any:
    """The `tf.train.Example` of a sample."""
    features = {
        name: _feature(train, values) for name, values in to_features(sample).items()
    }
    return train.Example(features=train.Features(feature=features))


def _feature(train: Any, values: list[bytes] | list[float] | list[int]) -> Any:
    """A `tf.train.Feature`; only lists of bytes may be empty."""
    if not values or isinstance(values[0], bytes):
        return train.Feature(bytes_list=train.BytesList(value=values))
    if isinstance(values[0], float):
        return train.Feature(float_list=train.FloatList(value=values))
    return train.Feature(int64_list=train.Int64List(value=values))
