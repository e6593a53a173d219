"""Tests of tar members, their offsets and the damage of a tar."""

import bz2
import gzip
import io
import itertools
import lzma
import tarfile

import pytest

from pipeline.sources import tars

MEMBERS = [("a.jpg", b"image"), ("folder/b.txt", b"x" * 512), ("c.json", b"")]


def make_tar(members, tar_format=tarfile.USTAR_FORMAT, **fields) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def read(data: bytes, max_bytes: int = 1 << 20) -> list[tuple[str, bytes | None]]:
    members = tars.read_members(io.BytesIO(data), lambda name: max_bytes)
    return [(member.name, member.data) for member in members]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_members_are_read_in_all_formats(tar_format):
    assert read(make_tar(MEMBERS, tar_format)) == MEMBERS


def test_pax_headers_with_other_fields_are_passed_over():
    # webdataset writes such a header before every member: its times are no integers.
    data = make_tar(MEMBERS, tarfile.PAX_FORMAT, mtime=1700000000.25)
    assert data.count(b" mtime=1700000000.25\n") == len(MEMBERS)
    assert read(data) == MEMBERS


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_whole(tar_format):
    name = "é" * 200 + ".jpg"
    assert read(make_tar([(name, b"image")], tar_format)) == [(name, b"image")]


def test_a_long_ustar_name_is_joined_from_its_two_fields():
    name = f"{'d' * 90}/{'e' * 90}.jpg"
    assert read(make_tar([(name, b"image")])) == [(name, b"image")]


def test_offsets_are_where_the_data_lies():
    data = make_tar(MEMBERS, tarfile.PAX_FORMAT, mtime=0.5)
    for member in tars.read_members(io.BytesIO(data), lambda name: 0):
        found = data[member.offset : member.offset + member.size]
        assert (member.name, found) in MEMBERS


def test_data_above_the_bound_is_passed_over():
    expected = [("a.jpg", b"image"), ("folder/b.txt", None), ("c.json", b"")]
    assert read(make_tar(MEMBERS), max_bytes=5) == expected


def test_folders_and_devices_are_no_members():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            tar.addfile(header("a.jpg", kind))
    assert read(file.getvalue()) == []


def header(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def tar_of(members, tar_format=tarfile.GNU_FORMAT) -> bytes:
    """Of headers, and of names with data."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else header(name, b"0")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


HARD, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE
LONG = "d" * 120 + "/a.jpg"


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("b.jpg", HARD, LONG),
        ("b.jpg", HARD, "./" + LONG),
        ("b.jpg", SYMBOLIC, LONG),
        ("x/y/b.jpg", SYMBOLIC, "../../" + LONG),
        ("d" * 120 + "/b.jpg", SYMBOLIC, "a.jpg"),
    ],
)
def test_a_link_is_the_member_that_it_names(tar_format, name, kind, target):
    link = (header(name, kind, target), b"")
    for members in ([(LONG, b"image"), link], [link, (LONG, b"image")]):
        data = tar_of(members, tar_format)
        found = list(tars.read_members(io.BytesIO(data), lambda name: 99))
        assert {member.name for member in found} == {LONG, name}
        for member in found:
            assert (member.data, member.error) == (b"image", "")
            assert data[member.offset :].startswith(b"image")


def test_a_link_names_the_member_before_it_and_links_may_follow_links():
    members = [
        *[("a", b"1"), (header("b", HARD, "a"), b""), (header("c", HARD, "b"), b"")],
        *[("a", b"2"), (header("d", HARD, "a"), b"")],
    ]
    assert [data for _, data in read(tar_of(members))] == [b"1"] * 3 + [b"2"] * 2


@pytest.mark.parametrize(
    "target", ["", "nothing.jpg", "/etc/passwd", "../../etc/passwd", "b.jpg", "x" * 999]
)
def test_a_link_to_nothing_in_the_tar_is_an_error(target):
    for kind in (HARD, SYMBOLIC):
        data = tar_of([("a.jpg", b"image"), (header("b.jpg", kind, target), b"")])
        _, link = tars.read_members(io.BytesIO(data), lambda name: 99)
        assert link.data is None
        assert link.error.startswith(f"link to '{target[:70]}")
        assert len(link.error) < 200


def gnu_sparse(name: str, data: bytes, n_more_blocks: int) -> bytes:
    """A member of the old GNU form, whose list of holes goes on in blocks."""
    member = header(name, b"S")
    member.size = len(data)
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[482] = bool(n_more_blocks)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = [bytes(504) + bytes([i + 1 < n_more_blocks]) + bytes(7) for i in range(3)]
    padding = bytes(-len(data) % 512)
    return bytes(block) + b"".join(more[:n_more_blocks]) + data + padding


def pax_sparse(name: str, data: bytes, fields: dict[str, str]) -> bytes:
    member = header(name, b"0")
    member.size = len(data)
    member.pax_headers = fields
    return member.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "member",
    [
        *(gnu_sparse("b.jpg", b"x" * 600, n_more_blocks) for n_more_blocks in range(4)),
        pax_sparse(
            "b.jpg", b"x", {"GNU.sparse.size": "9", "GNU.sparse.numblocks": "1"}
        ),
        pax_sparse(
            *("GNUSparseFile.1/b.jpg", b"x"),
            {"GNU.sparse.map": "0,1", "GNU.sparse.name": "b.jpg"},
        ),
        pax_sparse(
            *("GNUSparseFile.1/b.jpg", b"x" * 513),
            {"GNU.sparse.major": "1", "GNU.sparse.name": "b.jpg"},
        ),
    ],
)
def test_a_sparse_member_is_one_error_and_the_next_one_is_read(member):
    whole = member + make_tar([("c.jpg", b"image")])
    sparse, last = tars.read_members(io.BytesIO(whole), lambda name: 99)
    assert (sparse.name, sparse.data) == ("b.jpg", None)
    expected = "sparse member: expected one without holes (tar without --sparse)"
    assert sparse.error == expected
    assert (last.name, last.data) == ("c.jpg", b"image")


@pytest.mark.parametrize(
    ("name", "compress"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)],
)
def test_a_compressed_tar_is_an_error_that_names_the_format(name, compress):
    with pytest.raises(tars.TarError, match=f"^{name} file: expected a plain tar"):
        read(compress(make_tar(MEMBERS)))
    with pytest.raises(tars.TarError, match=f"^{name} file: expected a plain tar"):
        read(compress(b""))


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("zstd", b"(\xb5/\xfd"),
        ("zip", b"PK\x03\x04"),
        ("Parquet", b"PAR1"),
        ("HTML", b"<!DOCTYPE html><html>"),
        ("XML", b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"),
        ("JSON", b'{"error": 404}'),
        ("Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\n"),
    ],
)
def test_other_formats_are_named_and_a_member_may_be_called_as_one(name, start):
    with pytest.raises(tars.TarError, match=f"^{name} file: "):
        read(start + bytes(600))
    with pytest.raises(tars.TarError, match=f"^{name} file: "):
        read(start)
    assert read(make_tar([("PAR1.txt", b"x"), ("BZh.txt", b"y")]))[0][1] == b"x"


def test_a_value_of_a_pax_header_may_look_like_a_record():
    member = header("a.jpg", b"0")
    member.pax_headers = {"comment": "x\n20 path=b.jpg\n"}
    assert read(member.tobuf(tarfile.PAX_FORMAT) + make_tar([])) == [("a.jpg", b"")]


def test_the_label_of_a_volume_is_no_member():
    block = bytearray(header("backup of May", b"V").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = bytes(12)  # GNU tar leaves its size empty
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert read(bytes(block) + make_tar([("a.jpg", b"x")])) == [("a.jpg", b"x")]


def test_joined_tars_are_read_to_the_end():
    assert read(make_tar(MEMBERS[:1]) + make_tar(MEMBERS[1:])) == MEMBERS


def test_a_cut_keeps_the_members_before_it_and_is_an_error():
    data = make_tar(MEMBERS, tarfile.PAX_FORMAT, mtime=0.5)
    end = data.rindex(b"c.json") + 512
    for length in range(0, end, 31):
        members = tars.read_members(io.BytesIO(data[:length]), lambda name: 1 << 20)
        found = []
        with pytest.raises(tars.TarError, match=r"tar cut off at byte"):
            found.extend((member.name, member.data) for member in members)
        assert found == MEMBERS[: len(found)]


def test_a_damaged_header_is_an_error_and_no_end():
    data = bytearray(make_tar(MEMBERS))
    second = data.index(b"folder/b.txt")
    data[second] ^= 1
    members = tars.read_members(io.BytesIO(data), lambda name: 1 << 20)
    assert next(members).name == "a.jpg"
    with pytest.raises(tars.TarError, match="tar damaged at byte 1024: wrong checksum"):
        next(members)


@pytest.mark.parametrize(
    "size", [b"-0000001000\0", b"0000000009\0\0", b"\xff" * 12, b"\x80" + b"\xff" * 11]
)
def test_an_impossible_size_is_an_error(size):
    data = bytearray(make_tar(MEMBERS[:1]))
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(tars.TarError, match="tar damaged at byte 0: "):
        read(bytes(data))


def test_binary_sizes_are_read():
    data = bytearray(make_tar(MEMBERS[:1]))
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert read(bytes(data)) == MEMBERS[:1]


def test_noise_is_an_error():
    noise = bytes(itertools.islice(itertools.cycle(range(1, 250)), 2000))
    with pytest.raises(tars.TarError, match="tar damaged at byte 0"):
        read(noise)
