"""Whatever a crawl holds and a recipe asks for, `select` loses no pair."""

import collections
import functools
import math
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.selection import (
    CapPerConcept,
    CapPerSeed,
    KeepFraction,
    KeepLanguages,
    MinScore,
    NearestToSeeds,
    NearSeeds,
    SafetyHead,
    SelectionConfig,
)
from pipeline.engine.run_folder import RunFolder
from pipeline.records import KEPT, UNREADABLE, DropReason
from pipeline.selection import rules
from tests.support.score_tables import Row, make_run, read_decisions, select

# Steps that hold for sources that are kept whole.
FOR_ALL = {"opt_out", "drop_list", "unsafe_image", "near_evaluation"}
EVALUATION = {"birds/1": [Row(key="wren", embedding=(1, 0))]}
SEEDS = {"flowers/1": [Row(embedding=(1, 1)), Row(embedding=(0, 1))]}
ROWS = st.builds(
    Row,
    alt_text=st.sampled_from(["", "one", "red fox", "red owl", "a fox", "x \ud7ff"]),
    image=st.sampled_from(["", "", "cat", "dog"]),
    embedding=st.sampled_from([(1, 0), (0, 1), (1, 1), (-1, 3), (-1, -3), (0, 0)]),
    score=st.sampled_from([-0.5, 0.0, 0.25, 0.5, math.nan]),
    code=st.sampled_from(["en", "en", "de", ""]),
    error=st.sampled_from(["", "", "", "truncated"]),
    robots=st.sampled_from(["", "", "", "noai"]),
)
SHARDS = st.fixed_dictionaries(
    {name: st.lists(ROWS, max_size=12) for name in ("web/1", "web/2", "city/1", "x/1")}
)
ALIGNMENTS = st.sampled_from(
    [None, MinScore(0.25), KeepFraction(0.6), KeepFraction(0.3, per_source=True)]
)
BOOLEANS = st.booleans()
RETRIEVALS = st.sampled_from([None, NearSeeds(0.5), NearestToSeeds(1)])


@functools.cache
def named_files() -> tuple[str, str]:
    """A safety head that dislikes the negative half, and a list of concepts."""
    folder = pathlib.Path(tempfile.mkdtemp())
    np.savez(folder / "head.npz", weight=[0.0, -4.0], bias=0.0)
    (folder / "concepts.txt").write_text("red\nfox\nred owl\n")
    return str(folder / "head.npz"), str(folder / "concepts.txt")


@st.composite
def configs(draw) -> SelectionConfig:
    head, concepts = named_files()
    caps = (CapPerSeed(2), CapPerConcept(concepts, 2, keep_unmatched=draw(BOOLEANS)))
    return SelectionConfig(
        drop_rules=(rules.FewWords(2),),
        language=KeepLanguages() if draw(BOOLEANS) else None,
        alignment=draw(ALIGNMENTS),
        drop_exact_duplicates=draw(BOOLEANS),
        safety=SafetyHead(head, 0.9) if draw(BOOLEANS) else None,
        max_evaluation_similarity=0.9 if draw(BOOLEANS) else None,
        retrieval=draw(RETRIEVALS),
        balance=draw(st.sampled_from([(), caps[:1], caps[1:], caps])),
    )


def account(folder: pathlib.Path, shards: dict, config: SelectionConfig) -> None:
    """Selects, and compares the ledger with the decisions and these with the pairs."""
    # One more row: `NearestToSeeds` refuses a pool that is empty.
    shards = shards | {"x/1": [*shards["x/1"], Row()]}
    run = make_run(
        str(folder),
        config,
        shards,
        evaluation=EVALUATION,
        seeds=SEEDS,
        keep_all=["city"],
    )
    ledger = select(run)
    decisions = read_decisions(run)
    source_to_outcomes = collections.defaultdict(collections.Counter)
    for lot in run.lots:
        found = decisions[lot.shards[0].uri]
        expect_one_decision_each(run, lot, found, shards[lot.shards[0].uri])
        source_to_outcomes[lot.source.name].update(d.outcome for d in found)
    for source, outcomes in source_to_outcomes.items():
        expect_adds_up(ledger["sources"][source], outcomes)
    expect_adds_up(ledger, sum(source_to_outcomes.values(), collections.Counter()))


def expect_one_decision_each(run: RunFolder, lot, found, rows) -> None:
    pairs = run.pairs(lot.source).read(lot.name, ["sample_id"])
    assert [d.sample_id for d in found] == pairs["sample_id"].to_pylist()
    for row, decision in zip(rows, found, strict=True):
        assert (decision.outcome == UNREADABLE) == bool(row.error)
        if lot.source.keep_all:
            assert decision.outcome in {KEPT, UNREADABLE, *FOR_ALL}
        if row.robots and not row.error:
            assert decision.outcome == "opt_out"


def expect_adds_up(entry: dict, outcomes: collections.Counter) -> None:
    n_dropped = sum(entry["dropped"].values())
    assert entry["read"] == entry["kept"] + n_dropped + entry["unreadable"]
    assert entry["read"] == outcomes.total()
    assert (entry["kept"], entry["unreadable"]) == (
        outcomes[KEPT],
        outcomes[UNREADABLE],
    )
    assert entry["dropped"] == {str(r): outcomes[r] for r in DropReason}


@settings(max_examples=2, deadline=None, derandomize=True)
@given(shards=SHARDS, config=configs())
def test_every_pair_has_one_decision_and_the_ledger_counts_it(
    tmp_path_factory, shards, config
):
    account(tmp_path_factory.mktemp("run"), shards, config)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(shards=SHARDS, config=configs())
def test_every_pair_of_many_crawls_has_one_decision(tmp_path_factory, shards, config):
    account(tmp_path_factory.mktemp("run"), shards, config)


def test_all_steps_at_once_drop_for_every_reason_they_have(tmp_path):
    head, concepts = named_files()
    config = SelectionConfig(
        safety=SafetyHead(head, 0.9),
        max_evaluation_similarity=0.9,
        retrieval=NearSeeds(0.3),
        balance=(CapPerConcept(concepts, 1),),
    )
    texts = ("red fox", "owl", "red 1", "red 2")
    vectors = ((1, 0), (0, 1), (1, 1), (-1, 0), (-1, -3))
    rows = [Row(text, embedding=vector) for text in texts for vector in vectors]
    account(tmp_path, {"web/1": rows, "city/1": rows, "x/1": []}, config)
    run = make_run(
        str(tmp_path),
        config,
        {"web/1": rows, "city/1": rows, "x/1": [Row()]},
        evaluation=EVALUATION,
        seeds=SEEDS,
        keep_all=["city"],
    )
    decisions = read_decisions(run)
    assert {d.outcome for d in decisions["web/1"]} >= {
        "unsafe_image",
        "near_evaluation",
        "far_from_seeds",
        "balance",
    }
    assert {d.outcome for d in decisions["city/1"]} == FOR_ALL - {
        "opt_out",
        "drop_list",
    } | {"kept"}
