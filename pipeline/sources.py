"""Source shards to pairs, and back to the bytes of chosen images.

In: img2dataset's webdataset tars (KEY.jpg, KEY.txt, KEY.json), its Parquet files, and
Parquet files of Hugging Face image sets, on any file system that Beam knows. Out: all
pairs in the order of the shard, one at a time. What is wrong with a pair is its error;
what is wrong with a shard is the error of one last pair, which stands for the rest.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import files, patterns, tars
from pipeline.config import ImageTextSource, Limits
from pipeline.parquet import (
    ROBOTS_COLUMNS,
    URL_COLUMNS,
    Columns,
    ShardError,
    byte_values,
    labels,
    open_parquet,
    read_batches,
)
from pipeline.records import Pair, content_hash

_EXTENSION_TO_KIND = {
    "jpg": "image",
    "jpeg": "image",
    "png": "image",
    "webp": "image",
    "gif": "image",  # `images.decode` says why not
    "txt": "alt_text",
    "json": "metadata",
}
_MAX_METADATA_BYTES = 1 << 20  # img2dataset writes 1 kB; larger ones are left out
_MAX_URL_CHARS = 1 << 16  # what is longer is left out
_MAX_ROBOTS_CHARS = 1 << 12  # what is longer is cut

_MAX_STEM_BYTES = 80  # of the 255 that a file name can have


@dataclasses.dataclass(frozen=True)
class Unit:
    """One source shard: the unit of work of every stage."""

    source: ImageTextSource
    uri: str

    @property
    def name(self) -> str:
        """Names the tables of the shard: its file name and a hash of its path."""
        path = self.uri.encode(errors="surrogateescape")
        stem = path.rstrip(b"/").rsplit(b"/", 1)[-1].rsplit(b".", 1)[0]
        digest = hashlib.blake2b(path, digest_size=6).hexdigest()
        return f"{stem[:_MAX_STEM_BYTES].decode(errors='ignore')}-{digest}"


@dataclasses.dataclass(frozen=True, slots=True)
class RawPair:
    """One pair as it lies in its shard."""

    key: str = ""  # of the whole shard: ""
    url: str = ""
    image: bytes = b""  # encoded
    alt_text: bytes = b""  # UTF-8 unless `error` says otherwise
    offset: int = 0  # of the image: its byte in a tar, its row in a Parquet file
    error: str = ""  # why the pair cannot be read
    robots: str = ""  # directives of its owner, as they were recorded

    @property
    def text(self) -> str:
        """The alt text; "" if it is blank or no UTF-8."""
        try:
            text = self.alt_text.decode()
        except UnicodeDecodeError:
            return ""
        return text if text.strip() else ""


def list_units(source: ImageTextSource) -> tuple[Unit, ...]:
    """The shards of a source, sorted by path.

    Raises:
      ValueError: if the glob matches nothing, or files that are no shards.
    """
    try:
        uris = patterns.matched(source.pattern, "shards")
    except ValueError as error:
        raise ValueError(f"{source.name}={error}") from error
    for uri in uris:
        if not uri.endswith((".tar", ".parquet")):
            raise ValueError(
                f"{source.name}={' '.join(patterns.texts(source.pattern))}: expected"
                f" .tar or .parquet files only, but it matches {uri}"
            )
    return tuple(Unit(source, uri) for uri in uris)


def check_columns(unit: Unit) -> None:
    """Raises ValueError if a shard can be read but lacks a column its source names."""
    if _is_tar(unit):
        return
    with files.open_for_reading(unit.uri) as file:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            return  # a damaged shard is counted when it is scored
    try:
        Columns.find(schema, unit.source)
    except ShardError as error:
        raise ValueError(f"{unit.source.name}={unit.uri}: {error}") from error


def read_pairs(unit: Unit, limits: Limits) -> Iterator[RawPair]:
    """Reads every pair of a shard in its order; nothing is decoded yet.

    A shard that is not there or damaged ends in one pair with the error. Failures that
    another attempt may cure, such as of a network, are raised.
    """
    read = _read_tar if _is_tar(unit) else _read_parquet
    try:
        with files.open_for_reading(unit.uri) as file:
            yield from read(file, unit.source, limits)
    except (tars.TarError, ShardError) as error:
        yield RawPair(error=str(error))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        yield RawPair(error=f"shard cannot be opened: {error.strerror}")


def read_images(unit: Unit, pairs: Sequence[Pair]) -> Iterator[bytes]:
    """Reads the encoded images of readable pairs of a unit, in their order.

    Args:
      pairs: in the order of the shard.

    Raises:
      ShardError: if an image is not the one that was scored.
    """
    read = _read_tar_images if _is_tar(unit) else _read_parquet_images
    with files.open_for_reading(unit.uri) as file:
        try:
            for pair, image in zip(pairs, read(file, unit.source, pairs), strict=True):
                if content_hash(image) != pair.image_hash:
                    raise ShardError(f"the image of {pair.key!r} is another one")
                yield image
        except ValueError as error:
            raise ShardError(
                f"{unit.uri} has changed since it was scored: {error}"
            ) from error


def _is_tar(unit: Unit) -> bool:
    return unit.uri.endswith(".tar")


def _image_error(n_bytes: int | None, limits: Limits) -> str:
    """What is wrong with an image of so many bytes; None if there is none."""
    if n_bytes is None:
        return "no image"
    if n_bytes == 0:
        return "empty image"
    if n_bytes > limits.max_image_bytes:
        bound = f"max_image_bytes={limits.max_image_bytes}"
        return f"image of {n_bytes} bytes: expected at most {bound}"
    return ""


def _alt_text_error(n_bytes: int, data: bytes, limits: Limits, is_needed: bool) -> str:
    """What is wrong with an alt text; `data` is empty if it is too long to be read."""
    if n_bytes > limits.max_alt_text_bytes:
        bound = f"max_alt_text_bytes={limits.max_alt_text_bytes}"
        return f"alt text of {n_bytes} bytes: expected at most {bound}"
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return f"alt text is not UTF-8: {error.reason} at byte {error.start}"
    return "no alt text" if is_needed and not text.strip() else ""


# Tars: one pair is a run of members with one key.

_Group = dict[str, tars.Member]  # kind, or extension of an unknown kind, to member


def _read_tar(
    file: typing.BinaryIO, source: ImageTextSource, limits: Limits
) -> Iterator[RawPair]:
    kind_to_max_bytes = {
        "image": limits.max_image_bytes,
        "alt_text": limits.max_alt_text_bytes,
        "metadata": _MAX_METADATA_BYTES,
    }
    members = tars.read_members(
        file, lambda name: kind_to_max_bytes.get(_key_and_kind(name)[1], 0)
    )
    required = {"image", "alt_text"} if source.needs_alt_text else {"image"}
    for key, group in _group_by_key(members, required):
        yield _tar_pair(key, group, source, limits)


def _read_tar_images(
    file: typing.BinaryIO, source: ImageTextSource, pairs: Sequence[Pair]
) -> Iterator[bytes]:
    del source  # a tar has no columns to name
    for pair in pairs:
        file.seek(pair.offset)
        yield file.read(pair.n_bytes)


def _group_by_key(
    members: Iterable[tars.Member], required: set[str]
) -> Iterator[tuple[str, _Group]]:
    """Groups neighbours of one key; a second member of a kind begins another pair.

    Members without a key (`README`, `.DS_Store`) are passed over. Where the tar breaks
    off, a group that has the `required` kinds counts as complete.
    """
    key, group = "", _Group()
    try:
        for member in members:
            new_key, kind = _key_and_kind(member.name)
            if not kind:
                continue
            if group and (new_key != key or kind in group):
                yield key, group
                group = {}
            key, group[kind] = new_key, member
    except tars.TarError:
        if required <= group.keys():
            yield key, group
        raise
    if group:
        yield key, group


def _key_and_kind(name: str) -> tuple[str, str]:
    """As webdataset does: the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    extension = extension.lower() if stem else ""
    return folder + slash + stem, _EXTENSION_TO_KIND.get(extension, extension)


def _tar_pair(
    key: str, group: _Group, source: ImageTextSource, limits: Limits
) -> RawPair:
    image, alt_text = group.get("image"), group.get("alt_text")
    metadata = group.get("metadata")
    text_bytes = (alt_text and alt_text.data) or b""
    n_text_bytes = alt_text.size if alt_text else 0
    record = _record((metadata and metadata.data) or b"")
    return RawPair(
        key=key,
        url=_bounded_url(_text_of(record, URL_COLUMNS)),
        image=(image and image.data) or b"",
        alt_text=text_bytes,
        offset=image.offset if image else 0,
        error=_image_error(image.size if image else None, limits)
        or _alt_text_error(n_text_bytes, text_bytes, limits, source.needs_alt_text),
        robots=_text_of(record, ROBOTS_COLUMNS)[:_MAX_ROBOTS_CHARS],
    )


def _record(metadata: bytes) -> dict[str, object]:
    """The JSON object that img2dataset writes; empty if it is none."""
    try:
        record = json.loads(metadata)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _text_of(record: Mapping[str, object], names: Sequence[str]) -> str:
    """The first text of one of these names, or texts of a list; "" if there is none."""
    for name in names:
        value = record.get(name)
        text = _joined(value) if isinstance(value, list) else value
        if isinstance(text, str) and text:
            # JSON can hold half a surrogate pair, UTF-8 cannot.
            return text.encode(errors="replace").decode()
    return ""


def _joined(items: Iterable[object]) -> str:
    return ", ".join(item for item in items if isinstance(item, str))


def _bounded_url(url: str) -> str:
    return url if len(url) <= _MAX_URL_CHARS else ""


# Parquet: one pair is a row.


def _read_parquet(
    file: typing.BinaryIO, source: ImageTextSource, limits: Limits
) -> Iterator[RawPair]:
    with open_parquet(file) as parquet:
        columns = Columns.find(parquet.schema_arrow, source)
        names = [name for name in set(dataclasses.astuple(columns)) if name]
        for first, batch in read_batches(parquet, names):
            images = byte_values(batch, columns.image)
            alt_texts = byte_values(batch, columns.alt_text)
            keys, urls = labels(batch, columns.key), labels(batch, columns.url)
            robots = labels(batch, columns.robots)
            rows = range(first, first + len(batch))
            for parts in zip(images, alt_texts, keys, urls, robots, rows, strict=True):
                yield _parquet_pair(parts, source, limits)


def _parquet_pair(
    parts: tuple[bytes | None, bytes | None, str, str, str, int],
    source: ImageTextSource,
    limits: Limits,
) -> RawPair:
    image, alt_text, key, url, robots, row = parts
    n_text_bytes = len(alt_text or b"")
    text = b"" if n_text_bytes > limits.max_alt_text_bytes else alt_text or b""
    return RawPair(
        key=key or str(row),
        url=_bounded_url(url),
        image=image or b"",
        alt_text=text,
        offset=row,
        error=_image_error(None if image is None else len(image), limits)
        or _alt_text_error(n_text_bytes, text, limits, source.needs_alt_text),
        robots=robots[:_MAX_ROBOTS_CHARS],
    )


def _read_parquet_images(
    file: typing.BinaryIO, source: ImageTextSource, pairs: Sequence[Pair]
) -> Iterator[bytes]:
    chosen = frozenset(pair.offset for pair in pairs)
    with open_parquet(file) as parquet:
        column = Columns.find(parquet.schema_arrow, source).image
        for first, batch in read_batches(parquet, [column], chosen):
            for row, image in enumerate(byte_values(batch, column), first):
                if row in chosen:
                    yield image or b""
