"""Columns of a Parquet file with images: which they are, and whether they can be used.

In: a Parquet file and a source. Out: names of columns. A usual name of a type that
cannot be used is an error: it may hold an opt-out, or the only texts there are.
"""

import dataclasses
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.curation import ImageTextSource
from pipeline.sources import recorded
from pipeline.sources.recorded import plain_name
from recipes.validation import one_line

# The usual names, the first ones first; case and separators do not count.
_IMAGE_NAMES = ("jpg", "image", "png", "webp", "jpeg", "img", "image_bytes")
_ALT_TEXT_NAMES = (
    *("caption", "text", "alt_text", "txt", "alt", "captions", "texts", "alt_texts"),
    *("sentences", "raw_caption", "original_caption", "org_caption", "caption_0"),
    *("top_caption",),
)
_KEY_NAMES = ("__key__", "key", "id")
# Of a struct that stands for a text, as in COCO's `sentences`.
TEXT_FIELDS = ("raw", "text", "caption", "sentence")
_MAX_TYPE_CHARS = 80
_MAX_LIST_CHARS = 200


class ShardError(ValueError):
    """Why the rest of a shard, or the images of it, cannot be read."""


class DamageError(ShardError):
    """Why a shard is no file of its format."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a Parquet file; "" where there is none."""

    image: str
    alt_text: str
    key: str
    recorded: tuple[str, ...]  # what `recorded.Recorded` looks for

    @property
    def names(self) -> list[str]:
        """All of them, once."""
        every = (self.image, self.alt_text, self.key, *self.recorded)
        return list(dict.fromkeys(filter(None, every)))

    @classmethod
    def find(cls, parquet: pq.ParquetFile, source: ImageTextSource) -> "Columns":
        """The columns that a source names, or those of usual names.

        Raises:
          ShardError: without images, without alt texts where they are needed, or if a
            column cannot be used.
        """
        image, alt_text, key = (
            role.find(parquet, getattr(source, role.field)) for role in _ROLES
        )
        if not image:
            raise _missing_error(_IMAGE, parquet.schema_arrow)
        if source.needs_alt_text and not alt_text:
            raise _missing_error(_ALT_TEXT, parquet.schema_arrow)
        return cls(image, alt_text, key, _find_recorded(parquet))

    @staticmethod
    def find_image(parquet: pq.ParquetFile, source: ImageTextSource) -> tuple[str, str]:
        """Name of the column with images, and path of its leaf with their bytes.

        Raises:
          ShardError: if there is none, or it cannot be used.
        """
        name = _IMAGE.find(parquet, source.image_column)
        if not name:
            raise _missing_error(_IMAGE, parquet.schema_arrow)
        column_type = _value_type(parquet.schema_arrow.field(name).type)
        is_struct = pa.types.is_struct(column_type)
        return name, f"{name}.bytes" if is_struct else name


@dataclasses.dataclass(frozen=True)
class _Role:
    """A use of a column: its usual names and types."""

    field: str  # of `ImageTextSource`, which names such a column
    usual_names: Sequence[str]
    is_usable: Callable[[pa.DataType], bool]
    expected: str

    def find(self, parquet: pq.ParquetFile, named: str) -> str:
        """Name of the column, "" if there is none; ShardError if it cannot be used."""
        schema = parquet.schema_arrow
        if named and named not in schema.names:
            raise ShardError(
                f"{self.field}={named!r}: expected one of {_list_fields(schema)}"
            )
        name = named or _first_of(schema.names, self.usual_names)
        if name:
            self.check(parquet, name)
        return name

    def check(self, parquet: pq.ParquetFile, name: str) -> None:
        """Raises ShardError if a column cannot be used so."""
        if parquet.schema_arrow.names.count(name) > 1:
            raise ShardError(f"column {name!r} is there twice: expected it once")
        found = parquet.schema_arrow.field(name).type
        if not (_is_null(found) or self.is_usable(found) or _is_empty(parquet, name)):
            other = f"; {self.field} names another" if self.field else ""
            shown = one_line(str(found), _MAX_TYPE_CHARS)
            raise ShardError(
                f"column {name!r} is {shown}: expected {self.expected}{other}"
            )


def plain_type(column_type: pa.DataType) -> pa.DataType:
    """A type to cast to, for all that stores the same values otherwise.

    Texts become bytes: Arrow would stop at the first that is no UTF-8.
    """
    types = pa.types
    column_type = _value_type(column_type)
    if _is_text(column_type) or _is_bytes(column_type):
        return pa.large_binary()
    if types.is_map(column_type):
        key, item = column_type.key_type, column_type.item_type
        return pa.map_(plain_type(key), plain_type(item))
    if _is_list(column_type):
        return pa.large_list(plain_type(column_type.value_type))
    if types.is_struct(column_type):
        return pa.struct([(f.name, plain_type(f.type)) for f in column_type.fields])
    return column_type


def _value_type(column_type: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary, of runs or of an extension."""
    types = pa.types
    if types.is_dictionary(column_type) or types.is_run_end_encoded(column_type):
        return _value_type(column_type.value_type)
    if isinstance(column_type, pa.BaseExtensionType):
        return _value_type(column_type.storage_type)
    return column_type


def _is_text(column_type: pa.DataType) -> bool:
    of_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_type(column_type) for is_type in of_text)


def _is_bytes(column_type: pa.DataType) -> bool:
    of_bytes = (
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        pa.types.is_fixed_size_binary,
    )
    return any(is_type(column_type) for is_type in of_bytes)


def _is_list(column_type: pa.DataType) -> bool:
    of_lists = (
        *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
        *(pa.types.is_list_view, pa.types.is_large_list_view),
    )
    return any(is_type(column_type) for is_type in of_lists)


def _is_null(column_type: pa.DataType) -> bool:
    return pa.types.is_null(column_type)


def _is_image(column_type: pa.DataType) -> bool:
    """Bytes, or a struct with `bytes` as Hugging Face writes it; a text is a path."""
    column_type = _value_type(column_type)
    if pa.types.is_struct(column_type):
        index = column_type.get_field_index("bytes")
        return index >= 0 and _is_bytes(_value_type(column_type.field(index).type))
    return _is_bytes(column_type)


def _is_alt_text(column_type: pa.DataType) -> bool:
    """A text, a struct with one, or a list of either."""
    plain = plain_type(column_type)
    if pa.types.is_large_list(plain):
        plain = plain.value_type
    if pa.types.is_struct(plain):
        indices = [plain.get_field_index(name) for name in TEXT_FIELDS]
        return any(i >= 0 and _is_bytes(plain.field(i).type) for i in indices)
    return _is_bytes(plain) or _is_null(plain)


def _is_url(column_type: pa.DataType) -> bool:
    plain = plain_type(column_type)
    one = plain.value_type if pa.types.is_large_list(plain) else plain
    return _is_bytes(one) or _is_null(one)


def _is_key(column_type: pa.DataType) -> bool:
    return not pa.types.is_nested(plain_type(column_type))


def _is_robots(column_type: pa.DataType) -> bool:
    """Texts, however nested, and flags by name."""
    plain = plain_type(column_type)
    if pa.types.is_large_list(plain):
        return _is_robots(plain.value_type)
    is_named = pa.types.is_map(plain) or pa.types.is_struct(plain)
    return _is_bytes(plain) or _is_null(plain) or is_named


_IMAGE = _Role(
    "image_column",
    _IMAGE_NAMES,
    _is_image,
    "encoded images (binary, or a struct with bytes)",
)
_ALT_TEXT = _Role(
    "alt_text_column", _ALT_TEXT_NAMES, _is_alt_text, "texts or lists of them"
)
_KEY = _Role("key_column", _KEY_NAMES, _is_key, "texts or numbers")
_ROLES = (_IMAGE, _ALT_TEXT, _KEY)
_URL = _Role("", recorded.URL_NAMES, _is_url, "texts")
_ROBOTS = _Role("", recorded.ROBOTS_NAMES, _is_robots, "texts or lists of them")
_ANYTHING = _Role("", (), lambda column_type: True, "")


def _find_recorded(parquet: pq.ParquetFile) -> tuple[str, ...]:
    """Columns with what a crawler recorded; all of them, since all may opt out."""
    found = [
        field.name
        for field in parquet.schema_arrow
        if plain_name(field.name) in recorded.NAMES or _may_nest_directives(field.type)
    ]
    for name in found:
        roles = (
            role for role in (_URL, _ROBOTS) if plain_name(name) in role.usual_names
        )
        next(roles, _ANYTHING).check(parquet, name)
    return tuple(found)


def _may_nest_directives(column_type: pa.DataType) -> bool:
    """Whether it is a map of texts, or has a field with the name of the header."""
    plain = plain_type(column_type)
    if pa.types.is_map(plain):
        return _is_bytes(plain.key_type)
    if pa.types.is_large_list(plain):
        return _may_nest_directives(plain.value_type)
    fields = plain.fields if pa.types.is_struct(plain) else ()
    return any(
        plain_name(field.name) == recorded.ROBOTS_NAMES[0]
        or _may_nest_directives(field.type)
        for field in fields
    )


def _first_of(names: Sequence[str], usual_names: Sequence[str]) -> str:
    """The exact name before one of other case or separators."""
    for usual in usual_names:
        if usual in names:
            return usual
        for name in names:
            if plain_name(name) and plain_name(name) == plain_name(usual):
                return name
    return ""


def _is_empty(parquet: pq.ParquetFile, name: str) -> bool:
    """Whether floats are all that pandas makes of a column without any value."""
    if not pa.types.is_floating(parquet.schema_arrow.field(name).type):
        return False
    values = parquet.read([name]).column(name)
    return bool(pc.all(pc.is_null(values, nan_is_null=True)).as_py())


def _missing_error(role: _Role, schema: pa.Schema) -> ShardError:
    usual = ", ".join(role.usual_names)
    return ShardError(
        f"no column for {role.field}: expected it named, or one of {usual}; found"
        f" {_list_fields(schema)}"
    )


def _list_fields(schema: pa.Schema) -> str:
    fields = ", ".join(f"{field.name}: {field.type}" for field in schema)
    return one_line(fields, _MAX_LIST_CHARS)
