"""Tests of the audit, over pictures that a run has really scored."""

import json
import pathlib

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import run
from pipeline.config.curation import ImageTextSource
from pipeline.config.duplicates import (
    EvaluationDuplicates,
    PerceptualDescriptor,
    PoolDuplicates,
    Resemblance,
)
from pipeline.config.selection import SelectionConfig
from pipeline.selection.duplicates import audit
from tests.pipeline.scoring.test_stage import make_run, score, write_shard

BY_PERCEPTUAL = Resemblance(PerceptualDescriptor(), 0.8)
RECIPE = SelectionConfig(
    evaluation_duplicates=EvaluationDuplicates((BY_PERCEPTUAL,)),
    pool_duplicates=PoolDuplicates((Resemblance(PerceptualDescriptor(), 0.99),)),
)


def picture(rng_seed: int) -> bytes:
    small = np.random.default_rng(rng_seed).uniform(0, 255, (7, 7, 3)).astype(np.uint8)
    large = cv2.resize(small, (96, 64), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".png", large)[1].tobytes()


PICTURES = [picture(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Two shards of pictures, of which the second is the evaluation set."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "eval").mkdir()
    write_shard(folder / "1.tar", *[(image, b"a text") for image in PICTURES[:4]])
    write_shard(folder / "eval/2.tar", *[(image, b"a text") for image in PICTURES[4:]])
    sets = (ImageTextSource("birds", str(folder / "eval/*.tar")),)
    found = make_run(folder, selection=RECIPE, evaluation_sets=sets)
    score(found)
    return found


def test_copies_that_a_bound_finds_are_counted_by_kind(scored):
    found = audit.audit(scored, n_images=6)
    assert (found.n_images, found.n_lookalikes) == (6, 0)
    (by_perceptual,) = found.by_descriptor
    assert by_perceptual.bounds == (0.8, 0.99)
    assert by_perceptual.recall("unchanged", 0.99) == 1
    assert by_perceptual.recall("JPEG 30", 0.8) == 1
    assert by_perceptual.recall("mirror", 0.8) == 0
    assert found.copy_to_found["unchanged"] == 1
    assert found.copy_to_found["mirror"] == 0
    for name, similarity in by_perceptual.copy_to_similarity.items():
        shares = [by_perceptual.recall(name, t) for t in by_perceptual.thresholds]
        assert shares == sorted(shares, reverse=True)
        assert len(similarity) == 6


@pytest.mark.parametrize("is_encoded", [False, True])
def test_lookalikes_come_by_key_or_encoded(scored, tmp_path, is_encoded):
    """Keys name the first picture of that key, here of the pool."""
    a, b = ("0", "0", "1"), ("1", "0", "no such key")
    if is_encoded:
        a, b = PICTURES[:1] * 3, (PICTURES[1], PICTURES[0], b"broken")
    path = tmp_path / "lookalikes.parquet"
    pq.write_table(pa.table({"a": a, "b": b}), path)
    audit.check_lookalikes(str(path))
    found = audit.audit(scored, str(path), n_images=1)
    assert (found.n_lookalikes, found.n_unknown) == (2, 1)
    (by_perceptual,) = found.by_descriptor
    np.testing.assert_allclose(by_perceptual.lookalikes[1], 1, atol=1e-3)
    assert by_perceptual.lookalikes[0] < 0.5
    assert by_perceptual.share_called(0.8) == 0.5
    n_found = sum(np.sum(s > 0.8) for s in by_perceptual.copy_to_similarity.values())
    assert by_perceptual.precision(0.8) == n_found / (n_found + 1)
    assert by_perceptual.precision(0.9999) is None or n_found


def test_the_audit_is_written_and_nothing_else_changes(scored):
    root = pathlib.Path(scored.root)

    def tables() -> dict:
        return {p: p.read_bytes() for p in root.rglob("*.parquet")}

    before = tables()
    found = audit.audit(scored, n_images=2)
    audit.write(scored, found)
    assert tables() == before
    with open(f"{scored.root}/audit.json") as file:
        stored = json.load(file)
    assert stored["images"] == 2
    described = stored["descriptors"]["perceptual"]
    assert described["bounds"] == [0.8, 0.99]
    assert len(described["recall"]["mirror"]) == len(described["thresholds"])
    assert described["lookalikes_called"][0] is None
    text = found.to_text()
    assert "crop 60 %" in text
    assert "0.8*" in text


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (RECIPE, "--audit: expected evaluation sets"),
        (SelectionConfig(), "--audit: expected .*"),
    ],
)
def test_an_audit_without_anything_to_audit_is_refused(tmp_path, selection, message):
    write_shard(tmp_path / "1.tar", (PICTURES[0], b"a text"))
    with pytest.raises(ValueError, match=message):
        audit.check(make_run(tmp_path, selection=selection))


def test_look_alikes_of_another_form_are_refused(tmp_path):
    path = tmp_path / "pairs.parquet"
    with pytest.raises(ValueError, match="expected a Parquet file, found"):
        audit.check_lookalikes(str(path))
    path.write_bytes(b"no table")
    with pytest.raises(ValueError, match="expected a Parquet file, found"):
        audit.check_lookalikes(str(path))
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), path)
    with pytest.raises(ValueError, match=r"column 'a' of keys .*, found int64"):
        audit.check_lookalikes(str(path))
    pq.write_table(pa.table({"a": ["x"]}), path)
    with pytest.raises(ValueError, match=r"column 'b' .*, found no such column"):
        audit.check_lookalikes(str(path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["score", "--audit"], "--audit: expected curate or select, not score"),
        pytest.param(
            ["select", "--lookalikes", "x"],
            "--lookalikes x: expected --audit with it",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_contradictory_flags_exit_with_2(tmp_path, capsys, flags, message):
    write_shard(tmp_path / "1.tar", (PICTURES[0], b"a text"))
    recipe = ["--config", "curation_configs/demo.py", "--output", str(tmp_path / "run")]
    command = [*flags, *recipe, "--input", str(tmp_path / "*.tar")]
    settings = ["--set", "selection.max_evaluation_similarity=none"]
    settings += ["--set", "selection.retrieval=none"]
    with pytest.raises(SystemExit) as exit_:
        run.main([*command, *settings])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
