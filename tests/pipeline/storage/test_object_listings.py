"""Listings of object stores: exact whatever was known before, and few requests."""

import random

import pytest

from pipeline.storage import files, object_clients, object_listings, patterns
from tests.support import simulated_store
from tests.support.simulated_store import Numbered

PATTERNS = ("*.tar", "**", "*/*.tar", "**/*.tar", "a/*", "?/x/*.tar")


@pytest.fixture
def small_pages(server, monkeypatch):
    """Ten keys an answer, so that few objects make many pages."""
    monkeypatch.setattr(object_listings, "KEYS_PER_PAGE", 10)
    server.page_size = 10


def fill(server, keys) -> None:
    server.objects.clear()
    for key in keys:
        server.objects["bucket", key] = b"x"


def make_keys(chance: random.Random, n: int) -> list[str]:
    """Keys of four depths, many of them in one folder."""
    folders = ("in", "in", "in", "in/a", "in/b", "in/b/x", "in/é€😀/x", "other")
    return [f"{chance.choice(folders)}/{chance.randrange(9999)}.tar" for _ in range(n)]


@pytest.mark.parametrize("rng_seed", range(5))
def test_what_is_found_does_not_depend_on_what_was_known(
    server, bucket, small_pages, rng_seed
):
    chance = random.Random(rng_seed)
    before, added = make_keys(chance, 150), make_keys(chance, 50)
    fill(server, [*before, *added])
    places = [f"{bucket}/in/{pattern}" for pattern in PATTERNS]
    expected = [files.marks(place) for place in places]
    below = files.list_below(f"{bucket}/in")
    removed = make_keys(chance, 50)
    for known_keys in (before, removed, [*before, *removed], before[:20]):
        known = sorted(f"{bucket}/{key}" for key in known_keys)
        assert [files.marks(place, known) for place in places] == expected
        found = files.list_below(f"{bucket}/in", known)
        assert list(found.items()) == list(below.items())


def test_objects_of_deeper_folders_are_passed_over(server, bucket, small_pages):
    direct = [f"in/{number:03d}.tar" for number in range(40)]
    deeper = [f"in/015/{number:04d}.tar" for number in range(1000)]
    fill(server, direct + deeper)
    known = [f"{bucket}/{key}" for key in direct]
    files.is_file(f"{bucket}/warm-up")
    for hint in (known, ()):
        server.forget_requests()
        assert list(files.marks(f"{bucket}/in/*.tar", hint)) == known
        assert server.counts()["list"] <= 12


def test_a_folder_that_was_listed_before_is_listed_side_by_side(
    server, bucket, small_pages
):
    names = [f"{number:03d}" for number in range(200)]
    fill(server, [f"in/{name}" for name in names])
    first = files.list_folder(f"{bucket}/in")
    asked_side_by_side = []

    def note(request):
        asked_side_by_side.append("start-after" in request.query)

    server.answers = note
    server.objects["bucket", "in/0555"] = b"x"
    del server.objects["bucket", "in/000"]
    found = files.list_folder(f"{bucket}/in")
    assert found.keys() == first.keys() - {f"{bucket}/in/000"} | {f"{bucket}/in/0555"}
    assert sum(asked_side_by_side) == 20  # one of them goes on behind a new key


def test_azure_is_listed_page_after_page():
    known = [f"az://container/in/{number:05d}" for number in range(5000)]
    assert object_listings._split("az://container/in", known) == [(None, None)]
    known = [name.replace("az:", "s3:") for name in known]
    assert len(object_listings._split("s3://container/in", known)) == 6


@pytest.fixture
def simulated(request, monkeypatch):
    """Source shards behind answers that take 60 ms."""
    with simulated_store.start(Numbered("crawl", request.param)) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        object_clients.forget_clients()
        files.is_file("s3://bucket/warm-up")
        store.take_counts()
        yield store
    object_clients.forget_clients()


@pytest.mark.parametrize(
    ("simulated", "n_shards"),
    [
        (50_000, 50_000),
        pytest.param(1_000_000, 1_000_000, marks=pytest.mark.slow),
    ],
    indirect=["simulated"],
)
def test_many_shards_are_listed_side_by_side(simulated, n_shards):
    known = [f"s3://bucket/crawl/{number:07d}.tar" for number in range(n_shards)]
    simulated.put({f"crawl/{number:07d}.tar+": b"x" for number in range(10)})
    found = patterns.find_marks("s3://bucket/crawl/*.tar*", "shards", known)
    assert len(found) == n_shards + 10
    assert list(found)[:3] == [known[0], f"{known[0]}+", known[1]]
    assert simulated.take_counts()["list", "crawl"] <= n_shards // 1000 + 2
    assert simulated.take_max_at_once() >= 16
