"""The command line: what is wrong costs one line and exit code 2, before any work."""

import copy

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import StandardOptions

from pipeline import run
from pipeline.commands.beam_flags import beam_options

CONFIG = "curation_configs/demo.py"


@pytest.fixture
def crawl(tmp_path):
    folder = tmp_path / "crawl"
    folder.mkdir()
    (folder / "0.tar").write_bytes(b"")
    return f"{folder}/*.tar"


def error_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_command_is_refused(capsys):
    error = error_of(capsys, "cure", "--config", CONFIG, "--output", "x")
    assert "invalid choice: 'cure'" in error


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--threshold", "3"], "--threshold: expected a flag of --help or of Beam"),
        (["--set", "selection"], "--set selection: expected a.b=value"),
        (["--set", "selektion.x=1"], "no field 'selektion'"),
        (["--set", "selection.alignment.min_score=2"], "a cosine in [-1, 1]"),
        (["--set", "encoder.batch_size=many"], "many"),
        (["--set", "encoder.checkpoint=/no/folder"], "/no/folder"),
        (["--seeds", "flowers"], "--seeds flowers: expected NAME=GLOB"),
        (["--eval", "a=/no/such/*.tar"], "a=/no/such/*.tar: expected a glob"),
        (["--granularity", "tiny"], "--granularity tiny: expected one of"),
    ],
)
def test_a_wrong_flag_is_named(capsys, tmp_path, crawl, flags, expected):
    output = tmp_path / "run"
    base = ["curate", "--config", CONFIG, "--output", str(output), "--input", crawl]
    sets = ["--eval", f"e={crawl}", "--seeds", f"s={crawl}"]
    assert expected in error_of(capsys, *base, *sets, *flags)
    assert not output.exists()


def test_a_malformed_line_of_a_drop_list_is_named(capsys, tmp_path, crawl):
    path = tmp_path / "list.txt"
    path.write_text("host:a.org\na.org\n")
    base = ["curate", "--config", CONFIG, "--output", str(tmp_path / "run")]
    sets = ["--input", crawl, "--eval", f"e={crawl}", "--seeds", f"s={crawl}"]
    error = error_of(capsys, *base, *sets, "--set", f"selection.drop_list={path}")
    assert f"{path}:2: 'a.org': expected a URL, host:NAME" in error


def test_a_glob_that_matches_nothing_is_named(capsys, tmp_path):
    base = ["curate", "--config", CONFIG, "--output", str(tmp_path / "run")]
    assert "/no/*.tar" in error_of(capsys, *base, "--input", "/no/*.tar")


def test_a_recipe_without_evaluation_sets_for_its_threshold_is_refused(
    capsys, tmp_path, crawl
):
    base = ["curate", "--config", CONFIG, "--output", str(tmp_path / "run")]
    error = error_of(capsys, *base, "--input", crawl)
    assert "expected evaluation sets" in error


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (None, "expected a Python file with get_config()"),
        ("x = 1", "expected a function get_config()"),
        ("def get_config(): return 3", "gave int, expected CurationConfig"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(capsys, tmp_path, recipe, expected):
    path = tmp_path / "recipe.py"
    if recipe is not None:
        path.write_text(recipe)
    arguments = ["curate", "--config", str(path), "--output", str(tmp_path / "run")]
    assert expected in error_of(capsys, *arguments)


def test_an_unknown_language_detector_in_a_recipe_is_refused(capsys, tmp_path, crawl):
    path = tmp_path / "recipe.py"
    path.write_text(
        "import dataclasses\n"
        "from curation_configs import demo\n"
        "def get_config():\n"
        "    return dataclasses.replace(demo.get_config(), language_detector='lid')\n"
    )
    output = str(tmp_path / "run")
    base = ["curate", "--config", str(path), "--output", output, "--input", crawl]
    assert "'lid': expected 'fasttext' or 'langdetect'" in error_of(capsys, *base)


def test_a_misspelled_parquet_column_is_refused_at_once(capsys, tmp_path, crawl):
    table = pa.table({"jpg": [b"x"], "text": ["t"]})
    pq.write_table(table, tmp_path / "a.parquet")
    path = tmp_path / "recipe.py"
    path.write_text(
        "import dataclasses\n"
        "from curation_configs import demo\n"
        "from pipeline.config.curation import ImageTextSource\n"
        "def get_config():\n"
        f"    source = ImageTextSource('web', '{tmp_path}/a.parquet', 'jpeg')\n"
        "    return dataclasses.replace(demo.get_config(), sources=(source,))\n"
    )
    output = tmp_path / "run"
    base = ["curate", "--config", str(path), "--output", str(output)]
    sets = ["--eval", f"e={crawl}", "--seeds", f"s={crawl}"]
    error = error_of(capsys, *base, *sets)
    assert "image_column='jpeg': expected one of jpg: binary, text: string" in error
    assert not output.exists()


def test_a_folder_of_another_format_is_refused(capsys, tmp_path, crawl):
    output = tmp_path / "run"
    output.mkdir()
    base = ["curate", "--config", CONFIG, "--output", str(output), "--input", crawl]
    sets = ["--eval", f"e={crawl}", "--seeds", f"s={crawl}"]
    for content, expected in (
        ('{"format_version": 1}', "found 1: its images were read as they are stored"),
        ('{"format_version": 2}', "found 2: it has a table for each shard, not for"),
        ('{"format_version": 99}', "found 99: another version of the program made it"),
        ('{"format_version": [1]}', "found [1]: another version"),
        ("{}", "found None: another version"),
    ):
        (output / "config.json").write_text(content)
        error = error_of(capsys, *base, *sets)
        assert f"--output {output}: expected format version 3, {expected}" in error
        assert "Name a new folder and curate again; this one stays as it is" in error
        assert error_of(capsys, "status", *base[1:], *sets) == error
        assert [path.name for path in output.iterdir()] == ["config.json"]


@pytest.mark.parametrize("content", ["[]", "not JSON", "", "[" * 100_000])
def test_a_damaged_record_is_called_damaged(capsys, tmp_path, crawl, content):
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.json").write_text(content)
    words = ["curate", "--config", CONFIG, "--output", str(output), "--input", crawl]
    sets = ["--eval", f"e={crawl}", "--seeds", f"s={crawl}"]
    error = error_of(capsys, *words, *sets)
    assert f"--output {output}: config.json is damaged: expected an object" in error


@pytest.mark.parametrize(
    ("scheme", "message"),
    [("hdfs", "Failed to import hdfs"), ("nowhere", "or a scheme that Beam knows")],
)
def test_a_file_system_that_is_not_installed_is_named(
    capsys, tmp_path, scheme, message
):
    base = ["curate", "--config", CONFIG, "--output", str(tmp_path / "run")]
    error = error_of(capsys, *base, "--input", f"{scheme}://place/*.tar")
    assert f"{scheme}://place/*.tar" in error
    assert message in error


def test_dataflow_is_not_asked_to_read_this_machine(capsys, tmp_path, crawl):
    output = str(tmp_path / "run")
    base = ["curate", "--config", CONFIG, "--output", output, "--input", crawl]
    error = error_of(capsys, *base, "--runner", "DataflowRunner")
    assert f"--output={output}: " in error
    assert "expected a path that workers of Dataflow see" in error


def test_beam_flags_reach_beam():
    options = beam_options(["--runner", "DataflowRunner", "--project", "p"])
    assert options.get_all_options(drop_default=True)["project"] == "p"


def test_options_of_beam_are_read_once_and_a_copy_is_its_own():
    options = beam_options(["--runner", "FlinkRunner"])
    assert options.view_as(StandardOptions) is options.view_as(StandardOptions)
    copied = copy.deepcopy(options)
    copied.view_as(StandardOptions).runner = "PrismRunner"
    assert copied.get_all_options()["runner"] == "PrismRunner"
    assert options.view_as(StandardOptions).runner == "FlinkRunner"
