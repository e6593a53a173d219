import dataclasses
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.selection import MinScore, SelectionConfig
from pipeline.selection.duplicates import exact
from pipeline.selection.duplicates.exact import Identities
from pipeline.selection.lot_decisions import open_lot
from tests.support.score_tables import (
    Row,
    make_run,
    outcomes,
    read_decisions,
    sample_id,
    select,
)

EXACT = SelectionConfig()


def by_id(image: str, *texts: str) -> list[str]:
    """The texts in ascending order of the sample ids that they make."""
    return sorted(texts, key=lambda text: sample_id(Row(text), image))


# Exact duplicates


def test_of_equal_pairs_the_first_by_path_and_row_stays(tmp_path):
    row = Row(image="cat")
    shards = {"web/2": [row], "web/1": [Row(), row, row], "more/1": [Row()]}
    run = make_run(str(tmp_path), EXACT, shards)
    select(run)
    decisions = read_decisions(run)
    kept_id = sample_id(row, "cat").hex()
    assert [(d.outcome, d.detail) for d in decisions["web/1"]] == [
        ("kept", ""),
        ("kept", ""),
        ("exact_duplicate", kept_id),
    ]
    (repeat,) = decisions["web/2"]
    assert (repeat.outcome, repeat.detail) == ("exact_duplicate", kept_id)
    assert (repeat.value, repeat.threshold) == (None, None)


def test_of_equal_images_the_pair_with_the_smallest_id_stays(tmp_path):
    first, second, third = by_id("cat", "a cat", "my cat", "two cats")
    shards = {
        "web/1": [Row(third, image="cat"), Row(second, image="cat")],
        "web/2": [Row(first, image="cat"), Row(first, image="dog")],
    }
    run = make_run(str(tmp_path), EXACT, shards)
    assert outcomes(run) == {
        "web/1": ["exact_duplicate", "exact_duplicate"],
        "web/2": ["kept", "kept"],
    }
    kept_id = sample_id(Row(first), "cat").hex()
    assert {d.detail for d in read_decisions(run)["web/1"]} == {kept_id}


def test_only_pairs_that_passed_the_earlier_steps_compete(tmp_path):
    first, second = by_id("cat", "a cat", "my cat")
    config = dataclasses.replace(EXACT, alignment=MinScore(0.5))
    rows = [
        Row(first, image="cat", score=0.1),
        Row(second, image="cat"),
        Row(first, image="cat", error="truncated"),
    ]
    run = make_run(str(tmp_path), config, {"web/1": rows})
    assert outcomes(run)["web/1"] == ["low_alignment", "kept", "unreadable"]


def test_sources_to_keep_whole_do_not_compete(tmp_path):
    row = Row(image="cat")
    shards = {"city/1": [row, row], "web/1": [row]}
    run = make_run(str(tmp_path), EXACT, shards, keep_all=["city"])
    assert outcomes(run) == {"city/1": ["kept", "kept"], "web/1": ["kept"]}


def test_exact_duplicates_can_be_kept(tmp_path):
    config = SelectionConfig(drop_exact_duplicates=False)
    run = make_run(str(tmp_path), config, {"web/1": [Row(image="a"), Row(image="a")]})
    assert outcomes(run)["web/1"] == ["kept", "kept"]


def test_a_group_has_no_more_pairs_in_a_larger_pool():
    assert exact.n_groups(0) == exact.n_groups(2**28) == 256
    assert exact.n_groups(2**28 + 1) == 257
    assert exact.n_groups(10**10) * 2**20 >= 10**10
    assert exact.group_bytes(10**10) < exact.group_bytes(2**28) * 1.01 < 2**27


def test_a_lot_sends_one_pair_of_an_image_that_all_have(tmp_path):
    rows = [Row(f"text {i}", image="not available") for i in range(50)]
    run = make_run(str(tmp_path), EXACT, {"web/1": rows, "web/2": rows})
    sent = [
        [*exact.spread_identities(open_lot(lot, run), run, n_groups=7)]
        for lot in run.lots
    ]
    for own, (_, firsts) in sent:
        assert (own.tag, len(own.value[1].row), len(firsts.row)) == ("own", 49, 1)
    found = outcomes(run)
    assert [*itertools.chain(*found.values())].count("kept") == 1
    kept_id = sample_id(
        Row(by_id("not available", *[r.alt_text for r in rows])[0]), "not available"
    ).hex()
    details = {d.detail for ds in read_decisions(run).values() for d in ds}
    assert details == {"", kept_id}


HASHES = st.sampled_from([0, 1, 255, 256, 2**63, 2**64 - 1])
WORDS = st.tuples(HASHES, HASHES)
PAIRS = st.tuples(st.sampled_from("abc"), WORDS, WORDS)  # lot, image hash, sample id


@settings(deadline=None)
@given(pairs=st.lists(PAIRS, min_size=1, max_size=30), rng=st.randoms())
def test_repeats_are_those_of_brute_force_in_any_order_of_blocks(pairs, rng):
    stays: dict[tuple, tuple] = {}
    for row, (lot, image, sample) in enumerate(pairs):
        stays[image] = min(stays.get(image, (sample, lot, row)), (sample, lot, row))
    expected = {
        (lot, row, stays[image][0])
        for row, (lot, image, sample) in enumerate(pairs)
        if stays[image] != (sample, lot, row)
    }
    blocks = [
        Identities(
            lot_name=lot,
            uri=lot,
            row=np.array([row for row, _ in group]),
            image_hash=np.array([p[1] for _, p in group], np.uint64),
            sample_id=np.array([p[2] for _, p in group], np.uint64),
        )
        for lot, group in _by_lot(pairs)
    ]
    firsts, own = zip(*map(exact.set_own_repeats_aside, blocks), strict=True)
    messages = {
        block.lot_name: [repeats] for block, repeats in zip(blocks, own, strict=True)
    }
    firsts = list(firsts)
    rng.shuffle(firsts)
    assert all(len(set(map(tuple, b.image_hash))) == len(b.row) for b in firsts)
    for lot, repeats in exact.find_repeats(0, firsts):
        messages[lot].insert(rng.randrange(2), repeats)
    found = {
        (lot, int(row), tuple(map(int, kept_id)))
        for lot, repeats in messages.items()
        for row, kept_id in zip(*exact.kept_ids(repeats), strict=True)
    }
    assert found == expected


def _by_lot(pairs):
    numbered = sorted(enumerate(pairs), key=lambda item: item[1][0])
    groups = itertools.groupby(numbered, key=lambda item: item[1][0])
    return [(lot, list(group)) for lot, group in groups]
