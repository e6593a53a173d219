import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from pipeline.models import checkpoints


@pytest.fixture
def copy(siglip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip_folder, tmp_path / "copy"))


def test_a_folder_is_its_own_checkpoint(siglip_folder: Path):
    assert checkpoints.resolve_checkpoint(str(siglip_folder)) == siglip_folder


@pytest.mark.parametrize("name", ["/no/such/folder", "missing", "a/b/c", "--/.."])
def test_what_is_neither_folder_nor_id_is_named(name: str):
    with pytest.raises(ValueError, match=f"^checkpoint='{name}': expected a folder"):
        checkpoints.resolve_checkpoint(name)


def test_an_id_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch):
    def unreachable(hub_id: str, **_: object) -> str:
        raise LocalEntryNotFoundError(hub_id)

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ValueError, match="checkpoint='google/paligemma': expected"):
        checkpoints.resolve_checkpoint("google/paligemma")


def test_an_id_resolves_to_its_snapshot(
    siglip_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def snapshot(hub_id: str, **_: object) -> str:
        return str(siglip_folder) if hub_id == "google/siglip" else ""

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert checkpoints.resolve_checkpoint("google/siglip") == siglip_folder


def test_pickled_weights_are_refused(copy: Path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors \(safetensors only"):
        checkpoints.resolve_checkpoint(str(copy))


def test_a_missing_shard_is_named(copy: Path):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"expected model-2\.safetensors \("):
        checkpoints.resolve_checkpoint(str(copy))


def test_digest_does_not_depend_on_the_place(siglip_folder: Path, copy: Path):
    digest = checkpoints.weights_digest(siglip_folder)
    assert digest == checkpoints.weights_digest(copy)
    assert len(digest) == 32


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"],
)
def test_digest_depends_on_every_file_that_matters(copy: Path, name: str):
    before = checkpoints.weights_digest(copy)
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    assert checkpoints.weights_digest(copy) != before


def test_digest_ignores_the_model_card(copy: Path):
    before = checkpoints.weights_digest(copy)
    (copy / "README.md").write_text("A tiny model.")
    assert checkpoints.weights_digest(copy) == before
