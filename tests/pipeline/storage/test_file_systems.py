"""Local files need no Beam; others get the file system that Beam has for them."""

import subprocess
import sys

import pytest

from pipeline.storage import files, object_urls

PROGRAM = """
import sys
from pipeline.storage import files, tables
folder = sys.argv[1]
files.write(f"{folder}/a/b", b"1")
assert files.read(f"{folder}/a/b") == b"1"
assert list(files.list_below(folder)) == ["a/b"]
assert files.find(f"{folder}/*/b") and files.mark(f"{folder}/a/b")
files.delete(folder, ["a/b"])
assert not {"apache_beam", "jax", "obstore"} & sys.modules.keys()
"""


def test_local_files_are_read_and_written_without_beam(tmp_path):
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("path", "scheme"),
    [("gs://b/x", "gs"), ("a/b", None), ("/a://b", None), ("C:x", None)],
)
def test_a_path_with_a_scheme_is_elsewhere(path, scheme):
    assert object_urls.scheme_of(path) == scheme


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="nowhere"):
        files.is_file("nowhere://x")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for call in (files.open_for_reading, files.read, files.facts):
        with pytest.raises(FileNotFoundError, match="none"):
            call(str(tmp_path / "none"))
