"""The committed checkpoints say the truth about scenes that they have not seen."""

import pathlib

import pytest

from pipeline.models.encoders import SiglipEncoder
from tools import grade_tiny_models

N_SCENES = 200
MAX_BYTES = 8 << 20
CHECKPOINTS = pathlib.Path(grade_tiny_models.CHECKPOINTS)


@pytest.fixture(scope="module")
def scenes():
    return grade_tiny_models.unseen_scenes(N_SCENES, rng_seed=987_654)


def test_alignment_tells_matches_from_mismatches(scenes):
    encoder = SiglipEncoder.load(f"{CHECKPOINTS}/tiny-siglip", 50, "float32")
    assert grade_tiny_models.alignment(encoder, scenes)["auc"] >= 0.97


def test_captions_are_true_and_name_the_largest_object(scenes):
    captioner = grade_tiny_models.tiny_captioner()
    grades = grade_tiny_models.captions(captioner, scenes)
    assert grades["caption en"]["pairs_right"] >= 0.8
    assert grades["describe en"]["pairs_right"] >= 0.8
    assert grades.keys() == {"cap en", "caption en", "describe en"}
    assert all(grade["largest_right"] >= 0.8 for grade in grades.values())


def test_both_checkpoints_are_small():
    paths = [path for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert len(paths) > 4
    assert sum(path.stat().st_size for path in paths) <= MAX_BYTES
