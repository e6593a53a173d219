"""Members of a tar to pairs: those of one key belong together.

A key ends at the first dot of the base name, as in webdataset. The members of a pair
are neighbors; where a part is missing the rest of the tar is searched for it.
"""

import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from pipeline.config.curation import ImageTextSource, Limits
from pipeline.sources import robots, tars
from pipeline.sources.raw_pairs import Parts, RawPair
from pipeline.sources.recorded import Recorded
from pipeline.sources.tars import Member
from recipes.validation import one_line

# Of several members of a kind the one counts whose extension comes first.
_KIND_TO_EXTENSIONS = {
    "image": (
        *("jpg", "jpeg", "jpe", "jfif", "jif", "png", "webp"),
        # `images.decode` says why not:
        *("gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif", "jp2", "j2k"),
        *("jpf", "jpx", "jxl", "svg"),
    ),
    "alt_text": ("txt",),
    "metadata": ("json",),
}
_EXTENSION_TO_KIND = {
    extension: (kind, rank)
    for kind, extensions in _KIND_TO_EXTENSIONS.items()
    for rank, extension in enumerate(extensions)
}
_MAX_METADATA_BYTES = 4 << 20  # img2dataset writes 1 kB
_MAX_MEMBERS = 1_000  # of a key; further ones of unknown kinds are passed over
_MAX_HALVES = 1 << 18  # incomplete groups that are looked up
_N_SHOWN = 3  # members of a key
_MAX_SHOWN_CHARS = 200


class _Part(typing.NamedTuple):  # made four times as fast as a frozen dataclass
    """A member and what its name says of it."""

    member: Member
    key: str
    extension: str  # all behind the first dot, in small letters
    kind: str = ""  # "" of what is unknown, such as `KEY.seg.png`
    rank: int = 0  # among the extensions of its kind

    @classmethod
    def of(cls, member: Member) -> "_Part":
        key, extension = _split_name(member.name)
        return cls(member, key, extension, *_EXTENSION_TO_KIND.get(extension, ()))

    @property
    def is_image(self) -> bool:
        """Whether it is any image, also one such as `KEY.seg.png`."""
        last = self.extension.rpartition(".")[2]
        return last in _KIND_TO_EXTENSIONS["image"]


_WORST = _Part(Member("", 0, 0, None), "", "", rank=len(_EXTENSION_TO_KIND))
_Group = Sequence[_Part]  # of one key
_Place = tuple[str, int]  # name and offset of a member


def read_pairs(
    file: typing.BinaryIO, source: ImageTextSource, limits: Limits
) -> Iterator[RawPair]:
    """The pairs of a tar, in the order of their first members.

    Raises:
      TarError: where the tar is damaged.
    """
    kind_to_max_bytes = {
        "image": limits.max_image_bytes,
        "alt_text": limits.max_alt_text_bytes,
        "metadata": _MAX_METADATA_BYTES,
    }

    def max_bytes(name: str) -> int:
        kind, _ = _EXTENSION_TO_KIND.get(_split_name(name)[1], ("", 0))
        return kind_to_max_bytes.get(kind, 0)

    required = {"image", "alt_text"} if source.needs_alt_text else {"image"}
    joined: dict[_Place, list[_Part]] | None = None
    for group in _groups(tars.read_members(file, max_bytes), required):
        if not _is_complete(group, required):
            if joined is None:
                joined = _join_halves(file, required)
            whole = joined.get(_place(group), group)
            group = [_read_data(file, part, max_bytes) for part in whole]
        if group:
            yield _parts(group).to_pair(source, limits)


def _groups(members: Iterable[Member], required: Collection[str]) -> Iterator[_Group]:
    """Neighbors of one key; a name that comes again begins another pair.

    Members without a key (`README`, `.DS_Store`) are passed over. Where the tar breaks
    off, a group that has the `required` kinds counts as complete.
    """
    group: list[_Part] = []
    try:
        for part in map(_Part.of, members):
            if not part.extension:
                continue
            if group and (
                part.key != group[0].key or _has_name(group, part.member.name)
            ):
                yield group
                group = []
            if part.kind or len(group) < _MAX_MEMBERS:
                group.append(part)
    except tars.TarError:
        if _is_complete(group, required):
            yield group
        raise
    if group:
        yield group


def _split_name(name: str) -> tuple[str, str]:
    """Splits as webdataset does: a key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower() if stem else ""


def _has_name(group: _Group, name: str) -> bool:
    return any(part.member.name == name for part in group)


def _is_complete(group: _Group, required: Collection[str]) -> bool:
    return {part.kind for part in group}.issuperset(required)


def _place(group: _Group) -> _Place:
    return group[0].member.name, group[0].member.offset


def _join_halves(
    file: typing.BinaryIO, required: Collection[str]
) -> dict[_Place, list[_Part]]:
    """Place of an incomplete group to the members of its key in all such groups.

    The first group of a key has them all, further ones none: no name comes twice. The
    data is not read.
    """
    file.seek(0)
    key_to_first: dict[str, list[_Part]] = {}
    joined: dict[_Place, list[_Part]] = {}
    try:
        for group in _groups(tars.read_members(file, lambda name: 0), required):
            if _is_complete(group, required):
                continue
            first = key_to_first.get(group[0].key, [])
            if not first or any(_has_name(first, part.member.name) for part in group):
                joined[_place(group)] = key_to_first[group[0].key] = list(group)
            else:
                joined[_place(group)] = []
                first.extend(group)
            if len(joined) == _MAX_HALVES:
                break
    except tars.TarError:
        pass  # the one who reads on comes there too
    return joined


def _read_data(
    file: typing.BinaryIO, part: _Part, max_bytes: Callable[[str], int]
) -> _Part:
    member = part.member
    if member.error or member.size > max_bytes(member.name):
        return part
    return part._replace(member=tars.read_data(file, member))


def _parts(group: _Group) -> Parts:
    """Takes the members that make the pair, and names the others."""
    taken: dict[str, _Part] = {}
    for part in group:
        if part.kind and part.rank < taken.get(part.kind, _WORST).rank:
            taken[part.kind] = part
    image, alt_text, metadata = (
        taken[kind].member if kind in taken else None for kind in _KIND_TO_EXTENSIONS
    )
    is_all = len(taken) == len(group)
    return Parts(
        key=group[0].key,
        image=image,
        alt_text=alt_text,
        recorded=_recorded(metadata),
        offset=image.offset if image else 0,
        absence="" if is_all else _describe_members(group),
        left_out=() if is_all else _left_out(group, taken),
    )


def _left_out(group: _Group, taken: Mapping[str, _Part]) -> tuple[str, ...]:
    """Names of images and of parts of a pair that were not taken."""
    others = (part for part in group if part is not taken.get(part.kind))
    return tuple(part.member.name for part in others if part.kind or part.is_image)


def _recorded(metadata: Member | None) -> Recorded:
    if metadata is None:
        return Recorded()
    if metadata.data is None:
        reason = metadata.error or f"metadata of {metadata.size} bytes"
        return Recorded(robots=robots.not_understood(reason))
    return Recorded.of_json(metadata.data)


def _describe_members(group: _Group) -> str:
    """Names the members of a key if some are not known."""
    if all(part.kind for part in group):
        return ""
    names = ", ".join(part.member.name for part in group[:_N_SHOWN])
    n_more = len(group) - _N_SHOWN
    more = f" and {n_more:,} more" if n_more > 0 else ""
    held = f"its key holds {one_line(names, _MAX_SHOWN_CHARS)}{more}"
    has_dots = any("." in part.extension for part in group)
    return held + ("; a key ends at the first dot of a name" if has_dots else "")
