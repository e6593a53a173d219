"""What a request asks of an object store, told from its method, path and headers.

S3 and the XML API of Cloud Storage name things alike; Azure has names of its own.
"""

import urllib.parse
from collections.abc import Mapping

# (method, what the query holds) to the operation; the first that fits.
_S3_OBJECT = (
    ("PUT", "partNumber", "upload_part"),
    ("POST", "uploads", "create_upload"),
    ("POST", "uploadId", "complete_upload"),
    ("DELETE", "uploadId", "abort_upload"),
    ("GET", "uploadId", "list_parts"),
)
_S3_BUCKET = (
    ("GET", "uploads", "list_uploads"),
    ("POST", "delete", "delete_many"),
    ("GET", "", "list"),
)
_AZURE = (
    ("PUT", "comp=block", "upload_part"),
    ("PUT", "comp=blocklist", "complete_upload"),
    ("GET", "comp=blocklist", "list_parts"),
    ("GET", "comp=list", "list"),
    ("POST", "comp=batch", "delete_many"),
)
_PLAIN = {"GET": "get", "HEAD": "head", "PUT": "put", "DELETE": "delete"}


def name_operation(
    scheme: str, method: str, target: str, headers: Mapping[str, str]
) -> tuple[str, str]:
    """The operation, such as "get_range", and the key, of a listing its prefix.

    Args:
      target: path and query, as they stand in the request.
      headers: with names in lower case.
    """
    path, _, query_text = target.partition("?")
    query = dict(urllib.parse.parse_qsl(query_text, keep_blank_values=True))
    key = _key(scheme, path) or query.get("prefix", "")
    if scheme == "az":
        known = _AZURE
    else:
        known = _S3_OBJECT if _key(scheme, path) else _S3_BUCKET
    facts = {"", *query, *(f"{name}={value}" for name, value in query.items())}
    for known_method, fact, operation in known:
        if method == known_method and fact in facts:
            return operation, key
    if path.startswith("/batch/"):  # of Cloud Storage
        return "delete_many", ""
    if method == "GET" and ("range" in headers or "x-ms-range" in headers):
        return "get_range", key
    if "x-amz-copy-source" in headers or "x-ms-copy-source" in headers:
        return "copy", key
    return _PLAIN.get(method, method.lower()), key


def _key(scheme: str, path: str) -> str:
    """Without the bucket, and on Azure without the account before it."""
    n_before = 2 if scheme == "az" else 1
    parts = path.removeprefix("/").split("/", n_before)
    return urllib.parse.unquote(parts[n_before]) if len(parts) > n_before else ""
