"""What a workdir holds beside checkpoints and metrics, so that it explains itself.

`config.json`: the resolved configuration, and fingerprints of the shards and of the
tokenizer. `tokenizer.model`: the tokenizer itself. A workdir belongs to one
configuration: going on with another one is an error.
"""

import hashlib
import json
import os
import pathlib
import shutil

import jax

from trainer.config import TrainConfig
from trainer.processes import is_first
from trainer.recipes import differences, from_dict, to_dict

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
CHECKPOINTS = "checkpoints"


def metrics_name() -> str:
    """`metrics.jsonl`; other processes of one run measure into files of their own."""
    number = jax.process_index()
    return f"metrics-{number}.jsonl" if number else "metrics.jsonl"


def claim(workdir: pathlib.Path, config: TrainConfig, shards: str) -> None:
    """Makes a workdir for `config`, or checks that it is one already.

    `shards` is the fingerprint of the shards. Raises ValueError naming the field when
    the workdir was made with another configuration, other shards or another tokenizer.
    `run` and `compute` may differ. All processes of a run check, and one writes.
    """
    tokenizer = pathlib.Path(config.data.tokenizer)
    fingerprints = {"shards": shards, "tokenizer": _digest(tokenizer)}
    contents = {"config": to_dict(config), "fingerprints": fingerprints}
    path = workdir / CONFIG
    if path.exists():
        _check_same(path, _read(path), contents)
    if not is_first():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    if tokenizer.resolve() != (workdir / TOKENIZER).resolve():
        shutil.copyfile(tokenizer, workdir / TOKENIZER)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(contents, indent=2) + "\n")
    os.replace(temporary, path)


def load_config(workdir: pathlib.Path) -> TrainConfig:
    """The configuration of a workdir; its tokenizer is the workdir's own copy."""
    values = _read(workdir / CONFIG)["config"]
    values["data"]["tokenizer"] = str(workdir / TOKENIZER)
    return from_dict(TrainConfig, values)


def shards_fingerprint(workdir: pathlib.Path) -> str:
    """Of the shards that the model was trained on."""
    return _read(workdir / CONFIG)["fingerprints"]["shards"]


def _check_same(path: pathlib.Path, old: dict, new: dict) -> None:
    for name, before, now in differences(_compared(old), _compared(new)):
        raise ValueError(
            f"{name.removeprefix('config.')}={now!r}: expected {before!r} as in {path},"
            " or another --workdir"
        )


def _compared(contents: dict) -> dict:
    """Without what may differ: `run`, `compute`, and the place of the tokenizer."""
    may_differ = ("run", "compute")
    config = {k: v for k, v in contents["config"].items() if k not in may_differ}
    config["data"] = {k: v for k, v in config["data"].items() if k != "tokenizer"}
    return {**contents, "config": config}


def _read(path: pathlib.Path) -> dict:
    try:
        contents = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}, expected a workdir") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    parts = {"config", "fingerprints"}
    if not isinstance(contents, dict) or contents.keys() != parts:
        raise ValueError(f"{path}: expected the config.json of a workdir")
    return contents


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
