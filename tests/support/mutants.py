"""Source shards that are broken, hostile or odd: one for every number.

Sound shards of a few pairs, and images of every format, are changed by a mutator that
chance picks. The same number gives the same shard, apart from what `folder` names.
"""

import dataclasses
import functools
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ALT_TEXT = b"a brown dog runs after a red ball"
N_PAIRS = 4
_BLOCK_BYTES = 512

Rng = np.random.Generator
Members = list[tuple[tarfile.TarInfo, bytes]]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One shard; `n_pairs` is None where damage may cost or add some."""

    kind: str
    suffix: str  # "tar" or "parquet"
    data: bytes
    n_pairs: int | None = None


def mutant(number: int, folder: Path) -> Mutant:
    """Names that leave the shard's folder lead into `folder`."""
    rng = np.random.default_rng(number)
    make = (_damaged_tar, _odd_tar, _damaged_image, _odd_pair, _parquet)
    return make[number % len(make)](rng, folder)


# Images.


@functools.cache
def _images() -> tuple[bytes, ...]:
    rows, columns = np.mgrid[:24, :32]
    planes = (rows * 10, columns * 8, np.full_like(rows, 90))
    rgb = np.stack(planes, axis=-1).astype(np.uint8)
    image = Image.fromarray(rgb)
    return (
        *(_encoded(image, name) for name in ("JPEG", "PNG", "WEBP")),
        _encoded(image, "JPEG", progressive=True),
        _encoded(image.convert("CMYK"), "JPEG"),
        _encoded(image.quantize(16), "PNG"),
        _encoded(image.convert("RGBA"), "PNG"),
        _encoded(image, "WEBP", lossless=True),
        _encoded(Image.fromarray(rgb[..., 0].astype(np.uint16) << 8), "PNG"),
    )


def _encoded(image: Image.Image, name: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A gray PNG whose pixels are zeros, with more chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height), 9)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, parts))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    kind, data = part
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def _zipped_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(30_000_000))
    return file.getvalue()


def _animation(name: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(50)]
    return _encoded(frames[0], name, save_all=True, append_images=frames[1:])


NAME_TO_ODD_IMAGE: Mapping[str, Callable[[], bytes]] = {
    "100,000 x 1": lambda: _png(100_000, 1),
    "1 x 100,000": lambda: _png(1, 100_000),
    "65,500 x 1 JPEG": lambda: _encoded(Image.new("RGB", (65_500, 1)), "JPEG"),
    "40 million pixels": lambda: _png(8_000, 5_000),
    "too many pixels": lambda: _png(20_000, 5_000),
    "bomb of text": lambda: _png(
        4, 4, (b"zTXt", b"k\0\0" + zlib.compress(bytes(30_000_000)))
    ),
    "bomb of a profile": lambda: _png(
        4, 4, (b"iCCP", b"k\0\0" + zlib.compress(bytes(30_000_000)))
    ),
    "many chunks": lambda: _png(4, 4, *[(b"tEXt", b"k\0v")] * 5_000),
    "zip bomb": _zipped_bomb,
    "gzip": lambda: gzip.compress(bytes(30_000_000)),
    "GIF": lambda: _animation("GIF"),
    "animated PNG": lambda: _animation("PNG"),
    "animated WebP": lambda: _animation("WEBP"),
    "SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "nothing": lambda: b"",
    "NULs": lambda: bytes(1000),
    "only a JPEG's start": lambda: b"\xff\xd8\xff",
    "only a PNG's start and end": lambda: b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82",
    "only a WebP's start": lambda: b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    "many scans": lambda: scans_jpeg(6_000, 4_000, 800),
    "nested tar": lambda: _tar(_members([_images()[0]])),
}
_odd_image = functools.cache(lambda name: NAME_TO_ODD_IMAGE[name]())


def scans_jpeg(width: int, height: int, n_scans: int) -> bytes:
    """A gray progressive JPEG: each of its small scans passes over all blocks."""
    n_blocks = -(-width // 8) * -(-height // 8)
    parts = [
        b"\xff\xd8",
        _segment(0xDB, b"\0" + b"\1" * 64),
        _segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
        _segment(0xC4, b"\x00" + b"\1" + bytes(15) + b"\0"),  # the code 0: no change
        _segment(0xC4, b"\x10" + b"\1" + bytes(15) + b"\xe0"),  # the code 0: a run
        _scan(0, 0, 0, "0" * n_blocks),
    ]
    run = "0" + "1" * 14  # of 32,767 blocks without a coefficient
    runs = run * (n_blocks // 32_767)
    rest = n_blocks % 32_767
    tail = "0" + f"{rest - 16_384:014b}" if rest >= 16_384 else run
    for scan in range(n_scans):
        coefficient, bit = scan // 13 % 63 + 1, 13 - scan % 13
        high = 0 if bit == 13 else bit + 1
        parts.append(_scan(coefficient, high, bit, runs + tail))
    return b"".join(parts) + b"\xff\xd9"


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _scan(coefficient: int, high: int, low: int, bits: str) -> bytes:
    header = bytes([1, 1, 0, coefficient, coefficient, high << 4 | low])
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return _segment(0xDA, header) + data.replace(b"\xff", b"\xff\0")


# Bytes.


def _damaged(data: bytes, rng: Rng) -> bytes:
    """Cut off, with other bits, with bytes that are too many, missing or repeated."""
    start, stop = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    stop = min(stop, start + 2000)
    changes: Sequence[Callable[[], bytes]] = (
        lambda: data[:start],
        lambda: _flipped(data, rng, 1),
        lambda: _flipped(data, rng, 20),
        lambda: data[:start] + rng.bytes(stop - start) + data[stop:],
        lambda: data[:start] + bytes(stop - start) + data[stop:],
        lambda: data[:start] + data[stop:],
        lambda: data[:stop] + data[start:],
    )
    return changes[rng.integers(len(changes))]()


def _flipped(data: bytes, rng: Rng, n_bits: int) -> bytes:
    changed = bytearray(data)
    for position in rng.integers(0, len(data), n_bits):
        changed[position] ^= 1 << rng.integers(8)
    return bytes(changed)


# Tars.


def _member(name: str, data: bytes, **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def _members(images: Sequence[bytes], alt_text: bytes = ALT_TEXT) -> Members:
    found: Members = []
    for number, image in enumerate(images):
        url = json.dumps({"url": f"https://example.com/{number}"}).encode()
        found += [
            _member(f"{number:04d}.jpg", image),
            _member(f"{number:04d}.txt", alt_text),
            _member(f"{number:04d}.json", url),
        ]
    return found


def _tar(members: Members, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    options = {"encoding": "utf-8", "errors": "surrogateescape"}
    with tarfile.open(fileobj=file, mode="w", format=tar_format, **options) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return file.getvalue()


def _some_images(rng: Rng) -> list[bytes]:
    return [_images()[i] for i in rng.integers(0, len(_images()), N_PAIRS)]


def _damaged_tar(rng: Rng, folder: Path) -> Mutant:
    del folder
    data = _tar(_members(_some_images(rng)))
    if rng.random() < 0.3:
        return Mutant("tar with a wrong size", "tar", _resized(data, rng))
    return Mutant("damaged tar", "tar", _damaged(data, rng))


def _resized(data: bytes, rng: Rng) -> bytes:
    """Another size in some header, whose checksum is right."""
    changed = bytearray(data)
    blocks = range(0, len(data), _BLOCK_BYTES)
    headers = [i for i in blocks if data[i + 257 : i + 262] == b"ustar"]
    start = headers[rng.integers(len(headers))]
    sizes = (b"0" * 11, b"7" * 11, b"%011o" % rng.integers(1 << 20), b"-0000000001")
    size = [*(s + b"\0" for s in sizes), b"\x80" + b"\xff" * 11, b"\xff" * 12]
    changed[start + 124 : start + 136] = size[rng.integers(len(size))]
    changed[start + 148 : start + 156] = b" " * 8
    checksum = sum(changed[start : start + _BLOCK_BYTES])
    changed[start + 148 : start + 156] = b"%06o\0 " % checksum
    return bytes(changed)


def _odd_tar(rng: Rng, folder: Path) -> Mutant:
    images = _some_images(rng)
    kinds = list(_NAME_TO_ODD_TAR)
    kind = kinds[rng.integers(len(kinds))]
    data, n_more = _NAME_TO_ODD_TAR[kind](_members(images), folder)
    n_pairs = None if n_more is None else N_PAIRS + n_more
    return Mutant(kind, "tar", data, n_pairs)


def _outside(members: Members, folder: Path) -> tuple[bytes, int]:
    """Names that an unpacking would write to."""
    names = (f"{folder}/out", "../../out", "/../out", "./../out", "a/../../../out")
    for name in names:
        members += [_member(f"{name}.jpg", _images()[0]), _member(f"{name}.txt", b"x")]
    return _tar(members), len(names)


def _links(members: Members, folder: Path) -> tuple[bytes, int]:
    """Links, devices and folders are no pairs; what comes behind them is one."""
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    for kind in (*kinds, tarfile.DIRTYPE):
        info, _ = _member("link.jpg", b"", type=kind, linkname=f"{folder}/out")
        members.append((info, b""))
    members += [_member("link.jpg", _images()[0]), _member("link.txt", b"x")]
    return _tar(members), 1


def _duplicates(members: Members, folder: Path) -> tuple[bytes, int]:
    del folder
    return _tar(members + members), N_PAIRS


def _interleaved(members: Members, folder: Path) -> tuple[bytes, None]:
    """All images, then all texts."""
    del folder
    return _tar(sorted(members, key=lambda m: m[0].name.rpartition(".")[2])), None


def _huge_name(members: Members, folder: Path) -> tuple[bytes, None]:
    """A header of two MB."""
    del folder
    info, data = _member("n" * 2_000_000 + ".jpg", _images()[0])
    return _tar([*members, (info, data)], tarfile.GNU_FORMAT), None


def _long_names(members: Members, folder: Path) -> tuple[bytes, int]:
    del folder
    name = "long/" * 2_000 + "name"
    members += [_member(f"{name}.jpg", _images()[0]), _member(f"{name}.txt", b"x")]
    return _tar(members), 1


def _odd_names(members: Members, folder: Path) -> tuple[bytes, int]:
    del folder
    names = ("\udcff\udcfe", "a\nb", " ", "\u202e犬", "%00")
    for name in names:
        members += [_member(f"{name}.jpg", _images()[0]), _member(f"{name}.txt", b"x")]
    return _tar(members, tarfile.GNU_FORMAT), len(names)


def _joined(members: Members, folder: Path) -> tuple[bytes, int]:
    del folder
    return _tar(members) * 3, 2 * N_PAIRS


def _many_members(members: Members, folder: Path) -> tuple[bytes, int]:
    """Thousands of empty files without a key."""
    del folder
    return _tar([_member(f"m{i}", b"") for i in range(3_000)] + members), 0


def _compressed(members: Members, folder: Path) -> tuple[bytes, None]:
    del folder
    return gzip.compress(_tar(members)), None


_NAME_TO_ODD_TAR: Mapping[str, Callable[[Members, Path], tuple[bytes, int | None]]] = {
    "names outside": _outside,
    "links and devices": _links,
    "keys twice": _duplicates,
    "images, then texts": _interleaved,
    "huge header": _huge_name,
    "long names": _long_names,
    "odd names": _odd_names,
    "joined tars": _joined,
    "members without a key": _many_members,
    "compressed tar": _compressed,
    "no members": lambda members, folder: (_tar([]), -N_PAIRS),
}


# Pairs in sound shards, so that the number of pairs is known.


def _damaged_image(rng: Rng, folder: Path) -> Mutant:
    del folder
    images = [_damaged(image, rng) for image in _some_images(rng)]
    if rng.random() < 0.5:
        return Mutant("damaged images", "tar", _tar(_members(images)), N_PAIRS)
    data = _parquet_of({"jpg": images, "text": [ALT_TEXT] * N_PAIRS})
    return Mutant("damaged images", "parquet", data, N_PAIRS)


_ODD_TEXTS = (
    b"x" * 10_000_000,
    b"\0" * 100,
    b"lone \xed\xa0\x80 surrogate",
    b"\xf8\x88\x80\x80\x80",
    "\u202e\ufeff\u0000犬\U0001f415".encode(),
    ("e" + "\u0301" * 20_000).encode(),
    b"\n".join([b"line"] * 5_000),
    b"",
)
_ODD_METADATA = (
    b'{"url": "\\ud800", "robots": ["\\udfff"]}',
    b'{"url": ' + b"[" * 200_000,
    b'{"url": "' + b"u" * 2_000_000 + b'"}',
    b'{"url": 1e999, "robots": NaN}',
    b'{"url": ' + b"9" * 100_000 + b"}",
    b"\xff\xfe{}",
    b"null",
)


def _odd_pair(rng: Rng, folder: Path) -> Mutant:
    """An odd image, alt text or record among sound ones."""
    del folder
    images, texts = _some_images(rng), [ALT_TEXT] * N_PAIRS
    which = rng.integers(3)
    names = list(NAME_TO_ODD_IMAGE)
    kind = names[rng.integers(len(names))] if which == 0 else "odd text"
    if which == 0:
        images[1] = _odd_image(kind)
    elif which == 1:
        texts[1] = _ODD_TEXTS[rng.integers(len(_ODD_TEXTS))]
    else:
        kind = "odd record"
    if which < 2 and rng.random() < 0.3:
        data = _parquet_of({"jpg": images, "text": texts})
        return Mutant(kind, "parquet", data, N_PAIRS)
    members = _members(images)
    members[4] = _member("0001.txt", texts[1])
    if which == 2:
        record = _ODD_METADATA[rng.integers(len(_ODD_METADATA))]
        members[5] = _member("0001.json", record)
    return Mutant(kind, "tar", _tar(members), N_PAIRS)


# Parquet.


def _parquet_of(columns: Mapping[str, object], **options) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **{"row_group_size": 2} | options)
    return file.getvalue()


def _parquet(rng: Rng, folder: Path) -> Mutant:
    del folder
    columns = {"jpg": _some_images(rng), "text": [ALT_TEXT.decode()] * N_PAIRS}
    if rng.random() < 0.6:
        sound = _parquet_of(columns, compression=["none", "zstd"][rng.integers(2)])
        return Mutant("damaged Parquet", "parquet", _damaged(sound, rng))
    odd = _odd_columns(columns)
    kinds = list(odd)
    kind = kinds[rng.integers(len(kinds))]
    changed, n_pairs = odd[kind]
    is_plain = kind == "one large image many times"  # a schema would give its kind away
    data = _parquet_of(changed, store_schema=not is_plain, row_group_size=64)
    return Mutant(kind, "parquet", data, n_pairs)


def _odd_columns(columns: dict) -> dict[str, tuple[dict, int]]:
    """Kind to columns, and the rows that they make: one of a shard without images."""
    images, texts = columns["jpg"], columns["text"]
    structs = [{"bytes": image, "path": "../out"} for image in images]
    same = pa.DictionaryArray.from_arrays([0] * 64, pa.array([images[0] * 40_000]))
    return {
        "no image column": ({"text": texts}, 1),
        "no text column": ({"jpg": images}, N_PAIRS),
        "numbers for images": ({"jpg": [1, 2], "text": ["a", "b"]}, 1),
        "numbers for texts": ({"jpg": images, "text": [1.5] * N_PAIRS}, N_PAIRS),
        "lists of images": ({"jpg": [[i] for i in images], "text": texts}, 1),
        "structs of images": ({"image": structs, "text": texts}, N_PAIRS),
        "nulls": ({"jpg": [None] * 3 + images[:1], "text": [None] * 4}, N_PAIRS),
        "only nulls": ({"jpg": pa.nulls(4), "text": pa.nulls(4)}, 1),
        "no rows": ({"jpg": pa.array([], pa.binary()), "text": pa.array([], "str")}, 0),
        "one large image many times": ({"jpg": same, "text": ["a"] * 64}, 64),
        "dates for keys": ({**columns, "key": pa.array([1] * 4, "date32")}, N_PAIRS),
        "views": ({**columns, "jpg": pa.array(images, pa.binary_view())}, N_PAIRS),
    }
