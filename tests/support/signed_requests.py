"""Requests to object stores that share no code with the pipeline's way to them."""

import base64
import hashlib
import hmac
import urllib.parse
from collections.abc import Mapping
from email.utils import formatdate

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.credentials import Credentials
from botocore.httpsession import URLLib3Session

_AZURE_VERSION = "2021-12-02"
_SIGNED_HEADERS = ("Content-Encoding", "Content-Language", "Content-Length",
    "Content-MD5", "Content-Type", "Date", "If-Modified-Since", "If-Match",
    "If-None-Match", "If-Unmodified-Since", "Range")  # fmt: skip


def send(
    environment: Mapping[str, str],
    method: str,
    url: str,
    query: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> bytes:
    """The body of the answer, with the keys that are in `environment`.

    Args:
      url: of the object or the bucket; its path is quoted.

    Raises:
      RuntimeError: with the answer, if its status is none of 2xx.
    """
    query = dict(query or {})
    if "AZURE_STORAGE_CONNECTION_STRING" in environment:
        headers = _azure_headers(environment, method, url, query, body)
    elif "AWS_ACCESS_KEY_ID" in environment:
        headers = _s3_headers(environment, method, url, query, body)
    else:
        headers = {}
    if query:
        url = f"{url}?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"
    request = AWSRequest(method, url, headers, body)
    session = URLLib3Session(verify=environment.get("AWS_CA_BUNDLE", True))
    answer: AWSResponse = session.send(request.prepare())
    session.close()
    if answer.status_code >= 300:
        said = answer.content.decode(errors="replace")
        raise RuntimeError(f"{method} {url}: {answer.status_code} {said}")
    return answer.content


def _s3_headers(
    environment: Mapping[str, str],
    method: str,
    url: str,
    query: dict[str, str],
    body: bytes,
) -> dict[str, str]:
    keys = Credentials(
        environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    )
    request = AWSRequest(method, url, data=body, params=query)
    S3SigV4Auth(keys, "s3", environment["AWS_REGION"]).add_auth(request)
    return dict(request.headers)


def azure_account(environment: Mapping[str, str]) -> dict[str, str]:
    """The parts of a connection string, such as AccountName."""
    text = environment["AZURE_STORAGE_CONNECTION_STRING"]
    return dict(part.split("=", 1) for part in text.split(";") if part)


def _azure_headers(
    environment: Mapping[str, str],
    method: str,
    url: str,
    query: dict[str, str],
    body: bytes,
) -> dict[str, str]:
    """Microsoft's "Authorize with Shared Key"."""
    account = azure_account(environment)
    headers = {
        "Content-Length": str(len(body)) if body else "",
        "x-ms-blob-type": "BlockBlob",
        "x-ms-date": formatdate(usegmt=True),
        "x-ms-version": _AZURE_VERSION,
    }
    lines = [method, *(headers.get(name, "") for name in _SIGNED_HEADERS)]
    lines += [f"{name}:{headers[name]}" for name in headers if name.startswith("x-ms")]
    lines.append(f"/{account['AccountName']}{urllib.parse.urlsplit(url).path}")
    lines += [f"{name}:{query[name]}" for name in sorted(query)]
    key = base64.b64decode(account["AccountKey"])
    digest = hmac.new(key, "\n".join(lines).encode(), hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    headers["Authorization"] = f"SharedKey {account['AccountName']}:{signature}"
    headers["Content-Length"] = str(len(body))
    return headers
