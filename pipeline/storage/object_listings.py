"""Listings of object stores: folders, what lies below them, what a pattern matches.

In: URLs. Out: facts about objects. A store gives a thousand keys an answer, each after
the one before; so listings run side by side, one for each folder or, where the keys of
an earlier listing are known, one for each thousand of them.
"""

import bisect
import itertools
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pipeline.storage import object_urls, remembered_listings, wildcards
from pipeline.storage.file_facts import FileFacts
from pipeline.storage.object_clients import client_and_folder
from pipeline.storage.object_urls import Bucket
from pipeline.storage.obstore_library import obstore
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.retries import retry

KEYS_PER_PAGE = 1000
_N_AT_ONCE = 32
_LAST = "\U0010ffff"  # behind all other letters

# Of folders that were listed in this process and took several pages: their last keys.
_place_to_ends: dict[str, list[str]] = {}

Item = typing.TypeVar("Item")
Listed = typing.TypeVar("Listed")


def facts_of(bucket: Bucket, meta: typing.Any) -> FileFacts:
    """What obstore says of an object."""
    return _facts_of(bucket.url(""), meta)


def _facts_of(root: str, meta: typing.Any) -> FileFacts:
    """The same, of a bucket with that URL: a million times in a large listing."""
    version = (meta["e_tag"] or "").strip('"')  # Azure's listings have no quotes
    updated_s = meta["last_modified"].timestamp()
    return FileFacts(root + meta["path"], meta["size"], updated_s, version)


@retry
def list_folder(folder: str) -> tuple[list[str], list[FileFacts]]:
    """The names of the folders in a folder, and the objects in it."""
    with client_and_folder(folder) as (store, key):
        bucket, _ = object_urls.parse(folder)
        found = obstore().list_with_delimiter(store, key or None)
        names = [prefix.rpartition("/")[2] for prefix in found["common_prefixes"]]
        objects = [meta for meta in found["objects"] if meta["path"] != key]
        return names, [facts_of(bucket, meta) for meta in objects]


def list_below(
    folder: str, after: str = "", known: Sequence[str] = ()
) -> Iterator[FileFacts]:
    """All objects in a folder and its folders, sorted by key.

    Args:
      after: the name in the folder behind which to begin.
      known: sorted URLs of an earlier listing, which make this one faster; what is
        found does not depend on them.
    """
    if after:
        key = object_urls.parse(folder)[1]
        return _list_span(folder, None, _Span(f"{key}/{after}".lstrip("/"), None))

    def list_files() -> Iterator[FileFacts]:
        return _list_spans(folder, None, _split(folder, known))

    return remembered_listings.find(folder, True, list_files)


def match(pattern: str, known: Sequence[str] = ()) -> Iterator[FileFacts]:
    """The objects that a pattern matches; `known` as of `list_below`."""
    bucket, key = object_urls.parse(pattern)
    if pattern.endswith("/"):
        key += "/*"
    fixed = wildcards.fixed_folder(key)
    folder = bucket.url(fixed)
    depth = None if "**" in key else key.removeprefix(fixed).strip("/").count("/")
    spans = _split(folder, known)
    if len(spans) > 1:
        found = _list_spans(folder, depth, spans)
    elif depth is None:
        found = _list_side_by_side(folder)
    else:
        found = _list_level_by_level(folder, depth, key)
    expression = wildcards.translate(key)
    prefix = len(bucket.url(""))
    return (one for one in found if expression.fullmatch(one.path[prefix:]))


class _Span(NamedTuple):
    """The keys behind one and up to another; None is no bound."""

    after: str | None
    until: str | None


def _split(folder: str, known: Sequence[str]) -> list[_Span]:
    """Spans that hold every key once, whatever was added or removed since.

    Where nothing is known of a folder, its pages are when this process listed it last.
    On Azure it is one: some of its servers know no key to begin behind.
    """
    bucket, key = object_urls.parse(folder)
    place = bucket.url(f"{key}/" if key else "")
    first = bisect.bisect_left(known, place)
    last = bisect.bisect_left(known, place + _LAST)
    start = len(bucket.url(""))
    ends = range(first + KEYS_PER_PAGE - 1, last, KEYS_PER_PAGE)
    cuts = [known[position][start:] for position in ends]
    cuts = cuts or _place_to_ends.get(bucket.url(key), [])
    cuts = [] if bucket.scheme == "az" else cuts
    return [_Span(*ends) for ends in itertools.pairwise([None, *cuts, None])]


def _list_spans(
    folder: str, depth: int | None, spans: Sequence[_Span]
) -> Iterator[FileFacts]:
    """The objects of spans that follow each other, which are listed side by side."""
    if len(spans) == 1:
        yield from _list_span(folder, depth, spans[0])
        return
    for found in _map_side_by_side(
        lambda span: list(_list_span(folder, depth, span)), spans
    ):
        yield from found


def _list_span(folder: str, depth: int | None, span: _Span) -> Iterator[FileFacts]:
    """The objects of a span, one page after the other.

    Args:
      depth: of the folders in the folder; deeper ones are left out, and passed over
        where they have many objects. None is any depth.
    """
    bucket, key = object_urls.parse(folder)
    n_names = None if depth is None else len(f"{key}/".lstrip("/").split("/")) + depth
    pages, root = _Pages(folder, span.after), bucket.url("")
    while page := pages.take():
        for meta in page:
            found = meta["path"]
            if span.until is not None and found > span.until:
                return
            is_deeper = n_names is not None and found.count("/") >= n_names
            if found != key and not is_deeper:  # a console makes an object `folder/`
                yield _facts_of(root, meta)
        if found == span.until:
            return
        if is_deeper and len(page) == KEYS_PER_PAGE:
            pages.go_behind("/".join((*found.split("/")[:n_names], _LAST)))


class _Pages:
    """A listing that goes on behind the last key when one of its answers breaks."""

    def __init__(self, folder: str, offset: str | None) -> None:
        self._folder = folder
        self._offset = offset
        self._pages: Iterator | None = None

    @retry
    def take(self) -> Sequence[typing.Any]:
        """The next objects in the order of their keys, none at the end."""
        with client_and_folder(self._folder) as (store, key):
            pages = self._pages or iter(
                obstore().list(
                    store,
                    key or None,
                    offset=self._offset,
                    chunk_size=KEYS_PER_PAGE,
                )
            )
            self._pages = None  # begun anew if the next line fails
            page = next(pages, ())
            self._pages = pages
        if page:
            self._offset = page[-1]["path"]
        return page

    def go_behind(self, key: str) -> None:
        """Passes over the keys up to this one."""
        self._offset, self._pages = key, None


def _list_level_by_level(folder: str, depth: int, pattern: str) -> Iterator[FileFacts]:
    """The objects at a depth; the folders of a level are listed side by side."""
    level = [folder]
    for _ in range(depth):
        level = [
            f"{parent.rstrip('/')}/{name}"
            for parent, (names, _) in zip(
                level, _map_side_by_side(list_folder, level), strict=True
            )
            for name in names
        ]
        level = [one for one in level if _may_match(one, pattern)]
    if len(level) == 1:
        yield from _list_right_in(level[0])
        return
    for found in _map_side_by_side(lambda part: list(_list_right_in(part)), level):
        yield from found


def list_objects(folder: str, known: Sequence[str] = ()) -> Iterator[FileFacts]:
    """The objects right in a folder, sorted by key; `known` as of `list_below`."""

    def list_files() -> Iterator[FileFacts]:
        spans = _split(folder, known)
        is_long = len(spans) > 1
        return _list_spans(folder, 0, spans) if is_long else _list_right_in(folder)

    return remembered_listings.find(folder, False, list_files)


def _list_right_in(folder: str) -> Iterator[FileFacts]:
    """The objects of a folder without its folders, page by page if there are none."""
    bucket, key = object_urls.parse(folder)
    n_slashes = key.count("/") + bool(key)
    pages, last, ends = _Pages(folder, None), "", []
    while page := pages.take():
        for meta in page:
            if meta["path"].count("/") == n_slashes and meta["path"] != key:
                last = bucket.url(meta["path"])
                yield facts_of(bucket, meta)
        if meta["path"].count("/") > n_slashes and len(page) == KEYS_PER_PAGE:
            found = list_folder(folder)[1]  # passes over what may be many more
            yield from (one for one in found if one.path > last)
            return
        ends.append(meta["path"])
    if len(ends) > 1:
        _place_to_ends[bucket.url(key)] = ends[:-1]


def _may_match(folder: str, pattern: str) -> bool:
    """Whether a folder fits the beginning of a pattern."""
    key = object_urls.parse(folder)[1]
    n_names = key.count("/") + 1
    beginning = "/".join(pattern.split("/")[:n_names])
    return bool(wildcards.translate(beginning).fullmatch(key))


def _list_side_by_side(folder: str) -> Iterator[FileFacts]:
    """All objects in a folder; each folder in it is listed beside the others."""
    names, found = list_folder(folder)
    yield from found
    parts = [f"{folder.rstrip('/')}/{name}" for name in names]
    for listed in _map_side_by_side(lambda part: list(list_below(part)), parts):
        yield from listed


def _map_side_by_side(
    function: Callable[[Item], Listed], items: Sequence[Item]
) -> Iterator[Listed]:
    return map_ahead(function, items, _N_AT_ONCE, n_threads=_N_AT_ONCE)
