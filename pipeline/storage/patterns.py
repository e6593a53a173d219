"""Patterns of files that a user gives, and hints about mistaken ones.

A user gives one text, or several: `--input a --input b`.
"""

import glob
import itertools
import os
from collections.abc import Collection, Iterable, Sequence

from pipeline.storage import files, object_urls, wildcards

Patterns = str | tuple[str, ...]


def as_tuple(patterns: Patterns) -> tuple[str, ...]:
    """Each of the patterns."""
    return (patterns,) if isinstance(patterns, str) else patterns


def find(patterns: Patterns, kind: str) -> tuple[str, ...]:
    """The files that the patterns match, sorted; raises as `find_marks` does."""
    return tuple(find_marks(patterns, kind))


def find_marks(
    patterns: Patterns, kind: str, known: Sequence[str] = ()
) -> dict[str, str]:
    """Path to `files.mark` of the files that the patterns match, sorted.

    Args:
      kind: of files that are expected.
      known: sorted paths of an earlier listing, which make this one faster.

    Raises:
      ValueError: if a pattern matches nothing, or what another one matches, or if it is
        the name of what it does not match.
    """
    each = as_tuple(patterns)
    found = [(text, _find_one(text, kind, known)) for text in each]
    if len(each) > 1:
        expect_different((path, text) for text, marks in found for path in marks)
    path_to_mark = found[0][1]
    for _, marks in found[1:]:
        path_to_mark |= marks
    return _sorted(path_to_mark)


def _sorted(path_to_mark: dict[str, str]) -> dict[str, str]:
    """By path. A store lists in this order: a million need no second dictionary."""
    if all(one < other for one, other in itertools.pairwise(path_to_mark)):
        return path_to_mark
    return dict(sorted(path_to_mark.items()))


def expect_different(named: Iterable[tuple[str, str]]) -> None:
    """Raises ValueError if a file is there twice, in (path, what names it)."""
    place_to_name: dict[str, str] = {}
    for path, name in named:
        place = _place(path)
        if place in place_to_name:
            names = " and ".join({place_to_name[place]: 0, name: 0})
            raise ValueError(f"{path}: expected to be read once, but {names} match it")
        place_to_name[place] = name


def _place(path: str) -> str:
    """One text for each file, however links and schemes are spelled."""
    if not files.is_remote(path):
        return os.path.realpath(path)
    if not object_urls.is_object_url(path):
        return path
    bucket, key = object_urls.parse(path)
    return f"{bucket.scheme}://{bucket.name}/{key}"


def _find_one(pattern: str, kind: str, known: Sequence[str]) -> dict[str, str]:
    found = files.marks(pattern, known)
    named = set(files.find(_as_name(pattern))) if "[" in pattern else set()
    if not found:
        expected = f"expected a glob that matches {kind}"
        raise ValueError(f"{pattern}: {expected}{_hint(pattern, bool(named))}")
    expect_one_meaning(pattern, found, named)
    return found


def expect_one_meaning(
    pattern: str, found: Collection[str], named: Collection[str]
) -> None:
    """Raises ValueError if a pattern matches some files and is the name of another."""
    others = set(named).difference(found)
    if found and others:
        raise ValueError(
            f"{pattern}: expected a pattern or a name, but it matches {min(found)} and"
            f" is the name of {min(others)}; {_as_name(pattern)} is the name alone"
        )


def _hint(pattern: str, is_name: bool) -> str:
    """A hint about a pattern that matches nothing."""
    if files.is_remote(pattern):
        return _remote_hint(pattern)
    folder, _, rest = pattern.rpartition("/")
    if os.path.isdir(pattern):
        return f"; this is a folder, {glob.escape(pattern.rstrip('/'))}/* are its files"
    if not is_name and folder != glob.escape(folder) and os.path.isdir(folder):
        pattern, is_name = f"{glob.escape(folder)}/{rest}", True
    elif is_name:
        pattern = _as_name(pattern)
    if is_name:
        return f"; [, * and ? are patterns, and {pattern} names what is there"
    return "; braces are no pattern, give the flag twice" if "{" in pattern else ""


def _remote_hint(pattern: str) -> str:
    if not wildcards.has_wildcard(pattern) and _holds_something(pattern):
        return f"; this is a folder, {pattern.rstrip('/')}/* are its files"
    folder = wildcards.fixed_folder(pattern)
    if not _holds_something(folder):
        return f"; there is nothing in {folder}/"
    return "; braces are no pattern, give the flag twice" if "{" in pattern else ""


def _holds_something(folder: str) -> bool:
    return bool(files.folders(folder) or files.list_folder(folder))


def _as_name(pattern: str) -> str:
    """The pattern with brackets that are nothing but brackets."""
    return pattern.replace("[", "[[]")
