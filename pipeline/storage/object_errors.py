"""Errors of object stores as one line: what was refused, where, and what to set.

In: what obstore raises, with the answer of the server in its text. Out: an OSError
without secrets, and without the server's page of XML.
"""

import contextlib
import dataclasses
import errno
import os
import re
import time
from collections.abc import Iterator

from pipeline.storage import object_urls
from pipeline.storage.obstore_library import obstore
from pipeline.storage.retries import PassingError

_STATUS = re.compile(r"non-2xx status code: (\d+)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REGION = re.compile(r"<Region>([-\w]+)</Region>")
_ACTION = re.compile(r"\b(list|bulk delete|DeleteObjects|GET|HEAD|PUT|POST|DELETE)\b")
_DENIED = "code: AccessDenied"  # for one of many deleted objects
_WORD_TO_ACTION = {
    "list": "list",
    "bulk delete": "delete",
    "DeleteObjects": "delete",
    "GET": "read",
    "HEAD": "read",
    "PUT": "write",
    "POST": "write",
    "DELETE": "delete",
}
# Answers that a second request may not get: of a busy server, of an upload that is
# complete though its answer was lost, of a body that arrived in part.
_PASSING_STATUS = re.compile(r"400|408|409|416|429|5\d\d")
_PASSING_CODES = ("NoSuchUpload", "InvalidBlockList")
_PATIENCE_S = 60.0  # an error that took longer has had the library's own retries
_FROM_PROVIDER = re.compile(r"credential provider: \w+: (.*)")

KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default"
    " login",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and"
    " AZURE_STORAGE_ACCOUNT_KEY",
}
_ENDPOINT = {
    "s3": "AWS_ENDPOINT_URL or --s3_endpoint_url",
    "gs": "STORAGE_EMULATOR_HOST",
    "az": "BlobEndpoint in AZURE_STORAGE_CONNECTION_STRING",
}
_CERTIFICATES = {
    "s3": "AWS_CA_BUNDLE or --s3_verify",
    "gs": "SSL_CERT_FILE",
    "az": "SSL_CERT_FILE",
}


class StoreError(OSError):
    """A store that does not do what was asked; the message names the place."""


class NotAllowedError(StoreError, PermissionError):
    """What the keys, which are right, do not allow."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class BrokenError(StoreError, PassingError):
    """An answer that did not arrive as a whole, or says nothing about the request."""


class CredentialsError(StoreError):
    """Keys that are missing, wrong or out of date."""


@dataclasses.dataclass(frozen=True)
class _Reason:
    """What is wrong and, with {keys} and the like, what to set."""

    text: str
    kind: type[OSError] = StoreError


_CODE_TO_REASON = {
    "NoSuchBucket": _Reason("no such bucket; expected one that exists"),
    "ContainerNotFound": _Reason("no such container; expected one that exists"),
    "InvalidAccessKeyId": _Reason(
        "the store does not know the access key; set {keys}", CredentialsError
    ),
    "SignatureDoesNotMatch": _Reason(
        "the secret key is not that of the access key; set {keys}", CredentialsError
    ),
    "AuthenticationFailed": _Reason(
        "the store refuses the account key; set {keys}", CredentialsError
    ),
    "AuthenticationRequired": _Reason("credentials are needed; set {keys}"),
    "ExpiredToken": _Reason(
        "the session token has expired; sign in again, or set {keys}", CredentialsError
    ),
    "InvalidToken": _Reason(
        "the store refuses the session token; set {keys}", CredentialsError
    ),
    "RequestTimeTooSkewed": _Reason(
        "the clock of this machine differs from the store's; set the clock"
    ),
    "UserProjectMissing": _Reason(
        "the requester pays for this bucket; set GOOGLE_CLOUD_QUOTA_PROJECT"
    ),
    "SlowDown": _Reason("the store still says SlowDown after all retries"),
}
_REGION_CODES = ("AuthorizationHeaderMalformed", "PermanentRedirect")
# What the library says where no server answered, as far as it can be told apart.
_SIGN_TO_REASON = {
    "dns error": _Reason("the name of the server does not resolve; set {endpoint}"),
    "ConnectionRefused": _Reason("nobody listens there; set {endpoint}"),
    "InvalidCertificate": _Reason("the certificate does not fit; set {certificates}"),
    "InvalidContentType": _Reason(
        "the server speaks no TLS; set {endpoint} to http://"
    ),
    "TimedOut": _Reason("the server does not answer; set {endpoint}"),
    "ConnectionReset": _Reason("the connection is cut", BrokenError),
    "IncompleteMessage": _Reason("the connection is cut", BrokenError),
    "TokenRequest": _Reason("no credentials; set {keys}", CredentialsError),
    "without LOCATION": _Reason("the region is wrong; set AWS_REGION"),
}


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """An error of the block becomes an OSError that names the place.

    Raises:
      FileNotFoundError: if there is no such object.
      PermissionError: if the keys are right but do not allow it.
      CredentialsError: if keys are missing or wrong.
      StoreError: for everything else; a BrokenError if the call may be made again.
    """
    start_s = time.monotonic()
    try:
        yield
    except (obstore().exceptions.BaseError, FileNotFoundError) as error:
        found = translate(url, error)
        if isinstance(found, BrokenError) and time.monotonic() > start_s + _PATIENCE_S:
            found = StoreError(str(found))
        raise found from None  # the original has pages of text
    except CredentialsError as error:  # found before any request
        said = " ".join(str(error).split())  # a program's own words may have lines
        raise CredentialsError(f"{url}: {said}") from None
    except ValueError as error:
        raise ValueError(f"{url}: {str(error).splitlines()[0]}") from None


def is_behind_end(error: Exception) -> bool:
    """Whether a range was refused since the object has no byte of it."""
    return _find(_STATUS, str(error)) == "416"


def translate(url: str, error: Exception) -> OSError:
    """The OSError of one line for an error of the library."""
    text = str(error)
    code = _find(_CODE, text)
    if code in _CODE_TO_REASON:
        return _make(url, _CODE_TO_REASON[code])
    if code in _REGION_CODES:
        region = _find(_REGION, text)
        named = f"set AWS_REGION={region}" if region else "set AWS_REGION"
        return StoreError(f"{url}: the region is wrong; {named}")
    if code in _PASSING_CODES:
        return BrokenError(f"{url}: the store does not know the upload any more")
    if isinstance(error, obstore().exceptions.PreconditionError):
        return StoreError(f"{url}: has changed while it was read")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    status = _find(_STATUS, text)
    denied = obstore().exceptions.PermissionDeniedError
    if status == "403" or _DENIED in text or isinstance(error, denied):
        action = _WORD_TO_ACTION.get(_find(_ACTION, text), "do this")
        said = f"not allowed to {action}; give the keys this right, or set {{keys}}"
        return NotAllowedError(errno.EACCES, _fill_in(url, said), url)
    if said := _find(_FROM_PROVIDER, text.partition("\n")[0]):
        return CredentialsError(f"{url}: {said}")
    if status == "401":
        return _make(url, _CODE_TO_REASON["AuthenticationRequired"])
    for sign, reason in _SIGN_TO_REASON.items():
        if sign in text:
            return _make(url, reason)
    answered = f"HTTP status {status} {code}".strip() if status else ""
    may_pass = not status or _PASSING_STATUS.fullmatch(status)
    kind = BrokenError if may_pass else StoreError
    return kind(f"{url}: {answered or _first_sentence(text)}")


def _find(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _make(url: str, reason: _Reason) -> OSError:
    return reason.kind(f"{url}: {_fill_in(url, reason.text)}")


def _fill_in(url: str, text: str) -> str:
    """The text with what to set for this store."""
    scheme = object_urls.parse(url)[0].scheme
    return text.format(
        keys=KEYS[scheme],
        endpoint=_ENDPOINT[scheme],
        certificates=_CERTIFICATES[scheme],
    )


def _first_sentence(text: str) -> str:
    """Without the debug output and the answer of the server, which may be long."""
    return text.partition("\n")[0].partition(": <")[0][:300]
