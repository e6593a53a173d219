"""The record contract against TensorFlow's own reading and writing."""

import dataclasses

import pytest
import tensorflow as tf

from pipeline import records

SAMPLE = records.Sample(
    sample_id=bytes(range(16)),
    image=b"\xff\xd8" + bytes(300),
    image_format="jpeg",
    width=640,
    height=480,
    alt_text="Ein Fahrrad \N{BICYCLE}",
    captions={"detailed": ("a", "b"), "short": ("",)},
    alignment_score=-0.25,
    source="web",
    seeds=("flowers", "scenes"),
)


def _serialized(sample: records.Sample) -> bytes:
    def feature(values):
        if isinstance(values[0] if values else b"", bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        if isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = {k: feature(v) for k, v in records.to_features(sample).items()}
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": (), "captions": {}},
        {"alt_text": "", "image": bytes(1 << 20)},
        {"width": 1 << 40, "height": -1},
    ],
)
def test_what_tensorflow_writes_is_read_back(changes):
    sample = dataclasses.replace(SAMPLE, **changes)
    assert records.parse_sample(_serialized(sample)) == sample


def test_every_truncation_is_an_error_and_never_a_wrong_record():
    payload = _serialized(dataclasses.replace(SAMPLE, image=b"\xff\xd8"))
    for length in range(len(payload)):
        with pytest.raises(ValueError, match="not a training record"):
            records.parse_sample(payload[:length])


def test_numbers_outside_their_field_are_an_error():
    with pytest.raises(ValueError, match="wire type 0: expected 2"):
        records.parse_example(b"\x08\x01")


def test_the_sample_id_depends_on_where_the_image_ends():
    assert records.sample_id(b"ab", b"c") != records.sample_id(b"a", b"bc")


def test_the_sample_id_never_changes():
    assert records.sample_id(b"image", b"text").hex() == EXPECTED_ID


EXPECTED_ID = "0f5a08c50a1f6a8801b2483496ad85ad"
