"""RUN/config.json: which recipe a run folder is of, written and read again.

In: a run, or its folder. Out: the file, or the configuration that it describes, with
what `--input`, `--eval`, `--seeds` and `--set` added to the recipe.
"""

import dataclasses
import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.curation import CurationConfig, ImageTextSource
from pipeline.config.fingerprint import FORMAT_VERSION
from pipeline.engine.run_folder import CONFIG_NAME, RunFolder, check_format
from pipeline.records import VERSION
from pipeline.storage import files
from recipes.plain_values import build, to_json
from recipes.validation import one_line

# Where classes of recipes are that a file of an older version does not name.
_MODULES = (
    "pipeline.config.curation",
    "pipeline.config.captions",
    "pipeline.config.selection",
    "pipeline.config.duplicates",
    "pipeline.images.limits",
    "pipeline.selection.rules",
)
_MAX_CHARS = 200  # of an error
SET_FIELDS = ("sources", "evaluation_sets", "seed_sets")
_OF_RECIPE = "<run_path>"  # the module of classes that a recipe's file defines


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run folder says of itself."""

    config: CurationConfig
    checkpoint_to_digest: Mapping[str, str]  # {} of a run of an older version


def write(run: RunFolder, folder: str) -> None:
    """Writes which configuration a folder is of, and what its decisions are."""
    content = {
        "format_version": FORMAT_VERSION,
        "version": VERSION,
        "config": to_json(run.config),
        "decisions": run.decisions_fingerprint,
        "classes": dict(sorted(_classes(run.config))),
        "checkpoints": run.checkpoint_to_digest,
    }
    path = files.join(folder, CONFIG_NAME)
    files.write(path, json.dumps(content, indent=1).encode() + b"\n")


def _classes(value: Any) -> Iterator[tuple[str, str]]:
    """Yields name and module of each dataclass in a configuration."""
    if dataclasses.is_dataclass(value):
        yield type(value).__name__, type(value).__module__
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _classes(item)


def read(output: str) -> RunRecord:
    """Reads the record of a run folder.

    Raises:
      ValueError: if there is none, another version made it, or a recipe's own classes
        cannot be imported; `--config` is then the way to name the recipe.
    """
    path = files.join(output, CONFIG_NAME)
    if not files.is_file(path):
        raise ValueError(
            f"--output {output}: expected a run folder with {CONFIG_NAME}, or"
            " --config FILE.py"
        )
    check_format("--output", output)
    try:
        return _parse(json.loads(files.read(path)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = one_line(_reason(error), _MAX_CHARS)
        raise ValueError(
            f"--output {output}: expected --config FILE.py, as {CONFIG_NAME} does not"
            f" say the whole recipe: {reason}"
        ) from error


def read_sets(output: str) -> dict[str, tuple[ImageTextSource, ...]]:
    """Reads the sources, evaluation sets and seed sets of a run folder, by their field.

    So `--config` is enough for a run whose recipe has classes of its own.

    Raises:
      ValueError: if there is no record, or it does not say them.
    """
    check_format("--output", output)
    kind = tuple[ImageTextSource, ...]
    try:
        config = json.loads(files.read(files.join(output, CONFIG_NAME)))["config"]
        return {role: build(kind, config[role], role) for role in SET_FIELDS}
    except (FileNotFoundError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"--output {output}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _parse(content: Mapping[str, Any]) -> RunRecord:
    name_to_module = content.get("classes") or {}
    config = build(
        CurationConfig,
        content["config"],
        "",
        find_class=lambda name: _find_class(name, name_to_module),
    )
    if to_json(config) != content["config"]:
        raise ValueError("its fields are not those of this version")
    return RunRecord(config, dict(content.get("checkpoints", {})))


def _find_class(name: str, name_to_module: Mapping[str, str]) -> type | None:
    known = name_to_module.get(name)
    if known == _OF_RECIPE:
        raise ValueError(f"{name} is a class of the recipe's own file")
    for module in [known] if known else _MODULES:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise ValueError(f"{name} is in {module}, not found: {error}") from error
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    return None
