"""Divides the samples of a lot into shards, each with a digest of all in it.

In: the samples of a lot, without images. Out: the rows of each shard, and the digest
that its name ends in, equal exactly when its bytes are.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Self

from pipeline.config.curation import CurationConfig, ExportConfig
from pipeline.config.fingerprint import fingerprint
from pipeline.export.receipts import CODE_VERSION, Counts, add_up
from pipeline.export.samples import KeptPair, LotSamples
from pipeline.export.shard_formats import ShardFormat
from pipeline.records import SCHEMA_VERSION

_DIGEST_BYTES = 6


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """Rows `start` to `stop` of a lot, of which `n_samples` are exported."""

    number: int  # in the lot
    start: int
    stop: int
    n_samples: int
    digest: str  # if no image is gone


@dataclasses.dataclass(frozen=True)
class ShardIdentity:
    """What determines the bytes of a shard beside its samples."""

    fingerprint: str

    @classmethod
    def of(cls, config: CurationConfig, shard_format: ShardFormat) -> Self:
        """Of the settings, and of the names that every sample of a format has."""
        export = config.export
        names = [granularity.name for granularity in config.granularities]
        return cls(
            fingerprint(
                *("shard", CODE_VERSION, SCHEMA_VERSION, shard_format.name),
                *(export.max_side_px, export.jpeg_quality, names),
            )
        )

    def digest(self, samples: Sequence[bytes]) -> str:
        """12 hexadecimal digits, from the digests of samples."""
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=_DIGEST_BYTES)
        for sample in samples:
            digest.update(sample)
        return digest.hexdigest()


def sample_digest(kept: KeptPair) -> bytes:
    """Identifies a sample: its image, and all that is written beside it."""
    text = repr((kept.pair.image_hash, kept.sample))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def exported(kept: Sequence[KeptPair], export: ExportConfig) -> Iterator[KeptPair]:
    """Yields the pairs that have a caption of each required granularity."""
    required = set(export.required_granularities)
    return (one for one in kept if required <= one.sample.captions.keys())


def plan_shards(
    samples: LotSamples, config: CurationConfig, identity: ShardIdentity
) -> tuple[list[PlannedShard], Counts]:
    """Divides a lot into shards that are full, but for the last one."""
    outcomes: list[dict[str, int]] = []
    n_without: collections.Counter[str] = collections.Counter()
    names = [granularity.name for granularity in config.granularities]
    digests: list[tuple[int, bytes]] = []  # with the row
    for chunk in samples.read():
        outcomes.append(dict(chunk.outcome_to_count))
        for one in chunk.kept:
            n_without.update(name for name in names if name not in one.sample.captions)
        digests += [
            (one.row, sample_digest(one)) for one in exported(chunk.kept, config.export)
        ]
    counts = Counts(
        outcomes=dict(sorted(add_up(outcomes).items())),
        n_without_granularity={name: n_without[name] for name in names},
        dropped_captions=samples.count_dropped(),
    )
    return _cut(digests, config.export.samples_per_shard, identity), counts


def _cut(
    digests: Sequence[tuple[int, bytes]], n_per_shard: int, identity: ShardIdentity
) -> list[PlannedShard]:
    shards: list[PlannedShard] = []
    for first in range(0, len(digests), n_per_shard):
        part = digests[first : first + n_per_shard]
        shards.append(
            PlannedShard(
                number=len(shards),
                start=part[0][0],
                stop=part[-1][0] + 1,
                n_samples=len(part),
                digest=identity.digest([digest for _, digest in part]),
            )
        )
    return shards
