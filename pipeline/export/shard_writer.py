"""Writes the shards of one lot, with the images that are still there.

In: rows of a lot. Out: a file of samples and its index, named by what is in them, and
the pairs whose images are gone.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping

from pipeline.config.curation import CurationConfig
from pipeline.engine.error_tables import Failure
from pipeline.export import manifest
from pipeline.export.lot_shards import (
    PlannedShard,
    ShardIdentity,
    exported,
    sample_digest,
)
from pipeline.export.publishing import STAGE
from pipeline.export.receipts import ShardFacts
from pipeline.export.samples import KeptPair, LotSamples, with_image
from pipeline.export.shard_formats import ShardFormat
from pipeline.images.decoder import ImageError
from pipeline.records import Sample
from pipeline.sources import shards as sources
from pipeline.sources.columns import ShardError
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.prefetch import map_ahead

_N_IMAGES_AHEAD = 32
_PIECE_BYTES = 1 << 26

_Item = tuple[KeptPair, bytes | ShardError]


class ShardWriter:
    """Finds and writes shards of a lot."""

    def __init__(
        self,
        folder: str,
        shard_format: ShardFormat,
        config: CurationConfig,
        identity: ShardIdentity,
        lot: Lot,
        samples: LotSamples,
    ) -> None:
        self._folder = folder
        self._format = shard_format
        self._config = config
        self._identity = identity
        self._lot = lot
        self._samples = samples

    def find(
        self, shard: PlannedShard, known: Mapping[str, ShardFacts]
    ) -> ShardFacts | None:
        """A whole shard that is there already; None if it has to be written."""
        name = self._name(shard, shard.digest)
        path = files.join(self._folder, name)
        if not all(map(files.is_file, (path, path + manifest.INDEX_SUFFIX))):
            return None
        if name in known:
            return known[name]
        n_bytes, sha256 = _read_digest(path)  # an attempt that was killed wrote it
        return ShardFacts(name, shard.n_samples, n_bytes, sha256)

    def write(self, shard: PlannedShard, failures: list[Failure]) -> ShardFacts:
        """Writes the index and the records, in this order.

        Adds to `failures` what is not in it; a shard without samples is not written.
        """
        digests: list[bytes] = []
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "shard")
            names = [granularity.name for granularity in self._config.granularities]
            found = self._whole_samples(shard, digests, failures)
            index = self._format.write_local(local, found, names)
            name = self._name(shard, self._identity.digest(digests))
            if not digests:
                return ShardFacts(name, 0, 0, "")
            path = files.join(self._folder, name)
            files.write(path + manifest.INDEX_SUFFIX, index.tobytes())
            n_bytes, sha256 = files.publish(local, path)
        return ShardFacts(name, len(index), n_bytes, sha256)

    def _name(self, shard: PlannedShard, digest: str) -> str:
        return self._format.shard_name(self._lot.base, shard.number, digest)

    def _whole_samples(
        self, shard: PlannedShard, digests: list[bytes], failures: list[Failure]
    ) -> Iterator[Sample]:
        for chunk in self._samples.read(shard.start, shard.stop):
            kept = list(exported(chunk.kept, self._config.export))
            images = sources.find_images(self._lot, [one.pair for one in kept])
            items = zip(kept, images, strict=True)
            made = map_ahead(self._with_image, items, _N_IMAGES_AHEAD, _n_bytes)
            for one, sample in zip(kept, made, strict=True):
                if isinstance(sample, Sample):
                    digests.append(sample_digest(one))
                    yield sample
                else:
                    failures.append(Failure.of(STAGE, self._lot, one.pair, sample))

    def _with_image(self, item: _Item) -> Sample | Exception:
        kept, image = item
        if isinstance(image, ShardError):
            return image
        try:
            config = self._config
            return with_image(kept.sample, image, config.export, config.limits)
        except ImageError as error:
            return error


def _n_bytes(item: _Item) -> int:
    _, image = item
    return len(image) if isinstance(image, bytes) else 0


def _read_digest(path: str) -> tuple[int, str]:
    """The size and the SHA-256 of a file."""
    digest, n_bytes = hashlib.sha256(), 0
    with files.open_stream(path) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            n_bytes += len(piece)
    return n_bytes, digest.hexdigest()
