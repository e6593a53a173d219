"""Messages of the trainer that no other test names: the value and what was expected."""

import sys
import types

import numpy as np
import pytest

from tests.support import tiny_export
from trainer.data.shards import RecordError, Shards
from trainer.evals import image_tasks
from trainer.evals.scores.segmentation import class_names
from trainer.evals.sets.readers import find_source
from trainer.evals.sets.samples import Sample, SampleError
from trainer.exchange import hugging_face, npz

JPEG = tiny_export.encoded(tiny_export.picture(0))  # 40 x 32


@pytest.fixture
def folder(tmp_path):
    return tiny_export.write(tmp_path, [tiny_export.sample(0)], n_shards=1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((5, 9), "offset 5 in the index, expected 12 or more"),
        ((12, 9), r"\d+ bytes, expected 9 by its index"),
        ((12, 1 << 30), r"\d+ bytes at 0, expected \d+"),
    ],
)
def test_an_index_of_other_records_is_noticed(folder, entry, message):
    path = folder / "train-00000-of-00001.tfrecord.index"
    path.write_bytes(np.array(entry, "<u8").tobytes())
    with pytest.raises(RecordError, match=message):
        Shards(folder)[0]


def test_normals_have_three_channels():
    flat = np.zeros((32, 40), np.uint8)
    sample = Sample("0", "0", {"image": JPEG, "normals": flat}, {})
    with pytest.raises(SampleError, match="0: normals: expected three channels"):
        sample.normals()


def test_one_class_is_none():
    with pytest.raises(ValueError, match="1 classes: expected 2 to 254"):
        class_names(["cat"])


def test_an_index_alone_has_nothing_to_ask():
    sample = Sample("0", "0", {}, {}, label="cat", domain="cars", split="index")
    message = "cars: no queries, expected a split `query` or `test`"
    with pytest.raises(SampleError, match=message):
        image_tasks._fine_grained_of("cars", np.ones((1, 2, 4)), [sample])


def test_a_set_that_is_not_prepared_is_told_where(tmp_path, monkeypatch):
    builder = types.SimpleNamespace(data_path=tmp_path / "coco")
    package = types.SimpleNamespace(
        builder=lambda name: builder,
        core=types.SimpleNamespace(DatasetNotFoundError=KeyError),
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", package)
    with pytest.raises(ValueError, match="tfds:coco: expected it to be prepared in"):
        find_source("tfds:coco")


def test_weights_that_were_cut_are_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x01")
    with pytest.raises(ValueError, match="; expected whole safetensors"):
        hugging_face._load(tmp_path)


def test_sizes_of_another_program_are_named(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.json: .*; expected what an export"):
        npz._describe(tmp_path / "tips_vision.npz", {}, {})
