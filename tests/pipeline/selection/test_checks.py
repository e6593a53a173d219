"""What a run folder tells costs one line and exit code 2, before any work."""

import os
import pathlib

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate
from pipeline import run as command_line
from pipeline.config.recipes import load_config
from pipeline.engine import checks as engine_checks
from pipeline.engine import scored_shards
from pipeline.engine.run_folder import RunFolder
from pipeline.selection import checks
from tests.pipeline.test_run import CONFIG, error_of
from tests.support.score_tables import Row, write_scores

RECIPE = """
import dataclasses
from curation_configs import demo
from pipeline.config.selection import *
def get_config():
    config = demo.get_config()
    selection = dataclasses.replace(config.selection, {changes})
    return dataclasses.replace(config, selection=selection)
"""


WHOLE = Row()
BROKEN = Row(error="truncated", embedding=(0, 0))


class Crawl:
    """A pool, an evaluation set and a seed set on disk, and flags that name them."""

    def __init__(self, folder: pathlib.Path, changes: str = "") -> None:
        self.output = folder / "run"
        recipe = folder / "recipe.py"
        recipe.write_text(RECIPE.format(changes=changes))
        for name in ("crawl", "eval", "seeds"):
            (folder / name).mkdir()
            (folder / name / "0.tar").write_bytes(b"")
        self.flags = ["--config", str(recipe), "--output", str(self.output)]
        self.flags += ["--input", f"{folder}/crawl/*.tar"]
        self.flags += ["--eval", f"birds={folder}/eval/*.tar"]
        self.flags += ["--seeds", f"flowers={folder}/seeds/*.tar"]

    def open(self) -> RunFolder:
        return command_line.open_run(["select", *self.flags])

    def score(self, evaluation: Row = WHOLE, seeds: Row = WHOLE) -> None:
        """Writes the tables of `score`."""
        run = self.open()
        run.plan.write(run.root)
        write_scores(run, run.lots[0], [WHOLE] * 3)
        write_scores(run, run.evaluation_lots[0], [evaluation])
        write_scores(run, run.seed_lots[0], [seeds])


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"evaluation": BROKEN}, "evaluation_sets=birds: expected at least one read"),
        ({"seeds": BROKEN}, "seed_sets=flowers: expected at least one readable image"),
    ],
)
def test_a_set_without_an_image_is_refused(capsys, tmp_path, tables, expected):
    crawl = Crawl(tmp_path)
    crawl.score(**tables)
    assert expected in error_of(capsys, "select", *crawl.flags)
    assert not (crawl.output / "decisions").exists()
    assert not (crawl.output / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("retrieval=NearestToSeeds(4)", "k=4: expected at most the 3 of the pool"),
        ("retrieval=SeededClusters(9)", "n_clusters=9: expected at most the 3 of"),
    ],
)
def test_more_neighbors_than_the_pool_has_are_refused(
    capsys, tmp_path, changes, expected
):
    crawl = Crawl(tmp_path, changes)
    crawl.score()
    assert expected in error_of(capsys, "select", *crawl.flags)
    assert not (crawl.output / "decisions").exists()


def test_a_head_for_another_encoder_is_refused(capsys, tmp_path):
    np.savez(tmp_path / "head.npz", weight=[1.0, 2.0, 3.0], bias=0.0)
    crawl = Crawl(tmp_path, f"safety=SafetyHead('{tmp_path}/head.npz', 0.5)")
    crawl.score()
    error = error_of(capsys, "select", *crawl.flags)
    assert "head.npz': 3 weights, expected 2, one per dimension" in error


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("safety=SafetyHead('/no/head.npz', 0.5)", "/no/head.npz: expected a file"),
        ("safety=SafetyHead('recipe.py', 2)", "max_probability=2: expected 0 to 1"),
        ("balance=(CapPerConcept('/no/c.txt'),)", "/no/c.txt: expected a file to read"),
        ("balance=(CapPerSeed(0),)", "max_count=0: expected at least 1"),
        ("max_exact_set=-1", "max_exact_set=-1: expected at least 0"),
        ("max_evaluation_similarity=1.5", "max_evaluation_similarity=1.5: expected a"),
        ("retrieval=NearSeeds(-2)", "min_similarity=-2: expected a cosine in [-1, 1]"),
        (
            "retrieval=SeededClusters(max_per_cluster=9, max_per_set=8)",
            "max_per_cluster=9: expected at most max_per_set=8",
        ),
        (
            "retrieval=NearestToSeeds(set_to_k={'trees': 2})",
            "set_to_k['trees']=2: expected one of flowers",
        ),
    ],
)
def test_contradictory_settings_are_refused(capsys, tmp_path, changes, expected):
    crawl = Crawl(tmp_path, changes)
    error = error_of(capsys, "curate", *crawl.flags)
    assert expected in error
    assert not crawl.output.exists()


def test_a_file_that_is_no_head_is_refused(capsys, tmp_path):
    crawl = Crawl(tmp_path, f"safety=SafetyHead('{tmp_path}/recipe.py', 0.5)")
    error = error_of(capsys, "curate", *crawl.flags)
    assert "recipe.py': expected an .npz file with numbers" in error
    assert not crawl.output.exists()


def test_a_cap_per_seed_without_seeds_is_refused(capsys, tmp_path):
    crawl = Crawl(tmp_path, "balance=(CapPerSeed(3),), retrieval=None")
    flags = crawl.flags[: crawl.flags.index("--seeds")]
    error = error_of(capsys, "curate", *flags)
    assert "balance=CapPerSeed(max_count=3, rng_seed=0): expected seed sets" in error


def test_the_folder_of_another_recipe_is_refused(capsys, tmp_path):
    crawl = Crawl(tmp_path)
    crawl.score()
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.tar").write_bytes(b"")
    crawl.flags[crawl.flags.index("--input") + 1] = f"{other}/*.tar"
    error = error_of(capsys, "curate", *crawl.flags)
    assert "found 1 scored shards of another, such as" in error
    assert not (crawl.output / "config.json").exists()


def test_a_crawl_that_grows_and_new_sets_may_keep_their_folder(tmp_path):
    crawl = Crawl(tmp_path)
    crawl.score()
    (tmp_path / "crawl" / "-1.tar").write_bytes(b"")  # the first by name
    run = crawl.open()
    assert [len(lot.shards) for lot in run.lots] == [1, 1]
    engine_checks.check(run)


def touch(folder: pathlib.Path, *names: str) -> list[str]:
    """Gives shards another time; returns their paths."""
    paths = [folder / name / "0.tar" for name in names]
    for path in paths:
        os.utime(path, (7, 7))
    return list(map(str, paths))


def test_changed_shards_are_reported_with_their_paths(tmp_path):
    crawl = Crawl(tmp_path)
    assert list(scored_shards.describe_changes(crawl.open())) == []
    crawl.score()
    assert list(scored_shards.describe_changes(crawl.open())) == []
    (seeds,) = touch(tmp_path, "seeds")
    assert list(scored_shards.describe_changes(crawl.open())) == [
        f"1 shard has changed since it was scored: {seeds};"
        " `score` and `curate` score it again"
    ]
    pool, evaluation = touch(tmp_path, "crawl", "eval")
    run = crawl.open()
    assert list(scored_shards.describe_changes(run)) == [
        f"3 shards have changed since they were scored: {pool}, {evaluation}, ...;"
        " `score` and `curate` score them again"
    ]
    engine_checks.check(run)  # it is no run of another recipe
    crawl.score()
    assert list(scored_shards.describe_changes(crawl.open())) == []


def test_a_stage_names_the_shards_that_lack_what_it_reads(tmp_path):
    crawl = Crawl(tmp_path)
    run, options = crawl.open(), PipelineOptions([])
    message = r"^3 shards without scores of the present contents: .*, \.\.\.; run `sc"
    with pytest.raises(ValueError, match=message):
        curate.select(run, options)
    crawl.score()
    message = r"^1 shard without decisions on the present contents: .*/0\.tar; run `sel"
    for stage in (curate.caption, curate.export_shards):
        with pytest.raises(ValueError, match=message):
            stage(run, options)
    touch(tmp_path, "eval")
    message = r"^1 shard without scores of the present contents: .*eval/0\.tar; run `sc"
    with pytest.raises(ValueError, match=message):
        curate.select(crawl.open(), options)


def test_unused_sets_are_reported(tmp_path):
    unused = Crawl(tmp_path, "max_evaluation_similarity=None, retrieval=None")
    assert list(checks.doubts(unused.open())) == [
        "evaluation_sets: not compared, as max_evaluation_similarity=None",
        "seed_sets: not searched for, as retrieval=None",
    ]


def test_the_demo_leaves_no_doubts(tmp_path):
    crawl = Crawl(tmp_path)
    assert load_config(CONFIG).selection.retrieval is not None
    assert list(checks.doubts(crawl.open())) == []
