"""Bounds on what captions cost: what is counted, refused, and never exceeded."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import random
import time
from typing import ClassVar

import numpy as np
import pytest

from pipeline.captioning import allowances, spending
from pipeline.captioning.missing import count_missing
from pipeline.captioning.spending import Allowance, MeteredCaptioner, Receipt
from pipeline.captioning.stage import Caption, describe
from pipeline.config.captions import Decoding, Granularity, Spend
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.run_folder import RunFolder
from pipeline.export import manifest
from pipeline.models.interfaces import ServiceError
from tests.support.tiny_run import (
    SHORT,
    FakeCaptioner,
    FakeHandler,
    Row,
    encoded,
    make_run,
    plain_rows,
    run_stage,
)

PRICE = 0.25
N_KILLS = 12
# Children are forked from a process that has imported everything but started nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.pipeline.captioning.test_spending"])
IMAGE = np.zeros((2, 2, 3), np.uint8)
KEYS = np.zeros((3, 1, 2), np.uint32)


def bounded(granularity: Granularity = SHORT, **fields) -> Granularity:
    return dataclasses.replace(granularity, spend=Spend(**fields))


def caption(opened: RunFolder) -> dict[str, int]:
    """Runs the stage within its bounds; ValueError if they are exceeded."""
    granularities = opened.config.granularities
    allowed = allowances.allow(opened, granularities)
    stage = Caption(opened, granularities, FakeHandler, name_to_allowance=allowed)
    return run_stage(stage, opened.lots)


def receipts(opened: RunFolder, granularity: Granularity) -> dict[str, int]:
    folder = pathlib.Path(spending.receipts_folder(opened, granularity))
    return {
        path.name: json.loads(path.read_text())["n_requests"]
        for path in sorted(folder.iterdir())
    }


@pytest.fixture(autouse=True)
def handler(monkeypatch):
    monkeypatch.setattr(FakeHandler, "calls", [])
    return FakeHandler


# The bound


@pytest.mark.parametrize(
    ("spend", "limit"),
    [
        (Spend(), None),
        (Spend(usd_per_request=0.1), None),
        (Spend(max_requests=7), 7),
        (Spend(max_usd=0.3, usd_per_request=0.1), 3),  # not 2, as floats have it
        (Spend(max_usd=0.35, usd_per_request=0.1), 3),
        (Spend(5, 0.3, 0.1), 3),
        (Spend(2, 0.3, 0.1), 2),
    ],
)
def test_the_bound_is_the_smaller_of_requests_and_money(spend, limit):
    assert spend.limit == limit


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_usd": 1.0}, r"max_usd=1\.0: expected usd_per_request with it"),
        ({"max_usd": 1.0, "usd_per_request": 0.0}, "expected usd_per_request with it"),
        ({"max_requests": -1}, "max_requests=-1: expected at least 0"),
        ({"usd_per_request": -0.1}, "usd_per_request=-0.1: expected at least 0"),
    ],
)
def test_a_bound_that_bounds_nothing_is_refused(fields, expected):
    with pytest.raises(ValueError, match=expected):
        Spend(**fields)


def test_imported_captions_have_no_price():
    with pytest.raises(ValueError, match=r"spend=.*expected none of imported captions"):
        Granularity("a", "b", captioner="imported", spend=Spend(max_requests=1))


def test_a_bound_is_no_part_of_captions_and_of_what_is_recorded_beside_them(tmp_path):
    free = make_run(tmp_path, {"a": plain_rows(1)}, granularities=(SHORT,))
    spent = bounded(max_usd=1.0, usd_per_request=PRICE)
    paid = make_run(tmp_path, {"a": plain_rows(1)}, granularities=(spent,))
    assert paid.captions(spent) == free.captions(SHORT)
    assert paid.flags_fingerprint == free.flags_fingerprint
    assert manifest.header(paid) == manifest.header(free)
    described = []
    for opened, granularity in ((free, SHORT), (paid, spent)):
        path = pathlib.Path(opened.captions(granularity)) / "granularity.json"
        path.unlink(missing_ok=True)
        describe(opened, granularity)
        described.append(path.read_bytes())
    assert described[0] == described[1]


# What is missing


def test_missing_captions_are_counted_as_the_stage_makes_them(tmp_path):
    shown = random.Random(0)
    for number in range(6):
        root = tmp_path / str(number)
        rows = [
            Row(encoded((shown.randrange(4), 7, 9)), f"text {shown.randrange(2)}")
            for _ in range(12)
        ]
        web = {"a": rows[:7], "b": rows[7:]}
        short = bounded(SHORT, max_requests=1000)
        alt = bounded(
            dataclasses.replace(SHORT, name="alt", prompt="of {alt_text}"),
            max_requests=1000,
        )
        drawn = bounded(
            dataclasses.replace(
                SHORT, name="drawn", decoding=Decoding(1.0, n_samples=3)
            ),
            max_requests=1000,
        )
        opened = make_run(root, web, granularities=(short, alt, drawn))
        counts = count_missing(opened, opened.config.granularities)
        made = caption(opened)
        assert made["requests"] == made["captions_written"]
        n_by_count = sum(allowances.n_requests(g, n) for g, n in counts.items())
        assert made["requests"] == n_by_count
        for granularity, count in counts.items():
            n_asked = sum(receipts(opened, granularity).values())
            assert n_asked == allowances.n_requests(granularity, count)
            assert count.is_exact
        again = count_missing(opened, opened.config.granularities)
        assert not any(count.lot_to_n for count in again.values())


def test_captions_that_wait_for_others_are_counted_as_the_most_there_can_be(tmp_path):
    first = bounded(
        dataclasses.replace(SHORT, prompt="of {alt_text}"), max_requests=100
    )
    second = bounded(
        dataclasses.replace(SHORT, name="second", prompt="again {caption:short}"),
        max_requests=100,
    )
    image, other = encoded((1, 7, 9)), encoded((2, 7, 9))
    rows = [Row(image, "x"), Row(image, "y"), Row(image, "x"), Row(other, "x")]
    opened = make_run(tmp_path, {"a": rows}, granularities=(first, second))
    counts = count_missing(opened, opened.config.granularities)
    assert counts[first].lot_to_n.total() == counts[second].lot_to_n.total() == 3
    assert (counts[first].is_exact, counts[second].is_exact) == (True, False)
    assert (counts[first].n_images, counts[second].n_images) == (2, 2)
    alone = count_missing(opened, [second])
    assert alone[second].lot_to_n.total() == 0  # what it names is not asked for
    assert caption(opened)["requests"] == 6


def test_what_waits_for_a_caption_that_failed_is_not_counted(tmp_path, monkeypatch):
    second = dataclasses.replace(SHORT, name="second", prompt="again {caption:short}")
    second = bounded(second, max_requests=100)
    opened = make_run(tmp_path, {"a": plain_rows(3)}, granularities=(SHORT, second))
    refuses = staticmethod(lambda text: text == "cap en 1 7 9")
    monkeypatch.setattr(FakeHandler, "refuses", refuses)
    assert caption(opened)["captions_failed"] == 1
    counts = count_missing(opened, opened.config.granularities)
    assert counts[second].lot_to_n.total() == 0


# What workers may ask for


def test_a_run_that_may_exceed_its_bound_asks_for_nothing(tmp_path, handler):
    spent = bounded(max_usd=1.0, usd_per_request=PRICE)  # four requests
    web = {"a": plain_rows(3), "b": plain_rows(2, first=9)}
    opened = make_run(tmp_path, web, granularities=(spent,))
    expected = (
        "spend of granularity 'short': 5 requests, 1.25 USD are missing after 0 before:"
        " expected at most 4 requests, 1.00 USD in all"
    )
    with pytest.raises(ValueError, match=expected):
        caption(opened)
    assert handler.calls == []


def test_commands_add_up_and_removed_captions_stay_paid_for(tmp_path):
    spent = bounded(max_requests=5)
    before = make_run(tmp_path, {"a": plain_rows(3)}, granularities=(spent,))
    assert caption(before)["requests"] == 3
    for path in pathlib.Path(before.captions(spent)).glob("*.parquet"):
        path.unlink()
    with pytest.raises(ValueError, match="3 requests are missing after 3 before"):
        caption(before)
    grown = bounded(max_requests=6)
    opened = make_run(tmp_path, {"a": plain_rows(3)}, granularities=(grown,))
    assert caption(opened)["requests"] == 3
    assert spending.describe(opened, grown) == (
        "asked for: 6 requests, of at most 6 requests"
    )


def test_an_attempt_that_died_counts_for_all_that_it_may_have_asked_for(tmp_path):
    spent = bounded(max_requests=10)
    opened = make_run(tmp_path, {"a": plain_rows(3)}, granularities=(spent,))
    (lot,) = opened.lots
    allowance = allowances.allow(opened, [spent])[spent.name]
    died = allowance.reserve(lot.name, 3)
    assert died.take(2) is None  # and no receipt is settled
    assert caption(opened)["requests"] == 3
    assert receipts(opened, spent) == {
        f"{lot.name}.0.json": 3,
        f"{lot.name}.1.json": 3,
    }


def test_repeated_attempts_never_exceed_what_the_bound_leaves(tmp_path):
    allowance = Allowance("short", str(tmp_path), {"a": 10, "a.1": 99})
    assert allowance.reserve("a.1", 50).n_reserved == 50  # another lot
    first = allowance.reserve("a", 4)
    second = allowance.reserve("a", 4)  # at the same time
    third = allowance.reserve("a", 4)
    assert [one.n_reserved for one in (first, second, third)] == [4, 4, 2]
    with pytest.raises(ServiceError, match="expected no request beyond its bound"):
        allowance.reserve("a", 4)
    with pytest.raises(ServiceError, match="expected no request beyond its bound"):
        allowance.reserve("unknown", 1)
    second.settle()  # asked for nothing
    assert allowance.reserve("a", 9).n_reserved == 4


def test_a_captioner_is_not_asked_beyond_its_receipt(tmp_path):
    calls: list[tuple] = []
    captioner = FakeCaptioner(calls, lambda text: False)
    receipt = Receipt("short", str(tmp_path / "a.0.json"), n_reserved=5)
    metered = MeteredCaptioner(captioner, {"short": receipt})
    images = list(captioner.encode([captioner.prepare_image(IMAGE)] * 3))
    ask = (images, ["cap"] * 3, SHORT, KEYS)
    assert len(metered.caption(*ask)) == 3
    calls.clear()
    answers = metered.caption(*ask)
    assert [type(answer) for answer in answers] == [ServiceError] * 3
    assert calls == []
    assert receipt.n_asked == 3


def test_a_batch_that_is_halved_again_and_again_stops_at_the_bound(
    tmp_path, monkeypatch
):
    spent = bounded(max_requests=4)
    opened = make_run(tmp_path, {"a": plain_rows(4)}, granularities=(spent,))
    refuses = staticmethod(lambda text: text == "cap en 1 7 9")
    monkeypatch.setattr(FakeHandler, "refuses", refuses)
    with pytest.raises(RuntimeError, match="expected no request beyond its bound"):
        caption(opened)
    assert sum(receipts(opened, spent).values()) == 4


def test_captions_without_a_price_leave_no_receipts(tmp_path):
    opened = make_run(tmp_path, {"a": plain_rows(2)}, granularities=(SHORT,))
    assert "requests" not in caption(opened)
    assert not (tmp_path / "run" / "spending").exists()
    assert spending.describe(opened, SHORT) == ""


# Kills


class BilledCaptioner(FakeCaptioner):
    """Writes a byte for every request, before it answers slowly."""

    def __init__(self, bill: str) -> None:
        super().__init__([], lambda text: False)
        self._bill = bill

    def caption(self, features, prompts, granularity, keys):
        with open(self._bill, "ab", buffering=0) as bill:
            bill.write(b"." * len(prompts))
        time.sleep(0.02)
        return super().caption(features, prompts, granularity, keys)


class BilledHandler(FakeHandler):
    bill: ClassVar[str] = ""

    def load_model(self) -> BilledCaptioner:
        return BilledCaptioner(self.bill)


def caption_billed(opened: RunFolder, bill: str) -> None:
    BilledHandler.bill = bill
    granularities = opened.config.granularities
    allowed = allowances.allow(opened, granularities)
    stage = Caption(opened, granularities, BilledHandler, name_to_allowance=allowed)
    run_stage(stage, opened.lots)


@pytest.mark.slow
def test_whoever_dies_when_receipts_cover_the_bill_and_stay_within_the_bound(tmp_path):
    spent = bounded(max_requests=400)
    rows = {f"{i:02d}": plain_rows(6, first=6 * i) for i in range(20)}
    opened = make_run(tmp_path, rows, granularities=(spent,))
    bill = tmp_path / "bill"
    chance = random.Random(0)
    n_killed = n_lost = 0
    while n_killed < N_KILLS:
        process = PROCESSES.Process(target=caption_billed, args=(opened, str(bill)))
        process.start()
        n_before = size(bill)
        while process.is_alive() and size(bill) == n_before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        n_killed += 1
        n_receipts = sum(receipts(opened, spent).values())
        assert size(bill) <= n_receipts <= 400
        n_captions = sum(
            len(CaptionTables.open(opened.captions(spent)).keys(lot))
            for lot in opened.lots
        )
        n_lost = size(bill) - n_captions
        assert n_lost <= 6 * n_killed
    assert n_lost > 0
    caption_billed(opened, str(bill))
    assert size(bill) <= sum(receipts(opened, spent).values()) <= 400
    (count,) = count_missing(opened, [spent]).values()
    assert not count.lot_to_n


def size(path: pathlib.Path) -> int:
    return os.path.getsize(path) if path.exists() else 0
