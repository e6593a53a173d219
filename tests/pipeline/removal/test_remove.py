"""Nothing of what is taken out of a run is left in any byte of its folder."""

import base64
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import records, run
from pipeline.config.curation import ImageTextSource
from pipeline.engine import lot_plan, removals
from pipeline.engine.lot_plan import LotPlan
from pipeline.engine.removals import Removals
from pipeline.removal import removing
from pipeline.sources.shards import Shard
from pipeline.storage import files
from tests.support import small_run, tiny_checkpoints
from tests.support.tiny_run import Row, bytes_of

N_SHARDS, N_PAIRS = 6, 4
GONE = (1, 5, 9)  # by URL, image hash and sample id


def rows() -> list[Row]:
    """Pairs with an image, a text and an address of their own."""
    images = tiny_checkpoints.random_images(N_SHARDS * N_PAIRS)
    return [
        Row(
            small_run._png(image),
            f"a text about picture {i:03d}",
            url=f"https://www.h{i:03d}.org/x/{i:03d}.png?q=1",
        )
        for i, image in enumerate(images)
    ]


def write_shard(path: Path, pairs: Sequence[Row]) -> None:
    """An img2dataset tar with addresses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(pairs):
            recorded = json.dumps({"url": row.url}).encode()
            parts = {"jpg": row.image, "txt": row.alt_text.encode(), "json": recorded}
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{path.stem}{number:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def arguments(command: str, web: Path, *more: str) -> list[str]:
    found = list(small_run.arguments(command, str(web), str(web / "run")))
    return [*found, "--set", "shards_per_lot=2", *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of three lots, with captions, report, audit and shards of both formats."""
    folder = tmp_path_factory.mktemp("web")
    small_run.write(folder)
    for path in (folder / "crawl").iterdir():
        path.unlink()
    pairs = rows()
    for shard in range(N_SHARDS):
        part = pairs[shard * N_PAIRS : (shard + 1) * N_PAIRS]
        write_shard(folder / "crawl" / f"{shard}.tar", part)
    run.main(arguments("curate", folder, "--audit"))
    run.main(arguments("export", folder, "--format", "webdataset"))
    return folder


@pytest.fixture
def web(made: Path) -> Iterator[Path]:
    """The same, which a test may change."""
    kept = made / "kept"
    shutil.copytree(made / "run", kept)
    yield made
    shutil.rmtree(made / "run")
    kept.rename(made / "run")


def take_down(web: Path) -> None:
    """Takes down three pairs, each named in another way."""
    one, two, three = (rows()[i] for i in GONE)
    sample_id = records.sample_id(three.image, three.alt_text.encode()).hex()
    image_hash = records.content_hash(two.image).hex()
    names = [one.url, f"image_hash:{image_hash}", sample_id]
    (web / "owners.txt").write_text("\n".join(names))
    run.main(arguments("remove", web, "--pairs", str(web / "owners.txt")))


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """All files of a folder as they are, and as readers see them."""
    for name, data in bytes_of(folder).items():
        yield name, data
        if name.endswith(".parquet"):
            columns = pq.read_table(io.BytesIO(data)).to_pydict()
            yield name, b"\n".join(_flat(columns))
        for text in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
            yield name, base64.b64decode(text)


def _flat(value: object) -> Iterator[bytes]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value if isinstance(value, bytes) else str(value).encode()


def traces(folder: Path, row: Row) -> list[str]:
    """Files that show a pair or name it."""
    image_hash = records.content_hash(row.image)
    sample_id = records.sample_id(row.image, row.alt_text.encode())
    needles = [row.image[60:140], row.alt_text.encode(), row.url.encode()]
    needles += [row.url.split("/")[2].encode()]
    for digest in (image_hash, sample_id):
        needles += [digest, digest.hex().encode()]
    return sorted(
        {n for n, data in contents(folder) if any(x in data for x in needles)}
    )


def lots_of(output: Path) -> list[str]:
    return [lot.name for lot in LotPlan.read(str(output)).lots if lot.role == "pool"]


def of_lot(output: Path, lot: str) -> dict[str, bytes]:
    """Files that are named by a lot, but flags, whose folder names the pool, and the
    report, which is removed as a whole."""
    base = lot.rpartition("-")[0]
    return {
        name: data
        for name, data in bytes_of(output).items()
        if base in name and not name.startswith(("flags/", "report/"))
    }


def test_pairs_that_are_taken_down_leave_no_trace_and_other_lots_stay(web, capsys):
    output, pairs = web / "run", rows()
    before = lots_of(output)
    others = of_lot(output, before[2])
    assert all(len(traces(output, pairs[i])) > 3 for i in GONE)
    take_down(web)
    assert "removed: 3 pairs and 0 shards, of 2 lots" in capsys.readouterr().out
    assert {i: traces(output, pairs[i]) for i in GONE} == {i: [] for i in GONE}
    after = lots_of(output)
    assert (after[0] != before[0], after[1] != before[1]) == (True, True)
    assert after[2] == before[2]
    assert of_lot(output, after[2]) == others
    counts = json.loads((output / "ledger.json").read_text())
    assert counts["read"] == N_SHARDS * N_PAIRS - 3
    for name in ("tfrecords", "webdataset"):
        manifest = json.loads((output / name / "manifest.json").read_text())
        assert manifest["n_samples"] == manifest["ledger"]["kept"] == counts["kept"]
    environments = [environments_of(output, name) for name in after]
    assert environments[0] == environments[2] != []


def scores_of(output: Path, measure: str, lot: str) -> Path:
    """The folder of a measure of a lot."""
    (path,) = (output / "scores").glob(f"{measure}-*/{lot}.parquet")
    return path.parent


def environments_of(output: Path, lot: str) -> list[str]:
    folder = scores_of(output, "embedding", lot)
    return json.loads((folder / f"{lot}.summary.json").read_text())["environments"]


def test_flags_are_complete_after_a_removal_and_status_counts_what_went(web, capsys):
    output = web / "run"
    for name in ("tfrecords", "webdataset"):
        shutil.rmtree(output / name)
    take_down(web)
    capsys.readouterr()
    run.main(["status", "--output", str(output)])
    found = capsys.readouterr().out
    assert len(re.findall(r": (\d+) of \1 kept\n  flagged: \d+ of \d+", found)) == 2
    today = removing.today()
    assert f"\nremoved: 3 pairs, 0 shards, 0 sources; the last on {today}\n" in found


def test_names_in_lists_of_what_was_not_imported_are_removed(web, capsys):
    output, name = web / "run", "https://other.org/1.png"
    folder = next((output / "captions").iterdir())
    lines = [{"n_rows": 1}, {"file": "a", "row": 1, "url": name}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "unmatched.jsonl").write_text(text)
    (web / "owner.txt").write_text("host:other.org")
    before = lots_of(output)
    run.main(arguments("remove", web, "--pairs", str(web / "owner.txt")))
    assert "removed: 0 pairs and 0 shards, of 0 lots" in capsys.readouterr().out
    assert [n for n, data in contents(output) if b"other.org" in data] == []
    assert lots_of(output) == before


def error_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run.main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_was_taken_down_stays_out_of_a_shard_that_is_read_again(web, capsys):
    output, pairs = web / "run", rows()
    path = web / "crawl" / "2.tar"
    before, times = path.read_bytes(), path.stat()
    owner = web / "host.txt"
    owner.write_text("# an owner\nhost:h009.org\n")
    run.main(arguments("remove", web, "--pairs", str(owner)))
    assert traces(output, pairs[9]) == []
    path.write_bytes(before + bytes(1024))  # another file with the same pairs
    try:
        run.main(arguments("curate", web))
        assert re.search(r"pairs_removed 1\b", capsys.readouterr().out)
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert traces(output, pairs[9]) == []
    counts = json.loads((output / "ledger.json").read_text())
    assert counts["read"] == N_SHARDS * N_PAIRS - 1


def add_sample(output: Path, lot: str) -> str:
    """Gives the first shard of a lot tables of its own, as a forecast does."""
    (place,) = (
        one.places[0] for one in LotPlan.read(str(output)).lots if one.name == lot
    )
    sample = lot_plan.single(Shard(ImageTextSource("web", place[0]), *place)).name
    folder = scores_of(output, "pairs", lot)
    for suffix in (".parquet", ".summary.json"):
        shutil.copy(folder / f"{lot}{suffix}", folder / f"{sample}{suffix}")
    return sample


def test_shards_that_are_removed_stay_out_though_they_are_listed(web, capsys):
    output, pairs = web / "run", rows()
    before = lots_of(output)
    sample = add_sample(output, before[0])
    others = of_lot(output, before[1])
    globs = ("--shards", "*/4.tar", "--shards", "*/5.tar")
    words = [word.replace("*", str(web / "crawl"), 1) for word in globs]
    words += ["--shards", str(web / "crawl" / "0.tar")]
    run.main(arguments("remove", web, *words))
    assert "removed: 12 pairs and 3 shards, of 2 lots" in capsys.readouterr().out
    assert not [name for name in bytes_of(output) if sample in name]
    after = lots_of(output)
    assert len(after) == 2
    assert (after[0] != before[0], after[1]) == (True, before[1])
    assert of_lot(output, before[2]) == {}
    assert [i for i in (0, 3, 16, 23) if traces(output, pairs[i])] == []
    scored = bytes_of(output / "scores")
    run.main(arguments("remove", web, *words))
    assert "nothing, as `remove` was given all of it before" in capsys.readouterr().out
    run.main(arguments("curate", web))
    expected = "3 listed shards were removed before and are left out: "
    assert f"{expected}{web / 'crawl' / '0.tar'}, " in capsys.readouterr().out
    assert lots_of(output) == after
    assert of_lot(output, after[1]) == others
    assert bytes_of(output / "scores") == scored
    counts = json.loads((output / "ledger.json").read_text())
    assert counts["read"] == (N_SHARDS - 3) * N_PAIRS


def test_a_removal_that_was_killed_is_completed_by_the_same_command(
    web, monkeypatch, capsys
):
    monkeypatch.setattr(removals.secrets, "token_hex", lambda n: "ab" * n)
    output = web / "run"
    shutil.copytree(output, web / "before")
    n_changes = count_changes(monkeypatch, lambda: take_down(web))
    quiet = {n: d for n, d in bytes_of(output).items() if n != "progress.json"}
    assert n_changes > 20
    for n in range(1, n_changes, max(1, n_changes // 3)):
        shutil.rmtree(output)
        shutil.copytree(web / "before", output)
        with pytest.raises((SystemExit, RuntimeError)):
            count_changes(monkeypatch, lambda: take_down(web), last=n)
        begun = Removals.read(str(output)).unfinished is not None
        assert begun == (n > 4)
        if begun:
            found = error_of(capsys, "status", "--output", str(output))
            assert "expected no removal that is not complete" in found
        take_down(web)
        now = {n: d for n, d in bytes_of(output).items() if n != "progress.json"}
        assert {n for n in now.keys() | quiet if now.get(n) != quiet.get(n)} == set()
    shutil.rmtree(web / "before")


def count_changes(monkeypatch, work: Callable[[], None], last: int = 10**9) -> int:
    """Does some work; counts its changes of files, of which it makes no more."""
    n_changes = 0

    def counted(change: Callable) -> Callable:
        def changed(*arguments, **named):
            nonlocal n_changes
            names = [a for a in arguments if not isinstance(a, bytes)]
            if "lock.json" not in str(names):
                n_changes += 1
                if n_changes > last:
                    raise RuntimeError("killed")
            return change(*arguments, **named)

        return changed

    with monkeypatch.context() as patched:
        for name in ("write", "publish", "delete", "delete_folder"):
            patched.setattr(files, name, counted(getattr(files, name)))
        work()
    return n_changes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--source", "webb"], "--source webb: expected one of web"),
        (["--shards", "x*.tar"], "expected a path or glob of shards of the run, writ"),
        (["--shards", "**"], "expected a shard that stays"),
        (["--pairs", "nowhere.txt"], "--pairs nowhere.txt: expected a glob"),
        ([], "remove: expected --granularity NAME-FINGERPRINT, --pairs FILE"),
    ],
)
def test_names_that_nothing_has_are_refused(made, capsys, words, expected):
    before = bytes_of(made / "run")
    assert expected in error_of(capsys, *arguments("remove", made, *words))
    assert bytes_of(made / "run") == before


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "host:other.org",
            "but 1 of 1 entry names no pair of this run (host 1): host:other.org; not",
        ),
        ("# nobody", "expected lines that name pairs"),
        ("no entry", "expected a URL, host:NAME, image_hash:HEX or sample_id:HEX"),
    ],
)
def test_lines_that_name_no_pair_are_refused(made, capsys, lines, expected):
    path = made / "wrong.txt"
    path.write_text(f"{lines}\n")
    before = bytes_of(made / "run")
    words = arguments("remove", made, "--pairs", str(path))
    assert expected in error_of(capsys, *words)
    assert bytes_of(made / "run") == before


def test_a_list_that_was_taken_down_before_changes_nothing(web, capsys):
    take_down(web)
    before = bytes_of(web / "run")
    take_down(web)
    assert "nothing, as `remove` was given all of it before" in capsys.readouterr().out
    assert bytes_of(web / "run") == before


def test_a_damaged_table_stops_commands_before_any_work_and_lists_restore_it(
    web, capsys
):
    take_down(web)
    before = bytes_of(web / "run")
    (table,) = (web / "run" / "removed").iterdir()
    os.truncate(table, 16)
    expected = f"{table}: expected the table of removed pairs, but it has 16 bytes"
    assert expected in error_of(capsys, *arguments("curate", web))
    words = ["--shards", str(web / "crawl" / "0.tar")]
    assert expected in error_of(capsys, *arguments("remove", web, *words))
    take_down(web)
    assert "restored: the table of what was" in capsys.readouterr().out
    assert bytes_of(web / "run") == before
    assert expected not in error_of(capsys, *arguments("remove", web))


def test_entries_that_name_no_pair_are_counted_and_named_but_not_written_down(
    web, capsys
):
    slip = "https://slip.org/1.png"
    (web / "owners.txt").write_text(f"{rows()[1].url}\n{slip}\n{slip}\n")
    words = arguments("remove", web, "--pairs", str(web / "owners.txt"))
    run.main(words)
    said = capsys.readouterr()
    expected = "1 of 2 entries names no pair of this run (url 1): slip.org/1.png\n"
    assert f"warning: {expected}" in said.err
    assert "removed: 1 pair and 0 shards, of 1 lot\n" in said.out
    assert [n for n, data in contents(web / "run") if b"slip.org" in data] == []
    (web / "owners.txt").write_text(slip)
    run.main(words)
    assert "nothing, as `remove` was given all of it before" in capsys.readouterr().out


def test_status_says_that_a_shard_is_gone(web, capsys):
    path = web / "crawl" / "2.tar"
    path.rename(web / "away.tar")
    run.main(["status", "--output", str(web / "run")])
    (web / "away.tar").rename(path)
    said = capsys.readouterr()
    assert "scored: 2 of 3 lots" in said.out
    expected = "warning: web: 1 shard of the run is not listed any more: "
    assert f"{expected}{path}; expected all" in said.err
