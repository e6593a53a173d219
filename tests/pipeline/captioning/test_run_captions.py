"""The command line around captions: bad checkpoints and prompts, status, remove."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import run
from tests.pipeline.test_run import CONFIG, error_of
from tests.support import tiny_checkpoints
from tests.support.tiny_run import Row, encoded, write_shard

TINY = Path("curation_configs/checkpoints/tiny-paligemma")


@pytest.fixture
def base(tmp_path):
    """A command line that lacks nothing."""
    rows = [Row(encoded((i, 7, 9), (64, 64)), "a red square") for i in range(3)]
    write_shard(tmp_path / "crawl/0.tar", rows)
    crawl = f"{tmp_path}/crawl/*.tar"
    flags = ("--config", CONFIG, "--output", str(tmp_path / "run"), "--input", crawl)
    return (*flags, "--eval", f"e={crawl}", "--seeds", f"s={crawl}")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def point_to_code(folder: Path) -> None:
    """A tokenizer that would be code of the checkpoint's."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {
        "tokenizer_class": "Evil",
        "auto_map": {"AutoTokenizer": ["evil.E", None]},
    }
    path.write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    (folder / "evil.py").write_text("open('/tmp/evil_was_here', 'w')\nclass E: pass\n")


def other_tokenizer(folder: Path) -> None:
    """One with more tokens than the model has."""
    tokenizer = tiny_checkpoints.paligemma_tokenizer()
    tokenizer.add_tokens([f"<more{i}>" for i in range(3000)])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    shutil.copytree(_saved(tokenizer, folder), folder, dirs_exist_ok=True)


def _saved(tokenizer, folder: Path) -> Path:
    path = folder.parent / "tokenizer"
    tokenizer.save_pretrained(path)
    tiny_checkpoints.paligemma_tokenizer.cache_clear()
    return path


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove("model.safetensors"), "expected model.safetensors"),
        (remove("config.json"), "expected config.json"),
        (remove("preprocessor_config.json"), "expected preprocessor_config.json"),
        (cut_weights, "expected a whole safetensors file"),
        (pickle_weights, "safetensors only; pickled weights are refused"),
        (change_config(model_type="llava"), "model_type='llava': expected 'paligemma'"),
        (change_config(projection_dim=7), "projection_dim=7: expected the decoder's"),
        (point_to_code, "expected a tokenizer in it"),
        (other_tokenizer, "expected at most the model's vocab_size"),
    ],
)
def test_a_bad_checkpoint_is_refused_before_any_work(
    capsys, tmp_path, base, damage, expected
):
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder)
    damage(folder)
    error = error_of(
        capsys, "curate", *base, "--set", f"granularities.1.checkpoint={folder}"
    )
    assert expected in error
    assert not (tmp_path / "run").exists()
    assert not Path("/tmp/evil_was_here").exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("digest=0123", "digest='0123' of granularity 'medium': expected"),
        ("prompt={alt}", "no field {alt}, expected {alt_text}"),
        ("prompt={caption:none}", "{caption:none}: expected one of detailed, short"),
        ("prompt={caption:medium}", "need each other's captions: expected no cycle"),
        ("captioner=gpt", "'gpt': expected 'paligemma' or 'huggingface'"),
        ("captioner=gpt:", "or MODULE:CLASS of a captioner of your own"),
        ("captioner=gpt:Writer", "'gpt:Writer': expected a module 'gpt' to import"),
        (
            "decoding.n_samples=2",
            "expected 1, as temperature=0 makes all samples equal",
        ),
        ("n_model_shards=0", "n_model_shards=0: expected at least 1"),
    ],
)
def test_contradictory_settings_of_a_granularity_are_refused(
    capsys, tmp_path, base, setting, expected
):
    error = error_of(capsys, "curate", *base, "--set", f"granularities.1.{setting}")
    assert expected in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_captions_stay_until_they_are_removed_by_name(capsys, tmp_path, base):
    loose = (
        "selection.alignment.min_score=-1",
        "selection.retrieval.min_similarity=-1",
    )
    settings = [flag for value in loose for flag in ("--set", value)]
    settings += ["--set", "selection.max_evaluation_similarity=none"]
    settings += ["--set", "selection.language=none"]
    one = ("--granularity", "short")
    for stage in ("score", "select"):
        run.main([stage, *base, *settings])
    run.main(["caption", *base, *settings, *one])
    longer = ["--set", "granularities.0.max_new_tokens=9"]
    run.main(["caption", *base, *settings, *longer, *one])
    capsys.readouterr()
    run.main(["status", *base, *settings, *longer])
    status = capsys.readouterr().out
    (old,) = [line for line in status.splitlines() if "not of this recipe" in line]
    name = old.partition(":")[0]
    assert name.startswith("short-")
    run.main(["remove", *base, "--granularity", name])
    assert not (tmp_path / "run/captions" / name).exists()
    error = error_of(capsys, "remove", *base, "--granularity", name)
    assert f"--granularity {name}: expected one of short-" in error
    assert "expected --granularity NAME-FINGERPRINT" in error_of(
        capsys, "remove", *base
    )
