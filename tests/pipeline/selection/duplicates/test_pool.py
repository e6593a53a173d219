"""Tests of near-duplicates through `select`: of the pool, and by components."""

import collections
import dataclasses
import itertools
import json
import logging

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import curate
from pipeline.config.duplicates import (
    ENCODER,
    Cells,
    EvaluationDuplicates,
    PerceptualDescriptor,
    PoolDuplicates,
    Resemblance,
    TorchDescriptor,
)
from pipeline.config.fingerprint import _determining_fields
from pipeline.config.selection import SelectionConfig
from pipeline.selection import checks
from pipeline.selection import stage as selection
from pipeline.selection.duplicates import cell_entries
from pipeline.selection.duplicates.pool import FindLinks
from pipeline.storage import files
from tests.support.near_copies import members
from tests.support.score_tables import (
    Row,
    Shards,
    make_run,
    outcomes,
    read_decisions,
    sample_id,
    select,
)

BY_ENCODER = Resemblance(ENCODER, 0.9)
BY_PERCEPTUAL = Resemblance(PerceptualDescriptor(), 0.95)
CELLS = Cells(n_clusters=6, n_iterations=1)
POOL = PoolDuplicates((BY_ENCODER, BY_PERCEPTUAL), CELLS)
AROUND = ((1.0, 0.0), (0.97, 0.24), (0.88, 0.47), (0.0, 1.0))  # 14 degrees, and far


def pool(**changes) -> SelectionConfig:
    return SelectionConfig(pool_duplicates=dataclasses.replace(POOL, **changes))


def random_rows(n: int, rng_seed: int = 0) -> list[Row]:
    """Rows of which some are near by either descriptor."""
    rng = np.random.default_rng(rng_seed)

    def vectors() -> np.ndarray:
        centers = rng.standard_normal((n // 2, 5))
        return centers[rng.integers(len(centers), size=n)] + rng.normal(0, 0.45, (n, 5))

    both = zip(vectors().tolist(), vectors().tolist(), strict=True)
    return [
        Row(image=f"image {i}", key=str(i), embedding=tuple(a), perceptual=tuple(b))
        for i, (a, b) in enumerate(both)
    ]


def is_near(a: Row, b: Row) -> bool:
    def cosine(left: tuple, right: tuple) -> float:
        x, y = np.float16(left).astype(float), np.float16(right).astype(float)
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    by_encoder = cosine(a.embedding, b.embedding) > BY_ENCODER.max_similarity
    perceptual = cosine(a.perceptual, b.perceptual) > BY_PERCEPTUAL.max_similarity
    return by_encoder or perceptual


def kept_ids(rows: list[Row]) -> dict[bytes, bytes]:
    """Sample id to the smallest of its component, by comparing all pairs."""
    ids = [sample_id(row, row.image) for row in rows]
    smallest = list(ids)
    pairs = itertools.combinations(range(len(rows)), 2)
    near = [(i, j) for i, j in pairs if is_near(rows[i], rows[j])]
    for _ in range(len(rows)):
        for i, j in near:
            smallest[i] = smallest[j] = min(smallest[i], smallest[j])
    return dict(zip(ids, smallest, strict=True))


def split(rows: list[Row], n_shards: int) -> Shards:
    return {f"web/{i}": rows[i::n_shards] for i in range(n_shards)}


def decisions_by_id(run) -> dict[bytes, tuple]:
    return {
        d.sample_id: (d.outcome, d.value, d.threshold, d.detail)
        for decisions in read_decisions(run).values()
        for d in decisions
    }


def test_one_of_each_component_stays_as_in_brute_force(tmp_path):
    rows = random_rows(120)
    expected = kept_ids(rows)
    run = make_run(str(tmp_path), pool(), split(rows, 3))
    select(run)
    found = decisions_by_id(run)
    n_dropped = 0
    for own, (outcome, value, threshold, detail) in found.items():
        if own == expected[own]:
            assert outcome == "kept"
        else:
            n_dropped += 1
            kept, _, name = detail.partition(" by ")
            assert (outcome, kept) == ("near_duplicate", expected[own].hex())
            assert threshold == {"encoder": 0.9, "perceptual": 0.95}[name]
            assert value > threshold
    assert 20 < n_dropped < 100
    path = files.join(run.decisions.folder, "near_duplicate_components.json")
    sizes = collections.Counter(collections.Counter(expected.values()).values())
    del sizes[1]
    account = json.loads(files.read(path))
    assert account["size_to_components"] == {
        str(s): n for s, n in sorted(sizes.items())
    }


@pytest.mark.slow
def test_decisions_do_not_depend_on_shards_or_their_order(tmp_path):
    rows = random_rows(60)
    found = []
    for name, shards in (("one", split(rows, 1)), ("ten", split(rows, 10))):
        run = make_run(str(tmp_path / name), pool(), shards)
        select(run, lots=run.lots[::-1])
        found.append(decisions_by_id(run))
    assert found[0] == found[1]


@pytest.mark.slow
def test_decisions_are_the_same_bytes_from_several_processes(tmp_path):
    shards = split(random_rows(60), 4)
    tables = []
    for name, flags in (
        ("memory", []),
        (
            "processes",
            ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
        ),
    ):
        run = make_run(str(tmp_path / name), pool(), shards)
        options = PipelineOptions(flags)
        with beam.Pipeline(FnApiRunner(), options=options) as pipeline:
            _ = pipeline | beam.Create(run.lots) | selection.Select(run)
        tables.append([files.read(run.decisions.path(u.name)) for u in run.lots])
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_sources_to_keep_whole_neither_lose_nor_displace_images(tmp_path):
    config = pool(by=(BY_ENCODER,))
    shards = {"web/1": [Row(), Row(embedding=(0, 1))], "whole/1": [Row(), Row()]}
    run = make_run(str(tmp_path), config, shards, keep_all=["whole"])
    assert outcomes(run) == {"web/1": ["kept", "kept"], "whole/1": ["kept", "kept"]}


@pytest.mark.slow
def test_images_without_an_embedding_are_no_duplicates_and_giants_raise_an_alarm(
    tmp_path, caplog
):
    rows = [Row(embedding=(0, 0)), Row(embedding=(0, 0)), Row(error="broken")]
    rows += [Row("twin", image=str(i)) for i in range(5)]
    config = pool(by=(BY_ENCODER,), alarm_size=4)
    with caplog.at_level(logging.WARNING):
        found = outcomes(make_run(str(tmp_path), config, {"web/1": rows}))["web/1"]
    assert found[:3] == ["kept", "kept", "unreadable"]
    assert sorted(found[3:]) == ["kept"] + ["near_duplicate"] * 4
    assert "near_duplicate: a component of 5 images" in caplog.text


@pytest.mark.slow
def test_a_new_bound_trains_no_cells_again(tmp_path):
    shards = split(random_rows(30), 2)
    for bound in (0.9, 0.99):
        config = pool(by=(Resemblance(ENCODER, bound),))
        select(make_run(str(tmp_path), config, shards))
    assert len(list(tmp_path.glob("clusters/*.json"))) == 1
    assert len(list(tmp_path.glob("decisions/*"))) == 2


def test_components_of_split_cells_are_those_of_brute_force(tmp_path, monkeypatch):
    split_all_cells(monkeypatch)
    rows = random_rows(120)
    cells = dataclasses.replace(CELLS, max_per_image=100)  # leaves out none
    run = make_run(str(tmp_path), pool(cells=cells), split(rows, 3))
    select(run)
    assert list(tmp_path.glob("clusters/splits/*.npz"))
    found = {
        own: detail[:32] for own, (_, _, _, detail) in decisions_by_id(run).items()
    }
    assert found == {
        own: kept.hex() if own != kept else "" for own, kept in kept_ids(rows).items()
    }


def split_all_cells(monkeypatch) -> None:
    """Splits the cells of a pool of some dozen images."""
    monkeypatch.setattr(cell_entries, "_LEAST_WANTED", 4)
    monkeypatch.setattr(cell_entries, "_WORTH", 1)


def test_parts_that_travel_together_are_compared_apart():
    images = members(0, np.repeat(np.eye(1, 4), 4, axis=0))
    images["part"] = [5, 7, 5, 8]
    links = FindLinks(by=0, max_similarity=0.9)
    assert not list(links.process((0, [images[:2], images[2:]])))
    found = np.concatenate([value.value[1] for value in links.finish_bundle()])
    assert sorted(found["image"].tolist()) == [0, 2]


def test_splits_of_cells_are_gone_once_select_is_over(tmp_path, monkeypatch):
    split_all_cells(monkeypatch)
    shards = split(random_rows(60), 2)
    killed, done = (
        make_run(str(tmp_path), pool(by=(Resemblance(ENCODER, bound),)), shards)
        for bound in (0.9, 0.99)
    )
    select(killed)  # but for what its launcher does at the end
    assert list(tmp_path.glob("clusters/splits/*.npz"))
    curate.select(done, PipelineOptions([]))
    assert not (tmp_path / "clusters" / "splits").exists()
    assert list(tmp_path.glob("clusters/*.json"))


# Evaluation images


def evaluation(*by: Resemblance, **changes) -> SelectionConfig:
    duplicates = EvaluationDuplicates(by, cells=CELLS, **changes)
    return SelectionConfig(evaluation_duplicates=duplicates)


def test_any_descriptor_finds_an_evaluation_image_and_is_named(tmp_path):
    config = evaluation(BY_ENCODER, BY_PERCEPTUAL)
    far, near = (0.0, 1.0), (1.0, 0.0)
    rows = [Row(embedding=e, perceptual=p) for e in (near, far) for p in (near, far)]
    sets = {"birds/1": [Row(key="x")]}
    run = make_run(str(tmp_path), config, {"web/1": rows}, evaluation=sets)
    select(run)
    (decided,) = read_decisions(run).values()
    assert [(d.outcome, d.threshold, d.detail) for d in decided] == [
        ("near_evaluation", 0.9, "birds:x"),
        ("near_evaluation", 0.9, "birds:x"),
        ("near_evaluation", 0.95, "birds:x by perceptual"),
        ("kept", None, ""),
    ]


@pytest.mark.parametrize(
    "keep_all", [pytest.param([], marks=pytest.mark.slow), ["web"]]
)
def test_a_whole_component_goes_also_of_sources_to_keep_whole(tmp_path, keep_all):
    config = evaluation(BY_ENCODER, whole_component=True)
    rows = [Row(embedding=vector) for vector in AROUND]
    sets = {"birds/1": [Row(key="x", embedding=(0.97, -0.24))]}
    run = make_run(
        str(tmp_path), config, {"web/1": rows}, evaluation=sets, keep_all=keep_all
    )
    select(run)
    (decided,) = read_decisions(run).values()
    near = decided[0].sample_id.hex()
    assert [(d.outcome, d.detail) for d in decided] == [
        ("near_evaluation", "birds:x"),
        ("near_evaluation", f"component of {near} by encoder"),
        ("near_evaluation", f"component of {near} by encoder"),
        ("kept", ""),
    ]


@pytest.mark.slow
def test_without_components_only_what_is_near_an_evaluation_image_goes(tmp_path):
    rows = [Row(embedding=vector) for vector in AROUND]
    sets = {"birds/1": [Row(key="x", embedding=(0.97, -0.24))]}
    config = evaluation(BY_ENCODER)
    run = make_run(str(tmp_path), config, {"web/1": rows}, evaluation=sets)
    assert outcomes(run) == {"web/1": ["near_evaluation", "kept", "kept", "kept"]}


@pytest.mark.slow
def test_both_kinds_and_the_short_setting_work_together(tmp_path):
    config = dataclasses.replace(
        evaluation(BY_PERCEPTUAL, whole_component=True),
        max_evaluation_similarity=0.9,
        pool_duplicates=dataclasses.replace(POOL, by=(BY_ENCODER,)),
    )
    far = (0.0, 1.0)
    rows = [Row(embedding=vector, perceptual=far) for vector in AROUND]
    rows += [Row("a twin", embedding=far, image="twin", perceptual=far)]
    sets = {"birds/1": [Row(key="x", embedding=(0.97, -0.24))]}
    run = make_run(str(tmp_path), config, {"web/1": rows}, evaluation=sets)
    ledger = select(run)
    found = {name: n for name, n in ledger["dropped"].items() if n}
    assert found == {"near_evaluation": 5}  # all are one component by `perceptual`


# Settings


def test_settings_that_are_not_used_have_no_part_in_names():
    def names_of(selection: SelectionConfig) -> set[str]:
        return {field.name for field in _determining_fields(selection)}

    later = {"evaluation_duplicates", "pool_duplicates"}
    assert not later & names_of(SelectionConfig())
    assert later & names_of(pool()) == {"pool_duplicates"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resemblance(ENCODER, 1.5), "max_similarity=1.5: expected a cosine"),
        (lambda: PoolDuplicates(()), r"by=\(\): expected at least one resemblance"),
        (
            lambda: PoolDuplicates((BY_ENCODER, BY_ENCODER)),
            r"by=\('encoder', 'encoder'\): expected names that differ",
        ),
        (lambda: Cells(n_clusters=0), "n_clusters=0: expected at least 1"),
        (
            lambda: TorchDescriptor("f", name="encoder"),
            "name='encoder': expected one of",
        ),
        (lambda: PoolDuplicates((BY_ENCODER,), alarm_size=1), "alarm_size=1: expected"),
        (
            lambda: SelectionConfig(
                max_evaluation_similarity=0.9,
                evaluation_duplicates=EvaluationDuplicates((BY_ENCODER,)),
            ),
            "max_evaluation_similarity=0.9: expected None beside",
        ),
    ],
)
def test_contradictory_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bounds_on_evaluation_images_need_evaluation_sets(tmp_path):
    run = make_run(str(tmp_path), evaluation(BY_PERCEPTUAL), {"web/1": [Row()]})
    either = "--eval NAME=GLOB, or --set selection.evaluation_duplicates=null"
    expected = f"evaluation_duplicates=.*expected evaluation sets, {either}"
    with pytest.raises(ValueError, match=expected):
        checks.check(run)
