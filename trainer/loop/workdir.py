"""The files of a workdir other than checkpoints and metrics: they explain the run.

`config.json` holds the resolved configuration, fingerprints of the shards and of the
tokenizer, and, if a run resumed with other settings, which ones and after which step.
`tokenizer.model` is the tokenizer itself. A workdir belongs to one configuration: to
resume with another one is an error.
"""

import hashlib
import json
import os
import pathlib
import shutil
import types
from collections.abc import Mapping
from typing import Any

import jax

from trainer.config import TrainConfig
from trainer.config_files import differences, from_dict, to_dict
from trainer.distributed.processes import is_first

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
COMPILED = "compiled"  # programs, which a run that resumes loads

# May change when a run resumes: results differ by no more than rounding.
_MAY_DIFFER = ("run", "compute")

_UNKNOWN: Mapping[str, Any] = types.MappingProxyType({})
_EARLIER = "; a workdir that an earlier version wrote must be trained again"


def metrics_file_name() -> str:
    """Returns `metrics.jsonl`; all processes but the first write files of their own."""
    number = jax.process_index()
    return f"metrics-{number}.jsonl" if number else METRICS


def claim(
    workdir: pathlib.Path,
    config: TrainConfig,
    shards: str,
    step: int = 0,
    teacher: Mapping[str, Any] = _UNKNOWN,
) -> None:
    """Makes a workdir for `config`, or checks that it is one already.

    `shards` is the fingerprint of the shards, and `teacher` that of a frozen teacher;
    `step` is the one that the run resumes from. Raises ValueError as `find_changes`
    does. All processes of a run check, and one writes.
    """
    path = workdir / CONFIG
    contents = _contents(config, shards, teacher)
    if path.exists():
        noted = list(_read(path).get("changes", ()))
        if changed := find_changes(workdir, config, shards, teacher):
            noted.append({"after_step": step, "fields": changed})
        contents |= {"changes": noted} if noted else {}
    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        _copy_tokenizer(pathlib.Path(config.data.tokenizer), workdir / TOKENIZER)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(contents, indent=2) + "\n")
        os.replace(temporary, path)


def find_changes(
    workdir: pathlib.Path,
    config: TrainConfig,
    shards: str,
    teacher: Mapping[str, Any] = _UNKNOWN,
) -> dict[str, list[object]]:
    """Returns the fields of `config` that differ from a workdir's: name to [old, new].

    Only `run` and `compute` may differ; the path of the tokenizer does not count, nor
    does a frozen teacher without a fingerprint. Raises ValueError, which names the
    field, if the workdir was made with another configuration, other shards, another
    tokenizer or another teacher.
    """
    path = workdir / CONFIG
    old, new = _read(path), _contents(config, shards, teacher)
    if not teacher:
        old["fingerprints"].pop("teacher", None)
    _check_same(path, old, new)
    before, now = (
        {name: contents["config"][name] for name in _MAY_DIFFER}
        for contents in (old, new)
    )
    return {name: [*values] for name, *values in differences(before, now)}


def load_config(workdir: pathlib.Path) -> TrainConfig:
    """Reads the configuration of a workdir; its tokenizer is the workdir's own copy.

    Raises ValueError if that copy is not the tokenizer that was trained with.
    """
    contents = _read(workdir / CONFIG)
    copy, expected = workdir / TOKENIZER, contents["fingerprints"]["tokenizer"]
    if copy.exists() and tokenizer_digest(copy) != expected:
        raise ValueError(f"{copy}: another vocabulary than that of {workdir / CONFIG}")
    contents["config"]["data"]["tokenizer"] = str(copy)
    return from_dict(TrainConfig, contents["config"])


def shards_fingerprint(workdir: pathlib.Path) -> str:
    """Reads the fingerprint of the shards that the model was trained on."""
    return _read(workdir / CONFIG)["fingerprints"]["shards"]


def teacher_step(workdir: pathlib.Path) -> int | None:
    """The step of the frozen teacher that a run was started with; None without one."""
    path = workdir / CONFIG
    if not path.exists():
        return None
    return _read(path)["fingerprints"].get("teacher", {}).get("step")


def _contents(config: TrainConfig, shards: str, teacher: Mapping[str, Any]) -> dict:
    digest = tokenizer_digest(pathlib.Path(config.data.tokenizer))
    fingerprints: dict[str, Any] = {"shards": shards, "tokenizer": digest}
    if teacher:
        fingerprints["teacher"] = dict(teacher)
    return {"config": to_dict(config), "fingerprints": fingerprints}


def _copy_tokenizer(path: pathlib.Path, copy: pathlib.Path) -> None:
    if not copy.exists() or tokenizer_digest(copy) != tokenizer_digest(path):
        shutil.copyfile(path, copy)


def _check_same(path: pathlib.Path, old: dict, new: dict) -> None:
    for name, before, now in differences(_comparable(old), _comparable(new)):
        raise ValueError(
            f"{name.removeprefix('config.')}={now!r}: expected {before!r} as in {path},"
            " or another --workdir"
        )


def _comparable(contents: dict) -> dict:
    """The contents that must not differ: without `run`, `compute`, and paths."""
    config = {k: v for k, v in contents["config"].items() if k not in _MAY_DIFFER}
    config["data"] = {k: v for k, v in config["data"].items() if k != "tokenizer"}
    if "teacher" in contents["fingerprints"]:
        del config["teacher_from"]
    return {"config": config, "fingerprints": contents["fingerprints"]}


def _read(path: pathlib.Path) -> dict:
    """Reads `config.json`; fields that an older version lacked get their defaults."""
    try:
        contents = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}, expected a workdir") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    parts = {"config", "fingerprints"}
    if not isinstance(contents, dict) or contents.keys() - {"changes"} != parts:
        raise ValueError(f"{path}: expected the config.json of a workdir")
    try:
        config = from_dict(TrainConfig, contents["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}{_EARLIER}") from error
    return contents | {"config": to_dict(config)}


def tokenizer_digest(path: pathlib.Path) -> str:
    """SHA-256 of a sentencepiece model, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
