import dataclasses
import io
import math

import numpy as np
import pytest

from pipeline.config.selection import SafetyHead, SelectionConfig
from pipeline.selection import safety
from pipeline.selection.safety import LinearHead
from tests.support.score_tables import Row, make_run, outcomes, read_decisions, select

# Of unit vectors (x, y): more than a half for y > 0.5.
WEIGHT, BIAS = (0.0, 2.0), -1.0


def write_head(tmp_path, weight=WEIGHT, bias=BIAS, **arrays) -> str:
    path = tmp_path / "head.npz"
    np.savez(path, weight=weight, bias=bias, **arrays)
    return str(path)


def test_unsafe_images_are_dropped_also_from_sources_to_keep_whole(tmp_path):
    head = write_head(tmp_path)
    rows = [
        Row(embedding=(1, 0)),
        Row(embedding=(0, 1)),
        Row(error="truncated", embedding=(0, 0)),
        Row(embedding=(0, 0)),
    ]
    config = SelectionConfig(
        safety=SafetyHead(head, 0.5), max_evaluation_similarity=0.9
    )
    shards = {"web/1": rows, "city/1": rows}
    run = make_run(
        str(tmp_path / "run"),
        config,
        shards,
        evaluation={"birds/1": [Row(embedding=(0, 1))]},
        keep_all=["city"],
    )
    expected = ["kept", "unsafe_image", "unreadable", "unsafe_image"]
    assert outcomes(run) == {"web/1": expected, "city/1": expected}
    _, unsafe, _, unknown = read_decisions(run)["city/1"]
    assert unsafe.value == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6)
    assert (unsafe.threshold, unsafe.detail) == (0.5, "")
    assert (unknown.value, unknown.detail) == (None, "no embedding")


def test_probabilities_are_those_of_the_sigmoid_one_by_one_or_together():
    rng = np.random.default_rng(0)
    head = LinearHead(rng.standard_normal(48) * 9, 0.5)
    vectors = rng.standard_normal((200, 48)).astype(np.float32)
    found = head.probabilities(vectors)
    expected = 1 / (1 + np.exp(-(vectors.astype(float) @ head.weight + head.bias)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)
    parts = [head.probabilities(vectors[i : i + 7]) for i in range(0, 200, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), found)
    extreme = LinearHead(np.array([1e6]), 0.0)
    assert extreme.probabilities(np.array([[1.0], [-1.0]])).tolist() == [1, 0]


def test_a_row_of_weights_is_a_head_too(tmp_path):
    path = write_head(tmp_path, [WEIGHT], [BIAS])
    assert LinearHead.load(path).weight.tolist() == list(WEIGHT)


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"no archive",
        npz(weight=[1.0, 2.0]),
        npz(weight=[[1.0], [2.0]], bias=0.0),
        npz(weight=[], bias=0.0),
        npz(weight=[1.0], bias=[0.0, 1.0]),
        npz(weight=[math.nan], bias=0.0),
        npz(weight=["a"], bias=0.0),
        npz(weight=np.array([{}], object), bias=0.0),
    ],
)
def test_a_file_that_is_no_head_is_one_clear_error(tmp_path, data):
    (tmp_path / "head.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"head='.*head\.npz': expected an \.npz file"):
        LinearHead.load(str(tmp_path / "head.npz"))


def test_a_head_for_another_encoder_is_an_error_before_any_work(tmp_path):
    config = SelectionConfig(safety=SafetyHead(write_head(tmp_path, [1, 2, 3]), 0.5))
    run = make_run(str(tmp_path / "run"), config, {"web/1": [Row()]})
    with pytest.raises(ValueError, match="3 weights, expected 2, one per dimension"):
        select(run)
    not_scored = dataclasses.replace(run, root=str(tmp_path / "new"))
    safety.check(not_scored)  # nobody can know yet


def test_a_threshold_that_is_no_probability_is_an_error():
    with pytest.raises(ValueError, match=r"max_probability=1\.5: expected 0 to 1"):
        SafetyHead("head.npz", 1.5)
