"""One pair as it lies in its shard: its parts, and what is wrong with them."""

import dataclasses

from pipeline.config.curation import ImageTextSource, Limits
from pipeline.sources.recorded import Recorded
from pipeline.sources.tars import Member


@dataclasses.dataclass(frozen=True, slots=True)
class RawPair:
    """One pair before anything is decoded."""

    key: str = ""  # of the whole shard: ""
    url: str = ""
    image: bytes = b""  # encoded
    alt_text: bytes = b""  # UTF-8 as it is kept, unless `error` says otherwise
    offset: int = 0  # of the image: its byte in a tar, its row in a Parquet file
    error: str = ""  # why the pair cannot be read
    robots: str = ""  # directives of its owner, as they were recorded
    original_width: int = 0  # pixels, before any resizing; 0 if not recorded
    original_height: int = 0
    left_out: tuple[str, ...] = ()  # members of its key that were not taken

    @property
    def text(self) -> str:
        """The alt text; "" if it cannot be read."""
        try:
            return self.alt_text.decode()
        except UnicodeDecodeError:
            return ""


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one pair that a shard holds."""

    key: str
    image: Member | None
    alt_text: Member | None
    recorded: Recorded
    offset: int  # of the image, be it there or not
    absence: str = ""  # what is there instead of a part that is not
    left_out: tuple[str, ...] = ()

    def to_pair(self, source: ImageTextSource, limits: Limits) -> RawPair:
        """The pair, with the first thing that is wrong with it."""
        text, text_error = self._alt_text(limits)
        if not text and not text_error and source.needs_alt_text:
            text_error = self._describe_absence("alt text")
        recorded = self.recorded
        return RawPair(
            key=self.key,
            url=recorded.url,
            image=(self.image and self.image.data) or b"",
            alt_text=text,
            offset=self.offset,
            error=self._image_error(limits) or text_error,
            robots=recorded.robots,
            original_width=recorded.original_width,
            original_height=recorded.original_height,
            left_out=self.left_out,
        )

    def _image_error(self, limits: Limits) -> str:
        if self.image is None:
            return self._describe_absence("image")
        if self.image.error:
            return self.image.error
        if self.image.size == 0:
            return _add_reason("empty image", self.recorded.failure)
        if self.image.size > limits.max_image_bytes:
            bound = f"max_image_bytes={limits.max_image_bytes}"
            return f"image of {self.image.size} bytes: expected at most {bound}"
        return ""

    def _alt_text(self, limits: Limits) -> tuple[bytes, str]:
        """The alt text as it is kept, and what is wrong with it."""
        if self.alt_text is None:
            return b"", ""
        if self.alt_text.error:
            return b"", self.alt_text.error
        if self.alt_text.size > limits.max_alt_text_bytes:
            bound = f"max_alt_text_bytes={limits.max_alt_text_bytes}"
            size = self.alt_text.size
            return b"", f"alt text of {size} bytes: expected at most {bound}"
        data = self.alt_text.data or b""
        try:
            return plain_text(data).encode(), ""
        except UnicodeDecodeError as error:
            place = f"{error.reason} at byte {error.start}"
            return data, f"alt text is not {error.encoding.upper()}: {place}"

    def _describe_absence(self, part: str) -> str:
        return _add_reason(f"no {part}", self.recorded.failure or self.absence)


def _add_reason(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what


def plain_text(data: bytes) -> str:
    """The text that encoded bytes hold, without what is no part of it.

    UTF-8, or what a byte order mark says. Byte order marks, NULs and white space at the
    ends are left out; line ends become LF.
    """
    text = data.decode(_encoding(data)).replace("\0", "").replace("\ufeff", "")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _encoding(data: bytes) -> str:
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    return "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
