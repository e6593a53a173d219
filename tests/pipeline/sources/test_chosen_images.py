"""Chosen images of many shards: exact, in order, many at once, errors apart."""

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.curation import ImageTextSource
from pipeline.records import Pair, content_hash
from pipeline.sources.columns import ShardError
from pipeline.sources.shards import Shard, read_images_of, read_shard_images
from pipeline.storage import chosen_ranges, files
from tests.support import served_store
from tests.support.fake_object_store import FakeObjectStore

EXACT = {
    "write_page_index": True,
    "max_rows_per_page": 1,
    "use_dictionary": False,
    "write_statistics": False,
    "row_group_size": 100,
}
Chosen = list[tuple[Shard, list[Pair]]]


def make_images(n_images: int, mean_bytes: int) -> list[bytes]:
    rng = random.Random(n_images)
    return [
        rng.randbytes(rng.randint(mean_bytes // 2, mean_bytes * 3 // 2))
        for _ in range(n_images)
    ]


def pair_of(key: int, image: bytes, offset: int) -> Pair:
    return Pair(
        sample_id=b"",
        key=str(key),
        url="",
        alt_text="",
        image_hash=content_hash(image),
        image_format="jpeg",
        width=1,
        height=1,
        n_bytes=len(image),
        offset=offset,
        error="",
    )


def shard_at(path: str) -> Shard:
    return Shard(ImageTextSource("web", path), path)


def write_tar(path: str, images: Sequence[bytes]) -> tuple[Shard, list[Pair]]:
    buffer, offsets = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, image in enumerate(images):
            texts = (b"an alt text", os.urandom(500))
            for suffix, data in zip(
                ("jpg", "txt", "json"), (image, *texts), strict=True
            ):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                if suffix == "jpg":
                    offsets.append(buffer.tell() + 512)
                tar.addfile(member, io.BytesIO(data))
    files.write(path, buffer.getvalue())
    pairs = map(pair_of, range(len(images)), images, offsets)
    return shard_at(path), list(pairs)


def write_parquet(path: str, images: Sequence[bytes]) -> tuple[Shard, list[Pair]]:
    texts = ["an alt text"] * len(images)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": images, "caption": texts}), buffer, **EXACT)
    files.write(path, buffer.getvalue())
    numbers = range(len(images))
    return shard_at(path), list(map(pair_of, numbers, images, numbers))


SUFFIX_TO_WRITE: dict[str, Callable] = {"tar": write_tar, "parquet": write_parquet}


@pytest.fixture(params=SUFFIX_TO_WRITE)
def suffix(request) -> str:
    return request.param


@pytest.fixture(params=["s3", "gs"])
def store(request) -> Iterator[tuple[FakeObjectStore, str]]:
    """A store and the URL of its bucket."""
    with served_store.serve(request.param) as server:
        yield server, server.bucket_url(request.param)


@pytest.fixture(params=["disk", "s3", "gs"])
def place(request, tmp_path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path)
        return
    with served_store.serve(request.param) as server:
        yield f"{server.bucket_url(request.param)}/folder"


def write_shards(place: str, suffix: str, images: Sequence[Sequence[bytes]]) -> Chosen:
    return [
        SUFFIX_TO_WRITE[suffix](files.join(place, f"{number}.{suffix}"), of_shard)
        for number, of_shard in enumerate(images)
    ]


def test_at_low_keep_rates_at_most_a_fifth_more_than_the_images_is_read(store, suffix):
    server, bucket = store
    images = make_images(2000, 60_000)
    ((shard, pairs),) = write_shards(bucket, suffix, [images])
    for keep_rate in (0.0117, 0.003):
        kept = sorted(random.Random(0).sample(range(2000), round(keep_rate * 2000)))
        server.forget_requests()
        found = list(read_images_of([(shard, [pairs[row] for row in kept])]))
        assert found == [images[row] for row in kept]
        assert server.n_bytes_read <= 1.2 * sum(map(len, found))


def test_images_of_many_shards_are_asked_for_at_once(store, suffix):
    server, bucket = store
    images = [make_images(30, 1000 + shard) for shard in range(40)]
    chosen = write_shards(bucket, suffix, images)
    server.forget_requests()
    server.latency_s = 0.25  # long, for busy machines
    found = list(read_images_of((shard, pairs[7:8]) for shard, pairs in chosen))
    server.latency_s = 0.0
    assert found == [of_shard[7] for of_shard in images]
    n_planning = 32 if suffix == "parquet" else 0
    bound = chosen_ranges.MAX_REQUESTS_AT_ONCE + n_planning
    assert 20 <= server.max_open <= bound


def test_all_images_of_all_shards_come_in_order(place, suffix):
    images = [make_images(n_images, 3000) for n_images in (150, 1, 30, 210)]
    chosen = write_shards(place, suffix, images)
    chosen.insert(2, (chosen[0][0], []))
    expected = [image for of_shard in images for image in of_shard]
    assert list(read_images_of(chosen)) == expected
    assert list(read_images_of([])) == []


def test_one_bound_of_memory_holds_for_all_shards(store, suffix, monkeypatch):
    server, bucket = store
    bound = 20_000
    monkeypatch.setattr(chosen_ranges, "MAX_BYTES_AT_ONCE", bound)
    images = [make_images(50, 3000) for _ in range(12)]
    chosen = write_shards(bucket, suffix, images)
    if suffix == "parquet":  # footers, and what Arrow decodes: here a whole shard
        bound += len(chosen) * (9 << 10) + 25 * 4500
    server.forget_requests()
    n_given = 0
    for image in read_images_of((shard, pairs[::2]) for shard, pairs in chosen):
        n_given += len(image)
        n_gaps = 0.2 * n_given  # read and dropped
        assert server.n_bytes_read - n_given - n_gaps <= bound


def test_shards_that_are_gone_or_damaged_do_not_stop_the_others(place, suffix):
    images = [make_images(20, 3000) for _ in range(5)]
    chosen = write_shards(place, suffix, images)
    uris = [shard.uri for shard, _ in chosen]
    files.delete(place, [files.split(uris[1])[1]])
    files.write(uris[2], files.read(uris[2])[:30_000])
    files.write(uris[3], b"")
    found = list(read_images_of(chosen))
    assert found[:20] == images[0]
    assert found[80:] == images[4]
    for error in found[20:40]:
        assert isinstance(error, ShardError)
        assert str(error) == (
            f"{uris[1]}: shard cannot be opened: No such file or directory"
        )
    n_whole = sum(isinstance(one, bytes) for one in found[40:60])
    assert (n_whole > 0) == (suffix == "tar")  # a Parquet file begins with its end
    assert found[40 : 40 + n_whole] == images[2][:n_whole]
    for error in (*found[40 + n_whole : 60], *found[60:80]):
        assert isinstance(error, ShardError)
        assert " has changed since it was scored: " in str(error)


def test_an_image_that_changed_is_its_own_error(place, suffix):
    images = make_images(10, 3000)
    changed = [*images[:4], images[4][::-1], *images[5:]]
    ((_, pairs),) = write_shards(place, suffix, [images])
    ((shard, _),) = write_shards(place, suffix, [changed])
    found = list(read_images_of([(shard, pairs)]))
    assert [*found[:4], *found[5:]] == [*images[:4], *images[5:]]
    assert isinstance(found[4], ShardError)
    assert str(found[4]).endswith("scored: the image of '4' is another one")
    with pytest.raises(ShardError, match="the image of '4' is another one"):
        list(read_shard_images(shard, pairs))


def test_rows_that_are_gone_are_errors(place):
    images = make_images(10, 3000)
    ((_, pairs),) = write_shards(place, "parquet", [images])
    ((shard, _),) = write_shards(place, "parquet", [images[:8]])
    found = list(read_images_of([(shard, pairs)]))
    assert found[:8] == images[:8]
    assert [str(error) for error in found[8:]] == [
        f"{shard.uri} has changed since it was scored: the image is gone"
    ] * 2


def test_a_folder_in_place_of_a_shard_is_an_error(tmp_path, suffix):
    (_, (folder, pairs)) = write_shards(str(tmp_path), suffix, [[b"x"], [b"y"]])
    os.remove(folder.uri)
    os.mkdir(folder.uri)
    (error,) = read_images_of([(folder, pairs)])
    assert str(error).startswith(f"{folder.uri}: shard cannot be opened: ")


def test_a_failure_of_the_store_is_raised(store, suffix):
    server, bucket = store
    chosen = write_shards(bucket, suffix, [make_images(3, 100)])
    server.required_token = "another"
    with pytest.raises(OSError, match="credentials are needed"):
        list(read_images_of(chosen))


def test_reading_may_end_early(place, suffix):
    images = [make_images(30, 3000) for _ in range(3)]
    chosen = write_shards(place, suffix, images)
    found = read_images_of(chosen)
    assert next(found) == images[0][0]
    found.close()
