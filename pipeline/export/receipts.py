"""The receipts of exported lots: which shards they are, and what they are made from.

In: the summaries of a lot's tables. Out: one small JSON object a lot and format, beside
the shards, from which the manifest is made. A lot whose tables are those of its receipt
is done.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig
from pipeline.config.fingerprint import fingerprint
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.summaries import Summaries
from pipeline.export.samples import SampleTables
from pipeline.records import SCHEMA_VERSION
from pipeline.sources.shards import Lot
from pipeline.storage import files, json_files
from pipeline.storage.tables import LotTables

FOLDER = "lots"  # beside the shards
SUFFIX = ".json"
CODE_VERSION = 1  # to be raised when the same tables give other shards

Inputs = dict[str, Any]
ReadSummary = Callable[[LotTables, str], Mapping[str, Any]]

_SHARD_NAME = re.compile(r"train-(?P<base>.+)-\d{5,}-[0-9a-f]{12}\.(tfrecord|tar)")


@dataclasses.dataclass(frozen=True)
class ShardFacts:
    """What the manifest says of a shard."""

    name: str
    n_samples: int
    n_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the manifest counts, of one lot."""

    outcomes: Mapping[str, int]  # of the pairs read
    n_without_granularity: Mapping[str, int]  # of the kept
    # Granularity to what is not exported: "captions", and how many have each flag.
    dropped_captions: Mapping[str, Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class Receipt:
    """Says that a lot is exported."""

    inputs: Inputs
    counts: Counts
    shards: tuple[ShardFacts, ...]
    failures: Mapping[str, int]  # pairs that could not be exported, by reason

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """The receipt that a file holds; None if it is damaged."""
        try:
            return cls.of(json.loads(data))
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The receipt that a JSON object describes."""
        shards = tuple(ShardFacts(**shard) for shard in content["shards"])
        counts = Counts(**content["counts"])
        return cls(content["inputs"], counts, shards, content["failures"])

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode() + b"\n"


def path(folder: str, lot_name: str) -> str:
    """Where the receipt of a lot lies; `folder` is that of the shards."""
    return files.join(folder, FOLDER, lot_name + SUFFIX)


class Receipts(Summaries):
    """The receipts of a folder of shards by lot, without those that are damaged."""

    suffix = table_suffix = SUFFIX

    @classmethod
    def of(cls, folder: str) -> Self:
        """Those of all lots; `folder` is that of the shards."""
        return cls.read(files.join(folder, FOLDER))

    @classmethod
    def is_whole(cls, data: bytes) -> bool:
        return Receipt.parse(data) is not None

    @classmethod
    def report_damage(cls, folder: str, paths: Sequence[str]) -> None:
        """Nothing: a lot without a receipt is exported again."""

    def find(self, lot: Lot) -> Receipt | None:
        """The receipt of a lot; None if it has none."""
        content = self.get(lot.name)
        return None if content is None else Receipt.of(content)


def read(folder: str, lot: Lot) -> Receipt | None:
    """The receipt of one lot; None if it has none."""
    try:
        return Receipt.parse(files.read(path(folder, lot.name)))
    except FileNotFoundError:
        return None


def write(folder: str, lot_name: str, receipt: Receipt) -> None:
    """Says that a lot is exported; leaves a file alone that says the same."""
    json_files.write_changed(path(folder, lot_name), receipt.to_json())


def settings_of(config: CurationConfig, tables: SampleTables) -> str:
    """The fingerprint of all settings that the samples of a lot depend on."""
    granularities = [
        (granularity.name, granularity.prompt, files.split(folder)[1])
        for granularity, folder in tables.granularity_to_folder.items()
    ]
    order = [granularity.name for granularity in config.granularities]
    return fingerprint(
        *("export", CODE_VERSION, SCHEMA_VERSION),
        *(config.export, config.limits, granularities, order),
    )


def inputs_of(
    lot: Lot,
    tables: SampleTables,
    captions: Mapping[Granularity, CaptionTables],
    settings: str,
    read_summary: ReadSummary = LotTables.read_summary,
) -> Inputs:
    """What the shards of a lot are made from: the contents of its tables.

    Raises:
      FileNotFoundError, KeyError: if it has no such table.
    """

    def digest(of: LotTables, name: str) -> str:
        return read_summary(of, name)["sha256"]

    source, flags = lot.source.name, tables.flags.tables
    return {
        "settings": settings,
        "pairs": digest(tables.source_to_pairs[source], lot.name),
        "scores": digest(tables.source_to_embeddings[source], lot.name),
        "decisions": digest(tables.decisions, lot.name),
        "captions": {
            granularity.name: {
                name: digest(found.tables, name) for name in found.names(lot)
            }
            for granularity, found in captions.items()
        },
        "flags": None if flags is None else digest(flags, lot.name),
    }


def base_of(shard_name: str) -> str:
    """The base name of the lot that a shard belongs to; "" of another file."""
    found = _SHARD_NAME.fullmatch(shard_name)
    return found["base"] if found else ""


def add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sums of counts by name."""
    totals: dict[str, int] = {}
    for found in counts:
        for name, n in found.items():
            totals[name] = totals.get(name, 0) + n
    return totals
