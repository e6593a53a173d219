"""Listings that are kept while one command works, and forgotten with what it writes."""

import pytest

from pipeline.storage import files, remembered_listings


@pytest.fixture
def folder(server, bucket):
    """A folder of a store with two tables, and one in a folder of its own."""
    for key in ("run/a.parquet", "run/b.parquet", "run/deep/c.parquet"):
        server.objects["bucket", key] = b"x"
    files.list_folder(f"{bucket}/run")  # as the first request asks for more
    server.forget_requests()
    return f"{bucket}/run"


def names(folder: str) -> list[str]:
    return [path.rpartition("/")[2] for path in sorted(files.list_folder(folder))]


def test_a_folder_is_listed_once(server, folder):
    with remembered_listings.kept():
        assert list(files.list_below(folder)) == [
            "a.parquet",
            "b.parquet",
            "deep/c.parquet",
        ]
        n_lists = server.counts()["list"]
        assert names(folder) == names(f"{folder}/") == ["a.parquet", "b.parquet"]
        assert "deep/c.parquet" in files.list_below(folder)
        assert server.counts()["list"] == n_lists
    names(folder)
    assert server.counts()["list"] > n_lists


def test_what_the_command_writes_and_deletes_is_listed(folder):
    with remembered_listings.kept():
        names(folder)
        files.list_below(folder)
        files.write(f"{folder}/new.parquet", b"y")
        assert names(folder) == ["a.parquet", "b.parquet", "new.parquet"]
        files.delete(folder, ["a.parquet"])
        assert names(folder) == ["b.parquet", "new.parquet"]
        assert files.create(f"{folder}/deep/d.parquet", b"z")
        assert "deep/d.parquet" in files.list_below(folder)
        files.delete_folder(folder, "deep")
        assert list(files.list_below(folder)) == ["b.parquet", "new.parquet"]


def test_what_workers_write_is_listed_while_and_after_they_do(server, folder):
    with remembered_listings.kept():
        names(folder)
        with remembered_listings.not_kept():
            server.objects["bucket", "run/c.parquet"] = b"y"
            assert "c.parquet" in names(folder)
            server.objects["bucket", "run/d.parquet"] = b"y"
        assert names(folder)[-1] == "d.parquet"
        server.objects["bucket", "run/e.parquet"] = b"y"
        with remembered_listings.kept():  # as a command that got its lock
            assert names(folder)[-1] == "e.parquet"


def test_what_is_listed_while_it_is_written_is_not_kept(folder):
    def list_files():
        with remembered_listings.changed(f"{folder}/other"):
            return iter(())

    with remembered_listings.kept():
        assert not list(remembered_listings.find(folder, False, list_files))
        assert names(folder) == ["a.parquet", "b.parquet"]
