"""Hostile shards: every pair is accounted for, and nothing else is touched."""

import collections
import contextlib
import faulthandler
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.curation import ImageTextSource
from pipeline.config.selection import SelectionConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Decision, Language, Pair
from pipeline.scoring import stage as scoring
from pipeline.storage.tables import from_table
from tests.pipeline.scoring.test_stage import NullHandler, make_run
from tests.support import score_tables
from tests.support.mutants import Mutant, mutant
from tests.support.tiny_run import bytes_of

MAX_S = 60.0  # a shard may take
MAX_PEAK_BYTES = 3 << 30  # of the whole process
N_CHUNKS, N_PER_CHUNK = 20, 250


def write_mutants(numbers: range, root: Path) -> dict[str, Mutant]:
    """Returns file name to mutant, written next to one file that must stay."""
    for folder in ("crawl", "outside", "cwd"):
        (root / folder).mkdir()
    (root / "outside" / "file").write_bytes(b"as it was")
    name_to_mutant = {}
    for number in numbers:
        made = mutant(number, root / "outside")
        name = f"{number:05d}.{made.suffix}"
        (root / "crawl" / name).write_bytes(made.data)
        name_to_mutant[name] = made
    return name_to_mutant


def open_run(root: Path) -> RunFolder:
    return make_run(
        root,
        sources=(ImageTextSource("web", str(root / "crawl" / "*")),),
        selection=SelectionConfig(),
    )


def score_alone(run: RunFolder) -> None:
    """What `Score` does with each shard, without a runner that could hide a hang."""
    score = scoring.Score(run, NullHandler(run.config.encoder))
    score._score_shard.setup()
    for lot in run.lots:
        with in_time(lot.shards[0].uri):
            (work,) = score._list_work.process(lot)
            score._score_shard.start_bundle()
            assert not list(score._score_shard.process(work))  # one is in work
            (last,) = score._score_shard.finish_bundle()
            name, scored = last.value
            assert list(score._seal_lot.process((name, [scored]))) == [lot]


@contextlib.contextmanager
def in_time(uri: str) -> Iterator[None]:
    """Ends the process if a shard takes too long, be it in C."""
    faulthandler.dump_traceback_later(MAX_S, exit=True)
    start_s = time.monotonic()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert time.monotonic() - start_s < MAX_S, uri


def expect_accounted(run: RunFolder, name_to_mutant: dict[str, Mutant]) -> int:
    """Every pair has a row in each table; gives the number of rows."""
    n_pairs = 0
    for lot in run.lots:
        made = name_to_mutant[Path(lot.shards[0].uri).name]
        pairs = from_table(run.pairs(lot.source).read(lot.name), Pair)
        expect_rows(made, pairs, lot.shards[0].uri)
        languages = run.languages(lot.source).read(lot.name)
        assert len(from_table(languages, Language)) == len(pairs)
        assert run.embeddings(lot.source).read(lot.name).num_rows == len(pairs)
        decisions = from_table(run.decisions.read(lot.name), Decision)
        assert [d.sample_id for d in decisions] == [p.sample_id for p in pairs]
        n_pairs += len(pairs)
    return n_pairs


def expect_rows(made: Mutant, pairs: list[Pair], uri: str) -> None:
    """As many as the shard has pairs; a damaged one may end in an error instead."""
    is_cut = bool(pairs) and not pairs[-1].key and bool(pairs[-1].error)
    if made.n_pairs is not None:
        assert len(pairs) == made.n_pairs, (uri, made.kind)
    elif made.kind.startswith("damaged Parquet"):
        assert is_cut or len(pairs) == 4, (uri, made.kind, len(pairs))
    else:
        assert pairs, (uri, made.kind)
    for pair in pairs:
        assert "\n" not in pair.error


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most memory since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def fuzz(numbers: range, root: Path) -> dict[str, object]:
    """Scores and selects mutants; gives a tally."""
    name_to_mutant = write_mutants(numbers, root)
    run = open_run(root)
    before = {name: bytes_of(root / name) for name in ("crawl", "outside", "cwd")}
    with contextlib.chdir(root / "cwd"):
        score_alone(run)
        ledger = score_tables.select(run)
    assert {name: bytes_of(root / name) for name in before} == before
    assert {path.name for path in root.iterdir()} == {*before, "run"}
    n_pairs = expect_accounted(run, name_to_mutant)
    n_dropped = sum(ledger["dropped"].values())
    assert ledger["read"] == n_pairs
    assert n_pairs == ledger["kept"] + n_dropped + ledger["unreadable"]
    kinds = collections.Counter(made.kind for made in name_to_mutant.values())
    return {
        "shards": len(name_to_mutant),
        "pairs": n_pairs,
        "unreadable": ledger["unreadable"],
        "kinds": dict(sorted(kinds.items())),
    }


def test_hostile_shards_are_accounted_for(tmp_path):
    assert fuzz(range(50), tmp_path)["shards"] == 50


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(N_CHUNKS))
def test_thousands_of_hostile_shards_are_accounted_for(chunk, tmp_path):
    numbers = range(chunk * N_PER_CHUNK, (chunk + 1) * N_PER_CHUNK)
    reset_peak()
    tally = fuzz(numbers, tmp_path)
    tally["peak_mib"] = peak_bytes() >> 20
    print(json.dumps(tally))  # `pytest -s` shows it
    assert peak_bytes() < MAX_PEAK_BYTES
