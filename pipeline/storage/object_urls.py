"""The parts of a URL in an object store, and which store it names."""

import dataclasses
import re

# Each store under the spellings that tools use for it.
_SPELLING_TO_SCHEME = {
    "s3": "s3",
    "s3a": "s3",
    "s3n": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "azure": "az",
    "abfs": "az",
    "abfss": "az",
}
_URL = re.compile(r"(?s)(?P<scheme>[a-zA-Z][-a-zA-Z0-9+.]*)://(?P<rest>.*)")


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A bucket of S3 or Cloud Storage, or a container of Azure."""

    scheme: str  # "s3", "gs" or "az"
    name: str
    spelling: str = dataclasses.field(compare=False)  # of the scheme, such as "s3a"

    def url(self, key: str) -> str:
        """The URL of an object, with the scheme as it was spelled."""
        return f"{self.spelling}://{self.name}/{key}"


def scheme_of(path: str) -> str | None:
    """The scheme that a path begins with, such as "gs"; None for a local path."""
    found = _URL.fullmatch(path)
    return found["scheme"] if found else None


def is_object_url(path: str) -> bool:
    """Whether a path is in S3, Cloud Storage or Azure."""
    return (scheme_of(path) or "").lower() in _SPELLING_TO_SCHEME


def parse(url: str) -> tuple[Bucket, str]:
    """The bucket and the key of `SCHEME://BUCKET/KEY`; the key has no slash at its end.

    `abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY` keeps its account in the name.

    Raises:
      ValueError: if there is no bucket, or the key has an empty name, `.` or `..`.
    """
    found = _URL.fullmatch(url)
    if not found:
        raise ValueError(f"{url}: expected SCHEME://BUCKET/KEY")
    name, _, key = found["rest"].partition("/")
    if not name:
        raise ValueError(f"{url}: expected {found['scheme']}://BUCKET/KEY")
    key = key.removesuffix("/")
    if key and {"", ".", ".."} & set(key.split("/")):
        raise ValueError(f"{url}: expected no `//`, `.` or `..` inside the key")
    spelling = found["scheme"]
    return Bucket(_SPELLING_TO_SCHEME[spelling.lower()], name, spelling), key
