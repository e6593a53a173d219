"""What a listing says about one file."""

from typing import NamedTuple


class FileFacts(NamedTuple):
    """Size, time and version of a file of any file system."""

    path: str
    n_bytes: int
    updated_s: float  # Unix time; 0 where the file system does not say
    version: str  # differs when the contents do, as far as the file system knows

    @property
    def mark(self) -> str:
        """Size and version as one text, which names what was made of the file."""
        return f"{self.n_bytes} bytes of {self.version}"
