"""Checks of places in object stores: a wrong one is said before any work.

In: names and paths or patterns, as a user gave them. Out: nothing, or one line about
the first that cannot be listed, read or, where we write, written to, in seconds.
"""

from collections.abc import Iterable
from concurrent import futures

from pipeline.storage import beam_files, object_urls, wildcards
from pipeline.storage.object_urls import is_object_url

_N_AT_ONCE = 16


def check(named: Iterable[tuple[str, str]]) -> None:
    """Asks the store of each place once or twice; local paths cost nothing.

    Args:
      named: (name, place), such as ("--input", "s3://bucket/crawl/*.tar"); a place is
        an object, a pattern or, with a slash at its end, a folder.

    Raises:
      ValueError: if a place cannot be listed, or what comes first in it not be read.
    """
    remote = [(name, place) for name, place in named if object_urls.scheme_of(place)]
    with futures.ThreadPoolExecutor(_N_AT_ONCE) as executor:
        asked = [executor.submit(_probe, place) for _, place in remote]
        for (name, _), answer in zip(remote, asked, strict=True):
            try:
                answer.result()
            except (OSError, ValueError) as error:
                raise ValueError(f"{name}={error}") from error


def check_output(name: str, folder: str) -> None:
    """Asks the store of a folder whether it may be listed, read and written to.

    Raises:
      ValueError: if it may not.
    """
    if not is_object_url(folder):
        return
    from pipeline.storage import object_store

    check([(name, f"{folder}/")])
    try:
        object_store.probe_writing(f"{folder}/")
    except OSError as error:
        raise ValueError(f"{name}={error}") from error


def _probe(place: str) -> None:
    if not is_object_url(place):
        beam_files.expect_known(place)
        return
    from pipeline.storage import object_store  # local runs do without obstore

    if wildcards.has_wildcard(place):
        place = wildcards.fixed_folder(place) + "/"
    is_folder = place.endswith("/") or not object_urls.parse(place)[1]
    probe = object_store.probe_folder if is_folder else object_store.probe_object
    probe(place)
