import collections
import dataclasses
import itertools

import numpy as np
import pytest

from pipeline.config.selection import (
    CapPerCluster,
    CapPerConcept,
    CapPerSeed,
    NearSeeds,
    SelectionConfig,
)
from pipeline.selection import balance, integer_counts
from pipeline.selection.balance import Grouped
from pipeline.selection.hashed_random import unit_hashes
from pipeline.selection.integer_counts import Counts
from pipeline.selection.lot_decisions import open_lot
from tests.support.score_tables import (
    Row,
    make_run,
    outcomes,
    read_decisions,
    sample_id,
    select,
)

SEEDS = {
    "flowers/1": [Row(key="rose", embedding=(1, 0))],
    "trees/1": [Row(key="oak", embedding=(0, 1)), Row(key="elm", embedding=(-1, 0))],
}
NEAR_ROSE = [Row(image=f"r{i}", embedding=(4, i / 100)) for i in range(40)]
NEAR_OAK = [Row(image=f"o{i}", embedding=(i / 100, 4)) for i in range(4)]
POOL = {
    "web/1": NEAR_ROSE[:25] + NEAR_OAK[:1],
    "web/2": NEAR_OAK[1:] + NEAR_ROSE[25:],
    "city/1": NEAR_ROSE[:3],
}


def make(tmp_path, *caps, shards=POOL, retrieval=None):
    selection = SelectionConfig(
        balance=caps, retrieval=retrieval, drop_exact_duplicates=False
    )
    return make_run(str(tmp_path), selection, shards, seeds=SEEDS, keep_all=["city"])


def decided(run) -> dict[str, list]:
    """Image to its decisions, in a source that is not kept whole."""
    select(run)
    found = collections.defaultdict(list)
    for uri, decisions in read_decisions(run).items():
        for decision in decisions if uri.startswith("web") else ():
            found[decision.sample_id].append(decision)
    return found


def test_the_images_of_a_frequent_seed_stay_by_their_draw(tmp_path):
    run = make(tmp_path, CapPerSeed(10), retrieval=NearSeeds(0.5))
    found = decided(run)
    for row in NEAR_OAK:
        (decision,) = found[sample_id(row, row.image)]
        assert (decision.outcome, decision.seeds) == ("kept", ("trees",))
    n_kept = 0
    for row in NEAR_ROSE:
        name = sample_id(row, row.image)
        (decision,) = found[name]
        (draw,) = unit_hashes([name], "CapPerSeed 0")
        assert (decision.outcome == "kept") == (draw < 0.25)
        n_kept += decision.outcome == "kept"
        if decision.outcome != "kept":
            assert (decision.outcome, decision.detail) == ("balance", "flowers:rose")
            assert (decision.value, decision.threshold) == (0.25, draw)
    assert 0 < n_kept < 40
    assert outcomes(run)["city/1"] == ["kept"] * 3


def test_clusters_are_capped_and_another_cap_trains_nothing(tmp_path):
    cap = CapPerCluster(5, n_clusters=2, n_iterations=1)
    run = make(tmp_path, cap)
    dropped = [d for found in decided(run).values() for d in found if d.detail]
    cluster_to_size = {d.detail: 5 / d.value for d in dropped}
    assert sorted(cluster_to_size) == ["cluster 0", "cluster 1"]
    assert sum(cluster_to_size.values()) == pytest.approx(44)
    record = balance._record_path(run, 0)
    other = make(tmp_path, dataclasses.replace(cap, max_count=6))
    assert balance._record_path(other, 0) == record
    finer = make(tmp_path, dataclasses.replace(cap, n_clusters=3))
    assert balance._record_path(finer, 0) != record


TEXTS = {
    "web/1": [Row(f"red fox {i}") for i in range(20)] + [Row("red owl")],
    "web/2": [Row(f"red {i}") for i in range(30)] + [Row("nothing"), Row("owl")],
}


def concepts(tmp_path, *names: str) -> str:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "concepts.txt").write_text("\n".join(names))
    return str(tmp_path / "concepts.txt")


def test_a_pair_stays_if_one_of_its_concepts_lets_it(tmp_path):
    cap = CapPerConcept(concepts(tmp_path, "red", "fox", "owl"), max_count=10)
    run = make(tmp_path / "run", cap, shards=TEXTS)
    select(run)
    rows = dict(zip(TEXTS["web/1"], read_decisions(run)["web/1"], strict=True))
    owl = rows.pop(Row("red owl"))
    assert owl.outcome == "kept"
    red, fox = 10 / 51, 10 / 20
    dropped = [decision for decision in rows.values() if decision.outcome != "kept"]
    assert 0 < len(dropped) < 20
    for decision in dropped:
        assert decision.value == pytest.approx(1 - (1 - red) * (1 - fox))
        assert decision.threshold >= decision.value
        assert decision.detail == "fox"
    *others, nothing, owl = read_decisions(run)["web/2"]
    assert owl.outcome == "kept"
    assert (nothing.outcome, nothing.value, nothing.detail) == (
        "balance",
        0,
        "no concept",
    )
    dropped = [decision for decision in others if decision.outcome != "kept"]
    assert 0 < len(dropped) < 30
    assert {d.detail for d in dropped} == {"red"}
    assert [d.value for d in dropped] == pytest.approx([red] * len(dropped))


def test_pairs_without_a_concept_can_stay(tmp_path):
    path = concepts(tmp_path, "fox")
    cap = CapPerConcept(path, max_count=100, keep_unmatched=True)
    run = make(tmp_path / "run", cap, shards=TEXTS)
    found = outcomes(run)
    assert found == {"web/1": ["kept"] * 21, "web/2": ["kept"] * 32}


def test_caps_come_one_after_the_other_and_order_changes_no_byte(tmp_path):
    path = concepts(tmp_path, "red", "fox", "owl")
    caps = (CapPerSeed(30), CapPerConcept(path, max_count=5))
    runs = [make(tmp_path / name, *caps, shards=TEXTS) for name in "ab"]
    select(runs[0])
    select(runs[1], lots=runs[1].lots[::-1])
    one, two = map(read_decisions, runs)
    assert one == two
    decisions = [d for found in one.values() for d in found]
    details = {d.detail for d in decisions if d.outcome == "balance"}
    assert "flowers:rose" in details
    assert "red" in details
    # The second cap counts what the first has left.
    texts = [row.alt_text for rows in TEXTS.values() for row in rows]
    left = [d.detail != "flowers:rose" for d in decisions]
    n_red = sum("red" in text for text in itertools.compress(texts, left))
    values = {d.value for d in decisions if d.detail == "red"}
    assert list(values) == pytest.approx([5 / n_red])


def test_neither_ranges_nor_blocks_of_texts_change_a_byte(tmp_path, monkeypatch):
    caps = (
        CapPerSeed(30),
        CapPerConcept(concepts(tmp_path, *["red", "fox", "owl"]), 5),
    )
    whole = make(tmp_path / "whole", *caps, shards=TEXTS)
    select(whole)
    monkeypatch.setattr(balance, "_TEXTS_AT_A_TIME", 7)
    monkeypatch.setattr(integer_counts, "_NUMBERS_PER_RANGE", 1)
    parts = make(tmp_path / "parts", *caps, shards=TEXTS)
    select(parts)
    assert read_decisions(parts) == read_decisions(whole)


def test_ranges_of_counts_add_up_to_them(monkeypatch):
    monkeypatch.setattr(integer_counts, "_NUMBERS_PER_RANGE", 4)
    counts = Counts.of(np.array([9, 1, 3, 4, 1, 9, 9, -1]))
    ranges = dict(counts.by_range())
    assert {key: c.number.tolist() for key, c in ranges.items()} == {
        -1: [-1],
        0: [1, 3],
        1: [4],
        2: [9],
    }
    joined = integer_counts.sum_counts([*ranges.values()]).above(1)
    assert (joined.number.tolist(), joined.count.tolist()) == ([1, 9], [2, 3])
    assert not [*Counts.of(np.empty(0, np.int64)).by_range()]


def test_probabilities_are_those_of_the_paper_s_loop(tmp_path):
    run = make(tmp_path, shards={"web/1": [Row()] * 4})
    decisions = open_lot(run.lots[0], run)
    row, group = np.array([0, 0, 1, 3]), np.array([7, 8, 8, 9])
    grouped = Grouped(decisions, row, group, {})
    counts = Counts(np.array([7, 8, 9]), np.array([40, 100, 3]))
    found = balance.probabilities(grouped, 10, counts)
    np.testing.assert_allclose(found, [1 - 0.75 * 0.9, 0.1, np.nan, 1], rtol=1e-12)

    rng = np.random.default_rng(0)
    draws = rng.random((100_000, 2)) < [10 / 40, 10 / 100]
    assert abs(draws.any(axis=1).mean() - found[0]) < 0.01


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        (lambda: CapPerSeed(0), "max_count=0: expected at least 1"),
        (lambda: CapPerCluster(1, 0), "n_clusters=0: expected at least 1"),
        (lambda: CapPerConcept(""), "concepts='': expected the path of a file"),
        (lambda: CapPerSeed(1, rng_seed=-1), "rng_seed=-1: expected at least 0"),
    ],
)
def test_impossible_caps_are_an_error(cap, message):
    with pytest.raises(ValueError, match=message):
        cap()


def test_a_cap_per_seed_without_seeds_is_an_error(tmp_path):
    config = SelectionConfig(balance=(CapPerSeed(2),))
    run = make_run(str(tmp_path), config, {"web/1": [Row()]})
    with pytest.raises(ValueError, match=r"balance=CapPerSeed.*: expected seed sets"):
        select(run)
