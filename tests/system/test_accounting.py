"""Accounting: of any crawl, every pair that is read ends in exactly one decision."""

import collections
import dataclasses
import io
import json
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pipeline import records
from pipeline.config.curation import ImageTextSource, Limits
from pipeline.config.selection import KeepLanguages, MinScore, SelectionConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Decision, DropReason, Pair, sample_id
from pipeline.selection.rules import FewWords
from pipeline.sources.shards import Lot
from pipeline.storage.tables import from_table
from tests.pipeline.scoring.test_stage import (
    ENGLISH,
    GERMAN,
    make_run,
    pairs_of,
    png,
    score,
)
from tests.support import score_tables

LIMITS = Limits(max_image_bytes=2000, max_alt_text_bytes=100)
IMAGES = (
    *map(png, range(4)),
    png(4)[:-20],  # cut off
    b"no image",
    b"",
    bytes(2001),
    None,
)
ALT_TEXTS = (
    *(ENGLISH.encode(), GERMAN.encode(), b"dog", b"a red ball", "größer 犬".encode()),
    *(b"", b" \n", b"\xff", b"NUL \0 in a text", b"x" * 101, None),
)
RULES = SelectionConfig(
    drop_rules=(FewWords(min_words=2),),
    language=KeepLanguages(("en",), min_foreign_probability=0.5),
    alignment=MinScore(0.0),
    max_evaluation_similarity=0.99,
)


@dataclasses.dataclass(frozen=True)
class Item:
    """What a crawler stored of one pair; None was not stored."""

    image: bytes | None
    alt_text: bytes | None
    robots: str = ""

    @property
    def sample_id(self) -> bytes:
        """The id of the stored bytes; Parquet keeps a large image too."""
        stored = self.alt_text or b""
        text = stored.replace(b"\0", b"").strip()
        return sample_id(self.image or b"", text if len(stored) <= 100 else b"")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard; `left` is the fraction that a damaged one still has."""

    is_tar: bool
    items: tuple[Item, ...]
    left: float = 1.0

    def write(self, folder: Path, name: str) -> None:
        path = folder / f"{name}.{'tar' if self.is_tar else 'parquet'}"
        (_write_tar if self.is_tar else _write_parquet)(path, self.items)
        data = path.read_bytes()
        path.write_bytes(data[: int(self.left * len(data))])

    @property
    def sample_ids(self) -> list[bytes]:
        """The ids of all pairs of the undamaged shard, in its order."""
        if not self.is_tar:
            return [item.sample_id for item in self.items]
        return [
            dataclasses.replace(item, image=_within_limit(item.image)).sample_id
            for item in self.items
            if (item.image, item.alt_text, item.robots) != (None, None, "")
        ]


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of a crawl and its shards."""

    shards: tuple[Shard, ...]
    keep_all: bool
    needs_alt_text: bool


def _within_limit(image: bytes | None) -> bytes:
    return image if image and len(image) <= LIMITS.max_image_bytes else b""


def _write_tar(path: Path, items: Sequence[Item]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, item in enumerate(items):
            robots = json.dumps({"robots": item.robots}) if item.robots else ""
            members = (
                *(("png", item.image), ("txt", item.alt_text)),
                ("json", robots.encode() or None),
            )
            for suffix, data in members:
                if data is not None:
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _write_parquet(path: Path, items: Sequence[Item]) -> None:
    columns = {
        "jpg": pa.array([item.image for item in items], pa.binary()),
        "text": pa.array([item.alt_text for item in items], pa.binary()),
        "robots": pa.array([item.robots for item in items], pa.string()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=2)


def shards() -> st.SearchStrategy[Shard]:
    items = st.builds(
        Item,
        st.sampled_from(IMAGES),
        st.sampled_from(ALT_TEXTS),
        st.sampled_from(["", "", "", "noai"]),
    )
    return st.builds(
        Shard,
        st.booleans(),
        st.lists(items, max_size=8).map(tuple),
        st.one_of(st.just(1.0), st.floats(0, 1)),
    )


def crawls() -> st.SearchStrategy[list[Source]]:
    several = st.lists(shards(), min_size=1, max_size=4).map(tuple)
    source = st.builds(Source, several, st.booleans(), st.booleans())
    return st.lists(source, min_size=1, max_size=3)


def write_crawl(crawl: Sequence[Source], root: Path) -> RunFolder:
    """Writes the shards, and an evaluation set of one image of the crawl."""
    (root / "evaluation").mkdir()
    Shard(True, (Item(IMAGES[0], None),)).write(root / "evaluation", "0")
    pattern = str(root / "evaluation" / "*")
    evaluation = ImageTextSource("evaluation", pattern, needs_alt_text=False)
    sources = []
    for number, source in enumerate(crawl):
        folder = root / f"source{number}"
        folder.mkdir()
        for i, shard in enumerate(source.shards):
            shard.write(folder, str(i))
        claims = (source.needs_alt_text, source.keep_all)
        sources.append(
            ImageTextSource(folder.name, str(folder / "*"), "", "", "", *claims)
        )
    return make_run(
        root,
        sources=tuple(sources),
        evaluation_sets=(evaluation,),
        selection=RULES,
        limits=LIMITS,
    )


def expect_every_pair_once(shard: Shard, pairs: Sequence[Pair]) -> None:
    """A shard that is damaged may lack its last pairs, and ends in an error."""
    found = [pair.sample_id for pair in pairs]
    if shard.left == 1:
        assert found == shard.sample_ids
    elif not pairs or pairs[-1].key:  # only the zeros behind the end mark are gone
        assert shard.is_tar
        assert found == shard.sample_ids
    else:
        assert found[:-1] == shard.sample_ids[: len(found) - 1]
        assert pairs[-1].error.startswith(("tar ", "Parquet file damaged"))


def expect_one_decision_a_pair(run: RunFolder, lot: Lot) -> collections.Counter[str]:
    """Gives how many pairs of the lot have each outcome."""
    pairs = pairs_of(run, lot)
    decisions = from_table(run.decisions.read(lot.name), Decision)
    assert [d.sample_id for d in decisions] == [p.sample_id for p in pairs]
    for pair, decision in zip(pairs, decisions, strict=True):
        assert (decision.outcome == records.UNREADABLE) == bool(pair.error)
        assert decision.detail == pair.error or not pair.error
    counts = collections.Counter(decision.outcome for decision in decisions)
    if lot.source.keep_all:
        reasons = {DropReason.OPT_OUT, DropReason.NEAR_EVALUATION}
        assert counts.keys() <= {records.KEPT, records.UNREADABLE, *reasons}
    return counts


def expect_ledger(ledger: dict, counts: collections.Counter[str]) -> None:
    dropped = {str(reason): counts[reason] for reason in DropReason}
    assert ledger["read"] == counts.total()
    assert ledger["dropped"] == dropped
    assert ledger["kept"] == counts[records.KEPT]
    assert ledger["unreadable"] == counts[records.UNREADABLE]
    n_decided = ledger["kept"] + sum(dropped.values()) + ledger["unreadable"]
    assert ledger["read"] == n_decided


def expect_accounted(crawl: Sequence[Source]) -> None:
    """Scores and selects a crawl, and counts again."""
    with tempfile.TemporaryDirectory() as folder:
        run = write_crawl(crawl, Path(folder))
        counters = score(run)
        ledger = score_tables.select(run)
        all_shards = [shard for source in crawl for shard in source.shards]
        name_to_counts = collections.defaultdict(collections.Counter)
        for shard, lot in zip(all_shards, run.lots, strict=True):
            expect_every_pair_once(shard, pairs_of(run, lot))
            name_to_counts[lot.source.name] += expect_one_decision_a_pair(run, lot)
        assert ledger["sources"].keys() == name_to_counts.keys()
        for name, counts in name_to_counts.items():
            expect_ledger(ledger["sources"][name], counts)
        expect_ledger(ledger, sum(name_to_counts.values(), collections.Counter()))
        expect_counted(counters, ledger)


def expect_counted(counters: dict[str, int], ledger: dict) -> None:
    """The counters of `score` say the same, and apart the one evaluation image."""
    assert counters["pairs"] == ledger["read"]
    assert counters["unreadable"] == ledger["unreadable"]
    assert counters["evaluation_images"] == 1
    (found,) = ledger["evaluation"].values()
    assert (found["read"], found["compared"]) == (1, 1)


def checked(n_examples: int) -> settings:
    """The same crawls every time, however long one takes; to shrink takes too long."""
    return settings(
        max_examples=n_examples,
        phases=[Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@checked(2)
@given(crawls())
def test_every_pair_of_a_crawl_ends_in_one_decision(crawl):
    expect_accounted(crawl)


@pytest.mark.slow
@checked(40)
@given(crawls())
def test_every_pair_of_many_crawls_ends_in_one_decision(crawl):
    expect_accounted(crawl)
