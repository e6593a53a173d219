"""Tests of files: complete or absent, and the same when read back."""

import concurrent.futures

import pytest

from pipeline.storage import files


def test_a_glob_gives_sorted_paths_or_none(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    expected = (str(tmp_path / "a.tar"), str(tmp_path / "b.tar"))
    assert files.find(str(tmp_path / "*.tar")) == expected
    assert files.find(str(tmp_path / "*.parquet")) == ()


def test_a_file_is_written_with_its_folders_and_nothing_else(tmp_path):
    path = files.join(str(tmp_path), "new", "folder", "file")
    files.write(path, b"one")
    files.write(path, b"two")
    assert files.read(path) == b"two"
    assert [found.name for found in (tmp_path / "new" / "folder").iterdir()] == ["file"]


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = files.join(str(tmp_path), "new", "file")
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda _: files.write(path, b"x" * 1000), range(32)))
    assert files.read(path) == b"x" * 1000
    assert [found.name for found in (tmp_path / "new").iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        files.write(files.join(str(tmp_path / "file"), "name"), b"")


def test_compressed_files_are_not_unpacked(tmp_path):
    path = str(tmp_path / "a.gz")
    files.write(path, b"\x1f\x8b as it is")
    assert files.read(path) == b"\x1f\x8b as it is"


def test_deleted_files_are_gone(tmp_path):
    path = str(tmp_path / "a")
    files.write(path, b"")
    assert files.is_file(path)
    files.delete(str(tmp_path), ["a"])
    assert not files.is_file(path)
