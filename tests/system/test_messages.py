"""Messages of the pipeline that no other test names: value and what was expected."""

import json
import pathlib

import pyarrow as pa
import pytest

from pipeline import records, run
from pipeline.config import prompts
from pipeline.config.captions import Granularity
from pipeline.config.fingerprint import FORMAT_VERSION
from pipeline.models import language
from pipeline.models.gemma import GemmaConfig
from pipeline.models.paligemma_captioner import PromptTokens
from pipeline.models.siglip import _check_heads
from pipeline.report import show_pair
from pipeline.report.run_comparison import OtherRun
from pipeline.selection import concepts, lot_decisions
from pipeline.selection.duplicates import audit
from pipeline.selection.search import centroid_files
from pipeline.sources import drop_lists, imported_captions
from pipeline.storage import files
from tests.support.tiny_checkpoints import paligemma_config, siglip_config
from tests.support.tiny_run import make_run, plain_rows

CONFIG = "curation_configs/demo.py"


def error_of(capsys, *arguments: str) -> str:
    """The one line of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_command_without_pairs_says_which_flag_names_them(capsys, tmp_path):
    base = ["curate", "--config", CONFIG, "--output", str(tmp_path / "run")]
    expected = "sources=(): expected --input GLOB, or sources in the recipe"
    assert error_of(capsys, *base) == f"error: {expected}"


def test_a_recipe_with_two_sources_takes_no_input(capsys, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "import dataclasses\n"
        "from curation_configs import demo\n"
        "from pipeline.config.curation import ImageTextSource\n"
        "def get_config():\n"
        "    sources = ImageTextSource('a', 'a'), ImageTextSource('b', 'b')\n"
        "    return dataclasses.replace(demo.get_config(), sources=sources)\n"
    )
    base = ["curate", "--config", str(path), "--output", str(tmp_path / "run")]
    error = error_of(capsys, *base, "--input", "c")
    assert error == "error: --input c: expected a recipe with one source"


def test_an_audit_needs_bounds(tmp_path):
    made = make_run(tmp_path, {"0": plain_rows(1)})
    with pytest.raises(ValueError, match="--audit: expected evaluation sets, --eval"):
        audit.check(made)
    with pytest.raises(ValueError, match="--audit: expected a recipe with bounds on"):
        audit.check(made.__class__(**vars(made) | {"evaluation_lots": made.lots}))


def test_files_without_permission_are_named(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "a.jsonl").touch()
    monkeypatch.setattr(files, "open_stream", refused)
    found = Granularity("human", f"{tmp_path}/*.jsonl", captioner="imported")
    with pytest.raises(ValueError, match=r"expected files to read: .*Permission"):
        imported_captions.list_files(found)
    with pytest.raises(ValueError, match="drop_list: expected files to read: "):
        drop_lists.list_files(f"{tmp_path}/*.jsonl", str(tmp_path))


def test_a_list_of_concepts_must_be_text(tmp_path):
    path = tmp_path / "concepts.txt"
    path.write_bytes(b"dog\n\xff\n")
    with pytest.raises(ValueError, match=r"concepts=.*: expected UTF-8: 'utf-8' codec"):
        concepts.Concepts.load(str(path))


def test_changed_centroids_are_refused(tmp_path):
    path, record = tmp_path / "centroids", tmp_path / "record.json"
    path.write_bytes(b"as they were")
    centroid_files.record_centroids(str(path), str(record))
    path.write_bytes(b"as they are")
    with pytest.raises(ValueError, match=r"centroids: checksum \w+, expected \w+"):
        centroid_files.read_recorded_centroids(str(record))


def test_an_unknown_detector_is_refused_with_the_known_ones():
    expected = "language_detector='lid': expected fasttext or langdetect"
    with pytest.raises(ValueError, match=expected):
        language.detector("lid")


def test_a_missing_pair_is_named(tmp_path):
    made = make_run(tmp_path, {"0": plain_rows(1)})
    with pytest.raises(ValueError, match="0000: expected the id of a scored pair"):
        show_pair.find_locations(made, bytes(16))


def test_a_missing_source_shard_is_named(tmp_path):
    rows = plain_rows(1)
    made = make_run(tmp_path, {"0": rows})
    sample_id = records.sample_id(rows[0].image, rows[0].alt_text.encode())
    (place,) = show_pair.find_locations(made, sample_id)
    pathlib.Path(made.lots[0].shards[0].uri).unlink()
    with pytest.raises(ValueError, match=r"0\.tar: shard cannot be opened: No such"):
        show_pair.read_image_at(made, place)


def test_a_run_without_decisions_cannot_be_compared_with(tmp_path):
    said = {"format_version": FORMAT_VERSION, "decisions": "ab", "config": {}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"--against .*: expected decisions in .*ab"):
        OtherRun.open(str(tmp_path))


def test_hashes_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="16 bytes of hashes, expected 32"):
        lot_decisions.to_words(pa.chunked_array([[bytes(8), bytes(8)]]))


@pytest.mark.parametrize("prompt", ["describe {", "describe }"])
def test_an_unclosed_template_is_named(prompt):
    with pytest.raises(ValueError, match=r"prompt '.*': .*; expected \{alt_text\}"):
        prompts.upstream(prompt)


def test_unsupported_rotary_embeddings_are_refused():
    found = paligemma_config("gemma").text_config
    found.rope_parameters = found.rope_parameters | {"rope_type": "linear"}
    with pytest.raises(ValueError, match="rope_type='linear': expected 'default'"):
        GemmaConfig.from_hugging_face(found)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("text_config", "projection_size", 3, "projection_size=3: expected the width"),
        ("vision_config", "vision_use_head", False, "a tower with its pooling head"),
    ],
)
def test_towers_without_a_common_space_are_refused(part, field, value, message):
    found = siglip_config()
    setattr(getattr(found, part), field, value)
    with pytest.raises(ValueError, match=message):
        _check_heads(found)


def test_a_tokenizer_without_an_end_is_refused():
    class Tokenizer:
        bos_token_id, eos_token_id = 2, None

        def __len__(self) -> int:
            return 10

    with pytest.raises(ValueError, match="without eos_token_id: expected Gemma's"):
        PromptTokens(Tokenizer()).check_model(paligemma_config("gemma"))
