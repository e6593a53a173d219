"""The files of one key, in a tar or a folder, as one sample."""

import json
from collections.abc import Mapping
from typing import Any

from trainer.evals.sets import listing
from trainer.evals.sets.accounts import Account
from trainer.evals.sets.label_names import Names
from trainer.evals.sets.samples import (
    Part,
    Place,
    Sample,
    SampleError,
    Stored,
    errors_about,
    make_sample,
)


def read_sample(
    place: Place,
    name: str,
    contents: Mapping[str, Stored | bytes],
    fields: Mapping[str, Any],
    names: Names,
    account: Account,
) -> Sample | None:
    """Returns a sample of files, which are keyed by their names without the key.

    `txt` is a caption, `cls` a label, `json` an object of fields; `fields` is what
    folders say. Without an image, returns None and notes the reason in the account.
    """
    texts = {
        end: _text(f"{name}.{end}", contents[end])
        for end in contents
        if end in ("txt", "cls", "json")
    }
    with errors_about(f"{name}.json"):
        recorded = json.loads(texts.get("json", "") or "{}")
        if not isinstance(recorded, Mapping):
            raise SampleError(f"{name}.json: expected an object")
    recorded = {key: value for key, value in recorded.items() if value is not None}
    own = {"txt": texts.get("txt"), **_label(texts.get("cls"))}
    parts = _parts(contents, account)
    sample = make_sample(place, name, parts, {**fields, **own, **recorded}, names)
    if sample is None:
        account.count_unread(_reason(contents))
    return sample


def _parts(contents: Mapping[str, Stored | bytes], account: Account) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for end in sorted(contents, key=_preference):
        kind = listing.KINDS.get(end)
        if kind in parts:
            account.count_unread(f"second {kind} of a key")
        elif kind:
            parts[kind] = contents[end]
        elif end not in ("txt", "cls", "json") and "image" in parts and _is_meant(end):
            account.count_unread(f"ending .{end[:20]}")
    return parts


def _preference(end: str) -> int:
    """Images first, and the most likely photo first among them."""
    return listing.IMAGES.index(end) if end in listing.IMAGES else len(listing.IMAGES)


def _is_meant(end: str) -> bool:
    """Whether it is a picture or a map in a form that is not read."""
    first, _, last = end.partition(".")
    return first in listing.TRUTHS or (last or first) in listing.UNREAD_IMAGES


def _reason(contents: Mapping[str, Any]) -> str:
    unknown = [end for end in contents if end not in ("txt", "cls", "json")]
    if not unknown:
        return "no image"
    return (
        listing.describe_ending(f"x.{unknown[0]}")
        if unknown[0]
        else "without an ending"
    )


def _label(text: str | None) -> dict[str, str]:
    return {} if text is None else {"label": text.strip()}


def _text(name: str, file: Stored | bytes) -> str:
    with errors_about(name):
        encoded = file.read() if isinstance(file, Stored) else file
        return encoded.decode("utf-8-sig")
