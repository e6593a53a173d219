"""A place is a place, whatever it is called; a pattern is what a user gives as one."""

import contextlib
import glob
import os
import pathlib

import pytest

from pipeline import run
from pipeline.storage import files, patterns
from tests.support import tiny_checkpoints
from tests.support.tiny_run import bytes_of, outputs_of, plain_rows, write_shard

_RECIPE = """
from pipeline.config import curation as config
from pipeline.config.selection import SelectionConfig

def get_config():
    encoder = config.EncoderConfig({encoder!r}, batch_size=4)
    return config.CurationConfig(
        encoder=encoder,
        selection=SelectionConfig(max_evaluation_similarity=None),
        export=config.ExportConfig(samples_per_shard=2),
    )
"""
N_ROWS = 4

# Run folders whose names, read as patterns, match `RUN1`, or nothing.
ODD = ["RUN[1]", "RUN*", "-RUN\n1 "]
MORE_ODD = ["RUN?", "RUN{1,2}", "R**", "RUN\\1", "RÜN #%1~", "[!x]*", "RUN1 "]
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in MORE_ODD]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """A crawl of two shards, a recipe, and the finished run RUN1."""
    folder = tmp_path_factory.mktemp("places")
    encoder = tiny_checkpoints.write_siglip(folder / "encoder")
    (folder / "recipe.py").write_text(_RECIPE.format(encoder=str(encoder)))
    for number in range(2):
        rows = plain_rows(N_ROWS // 2, first=2 * number)
        write_shard(folder / "crawl" / f"{number}.tar", rows)
    curate(folder, folder / "RUN1", "--set", "export.samples_per_shard=1")
    return folder


def curate(root: pathlib.Path, output: object, *flags: str) -> None:
    shards = f"--input={glob.escape(str(root))}/crawl/*.tar"
    run.main(
        ["curate", f"--config={root}/recipe.py", f"--output={output}", shards, *flags]
    )


def error_of(capsys, root: pathlib.Path, *flags: str) -> str:
    """The one line of a command that is refused before any work."""
    output = root / "refused"
    with pytest.raises(SystemExit) as stopped:
        run.main(["curate", f"--config={root}/recipe.py", f"--output={output}", *flags])
    assert stopped.value.code == 2
    assert not output.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", [*ODD, *MORE], ids=ascii)
def test_a_run_folder_of_any_name_is_a_run_of_its_own(root, name, capsys):
    before = bytes_of(root / "RUN1")
    output = root / name
    curate(root, f"{output}/")
    assert bytes_of(root / "RUN1") == before
    first = outputs_of(output)
    assert {"ledger.json", "config.json"} <= first.keys()
    assert "lock.json" not in first
    assert sum(name.endswith(".tfrecord") for name in first) == 2
    assert (output / "report" / "index.html").exists()
    capsys.readouterr()
    curate(root, output)
    assert capsys.readouterr().out.count("nothing to do") == 4
    assert outputs_of(output) == first


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a[!b]", "a{b,c}", "a\\b", "**"])
def test_listings_and_deletions_know_no_patterns(tmp_path, name):
    for folder in (name, "a1", "ab", "axx"):
        (tmp_path / folder / "in").mkdir(parents=True)
        for path in ("x", "in/x"):
            (tmp_path / folder / path).write_bytes(b"1")
    place = f"{tmp_path}/{name}"
    assert files.list_folder(place) == {f"{place}/x": 1}
    assert files.list_below(place).keys() == {"x", "in/x"}
    assert files.folders(place) == {"in"}
    others = {k: v for k, v in bytes_of(tmp_path).items() if not k.startswith(name)}
    files.delete(place, ["x"])
    files.delete_folder(place, "in")
    assert bytes_of(tmp_path) == others
    files.delete_folder(str(tmp_path), name)
    assert not os.path.exists(place)
    assert bytes_of(tmp_path) == others


@pytest.mark.parametrize("name", ["../a", "", "a/../../b", "/etc", ".", "a//b"])
def test_nothing_outside_a_folder_is_deleted(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"expected the name of a file inside"):
        files.delete(f"{tmp_path}/a", [name])
    with pytest.raises(ValueError, match=r"expected the name of a file inside"):
        files.delete_folder(f"{tmp_path}/a", name)
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("name", ["crawl [2024]", "what?", "a*b", "x[!y]", "{a,b}"])
def test_a_pattern_may_name_an_odd_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "0.tar").touch()
    pattern = glob.escape(f"{tmp_path}/{name}") + "/*.tar"
    assert patterns.find(pattern, "shards") == (f"{tmp_path}/{name}/0.tar",)


def test_links_hidden_files_and_the_working_directory_are_matched(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    for name in ("real/a.tar", "real/.b.tar", "real/c\\d.tar", "e.tar"):
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "gone.tar").symlink_to("nowhere")
    assert files.find("*.tar") == ("e.tar", "gone.tar")
    assert len(files.find("*/*.tar")) == 6
    assert len(files.find("linked/")) == 3
    assert files.sizes("gone.tar") == {"gone.tar": 0}


@pytest.mark.parametrize(
    ("there", "pattern", "expected"),
    [
        ("crawl [2024]", "crawl [2024]/*.tar", r"crawl \[\[\]2024\]/\*.tar names what"),
        ("crawl [2024]", "crawl [2024]", r"folder, .*crawl \[\[\]2024\]/\* are its"),
        ("crawl [2024]", "crawl [2024]/1*.tar", r"crawl \[\[\]2024\]/1\*.tar names"),
        ("crawl", "crawl", "this is a folder, .*/crawl/. are its files"),
        ("0.tar", "0.tar", "this is a folder, .*/0.tar/. are its files"),
        ("crawl", "{crawl,other}/*.tar", "braces are no pattern, give the flag twice"),
        ("crawl", "other/*.tar", "expected a glob that matches shards$"),
    ],
)
def test_a_pattern_without_a_match_says_what_is_there(
    tmp_path, there, pattern, expected
):
    (tmp_path / there).mkdir()
    (tmp_path / there / "0.tar").touch()
    with pytest.raises(ValueError, match=expected):
        patterns.find(f"{tmp_path}/{pattern}", "shards")


def test_a_pattern_that_is_also_a_name_is_refused(tmp_path):
    for name in ("crawl1", "crawl[1]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").touch()
    with pytest.raises(ValueError, match="a pattern or a name, but it matches"):
        patterns.find(f"{tmp_path}/crawl[1]/*.tar", "shards")


# Flags that come twice


def sources_of(root: pathlib.Path, *flags: str) -> run.RunFolder:
    output = f"--output={root}/unused"
    return run.open_run(["curate", f"--config={root}/recipe.py", output, *flags])


def test_inputs_and_sets_add_up(root):
    each = [f"{root}/crawl/{n}.tar" for n in range(2)]
    flags = [f"--input={path}" for path in each]
    flags += [f"--eval=coco={path}" for path in each]
    flags += [f"--seeds=birds={path}" for path in each]
    found = sources_of(root, *flags)
    for lots in (found.lots, found.evaluation_lots, found.seed_lots):
        assert [s.uri for lot in lots for s in lot.shards] == each
        assert len({lot.source for lot in lots}) == 1


def test_one_pattern_stays_a_text(root):
    (source,) = sources_of(root, f"--input={root}/crawl/0.tar").config.sources
    assert source.pattern == f"{root}/crawl/0.tar"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--format=tfrecord"] * 2, "--format tfrecord: expected the flag once"),
        (["--against=b"] * 2, "--against b: expected the flag once"),
        (["--output=b"], "--output b: expected the flag once"),
        (["--config=b"], "--config b: expected the flag once"),
        (
            ["--set=selection.drop_list=a", "--set=selection.drop_list=b"],
            "--set selection.drop_list=a: expected selection.drop_list once",
        ),
        (["--set=sources.0.pattern=x"], "expected it without --input"),
        (["--input={root}/crawl/*.tar"], "0.tar: expected to be read once, but"),
        (["--input={root}/../*/crawl/0.tar"], "0.tar: expected to be read once"),
        (["--eval=a={root}/crawl/*", "--eval=a={root}/crawl/0*"], "to be read once"),
    ],
)
def test_what_would_be_replaced_or_read_twice_is_refused(capsys, root, flags, expected):
    given = [flag.format(root=root) for flag in flags]
    assert expected in error_of(capsys, root, f"--input={root}/crawl/*.tar", *given)


def test_a_shard_in_two_sources_is_refused(capsys, root, tmp_path):
    recipe = (
        (root / "recipe.py")
        .read_text()
        .replace(
            "encoder=encoder,",
            "encoder=encoder, sources=tuple("
            f"config.ImageTextSource(name, '{root}/crawl/0.tar') for name in 'ab'),",
        )
    )
    (tmp_path / "recipe.py").write_text(recipe)
    with pytest.raises(SystemExit), contextlib.chdir(tmp_path):
        run.main(["status", "--config=recipe.py", f"--output={tmp_path}/run"])
    assert "expected to be read once, but a and b match it" in capsys.readouterr().err


def test_an_output_that_is_not_utf_8_is_refused(capsys, root):
    with pytest.raises(SystemExit) as stopped:
        curate(root, f"{root}/RUN\udcff")
    assert stopped.value.code == 2
    assert "RUN\\udcff': expected a name in UTF-8" in capsys.readouterr().err


def test_an_output_that_is_no_folder_is_refused(capsys, root):
    for output in ("", f"{root}/recipe.py"):
        with pytest.raises(SystemExit) as stopped:
            curate(root, output)
        assert stopped.value.code == 2
        assert f"--output {output!r}: expected a folder" in capsys.readouterr().err
