"""The command that draws the web: wrong flags, and what it replaces."""

import pathlib

import pytest

from pipeline import scenes
from pipeline.demo_web import crawl


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-pairs", "0"], "n_pairs=0: expected 1 <= n_pairs <= 100000"),
        (["--n-pairs", "100001"], "n_pairs=100001: expected"),
        (["--n-pairs", "9", "--rng-seed", "-1"], "rng_seed=-1: expected 0 or more"),
        (["--n-pairs", "many"], "argument --n-pairs: invalid int value: 'many'"),
        ([], "the following arguments are required: --n-pairs"),
        (["--n-pairs", "9", "--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_a_wrong_command_exits_with_2_and_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        scenes.main(["--output", str(tmp_path), *flags])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path, capsys):
    stranger = tmp_path / "crawl" / "thesis.txt"
    stranger.parent.mkdir()
    stranger.write_text("years of work")
    (tmp_path / "truth.parquet").write_text("older")
    with pytest.raises(SystemExit) as exit_info:
        scenes.main(["--output", str(tmp_path), "--n-pairs", "1"])
    assert exit_info.value.code == 2
    assert "but it holds crawl/thesis.txt\n" in capsys.readouterr().err
    assert sorted(contents(tmp_path)) == ["crawl/thesis.txt", "truth.parquet"]


def test_a_file_as_output_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        scenes.main(["--output", str(tmp_path / "file"), "--n-pairs", "1"])
    assert capsys.readouterr().err.endswith("file: expected a folder\n")


def test_an_earlier_output_is_replaced_as_a_whole(tmp_path):
    tiny = crawl.Web(n_pairs=3, rng_seed=0, n_evaluation=1, n_seeds=1)
    crawl.clear(tmp_path)
    crawl.write(tiny, tmp_path)
    stale = tmp_path / "crawl" / "crawl-00007.tar"
    stale.write_bytes(b"")
    crawl.clear(tmp_path)
    crawl.write(tiny, tmp_path)
    assert not stale.exists()
