"""Prompts: templates that may name the alt text and captions of other granularities.

    "Describe the image again.\\n{image}\\n1. {alt_text:200}\\n2. {caption:coco}"

`{alt_text}` is the alt text of the pair, `{caption:NAME}` its first caption of the
granularity NAME. `{alt_text:200}` stops at a word within the first 200 characters.
`{image}` says where the image goes, for captioners that support it; otherwise the
image comes first. `{{` and `}}` are braces.
"""

import functools
import re
import string
from collections.abc import Mapping, Sequence

from pipeline.config.captions import Granularity
from pipeline.records import content_hash

IMAGE = "\0image\0"  # stands for the image in a prompt; no text holds a null character

_FIELDS = "{alt_text}, {alt_text:LENGTH}, {caption:NAME} or {image}"

# Tasks that PaliGemma's published checkpoints were trained on. Source: prompt and
# system instructions of PaliGemma, ai.google.dev/gemma/docs/paligemma.
_TASKS = (
    "answer",
    "cap",
    "caption",
    "describe",
    "detect",
    "ocr",
    "question",
    "segment",
)
# With a language, as in `describe en`; tuned checkpoints read free English otherwise.
_PRETRAINED_ONLY = re.compile(r"(cap|describe|question) [a-z]{2,3}\b.*|ocr")


@functools.cache  # called for every image
def upstream(template: str) -> tuple[str, ...]:
    """Names of the granularities whose captions a template needs.

    Raises:
      ValueError: on an unknown field; it names the known ones.
    """
    return tuple(form for name, form in _fields(template) if name == "caption")


def has_alt_text(template: str) -> bool:
    return any(name == "alt_text" for name, _ in _fields(template))


def has_image(template: str) -> bool:
    return any(name == "image" for name, _ in _fields(template))


def filled(template: str, alt_text: str, captions: Mapping[str, str]) -> str:
    """Returns the prompt of one pair; KeyError if it lacks a caption."""
    alt_text = alt_text.replace("\0", "")
    parts = []
    for literal, name, form, _ in string.Formatter().parse(template):
        parts.append(literal)
        if name == "alt_text":
            parts.append(_shortened(alt_text, int(form)) if form else alt_text)
        elif name == "caption":
            parts.append(captions[form or ""])
        elif name == "image":
            parts.append(IMAGE)
    return "".join(parts)


def around_images(prompt: str) -> list[str]:
    """The texts of a filled-in prompt before, between and after its images."""
    return (prompt if IMAGE in prompt else IMAGE + prompt).split(IMAGE)


def prompt_hash(prompt: str) -> bytes:
    """Identity of a filled-in prompt: 16 bytes."""
    return content_hash(prompt.encode())


def levels(granularities: Sequence[Granularity]) -> list[list[Granularity]]:
    """Granularities so that each comes after all those whose captions it needs.

    Those of one level need nothing of each other.

    Raises:
      ValueError: if one needs a granularity that is not there, or itself.
    """
    names = {granularity.name for granularity in granularities}
    for granularity in granularities:
        for name in upstream(granularity.prompt):
            if name not in names:
                expected = ", ".join(sorted(names - {granularity.name}))
                raise ValueError(
                    f"prompt of granularity {granularity.name!r} names "
                    f"{{caption:{name}}}: expected one of {expected}"
                )
    found: list[list[Granularity]] = []
    done: set[str] = set()
    left = list(granularities)
    while left:
        ready = [g for g in left if done.issuperset(upstream(g.prompt))]
        if not ready:
            cycle = ", ".join(granularity.name for granularity in left)
            raise ValueError(
                f"prompts of granularities {cycle} need each other's captions: "
                "expected no cycle"
            )
        found.append(ready)
        done |= {granularity.name for granularity in ready}
        left = [granularity for granularity in left if granularity.name not in done]
    return found


def doubt(granularity: Granularity) -> str | None:
    """Why a published checkpoint may not know a prompt; None if nothing is known.

    PaliGemma's families are recognized by the names of their repositories: `-pt-` is
    pretrained on all tasks, `-mix-` is tuned on some of them, `-ft-` on one.
    """
    if granularity.captioner != "paligemma":
        return None
    task = granularity.prompt.split(" ", 1)[0]
    name = granularity.checkpoint.rstrip("/").rsplit("/", 1)[-1]
    if "-pt-" in name and task not in _TASKS:
        known = ", ".join(_TASKS)
        return f"prompt {granularity.prompt!r}: {name} knows the tasks {known}"
    if ("-mix-" in name or "-ft-" in name) and _PRETRAINED_ONLY.fullmatch(
        granularity.prompt
    ):
        return f"prompt {granularity.prompt!r}: only checkpoints named -pt- know {task}"
    return None


def _fields(template: str) -> list[tuple[str, str]]:
    """Name and format of every field."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"prompt {template!r}: {error}; expected {_FIELDS}") from error
    fields = [
        (name, form or "", mark) for _, name, form, mark in parsed if name is not None
    ]
    for name, form, mark in fields:
        is_known = mark is None and (
            (name == "alt_text" and (not form or form.isdecimal()))
            or (name == "caption" and form)
            or (name == "image" and not form)
        )
        if not is_known:
            field = name + (f":{form}" if form else "")
            raise ValueError(
                f"prompt {template!r}: no field {{{field}}}, expected {_FIELDS}"
            )
    return [(name, form) for name, form, _ in fields]


def _shortened(text: str, n_characters: int) -> str:
    """The words that lie whole within the first characters; a first word is cut."""
    if len(text) <= n_characters:
        return text
    start, _, _ = text[: n_characters + 1].rpartition(" ")
    return start or text[:n_characters]
