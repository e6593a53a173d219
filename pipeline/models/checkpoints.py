"""Finds checkpoints in Hugging Face form and says which they are.

In: a folder or a Hugging Face id. Out: the folder, its weight files, and a digest of
all that determines what the model does. Nothing here needs JAX, so that a launcher
stays light.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

SINGLE_FILE = "model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")  # names of safetensors for types of weights
_INDEX = "model.safetensors.index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")

# Everything beside the weights that changes what a model does.
_SIDE_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",  # the tokens that end an answer
)


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """The identity of a model's outputs; the digest covers image preparation too."""

    checkpoint: str
    digest: str
    dtype: str
    cls_token: str = "alt_text"  # see EncoderConfig


def resolve_checkpoint(name_or_folder: str, revision: str = "") -> Path:
    """The folder of a checkpoint, downloaded first if it is named by a Hugging Face id.

    `revision` is a branch, tag or commit of the id's repository. Raises ValueError if
    there is no such folder or id, or only pickled weights.
    """
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        folder = _download(name_or_folder, revision)
    weight_files(folder)
    return folder


def _download(hub_id: str, revision: str) -> Path:
    problem = ValueError(
        f"checkpoint={hub_id!r}: expected a folder with config.json and "
        f"{SINGLE_FILE}, or the id of a Hugging Face repository that can be reached"
    )
    if not _HUB_ID.fullmatch(hub_id):
        raise problem
    from huggingface_hub import snapshot_download  # a second; folders do not need it
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision or None, allow_patterns=patterns
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise problem from error


def weights_digest(folder: Path) -> str:
    """BLAKE2b-128 of weights, configuration, tokenizer and preprocessor, as hex."""
    present = {name: folder / name for name in _SIDE_FILES}
    files = {name: path for name, path in present.items() if path.exists()}
    files |= {path.name: path for path in weight_files(folder)}
    total = hashlib.blake2b(digest_size=16)
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()
        total.update(f"{name}:{digest}\n".encode())
    return total.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; ValueError if one is missing."""
    if (folder / _INDEX).exists():
        names = set(json.loads((folder / _INDEX).read_text())["weight_map"].values())
    else:
        names = {SINGLE_FILE}
    missing = sorted(name for name in names if not (folder / name).exists())
    if missing:
        raise ValueError(
            f"checkpoint={str(folder)!r}: expected {', '.join(missing)} "
            "(safetensors only; pickled weights are refused)"
        )
    return sorted(folder / name for name in names)
