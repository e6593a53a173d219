"""The image encoder in ONNX and StableHLO, run by others, gives what ours gives."""

import dataclasses
import sys

import jax
import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
from flax import nnx

from trainer import export
from trainer.config import FeedForward
from trainer.exchange import formats, onnx_graph, stablehlo
from trainer.models.layers import ParamMaker
from trainer.models.vit import VisionTransformer
from trainer.pretrained.trained_model import find_trained_model

KINDS = {
    "gelu": {"feed_forward": FeedForward.GELU},
    "relu": {"feed_forward": FeedForward.RELU},
    "swiglu with registers": {"feed_forward": FeedForward.SWIGLU, "n_registers": 3},
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def work(request, tiny, workdir_of):
    """2 x 3 positions, and images of 28 px."""
    sizes = {"position_grid": (2, 3), "n_layers": 2}
    vision = dataclasses.replace(tiny.model.vision, **sizes, **request.param)
    return workdir_of(
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, vision=vision))
    )


def exported(work, folder, form, *flags):
    arguments = ["--checkpoint", work, "--format", form, "--output", folder, *flags]
    export.main([str(argument) for argument in arguments])
    return folder


def run_onnx(folder, images):
    session = onnxruntime.InferenceSession(folder / onnx_graph.FILE)
    return session.run(None, {"pixel_values": images})


def run_stablehlo(folder, images):
    program = jax.export.deserialize((folder / stablehlo.FILE).read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    weights = safetensors.numpy.load_file(folder / stablehlo.WEIGHTS)
    return program.call(weights, images)


def ours(work, images):
    found = find_trained_model(work)
    model = found.config.model.vision
    graph = nnx.graphdef(VisionTransformer(model, ParamMaker(None)))
    vision = nnx.merge(graph, found.exported_weights().params()["vision"])
    cls, patches = vision(np.moveaxis(images, 1, -1))
    return cls, patches.reshape(len(images), -1, model.width)


RUN = {"onnx": run_onnx, "stablehlo": run_stablehlo}


@pytest.mark.parametrize("size_px", [28, 56])
@pytest.mark.parametrize("form", RUN)
def test_another_runtime_gives_the_same(tmp_path, work, form, size_px):
    flags = ("--image-size-px", size_px)
    folder = exported(work, tmp_path / "out", form, *flags)
    rng = np.random.default_rng(0)
    for n_images in (1, 3):
        images = rng.random((n_images, 3, size_px, size_px), np.float32)
        for found, expected in zip(
            RUN[form](folder, images), ours(work, images), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-5)
    card = (folder / "README.md").read_text()
    assert "The image encoder alone" in card
    assert "pipeline_tag: image-feature-extraction" in card
    assert not (folder / "tokenizer.model").exists()
    with pytest.raises(ValueError, match="expected a workdir, or an export as hf, sc"):
        find_trained_model(folder)


@pytest.mark.parametrize("form", formats.READ)
def test_a_form_whose_readers_know_no_registers_is_refused(
    tmp_path, tiny, workdir_of, capsys, form
):
    vision = dataclasses.replace(tiny.model.vision, n_registers=1)
    model = dataclasses.replace(tiny.model, vision=vision)
    work = workdir_of(dataclasses.replace(tiny, model=model))
    with pytest.raises(SystemExit, match="2"):
        exported(work, tmp_path / "out", form)
    message = f"n_registers=1: expected 0 for the format {form}, whose readers know"
    assert message in capsys.readouterr().err


def test_large_weights_lie_beside_the_graph(tmp_path, work, monkeypatch):
    monkeypatch.setattr(onnx_graph, "_MOST_BYTES_INSIDE", 1000)
    folder = exported(work, tmp_path / "out", "onnx")
    images = np.random.default_rng(0).random((2, 3, 28, 28), np.float32)
    assert (folder / f"{onnx_graph.FILE}.data").stat().st_size > 1000
    np.testing.assert_allclose(
        run_onnx(folder, images)[0], ours(work, images)[0], atol=2e-5
    )


def test_onnx_without_its_package_is_one_line(tmp_path, work, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit, match="2"):
        exported(work, tmp_path / "out", "onnx")
    errors = capsys.readouterr().err
    assert "--format onnx: " in errors
    assert "expected the extra [onnx] to be installed" in errors
    assert not (tmp_path / "out").exists()
