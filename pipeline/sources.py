"""Source shards to pairs (placeholder until the reader lands)."""

import dataclasses
import hashlib

from pipeline import files
from pipeline.config import ImageTextSource


@dataclasses.dataclass(frozen=True)
class Unit:
    """One source shard: the unit of work of every stage."""

    source: ImageTextSource
    uri: str

    @property
    def name(self) -> str:
        """Names the tables of the shard: its file name and a hash of its path."""
        stem = self.uri.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
        digest = hashlib.blake2b(self.uri.encode(), digest_size=6).hexdigest()
        return f"{stem}-{digest}"


def list_units(source: ImageTextSource) -> tuple[Unit, ...]:
    """The shards of a source, sorted by path.

    Raises:
      ValueError: if the glob matches nothing.
    """
    uris = files.find(source.pattern)
    if not uris:
        raise ValueError(
            f"{source.name}={source.pattern}: expected a glob that matches shards"
        )
    return tuple(Unit(source, uri) for uri in uris)
