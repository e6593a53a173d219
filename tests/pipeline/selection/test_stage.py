"""`select` as a whole, against literal ledgers and a plain-Python account of it."""

import dataclasses
import json
import math
import pathlib
from fractions import Fraction
from itertools import chain

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commands import stage_progress
from pipeline.config.selection import (
    KeepFraction,
    KeepLanguages,
    MinScore,
    NearSeeds,
    SelectionConfig,
)
from pipeline.records import VERSION, DropReason
from pipeline.selection import ledger as ledgers
from pipeline.selection import rules
from pipeline.selection import stage as selection
from pipeline.sources import drop_lists
from tests.support.score_tables import (
    Row,
    make_run,
    outcomes,
    read_decisions,
    sample_id,
    select,
)

EVERYTHING = SelectionConfig(
    drop_rules=(rules.FewWords(2), rules.SmallImage(32)),
    language=KeepLanguages(),
    alignment=KeepFraction(0.6),
    max_evaluation_similarity=0.9,
    retrieval=NearSeeds(0.5),
)
EVALUATION = {"birds/1": [Row(key="wren", embedding=(1, 0))]}
SEEDS = {
    "flowers/1": [Row(embedding=(1, 1))],
    "trees/1": [Row(embedding=(1, 4))],
}
SHARDS = {
    "web/1": [
        Row("single"),
        Row(size=(8, 8)),
        Row(code="de"),
        Row(score=0.1),
        Row(error="truncated"),
        Row(embedding=(1, 0)),
    ],
    "web/2": [
        Row(image="cat", embedding=(1, 3)),
        Row(image="cat", embedding=(1, 3)),
        Row(embedding=(-1, 0)),
        Row(score=0.2),
        Row(score=0.3),
    ],
    "city/1": [Row("", score=math.nan, embedding=(0, 1)), Row("", embedding=(1, 0))],
}


def everything(tmp_path, config=EVERYTHING, shards=SHARDS):
    return make_run(
        str(tmp_path),
        config,
        shards,
        evaluation=EVALUATION,
        seeds=SEEDS,
        keep_all=["city"],
    )


def dropped(**reason_to_count: int) -> dict[str, int]:
    return dict.fromkeys(map(str, DropReason), 0) | reason_to_count


def stored_bytes(run) -> dict[str, bytes]:
    folder = pathlib.Path(run.decisions.folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_first_failing_step_names_the_reason(tmp_path):
    assert outcomes(everything(tmp_path)) == {
        "web/1": [
            "few_words",
            "tiny_image",
            "language",
            "low_alignment",
            "unreadable",
            "near_evaluation",
        ],
        "web/2": [
            "kept",
            "exact_duplicate",
            "far_from_seeds",
            "low_alignment",
            "near_evaluation",
        ],
        "city/1": ["kept", "near_evaluation"],
    }


def test_the_ledger_counts_every_pair_once_in_all_and_by_source(tmp_path):
    web = {
        "read": 11,
        "kept": 1,
        "unreadable": 1,
        "dropped": dropped(
            few_words=1,
            tiny_image=1,
            language=1,
            low_alignment=2,
            exact_duplicate=1,
            near_evaluation=2,
            far_from_seeds=1,
        ),
    }
    city = {
        "read": 2,
        "kept": 1,
        "unreadable": 0,
        "dropped": dropped(near_evaluation=1),
    }
    ledger = select(everything(tmp_path))
    sets = {role: ledger.pop(role) for role in ("evaluation", "seeds")}
    assert {
        (role, name): one["compared"]
        for role, found in sets.items()
        for name, one in found.items()
    } == {("evaluation", "birds"): 1, ("seeds", "flowers"): 1, ("seeds", "trees"): 1}
    assert ledger.pop("pool")
    assert ledger == {
        "read": 13,
        "kept": 2,
        "unreadable": 1,
        "dropped": web["dropped"] | {"near_evaluation": 3},
        "sources": {"city": city, "web": web},
        "version": VERSION,
    }
    assert list(ledger["dropped"]) == list(map(str, DropReason))


def test_counters_tell_what_was_decided(tmp_path):
    run = everything(tmp_path)
    counters = [_run_with_counters(run) for _ in range(2)]
    assert counters[0]["kept"] == 2
    assert counters[0]["unreadable"] == 1
    assert counters[0]["dropped_near_evaluation"] == 3
    assert counters[0]["dropped_boilerplate_alt_text"] == 0
    assert counters[1] == {"lots_skipped": 3}


def test_pairs_without_an_address_are_counted_where_addresses_are_looked_up(tmp_path):
    (tmp_path / "list.txt").write_text("host:a.org\n")
    rows = [Row(url="https://a.org/1"), Row(url=""), Row(url=""), Row(error="broken")]
    listed = drop_lists.list_files(str(tmp_path / "list.txt"), str(tmp_path))
    run = make_run(str(tmp_path), SelectionConfig(), {"web/1": rows})
    counters = _run_with_counters(dataclasses.replace(run, drop_list=listed))
    assert counters["dropped_drop_list"] == 1
    assert counters["without_url"] == 2
    assert not stage_progress.has_work({"lots_skipped": 1, "without_url": 2})


def _run_with_counters(run) -> dict[str, int]:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | beam.Create(run.lots) | selection.Select(run)
    counters = pipeline.run().metrics().query()["counters"]
    return {
        c.key.metric.name: c.committed
        for c in counters
        if c.key.metric.namespace == "select"
    }


def test_without_any_step_all_that_can_be_read_is_kept(tmp_path):
    config = SelectionConfig(drop_exact_duplicates=False)
    ledger = select(everything(tmp_path, config))
    assert (ledger["kept"], ledger["unreadable"]) == (12, 1)


def test_an_empty_shard_and_a_run_without_pairs_have_their_ledger(tmp_path):
    run = everything(tmp_path, shards={"web/1": []})
    assert outcomes(run) == {"web/1": []}
    nothing = {"read": 0, "kept": 0, "unreadable": 0, "dropped": dropped()}
    version = {"version": VERSION}
    ledger = select(run)
    assert ledger.pop("evaluation").keys() == {"birds"}
    assert ledger.pop("seeds").keys() == {"flowers", "trees"}
    assert ledger.pop("pool") == run.pool_fingerprint
    assert ledger == nothing | {"sources": {"web": nothing}} | version
    assert ledgers.make_ledger({}) == nothing | {"sources": {}}


# Order, restart, change of threshold


def test_the_order_of_lots_changes_no_byte(tmp_path):
    run = everything(tmp_path / "a")
    select(run)
    other = everything(tmp_path / "b")
    select(other, lots=run.lots[::-1])
    assert stored_bytes(run) == stored_bytes(other)


def test_one_shard_or_ten_give_the_same_decisions(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        Row(
            image=f"image {rng.integers(30)}",
            score=float(rng.random()),
            embedding=tuple(rng.standard_normal(2)),
        )
        for _ in range(100)
    ]
    parts = {f"web/{i}": rows[10 * i : 10 * i + 10] for i in range(10)}
    runs = [
        everything(tmp_path / "one", shards={"web/1": rows}),
        everything(tmp_path / "ten", shards=parts),
    ]
    for run in runs:
        select(run)
    one, ten = ([*chain(*read_decisions(run).values())] for run in runs)
    assert one == ten
    assert len({decision.outcome for decision in one}) == 5


def test_what_a_broken_run_left_undone_is_done_and_nothing_else(tmp_path):
    run = everything(tmp_path)
    assert not ledgers.is_complete(run)
    select(run)
    assert ledgers.is_complete(run)
    undisturbed = stored_bytes(run)

    run.decisions.delete([run.lots[1].name])
    (pathlib.Path(run.decisions.folder) / "ledger.json").unlink()
    assert not ledgers.is_complete(run)
    assert _run_with_counters(run)["lots_skipped"] == 2
    assert stored_bytes(run) == undisturbed


def test_decisions_without_their_ledger_are_not_complete(tmp_path):
    run = everything(tmp_path)
    select(run)
    pathlib.Path(run.decisions.folder, "ledger.json").unlink()
    assert not ledgers.is_complete(run)


def test_after_a_threshold_is_changed_back_the_ledger_is_that_of_now(tmp_path):
    ledger_path = tmp_path / "ledger.json"
    run = everything(tmp_path)
    ledger = select(run)
    strict = dataclasses.replace(EVERYTHING, retrieval=NearSeeds(0.999))
    other = everything(tmp_path, strict)
    assert not ledgers.is_complete(other)
    assert select(other) != ledger

    assert ledgers.is_complete(run)
    assert ledgers.restore_ledger(run) == ledger
    assert json.loads(ledger_path.read_text()) == ledger


def test_pairs_without_a_decision_are_an_error():
    counts = np.array([5, 3, 1] + [0] * len(DropReason))
    with pytest.raises(ValueError, match="web: 5 pairs read, 4 decided"):
        ledgers.make_ledger({"web": counts})


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            SelectionConfig(max_evaluation_similarity=0.9),
            "max_evaluation_similarity=0.9: expected evaluation sets,"
            " --eval NAME=GLOB, or --set selection.max_evaluation_similarity=null",
        ),
        (
            SelectionConfig(retrieval=NearSeeds(0.5)),
            "retrieval=.*: expected seed sets, --seeds NAME=GLOB, or --set"
            " selection.retrieval=null",
        ),
    ],
)
def test_a_step_without_its_sets_is_an_error(tmp_path, config, message):
    run = make_run(str(tmp_path), config, {"web/1": [Row()]})
    with pytest.raises(ValueError, match=message):
        select(run)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda pair: None, "expected instances of dataclasses"),
        (rules.FewWords, r"expected .* an instance, made by calling FewWords\(...\)"),
    ],
)
def test_a_rule_that_cannot_be_fingerprinted_is_an_error(rule, expected):
    with pytest.raises(ValueError, match=expected):
        SelectionConfig(drop_rules=(rule,))


def test_an_empty_evaluation_set_is_an_error_before_any_work(tmp_path):
    config = SelectionConfig(max_evaluation_similarity=0.9)
    rows = {"birds/1": [Row(error="truncated", embedding=(0, 0))]}
    run = make_run(str(tmp_path), config, {"web/1": [Row()]}, evaluation=rows)
    message = "evaluation_sets=birds: expected at least one readable image"
    with pytest.raises(ValueError, match=message):
        select(run)
    assert not pathlib.Path(run.decisions.folder).exists()


def test_a_score_table_of_other_rows_is_an_error(tmp_path):
    run = make_run(str(tmp_path), SelectionConfig(language=KeepLanguages()), SHARDS)
    lot, other = run.lots[0], run.lots[1]
    languages = run.languages(lot.source)
    languages.write(lot.name, languages.read(other.name))
    with pytest.raises(Exception, match="5 rows, expected 6, one per pair"):
        select(run)


# Everything at once

EMBEDDINGS = ((1, 0), (0, 1), (1, 1), (-1, 0), (1, 4), (0, 0))
ROWS = st.builds(
    Row,
    alt_text=st.sampled_from(["one", "two words", "three words here"]),
    image=st.sampled_from(["", "cat", "dog", "cow"]),
    embedding=st.sampled_from(EMBEDDINGS),
    score=st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, math.nan]),
    code=st.sampled_from(["en", "en", "en", "de", ""]),
    size=st.sampled_from([(64, 64), (64, 64), (64, 8)]),
    error=st.sampled_from(["", "", "", "", "truncated"]),
)
GENERATED_SHARDS = st.fixed_dictionaries(
    {name: st.lists(ROWS, max_size=20) for name in ("web/1", "web/2", "city/1", "x/1")}
)


@settings(max_examples=5, deadline=None)
@given(
    shards=GENERATED_SHARDS,
    alignment=st.sampled_from([None, MinScore(0.25), KeepFraction(0.6)]),
)
def test_decisions_and_ledger_are_those_of_a_plain_account(
    tmp_path_factory, shards, alignment
):
    config = dataclasses.replace(EVERYTHING, alignment=alignment)
    run = everything(tmp_path_factory.mktemp("run"), config, shards)
    ledger = select(run)
    found = {
        (uri, i): (decision.outcome, decision.seeds)
        for uri, decisions in read_decisions(run).items()
        for i, decision in enumerate(decisions)
    }
    assert found == plain_account(shards, alignment)
    n_dropped = sum(ledger["dropped"].values())
    assert ledger["read"] == sum(map(len, shards.values()))
    assert ledger["read"] == ledger["kept"] + n_dropped + ledger["unreadable"]


def plain_account(shards, alignment) -> dict[tuple[str, int], tuple[str, tuple]]:
    """What EVERYTHING decides, pair by pair in plain Python."""
    rows = {
        (uri, i): row for uri in sorted(shards) for i, row in enumerate(shards[uri])
    }
    kept_whole = {place for place in rows if place[0] == "city/1"}
    outcome = {place: _first_failure(row) for place, row in rows.items()}
    outcome |= {p: "unreadable" if rows[p].error else "" for p in kept_whole}
    droppable = [p for p in rows if not outcome[p] and p not in kept_whole]
    cut = _cut([rows[p].score for p in droppable], alignment)
    for place in droppable:
        if alignment is not None and not rows[place].score >= cut:
            outcome[place] = "low_alignment"
    for place in _repeats({p: rows[p] for p in droppable if not outcome[p]}):
        outcome[place] = "exact_duplicate"
    seeds = dict.fromkeys(rows, ())
    for place in (p for p in rows if not outcome[p]):
        embedding = rows[place].embedding
        seeds[place] = () if place in kept_whole else _wanted_by(embedding)
        if not _cosine(embedding, (1, 0)) <= 0.9:
            outcome[place], seeds[place] = "near_evaluation", ()
        elif place not in kept_whole and not seeds[place]:
            outcome[place] = "far_from_seeds"
    return {place: (outcome[place] or "kept", seeds[place]) for place in rows}


def _first_failure(row: Row) -> str:
    checks = {
        "unreadable": bool(row.error),
        "few_words": " " not in row.alt_text,
        "tiny_image": min(row.size) < 32,
        "language": row.code != "en",
    }
    return next((reason for reason, fails in checks.items() if fails), "")


def _cut(scores: list[float], alignment) -> float:
    if not isinstance(alignment, KeepFraction):
        return 0.25
    ranked = sorted((s for s in scores if not math.isnan(s)), reverse=True)
    n_keep = math.ceil(Fraction("0.6") * len(scores))
    return ranked[: max(1, n_keep)][-1] if ranked else math.inf


def _repeats(rows: dict[tuple[str, int], Row]) -> set[tuple[str, int]]:
    stays = {}
    for place in sorted(rows, key=lambda p: (sample_id(rows[p], rows[p].image), p)):
        stays.setdefault(rows[place].image or place, place)
    return set(rows) - set(stays.values())


def _wanted_by(embedding) -> tuple[str, ...]:
    seeds = {"flowers": (1, 1), "trees": (1, 4)}
    return tuple(n for n, seed in seeds.items() if _cosine(embedding, seed) >= 0.5)


def _cosine(a, b) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return (
        sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else math.nan
    )
