"""Which run a command line means: the recipe, or the record of a run, and its flags."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from pipeline.commands import run_record
from pipeline.commands.arguments import RECORDED
from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig, ImageTextSource
from pipeline.config.recipes import load_config
from pipeline.engine.run_folder import RunFolder
from pipeline.storage.patterns import Patterns
from recipes.assignments import override

# What is wrong with a command, its flags or the places that it names, before any work.
WRONG = (
    ValueError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

_FLAG_TO_ROLE = {"input": "sources", "eval": "evaluation_sets", "seeds": "seed_sets"}


def open_run(command: argparse.Namespace, *, is_listed: bool = False) -> RunFolder:
    """Opens the run that a command looks at; `is_listed` as `RunFolder.open` has it.

    Without a flag, the digests of checkpoints are those of the record, so that
    checkpoints are neither read nor needed.

    Raises:
      ValueError: on a flag, recipe or record that is wrong.
    """
    if command.config or has_flags(command):
        config = configured(command)
        return RunFolder.open(command.output, config, is_listed=is_listed)
    check_output(command.output)
    record = run_record.read(command.output)
    digests = record.checkpoint_to_digest
    return RunFolder.open(
        command.output, record.config, known_digests=digests, is_listed=is_listed
    )


def has_flags(command: argparse.Namespace) -> bool:
    """Whether flags change what a recipe or a record says."""
    return bool(command.set or command.input or command.eval or command.seeds)


def check_output(output: str) -> None:
    """Raises ValueError on what can be no run folder."""
    if not output or (os.path.exists(output) and not os.path.isdir(output)):
        raise ValueError(f"--output {output!r}: expected a folder")
    if output != output.encode(errors="replace").decode():  # Beam's records are UTF-8
        raise ValueError(f"--output {output!r}: expected a name in UTF-8")


def configured(command: argparse.Namespace) -> CurationConfig:
    """Returns the recipe, or the recorded one, with what the flags add to it."""
    check_output(command.output)
    if command.config:
        config = load_config(command.config)
        has_places = command.input or command.eval or command.seeds
        if command.command in RECORDED and not has_places:
            config = _with_recorded_sets(config, command.output)
    else:
        config = run_record.read(command.output).config
    if command.input:
        config = dataclasses.replace(config, sources=_sources(config, command.input))
    config = dataclasses.replace(
        config,
        evaluation_sets=_with_sets(config.evaluation_sets, "--eval", command.eval),
        seed_sets=_with_sets(config.seed_sets, "--seeds", command.seeds),
    )
    config = _overridden(config, command)
    if not config.sources:
        raise ValueError("sources=(): expected --input GLOB, or sources in the recipe")
    return config


def _with_recorded_sets(config: CurationConfig, output: str) -> CurationConfig:
    """Adds the sources and sets of the run that is there, where a recipe has none."""
    try:
        recorded = run_record.read_sets(output)
    except ValueError:  # another version made it, or nothing is there yet
        return config
    missing: dict[str, Any] = {
        role: sets for role, sets in recorded.items() if not getattr(config, role)
    }
    return dataclasses.replace(config, **missing)


def _overridden(config: CurationConfig, command: argparse.Namespace) -> CurationConfig:
    """Applies `--set`; raises ValueError where another flag says the same."""
    changed = override(config, command.set)
    for flag, role in _FLAG_TO_ROLE.items():
        is_said = bool(getattr(command, flag))
        if is_said and _patterns(config, role) != _patterns(changed, role):
            assignment = next(a for a in command.set if a.strip().startswith(role))
            raise ValueError(f"--set {assignment}: expected it without --{flag}")
    return changed


def _patterns(config: CurationConfig, role: str) -> list[Patterns]:
    return [source.pattern for source in getattr(config, role)]


def _sources(
    config: CurationConfig, patterns: Sequence[str]
) -> tuple[ImageTextSource, ...]:
    """The source of the recipe, read from elsewhere."""
    if len(config.sources) > 1:
        raise ValueError(f"--input {patterns[0]}: expected a recipe with one source")
    source = config.sources[0] if config.sources else ImageTextSource("web", "")
    return (_read_from(source, patterns),)


def _read_from(source: ImageTextSource, patterns: Sequence[str]) -> ImageTextSource:
    pattern = patterns[0] if len(patterns) == 1 else tuple(patterns)
    return dataclasses.replace(source, pattern=pattern)


def _with_sets(
    sets: tuple[ImageTextSource, ...], flag: str, assignments: Sequence[str]
) -> tuple[ImageTextSource, ...]:
    """Adds image sets, or reads those of the recipe from elsewhere."""
    name_to_patterns: dict[str, list[str]] = {}
    for assignment in assignments:
        name, _, pattern = assignment.partition("=")
        if not name or not pattern:
            raise ValueError(f"{flag} {assignment}: expected NAME=GLOB")
        name_to_patterns.setdefault(name, []).append(pattern)
    name_to_set = {image_set.name: image_set for image_set in sets}
    for name, patterns in name_to_patterns.items():
        known = name_to_set.get(name, ImageTextSource(name, "", needs_alt_text=False))
        name_to_set[name] = _read_from(known, patterns)
    return tuple(name_to_set.values())


def granularities_of(
    config: CurationConfig, names: Sequence[str]
) -> tuple[Granularity, ...]:
    name_to_granularity = {g.name: g for g in config.granularities}
    for name in names:
        if name not in name_to_granularity:
            expected = ", ".join(name_to_granularity)
            raise ValueError(f"--granularity {name}: expected one of {expected}")
    chosen = dict.fromkeys(names or name_to_granularity)
    return tuple(name_to_granularity[name] for name in chosen)
