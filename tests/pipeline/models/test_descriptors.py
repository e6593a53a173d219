"""Tests of descriptors: the perceptual one, and the tables that `score` makes."""

import dataclasses
import importlib.util
import itertools

import cv2
import numpy as np
import pytest
import simplejpeg

from benchmarks import documents
from pipeline.config.curation import EncoderConfig, ImageTextSource
from pipeline.config.duplicates import (
    EvaluationDuplicates,
    PerceptualDescriptor,
    PoolDuplicates,
    Resemblance,
    TorchDescriptor,
)
from pipeline.config.selection import SelectionConfig
from pipeline.models import descriptors
from pipeline.models.descriptors import Perceptual, gradients, likeness_to_document
from pipeline.sources import shards
from tests.pipeline.scoring.test_stage import make_run, png, score, write_shard

BY_PERCEPTUAL = Resemblance(PerceptualDescriptor(), 0.9)
POOL = SelectionConfig(pool_duplicates=PoolDuplicates((BY_PERCEPTUAL,)))


def picture(rng_seed: int, size: tuple[int, int] = (60, 90)) -> np.ndarray:
    """Smooth blots of color."""
    small = np.random.default_rng(rng_seed).uniform(0, 255, (7, 7, 3))
    return cv2.resize(small.astype(np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


def similarity(left: np.ndarray, right: np.ndarray) -> float:
    both = [Perceptual().prepare(rgb) for rgb in (left, right)]
    a, b = descriptors.unit_vectors(Perceptual(), both).astype(np.float64)
    return float(a @ b)


def test_gradients_are_roots_of_central_differences():
    gray = np.zeros((4, 4), np.uint8)
    gray[:, 2:] = 102  # an edge between the second and the third column
    gray[3:] += 2  # noise
    across, down = [10.0] * 4, [0.0] * 4
    np.testing.assert_allclose(gradients(gray, 2), [*across, *down, 4])
    np.testing.assert_allclose(
        gradients(255 - gray, 2), [*np.negative(across), *down, 4]
    )


def test_copies_are_similar_and_other_pictures_are_not():
    rgb = picture(0)
    jpeg = simplejpeg.encode_jpeg(rgb, 40)
    assert similarity(rgb, simplejpeg.decode_jpeg(jpeg)) > 0.95
    assert similarity(rgb, cv2.resize(rgb, (33, 50))) > 0.9
    assert similarity(rgb, cv2.convertScaleAbs(rgb, alpha=0.8)) > 0.99
    assert similarity(rgb, cv2.flip(rgb, 1)) < 0.5
    assert all(similarity(rgb, picture(seed)) < 0.5 for seed in range(1, 20))


@pytest.mark.parametrize("draw", documents.KIND_TO_DRAW.values())
def test_documents_of_one_kind_are_told_apart_and_their_copies_found(draw):
    pages = [np.asarray(draw(np.random.default_rng(seed))) for seed in range(5)]
    others = [similarity(a, b) for a, b in itertools.combinations(pages, 2)]
    assert max(others) < 0.75
    for copy in documents.NAME_TO_COPY.values():
        assert min(similarity(page, copy(page)) for page in pages) > 0.85


def test_photos_are_compared_by_gradients_alone():
    small = cv2.resize(picture(3), (128, 128), interpolation=cv2.INTER_CUBIC)
    assert likeness_to_document(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)) == 0
    vector = Perceptual().prepare(picture(3))
    assert vector.shape == (Perceptual().dim,)
    np.testing.assert_array_equal(vector[201:], 0)


def test_flat_pictures_resemble_one_another_whatever_their_noise():
    rng = np.random.default_rng(0)
    flat = [
        np.clip(rng.normal(gray, 3, (64, 64, 3)), 0, 255).astype(np.uint8)
        for gray in (50, 200)
    ]
    assert similarity(*flat) > 0.99
    assert similarity(np.zeros((1, 1, 3), np.uint8), np.full_like(flat[0], 9)) == 1


def test_score_adds_the_table_of_a_descriptor_and_leaves_the_others(tmp_path):
    write_shard(tmp_path / "1.tar", (png(1), b"a text"), (b"broken", b"a text"))
    score(make_run(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    run = make_run(tmp_path, selection=POOL)
    assert score(run) == {"images_described": 1}
    assert before == {path: path.read_bytes() for path in before}
    (lot,) = run.lots
    tables = run.descriptions(lot.source, PerceptualDescriptor())
    rows = tables.read(lot.name)["embedding"].to_pylist()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0], atol=1e-3)
    assert score(run) == {"lots_skipped": 1}


def test_seed_sets_are_not_described_and_evaluation_sets_are(tmp_path):
    write_shard(tmp_path / "1.tar", (png(1), b"a text"))
    sets = {
        role: (ImageTextSource(role, str(tmp_path / "*.tar"), needs_alt_text=False),)
        for role in ("evaluation_sets", "seed_sets")
    }
    duplicates = EvaluationDuplicates((BY_PERCEPTUAL,))
    config = SelectionConfig(evaluation_duplicates=duplicates)
    run = make_run(tmp_path, selection=config, **sets)
    assert score(run)["images_described"] == 2  # of the source and the evaluation set
    listed = shards.list_shards(sets["seed_sets"][0])
    assert listed == tuple(x for lot in run.seed_lots for x in lot.shards)


def test_torch_is_asked_for_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"descriptor 'sscd': expected PyTorch .*torch"
    ):
        descriptors.check(TorchDescriptor("model.pt"))
    descriptors.check(PerceptualDescriptor())


# A TorchScript file


def torchscript(path, is_flat) -> TorchDescriptor:
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def forward(self, images):
            return images.mean(dim=[2, 3]) if self.is_flat else images

        def __init__(self, is_flat: bool) -> None:
            super().__init__()
            self.is_flat = is_flat

    torch.jit.script(Model(is_flat)).save(str(path))
    return TorchDescriptor(str(path), size_px=8, batch_size=2)


@pytest.mark.torch
def test_a_torchscript_file_describes_images(tmp_path):
    descriptor = torchscript(tmp_path / "mean.pt", True)
    loaded = descriptors.load(descriptor, EncoderConfig("none"))
    images = [np.full((5, 9, 3), level, np.uint8) for level in (0, 128, 255)]
    prepared = np.stack([loaded.prepare(image) for image in images])
    assert prepared.shape == (3, 8, 8, 3)
    assert loaded.dim == 3
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    expected = [(level / 255 - mean) / deviation for level in (0, 128, 255)]
    np.testing.assert_allclose(loaded.describe(prepared), expected, atol=1e-5)


@pytest.mark.torch
def test_score_writes_the_table_of_a_torchscript_file(tmp_path):
    descriptor = torchscript(tmp_path / "mean.pt", True)
    write_shard(tmp_path / "1.tar", *[(png(red), b"a text") for red in (1, 90, 250)])
    config = SelectionConfig(
        pool_duplicates=PoolDuplicates((Resemblance(descriptor, 0.9),))
    )
    run = make_run(tmp_path, selection=config)
    run = dataclasses.replace(
        run,
        checkpoint_to_digest={**run.checkpoint_to_digest, descriptor.checkpoint: "d"},
    )
    assert score(run)["images_described"] == 3
    tables = run.descriptions(run.lots[0].source, descriptor)
    rows = tables.read(run.lots[0].name)["embedding"].to_pylist()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)


@pytest.mark.torch
def test_what_is_no_such_model_is_refused(tmp_path):
    none = EncoderConfig("none")
    flat = torchscript(tmp_path / "images.pt", False)
    with pytest.raises(ValueError, match=r"gives an array of shape \(1, 3, 8, 8\)"):
        descriptors.load(flat, none)
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(ValueError, match="expected a TorchScript file that maps"):
        descriptors.load(TorchDescriptor(str(tmp_path / "text.pt")), none)
