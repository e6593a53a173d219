"""Tests of tar members, their offsets and the damage of a tar."""

import io
import itertools
import tarfile

import pytest

from pipeline import tars

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


def test_folders_and_links_are_no_members():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("a.jpg")
            member.type = kind
            tar.addfile(member)
    assert read(file.getvalue()) == []


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
