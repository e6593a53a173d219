"""Requests to S3 and Cloud Storage, and what each asks for."""

import dataclasses
import urllib.parse
from collections.abc import Mapping

from tests.support.quick_http import Headers

_MARKS = ("uploads", "delete", "partNumber", "uploadId")  # of a query
# Method, whether there is a key, and the mark.
OPERATIONS = {
    ("GET", False, ""): "list",
    ("HEAD", False, ""): "head_bucket",
    ("GET", False, "uploads"): "list_uploads",
    ("POST", False, "delete"): "delete_many",
    ("GET", True, ""): "get",
    ("HEAD", True, ""): "head",
    ("PUT", True, ""): "put",
    ("DELETE", True, ""): "delete",
    ("POST", True, "uploads"): "create_upload",
    ("PUT", True, "partNumber"): "put_part",
    ("POST", True, "uploadId"): "complete_upload",
    ("DELETE", True, "uploadId"): "abort_upload",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """One request; `operation` is what it asks for, such as "list", "get" or "put"."""

    method: str
    bucket: str
    key: str
    operation: str
    query: Mapping[str, str]
    headers: Headers  # names in small letters
    body: bytes = b""  # not kept in the record of a store

    @property
    def scheme(self) -> str:
        """The store that is spoken to: "gs" or "s3"."""
        is_google = self.headers.get("authorization", "").startswith("Bearer ")
        is_google = is_google or any(
            name.startswith("x-goog-") for name in self.headers
        )
        return "gs" if is_google else "s3"

    @property
    def copied_from(self) -> str:
        """The path of the object to copy, "" if there is none."""
        return self.headers.get("x-amz-copy-source") or self.headers.get(
            "x-goog-copy-source", ""
        )


def parse(method: str, target: str, headers: Headers, body: bytes) -> Request:
    """The request for a target such as `/bucket/key?query`."""
    path, _, text = target.partition("?")
    query = dict(urllib.parse.parse_qsl(text, keep_blank_values=True)) if text else {}
    bucket, _, key = urllib.parse.unquote(path.removeprefix("/")).partition("/")
    mark = next((mark for mark in _MARKS if mark in query), "")
    operation = OPERATIONS.get((method, bool(key), mark), "unknown")
    if (method, bucket, key) == ("POST", "token", ""):
        operation = "token"
    request = Request(method, bucket, key, operation, query, headers, body)
    if operation == "put" and request.copied_from:
        return dataclasses.replace(request, operation="copy")
    return request
