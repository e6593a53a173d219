"""A finished run of any number of lots in a simulated store, made from one lot.

One lot is made for real, on a local disk, and its tables and training shards stand for
those of all lots. Jobs are not run: what their workers would write is put there.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.captioning import flag_counts
from pipeline.commands import configuration, run_record, running
from pipeline.commands.arguments import STAGES, parse
from pipeline.engine.run_folder import LEDGER_NAME, RunFolder
from pipeline.engine.summaries import Summaries, _Kept
from pipeline.export import publishing
from pipeline.export.receipts import FOLDER, Receipts
from pipeline.export.shard_formats import TFRECORD
from pipeline.report import lot_parts, page
from pipeline.run import open_run
from pipeline.selection import ledger
from pipeline.sources.shards import Lot
from pipeline.storage import files
from tests.support import small_run
from tests.support.simulated_store import BUCKET, SimulatedStore

OUTPUT = f"s3://{BUCKET}/run"
CRAWL = "crawl"  # the folder of the shards
_KINDS = ("scores", "decisions", "captions", "flags", "tfrecords", "report")
_STAGE_TO_KINDS = {
    "score": ("scores",),
    "select": ("decisions",),
    "caption": ("scores", "captions"),
    "flag": ("flags",),
    "export": ("tfrecords",),
    "report": ("report",),
}
_OF_POOL = ("decisions", "flags")  # what names the pool changes with each addition
_SKIPPED = ("manifest.json", "index.html", "index.summary.json")
_BEHIND = "9999999"  # how names of new shards begin


def make_template(scratch: Path) -> RunFolder:
    """A recipe, and a finished run of one lot on a local disk."""
    small_run.write(scratch)
    flags = _flags(scratch, str(scratch / "crawl" / "0.tar"), str(scratch / "run"))
    words = [sys.executable, "-m", "pipeline.run", "curate", *flags]
    subprocess.run(words, check=True, capture_output=True)
    return open_run(["curate", *flags])


def _flags(scratch: Path, shards: str, output: str) -> list[str]:
    return [
        *("--config", str(scratch / "recipe.py"), "--output", output),
        *("--input", shards, "--set", "selection.max_evaluation_similarity=null"),
    ]


@dataclasses.dataclass(frozen=True)
class _Template:
    """A run of one lot on a local disk, whose files stand for those of all lots."""

    run: RunFolder

    def objects(
        self, kind: str, run: RunFolder, lots: Sequence[Lot]
    ) -> dict[str, bytes]:
        """The files of one kind of some lots of another run, by key."""
        here, place = Path(self.run.root), run.root.partition(f"{BUCKET}/")[2]
        pools = (self.run.pool_fingerprint, run.pool_fingerprint)
        found: dict[str, bytes] = {}
        for path in (here / kind).rglob("*"):
            if path.is_dir() or path.name in _SKIPPED:
                continue
            name, data = str(path.relative_to(here)), self._adapt(path, run, pools)
            for old, new in self._fingerprints(run):
                name = name.replace(old, new)
            found |= self._copies(f"{place}/{name}", data, lots)
        return found

    def _fingerprints(self, run: RunFolder) -> Iterator[tuple[str, str]]:
        for name in ("decisions_fingerprint", "flags_fingerprint"):
            yield getattr(self.run, name), getattr(run, name)

    def _copies(self, key: str, data: bytes, lots: Sequence[Lot]) -> dict[str, bytes]:
        """The file of each lot, if it is one of a lot."""
        (lot,) = self.run.lots
        if lot.base not in key:
            return {key: data}
        # A receipt names tables and shards of its lot.
        is_own = key.endswith(".json") and lot.base.encode() in data
        copies = {}
        for one in lots:
            copies[_renamed(key, lot, one)] = (
                _renamed(data.decode(), lot, one).encode() if is_own else data
            )
        return copies

    def _adapt(self, path: Path, run: RunFolder, pools: tuple[str, str]) -> bytes:
        """The bytes of a file, with what a summary or a ledger says of the pool."""
        old, new = pools
        data = path.read_bytes()
        if path.name == LEDGER_NAME:
            data = json.dumps(_multiplied(json.loads(data), len(run.lots))).encode()
        if path.name == flag_counts.RECEIPT_NAME:
            old, new = self.run.flag_inputs_fingerprint, run.flag_inputs_fingerprint
        is_text = path.suffix == ".json"
        return data.replace(old.encode(), new.encode()) if is_text else data


def _write_cache(
    kind: type[Summaries], folder: str, written: Mapping[str, bytes]
) -> None:
    """Writes the file with all summaries of a folder without reading each."""
    bucket = f"s3://{BUCKET}/"
    kept = {
        name.removesuffix(kind.suffix): _Kept(
            facts.mark, written[facts.path.removeprefix(bucket)]
        )
        for name, facts in files.list_below(folder).items()
        if name.endswith(kind.suffix)
    }
    kind(folder, kept, False).write_cache()


def _renamed(text: str, old: Lot, new: Lot) -> str:
    return text.replace(old.name, new.name).replace(old.base, new.base)


def _multiplied(value: Any, n: int) -> Any:
    if isinstance(value, dict):
        return {name: _multiplied(one, n) for name, one in value.items()}
    return value * n if isinstance(value, int) else value


class SimulatedRun:
    """A run of many lots in a simulated store, and what its jobs write there."""

    def __init__(
        self, store: SimulatedStore, scratch: Path, template: RunFolder, per_lot: int
    ) -> None:
        self._store = store
        self._template = _Template(template)
        shards = f"s3://{BUCKET}/{CRAWL}/*.tar"
        size = ("--set", f"shards_per_lot={per_lot}")
        self.flags = [*_flags(scratch, shards, OUTPUT), *size]
        self._n_added = 0
        self._kind_to_names: dict[str, set[str]] = {}  # of lots with files

    def fill(self) -> None:
        """Puts everything into the store that a finished run has there."""
        with self._store.without_latency():
            run = self.open()
            written: dict[str, bytes] = {}
            for kind in _KINDS:  # what flags are of names the captions that are there
                found = self._template.objects(kind, run, run.lots)
                self._store.put(found)
                written |= found
            run.write_plan()
            run_record.write(run, run.root)
            folders = {lot_parts.tables(run).folder}
            folders.update(*(running.summarized_folders(s, run) for s in STAGES))
            for folder in folders:
                _write_cache(Summaries, folder, written)
            receipts = files.join(TFRECORD.path(run.root), FOLDER)
            _write_cache(Receipts, receipts, written)
            names = {lot.name for lot in run.lots}
            self._kind_to_names = {kind: set(names) for kind in _KINDS}
            publishing.publish(run)
            page.write(run, ledger.restore_ledger(run))
        self._store.take_counts()

    def open(self, *, is_listed: bool = False) -> RunFolder:
        """The run as its commands see it, or as the last one saw it."""
        command, _ = parse(["curate", *self.flags], "")
        return configuration.open_run(command, is_listed=is_listed)

    def add_shards(self, n: int) -> None:
        """Puts new shards behind those that are there."""
        numbers = range(self._n_added, self._n_added + n)
        names = (f"{CRAWL}/{_BEHIND}-{number:05d}.tar" for number in numbers)
        self._store.put(dict.fromkeys(names, b"x"))
        self._n_added += n

    def do_job(self, stage: str) -> None:
        """Writes what the workers of a stage would, without a request."""
        counts = self._store.take_counts()
        with self._store.without_latency():
            run = self.open(is_listed=True)
            for kind in _STAGE_TO_KINDS[stage]:
                names = set() if kind in _OF_POOL else self._kind_to_names[kind]
                lots = [lot for lot in run.lots if lot.name not in names]
                self._store.put(self._template.objects(kind, run, lots))
                names.update(lot.name for lot in lots)
        self._store.take_counts()
        self._store.add_counts(counts)
