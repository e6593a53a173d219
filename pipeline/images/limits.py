"""Bounds on what a pair may cost."""

import dataclasses

from recipes.settings import Settings
from recipes.validation import expect


@dataclasses.dataclass(frozen=True)
class Limits(Settings):
    """Bounds on one pair; what lies outside is unreadable, with the bound named."""

    max_pixels: int = 89_478_485  # Pillow's own bound against decompression bombs
    max_image_bytes: int = 64 << 20  # encoded
    max_alt_text_bytes: int = 64 << 10  # of UTF-8

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            expect(value >= 1, field.name, value, "at least 1")


DEFAULT_LIMITS = Limits()
