"""Writes TFRecord files, with an index of their payloads.

In: samples. Out: a file of `tf.train.Example`s, and where each of them lies in it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.records import INDEX_DTYPE, Sample, to_features

_HEADER_BYTES = 12  # before a payload: its length and the CRC of the length
_FOOTER_BYTES = 4  # behind it: its CRC


def write_local(
    path: str, samples: Iterable[Sample], granularities: Sequence[str] = ()
) -> np.ndarray:
    """Writes a local file; returns its index, `INDEX_DTYPE` `[n]`.

    A record without a caption of one of `granularities` lacks that feature. The writer
    is TensorFlow's, as Beam's may fall back on a checksum in pure Python.
    """
    import tensorflow as tf  # takes seconds to import

    del granularities  # readers find features by name
    index, position = [], 0
    with tf.io.TFRecordWriter(path) as writer:
        for sample in samples:
            payload = _example(tf.train, sample).SerializeToString(deterministic=True)
            writer.write(payload)
            index.append((position + _HEADER_BYTES, len(payload)))
            position += _HEADER_BYTES + len(payload) + _FOOTER_BYTES
    return np.array(index, INDEX_DTYPE)


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
