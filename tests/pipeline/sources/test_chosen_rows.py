"""Images of chosen rows are those of the file, however it was written."""

import io
import itertools
import os
import random

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from pipeline.config.curation import ImageTextSource
from pipeline.sources import chosen_rows, page_index, parquet
from pipeline.sources.columns import DamageError, ShardError

N_ROWS = 60
IMAGES = [random.Random(n).randbytes(500 + 40 * n) for n in range(N_ROWS)]
SOURCE = ImageTextSource("web", "*.parquet")

ONE_IMAGE_PAGES = {
    "write_page_index": True,
    "max_rows_per_page": 1,
    "use_dictionary": False,
    "write_statistics": False,
}
WAYS_TO_WRITE = {
    "plain": {},
    "page index": {"write_page_index": True},
    "pages of one image": ONE_IMAGE_PAGES,
    "pages of four images": {**ONE_IMAGE_PAGES, "max_rows_per_page": 4},
    "second version of pages": {**ONE_IMAGE_PAGES, "data_page_version": "2.0"},
    "uncompressed": {**ONE_IMAGE_PAGES, "compression": "none"},
    "zstd": {**ONE_IMAGE_PAGES, "compression": "zstd"},
    "gzip": {**ONE_IMAGE_PAGES, "compression": "gzip"},
    "dictionary": {"write_page_index": True, "max_rows_per_page": 7},
    "dictionary that is full": {
        "write_page_index": True,
        "max_rows_per_page": 3,
        "write_batch_size": 3,
        "dictionary_pagesize_limit": 2000,
    },
    "other encoding": {**ONE_IMAGE_PAGES, "column_encoding": "DELTA_BYTE_ARRAY"},
    "checksums": {**ONE_IMAGE_PAGES, "write_page_checksum": True},
}
BINARY = pa.binary()
TYPES = {
    "binary": BINARY,
    "large binary": pa.large_binary(),
    "dictionary": pa.dictionary(pa.int32(), BINARY),
    "fixed size": pa.binary(1000),
    "struct": pa.struct([("bytes", BINARY), ("path", pa.string())]),
    "struct that is there": pa.struct([pa.field("bytes", BINARY, nullable=False)]),
}


def write(path, images, options, image_type=BINARY, is_nullable=True) -> str:
    values = images
    if pa.types.is_struct(image_type):
        values = [None if one is None else {"bytes": one} for one in images]
    if pa.types.is_dictionary(image_type):
        array = pa.array(values, BINARY).dictionary_encode()
    else:
        array = pa.array(values, image_type)
    texts = pa.array([f"text {number}" for number in range(len(images))])
    schema = pa.schema(
        [
            pa.field("caption", pa.string()),
            pa.field("image", array.type, nullable=is_nullable),
        ]
    )
    table = pa.Table.from_arrays([texts, array], schema=schema)
    pq.write_table(table, path, **({"row_group_size": 25} | options))
    return str(path)


def find(path, rows) -> chosen_rows.ChosenRows:
    return chosen_rows.find_rows(path, SOURCE, rows)


def images_of(path, rows) -> list[bytes]:
    with open(path, "rb") as file:
        data = file.read()
    chosen = find(path, rows)
    read = (data[start : start + length] for start, length in chosen.spans)
    return list(chosen.decode(read))


@pytest.mark.parametrize("is_nullable", [True, False], ids=["nullable", "required"])
@pytest.mark.parametrize("way", WAYS_TO_WRITE)
def test_chosen_images_are_those_of_the_file(tmp_path, way, is_nullable):
    options = WAYS_TO_WRITE[way]
    path = write(tmp_path / "a.parquet", IMAGES, options, is_nullable=is_nullable)
    for rows in ([], [0], [59], [24, 25], [3, 30, 31, 58], range(N_ROWS)):
        assert images_of(path, rows) == [IMAGES[row] for row in rows]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("way", ["plain", "pages of one image", "dictionary"])
def test_images_of_every_type_come_back(tmp_path, way, type_name):
    is_fixed = type_name == "fixed size"
    images = [bytes([n]) * 1000 for n in range(N_ROWS)] if is_fixed else [*IMAGES]
    options = WAYS_TO_WRITE[way]
    image_type = TYPES[type_name]
    if type_name != "struct that is there":
        images[7] = images[31] = None
    path = write(tmp_path / "a.parquet", images, options, image_type)
    for rows in ([0], [6, 7, 8], [31], [59], range(N_ROWS)):
        assert images_of(path, rows) == [images[row] or b"" for row in rows]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("rows")
    return write(folder / "a.parquet", IMAGES, WAYS_TO_WRITE["pages of four images"])


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(rows=st.sets(st.integers(0, N_ROWS - 1)).map(sorted))
def test_any_rows_come_back(written, rows):
    assert images_of(written, rows) == [IMAGES[row] for row in rows]


def test_of_a_file_with_a_page_index_only_the_pages_of_the_rows_are_read(tmp_path):
    path = write(tmp_path / "a.parquet", IMAGES, ONE_IMAGE_PAGES)
    rows = [2, 3, 20, 58]
    n_bytes = [length for _, length in find(path, rows).spans]
    assert len(n_bytes) == len(rows)
    assert sum(n_bytes) < sum(len(IMAGES[row]) + 40 for row in rows)


@pytest.mark.parametrize(("way", "n_rows"), [("pages of one image", 25), ("plain", 1)])
def test_rows_that_are_not_read_pass_in_batches(tmp_path, monkeypatch, way, n_rows):
    path = write(tmp_path / "a.parquet", IMAGES, WAYS_TO_WRITE[way])
    n_bytes = pq.read_metadata(path).row_group(0).total_byte_size
    monkeypatch.setattr(parquet, "_MAX_BATCH_BYTES", n_bytes)
    sizes = []

    def counted(batch, column):
        sizes.append(len(batch))
        return image_bytes_of(batch, column)

    image_bytes_of = parquet.image_bytes_of
    monkeypatch.setattr(parquet, "image_bytes_of", counted)
    assert images_of(path, [3]) == [IMAGES[3]]
    assert sizes == [n_rows]


def test_of_a_file_without_page_index_the_chunks_of_the_rows_are_read(tmp_path):
    path = write(tmp_path / "a.parquet", IMAGES, {"use_dictionary": False})
    metadata = pq.read_metadata(path)
    chunks = [metadata.row_group(group).column(1) for group in range(3)]
    for rows, groups in (([], ()), ([30], (1,)), ([0, 24, 59], (0, 2))):
        expected = [
            (chunks[group].data_page_offset, chunks[group].total_compressed_size)
            for group in groups
        ]
        assert find(path, rows).spans == expected


def test_a_large_footer_is_read_as_a_whole(tmp_path):
    path = write(tmp_path / "a.parquet", IMAGES, {"row_group_size": 1})
    assert pq.read_metadata(path).serialized_size > chosen_rows._TAIL_BYTES
    assert images_of(path, [5, 50]) == [IMAGES[5], IMAGES[50]]


def test_rows_behind_the_end_are_left_out(written):
    assert images_of(written, [59, 60, 1000]) == [IMAGES[59]]


@pytest.mark.parametrize("data", [b"", b"x", b"PAR1" * 10, bytes(100)])
def test_what_is_no_parquet_is_damage(tmp_path, data):
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    with pytest.raises(DamageError, match="Parquet file damaged: "):
        find(str(path), [0])


def test_a_file_without_images_is_an_error(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"caption": ["a"]}), path)
    with pytest.raises(ShardError, match="no column for image_column: expected it"):
        find(path, [0])


def test_a_leaf_that_is_there_twice_is_an_error(tmp_path):
    path = str(tmp_path / "a.parquet")
    image = pa.array([{"bytes": b"x"}])
    pq.write_table(pa.table({"image": image, "image.bytes": [b"y"]}), path)
    with pytest.raises(ShardError, match=r"'image\.bytes': expected it once"):
        find(path, [0])


def test_pages_that_are_cut_off_are_damage(written):
    chosen = find(written, [0, 1])
    with pytest.raises(DamageError, match=r"^Parquet file damaged: .*cut off at byte"):
        list(chosen.decode(iter([b"short"])))


def test_an_error_of_reading_is_raised_as_it_is(written):
    chosen = find(written, [0, 1])
    for error in (FileNotFoundError(2, "gone"), ConnectionError("reset")):
        with pytest.raises(type(error)):
            list(chosen.decode(iter([error])))


def index_of(path: str, group: int = 0) -> tuple[bytes, page_index.Chunk]:
    with open(path, "rb") as file:
        data = file.read()
    length = int.from_bytes(data[-8:-4], "little")
    chunk = page_index.find_chunks(data[-8 - length : -8], 1)[group]
    start = chunk.index_start
    return data[start : start + chunk.index_length], chunk


def test_an_index_names_the_pages_of_a_chunk(written):
    index, chunk = index_of(written)
    pages = page_index.parse_pages(index, 25, chunk)
    firsts = [*range(0, 25, 4), 25]
    expected = [range(*pair) for pair in itertools.pairwise(firsts)]
    assert [page.rows for page in pages] == expected
    ends = [page.start + page.n_bytes for page in pages]
    assert [page.start for page in pages] == [chunk.start, *ends[:-1]]
    assert ends[-1] == chunk.stop


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(data=st.data())
def test_a_damaged_index_is_a_value_error_or_still_an_index(written, data):
    index, chunk = index_of(written)
    damaged = bytearray(index)
    for place in data.draw(st.lists(st.integers(0, len(index) - 1), max_size=3)):
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(index)))]
    try:
        pages = page_index.parse_pages(bytes(damaged), 25, chunk)
    except ValueError:
        return
    assert sum(len(page.rows) for page in pages) == 25
    assert chunk.start <= pages[0].start
    assert pages[-1].start + pages[-1].n_bytes <= chunk.stop


@pytest.mark.parametrize(
    ("n_rows", "message"),
    [(20, "pages that follow each other"), (24, "pages that follow each other")],
)
def test_an_index_of_other_rows_is_refused(written, n_rows, message):
    index, chunk = index_of(written)
    with pytest.raises(ValueError, match=message):
        page_index.parse_pages(index, n_rows, chunk)


def test_an_index_of_another_chunk_is_refused(written):
    index, chunk = index_of(written)
    _, next_chunk = index_of(written, 1)
    with pytest.raises(ValueError, match="expected pages that follow each other"):
        page_index.parse_pages(index, 25, next_chunk)
    shorter = page_index.Chunk(chunk.start, chunk.stop - 1, 0, 0)
    with pytest.raises(ValueError, match="expected the pages of a column chunk"):
        page_index.parse_pages(index, 25, shorter)
    with pytest.raises(ValueError, match="expected places of pages"):
        page_index.parse_pages(b"", 25, chunk)


def test_a_file_with_a_damaged_index_is_read_without_it(tmp_path):
    path = write(tmp_path / "a.parquet", IMAGES, ONE_IMAGE_PAGES)
    _, chunk = index_of(path)
    with open(path, "r+b") as file:
        file.seek(chunk.index_start)
        file.write(bytes(chunk.index_length))
    assert images_of(path, [3, 40]) == [IMAGES[3], IMAGES[40]]
    assert find(path, [3]).spans == [(chunk.start, chunk.stop - chunk.start)]


def test_damaged_metadata_of_a_chunk_are_damage():
    with pytest.raises(ValueError, match="wrong metadata of a column chunk"):
        page_index.find_chunks(b"\x00", 0)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("n_rows", [1, 63, 64, 20_000])
def test_a_blank_page_has_a_header_that_thrift_reads(level, n_rows):
    page = page_index.make_blank_page(n_rows, level)
    header = page_index._Compact(page).read_struct()
    facts = header[8]
    assert (facts[1], facts[3], facts[7]) == (n_rows, n_rows, False)
    assert facts[2] == (n_rows if level else 0)
    assert page.endswith(bytes(4 * n_rows) if not level else b"\0")
    assert header[2] == header[3] < len(page)


def test_a_fuzzed_file_is_an_error_or_other_bytes(tmp_path):
    path = write(tmp_path / "a.parquet", IMAGES, ONE_IMAGE_PAGES)
    with open(path, "rb") as file:
        whole = file.read()
    rng = random.Random(0)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(5):  # pages only: Arrow trusts what a footer says
            data[rng.randrange(len(data) - 3000)] = rng.randrange(256)
        with open(path, "wb") as file:
            file.write(data)
        try:
            found = images_of(path, [1, 2, 40])
        except ShardError:
            continue
        assert len(found) == 3


def test_the_file_that_arrow_reads_has_positions(written):
    file = chosen_rows._ChosenFile(find(written, [0]), iter(()))
    assert file.seek(-4, io.SEEK_END) == file.tell() == os.path.getsize(written) - 4
    assert file.seek(2, io.SEEK_CUR) == file.tell()
    assert file.readable()
    assert file.seekable()
    with pytest.raises(OSError, match="expected a column chunk"):
        file.read(1)


def test_pages_that_are_smaller_than_blank_ones_are_read(tmp_path):
    options = {"write_page_index": True, "max_rows_per_page": 1, "row_group_size": 5000}
    images = [b"same"] * 5000
    path = write(tmp_path / "a.parquet", images, options, is_nullable=False)
    assert images_of(path, [4999]) == [b"same"]
