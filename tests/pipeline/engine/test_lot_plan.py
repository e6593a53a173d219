"""Tests of the plan of lots: what makes new lots, and what succeeds old ones."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import SelectionConfig
from pipeline.engine.lot_plan import LotPlan, single
from pipeline.sources.shards import Lot, Shard

WEB = ImageTextSource("web", "web/*")


def shards(*names: str) -> dict[str, str]:
    """Shards by path, or by path and mark: `a` or `a=1`."""
    return dict(name.partition("=")[::2] for name in sorted(names))


def plan(known: LotPlan, *names: str, size: int = 2) -> tuple[LotPlan, list[Lot]]:
    planned, lots = known.add("pool", WEB, shards(*names), size)
    return planned, list(lots)


def paths(lots: list[Lot]) -> list[str]:
    return ["".join(shard.uri for shard in lot.shards) for lot in lots]


def bases(lots: list[Lot]) -> list[str]:
    return [lot.base for lot in lots]


def test_shards_are_divided_in_the_order_of_their_paths():
    _, lots = plan(LotPlan(), "c", "a", "b")
    assert paths(lots) == ["ab", "c"]
    assert bases(lots) == ["web-00000", "web-00001"]


def test_new_shards_make_new_lots_and_leave_the_others_alone():
    known, before = plan(LotPlan(), "b", "c", "e")
    _, after = plan(known, "a", "b", "c", "d", "e", "f")
    assert paths(after) == ["bc", "e", "ad", "f"]
    assert after[:2] == before
    assert bases(after[2:]) == ["web-00002", "web-00003"]


def test_a_lot_that_lost_a_shard_is_succeeded_by_one_of_its_base():
    known, (whole, _) = plan(LotPlan(), "a", "b", "c")
    known, (cut, rest) = plan(known, "a", "c")
    assert paths([cut, rest]) == ["a", "c"]
    assert (cut.base, cut.predecessor) == (whole.base, whole.name)
    assert cut.name != whole.name
    again, (back, _) = plan(known, "a", "b", "c")
    assert back == whole
    assert again == known


def test_a_lot_of_which_a_shard_changed_is_succeeded_by_one_of_the_same_shards():
    known, (before,) = plan(LotPlan(), "a=1", "b=1")
    known, (after,) = plan(known, "a=1", "b=2")
    assert paths([after]) == ["ab"]
    assert (after.base, after.predecessor) == (before.base, before.name)
    assert known.changed([after]) == {before.name: ("b",)}
    left = known.without(known.changed([after]))
    assert [lot.name for lot in left.lots] == [after.name]
    assert plan(left, "a=1", "b=2") == (left, [after])


def test_lots_of_sources_and_roles_have_names_of_their_own():
    known, (pool,) = plan(LotPlan(), "a")
    known, (seeds,) = known.add("seeds", WEB, shards("a"), 2)
    other = ImageTextSource("w b", "a")
    _, (odd,) = known.add("pool", other, shards("a"), 2)
    assert bases([pool, seeds, odd]) == ["web-00000", "seeds-web-00000", "w_b-00000"]


def test_a_plan_is_read_as_it_was_written(tmp_path):
    odd = "a\udcff.tar"  # whose path is no text
    known, _ = plan(LotPlan(), "a=1", "b", "c=2", odd)
    assert LotPlan.read(str(tmp_path)) == LotPlan()
    known.write(str(tmp_path))
    found = LotPlan.read(str(tmp_path))
    assert found == known
    assert [(*lot.places,) for lot in found.lots] == [(*x.places,) for x in known.lots]
    (lot,) = found.lots[:1]
    shards_of_lot = lot.to_lot(WEB).shards
    assert shards_of_lot[0] == Shard(WEB, "a", "1")
    assert pickle.loads(pickle.dumps(shards_of_lot)) == tuple(shards_of_lot)
    written = (tmp_path / "lots" / "plan.parquet").stat()
    LotPlan.read(str(tmp_path)).write(str(tmp_path))
    assert (tmp_path / "lots" / "plan.parquet").stat() == written


def test_a_lot_of_one_shard_is_named_by_it():
    before, after = Shard(WEB, "a", "1"), Shard(WEB, "a", "2")
    assert single(before).base == single(after).base
    assert single(before).name != single(after).name
    assert single(before).shards == (before,)


def test_a_lot_has_a_shard():
    with pytest.raises(ValueError, match="shards_per_lot=0: expected at least 1"):
        CurationConfig(EncoderConfig("x"), SelectionConfig(), shards_per_lot=0)


LISTINGS = st.lists(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("12")), max_size=6
)


@given(LISTINGS, st.integers(1, 3))
def test_each_listed_shard_is_in_one_lot_whatever_was_listed_before(listings, size):
    known = LotPlan()
    for listing in listings:
        names = [f"{uri}={mark}" for uri, mark in listing.items()]
        known, lots = plan(known, *names, size=size)
        found = [shard for lot in lots for shard in lot.shards]
        assert sorted((one.uri, one.mark) for one in found) == [*shards(*names).items()]
        assert len({lot.name for lot in lots}) == len(lots)
        assert all(len(lot.shards) <= size for lot in lots)
        assert plan(known, *names, size=size) == (known, lots)
