"""The format of a file by its first bytes."""

import re

JPEG, PNG, WEBP, BMP, GIF, TIFF = "JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF"

_SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"\xff\xd8\xff", JPEG),
        (rb"\x89PNG\r\n\x1a\n", PNG),
        (rb"RIFF....WEBP", WEBP),
        (rb"GIF8[79]a", GIF),
        (rb"BM.{4}\0\0\0\0", BMP),
        (rb"II[*+]\0|MM\0[*+]", TIFF),
        (rb"....ftypavi[fs]", "AVIF"),
        (rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", "HEIC"),
        (rb"....ftypjp[2mx]|\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
        (rb"II\xbc\x01", "JPEG XR"),
        (rb"8BPS", "Photoshop"),
        (rb"\0\0\x01\0.\0", "ICO"),
        (rb"P[1-7]\s", "Netpbm"),
    )
)
_OTHERS = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), name)
    for pattern, name in (
        (rb"<!doctype html|<(?:html|head|body|script|title|meta|div|p)\b", "HTML page"),
        (rb".*<svg\b", "SVG drawing"),
        (rb".*<html\b", "HTML page"),
        (rb"<\?xml|<!--|<[a-z]+\b", "XML text"),
        (rb"[{\[]\s*[\"{\[\]}]", "JSON text"),
        (rb"%PDF-", "PDF document"),
        (rb"%!PS", "PostScript document"),
        (rb"....ftyp|\x1a\x45\xdf\xa3", "video"),
        (rb"PK\x03\x04", "zip archive"),
        (rb"\x1f\x8b", "gzip archive"),
    )
)
_TEXT_BYTES = 1024  # looked at


def name_of(data: bytes) -> str:
    """The name of an image format, as "JPEG"; "" if it is none of those known."""
    return next((name for form, name in _SIGNATURES if form.match(data)), "")


def describe(data: bytes) -> str:
    """Describes a file for a message, such as "PDF document"."""
    if name := name_of(data):
        return f"{name} image"
    start = data[:_TEXT_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    found = (name for form, name in _OTHERS if form.match(start))
    return next(found, f"starts with {data[:8]!r}")
