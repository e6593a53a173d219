"""DPT heads as files, in both official forms."""

import json
import zipfile

import numpy as np
import pytest
from flax import nnx, traverse_util

from tests.support.planted import configured, draw, planted, save, write_words
from trainer import evaluate
from trainer.exchange import dpt_heads
from trainer.models import dpt
from trainer.models.layers import ParamMaker

CONFIG = dpt.DptConfig(width=16, head=dpt.DEPTH, n_outputs=5, channels=6)
FORMS = ("head_depth_dpt.zip", "head.npz")


@pytest.fixture(scope="module")
def params():
    """Kernels as they start, and biases that are all different."""
    state = nnx.to_pure_dict(nnx.state(dpt.DptDecoder(CONFIG, ParamMaker(0))))
    flat = traverse_util.flatten_dict(state, sep="/")
    rng = np.random.default_rng(0)
    for key, array in flat.items():
        if key.endswith("bias"):
            flat[key] = rng.normal(size=array.shape).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def arrays_of(path):
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


@pytest.mark.parametrize("name", FORMS)
def test_a_head_comes_back_bit_for_bit(tmp_path, params, name):
    dpt_heads.write(tmp_path / name, params)
    read = dpt_heads.read(tmp_path / name, CONFIG)
    flat, found = (traverse_util.flatten_dict(x, sep="/") for x in (params, read))
    assert found.keys() == flat.keys()
    for key, array in flat.items():
        np.testing.assert_array_equal(found[key], array)
    (tmp_path / "again").mkdir()
    dpt_heads.write(tmp_path / "again" / name, read)
    again = (tmp_path / "again" / name).read_bytes()
    assert again == (tmp_path / name).read_bytes()
    assert [path.name for path in (tmp_path / "again").iterdir()] == [name]


def test_scenic_has_52_arrays_behind_decoder(tmp_path, params):
    dpt_heads.write(tmp_path / FORMS[0], params)
    found = arrays_of(tmp_path / FORMS[0])
    assert len(found) == 52
    assert {key.partition("/")[0] for key in found} == {"decoder"}
    assert found["decoder/pixel_depth_classif/kernel"].shape == (6, 5)
    with zipfile.ZipFile(tmp_path / FORMS[0]) as stored:
        assert all(name.endswith(".npy") for name in stored.namelist())


def test_pytorch_has_the_names_and_shapes_of_its_modules(tmp_path, params):
    dpt_heads.write(tmp_path / FORMS[1], params)
    found = {key: array.shape for key, array in arrays_of(tmp_path / FORMS[1]).items()}
    expected = {"dpt.project.weight": (6, 6, 3, 3), "dpt.project.bias": (6,)}
    for i, own in enumerate((2, 4, 8, 16)):
        expected[f"dpt.reassemble.out_projections.{i}.weight"] = (own, 16, 1, 1)
        expected[f"dpt.reassemble.out_projections.{i}.bias"] = (own,)
        expected[f"dpt.reassemble.readout_projects.{i}.weight"] = (16, 32)
        expected[f"dpt.reassemble.readout_projects.{i}.bias"] = (16,)
        expected[f"dpt.convs.{i}.weight"] = (6, own, 3, 3)
        units = ("main_unit", "residual_unit") if i else ("main_unit",)
        for unit in units:
            for conv in ("conv1", "conv2"):
                key = f"dpt.fusion_blocks.{i}.{unit}.{conv}.weight"
                expected[key] = (6, 6, 3, 3)
        expected[f"dpt.fusion_blocks.{i}.out_conv.weight"] = (6, 6, 1, 1)
        expected[f"dpt.fusion_blocks.{i}.out_conv.bias"] = (6,)
    for i, own, size in ((0, 2, 4), (1, 4, 2), (3, 16, 3)):
        expected[f"dpt.reassemble.resize_layers.{i}.weight"] = (own, own, size, size)
        expected[f"dpt.reassemble.resize_layers.{i}.bias"] = (own,)
    assert found == expected | {"head.weight": (5, 6), "head.bias": (5,)}


def test_pytorch_has_its_axes_and_transposed_kernels_as_the_reader_turns_them(
    tmp_path, params
):
    dpt_heads.write(tmp_path / FORMS[1], params)
    found = arrays_of(tmp_path / FORMS[1])
    blocks = params["dpt"]["reassemble_blocks"]
    for y, x in np.ndindex(4, 4):
        own = found["dpt.reassemble.resize_layers.0.weight"][:, :, y, x]
        np.testing.assert_array_equal(own, blocks["resize_layers_0"]["kernel"][y, x])
    for y, x in np.ndindex(3, 3):
        own = found["dpt.reassemble.resize_layers.3.weight"][:, :, y, x]
        np.testing.assert_array_equal(own.T, blocks["resize_layers_3"]["kernel"][y, x])
    own = params["pixel_depth_classif"]["kernel"]
    np.testing.assert_array_equal(found["head.weight"].T, own)


def test_scenic_without_its_first_part_and_with_another_last_layer_is_read(
    tmp_path, params
):
    config = dpt.DptConfig(width=16, head=dpt.SEGMENTATION, n_outputs=5, channels=6)
    dpt_heads.write(tmp_path / FORMS[0], params)
    arrays = {
        key.removeprefix("decoder/").replace(dpt.DEPTH, "segmentation_head"): array
        for key, array in arrays_of(tmp_path / FORMS[0]).items()
    }
    np.savez(tmp_path / "other.npz", **arrays)
    found = dpt_heads.read(tmp_path / "other.npz", config)
    expected = params[dpt.DEPTH]["kernel"]
    np.testing.assert_array_equal(found[dpt.SEGMENTATION]["kernel"], expected)


@pytest.mark.parametrize(
    ("name", "key", "array", "message"),
    [
        (FORMS[0], "decoder/dpt/project/bias", None, "dpt/project/bias is missing"),
        (FORMS[0], "decoder/x/bias", np.ones(3), "x/bias is not expected"),
        (
            FORMS[0],
            "decoder/pixel_depth_classif/bias",
            np.ones(3),
            r"pixel_depth_classif/bias has shape \(3,\), expected \(5,\)",
        ),
        (FORMS[1], "head.bias", None, "head.bias is missing"),
        (FORMS[1], "bin_centers", np.ones(5), "bin_centers is not expected"),
        (
            FORMS[1],
            "dpt.convs.0.weight",
            np.ones((6, 2, 3, 1)),
            r"dpt.convs.0.weight has shape \(6, 2, 3, 1\), expected \(6, 2, 3, 3\)",
        ),
    ],
)
def test_a_wrong_array_is_named(tmp_path, params, name, key, array, message):
    path = tmp_path / name
    dpt_heads.write(path, params)
    arrays = {k: v for k, v in arrays_of(path).items() if k != key}
    with path.open("wb") as file:
        np.savez(file, **arrays | ({} if array is None else {key: array}))
    with pytest.raises(ValueError, match=message):
        dpt_heads.read(path, CONFIG)


def test_a_file_that_is_no_head_is_named(tmp_path):
    with pytest.raises(ValueError, match="No such file or directory, expected a DPT"):
        dpt_heads.read(tmp_path / "nowhere.zip", CONFIG)
    (tmp_path / "text.zip").write_text("nothing")
    with pytest.raises(ValueError, match="expected a whole"):
        dpt_heads.read(tmp_path / "text.zip", CONFIG)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("head.npy", "expected a name with .zip"),
        ("no/head.zip", "no folder .*, expected one"),
    ],
)
def test_where_a_head_cannot_be_written_is_told(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        dpt_heads.check_name(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["dpt_depth", "dpt_segmentation", "normals"])
def test_a_head_that_was_written_measures_the_same(tmp_path, tiny, capsys, task):
    words = write_words(tmp_path / "words.model")
    config = configured(tiny, words)
    work = save(tmp_path / "work", config, planted(config))
    scenes = draw(tmp_path / "scenes", n_columns=2)
    scenes_of = ["--checkpoint", work, "--task", task, "--data", scenes]
    sets = ["n_steps=20", "dpt_channels=8"]

    def measure(*more):
        flags = [part for one in (*sets, *more) for part in ("--set", one)]
        evaluate.main([str(part) for part in (*scenes_of, *flags)])
        return json.loads(capsys.readouterr().out)

    for wrong in ("dpt_to=head.npy", "dpt_from=nowhere.zip"):
        with pytest.raises(SystemExit) as exit_info:
            measure(wrong)
        assert exit_info.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert message.startswith(f"error: {wrong.replace('=', ': ')}: ")
    found = measure(f"dpt_to={tmp_path / 'head.zip'}")
    again = measure(f"dpt_from={tmp_path / 'head.zip'}")
    assert (found.pop("n_training_images"), again.pop("n_training_images")) == (8, 0)
    assert again == found
