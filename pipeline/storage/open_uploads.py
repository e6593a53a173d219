"""Uploads in parts that a killed process left open: stores bill them, and hide them.

In: a folder of S3 or Cloud Storage. Out: how many were ended. obstore has no call for
it. Azure drops such parts by itself after a week.
"""

import typing
import urllib.parse
import xml.etree.ElementTree
from collections.abc import Iterator

import requests
import requests.adapters
import urllib3.util

from pipeline.storage import credentials, object_urls
from pipeline.storage.object_errors import BrokenError, StoreError
from pipeline.storage.object_urls import Bucket
from pipeline.storage.retries import retry

_TIMEOUT_S = 30.0
# A server that is away is waited for two minutes.
_RETRIES = urllib3.util.Retry(
    total=14,
    backoff_factor=0.1,
    backoff_max=15,
    allowed_methods=None,  # all of them: each may be sent twice
    status_forcelist=(429, 500, 502, 503, 504),
    raise_on_status=False,
)
_GOOGLE_URL = "https://storage.googleapis.com"


def abort(folder: str) -> int:
    """Ends all uploads below a folder; returns their number.

    Raises:
      OSError: if the store does not allow it.
    """
    bucket, prefix = object_urls.parse(folder)
    if bucket.scheme == "az":
        return 0
    config = credentials.config_of(bucket)
    if config.get("skip_signature"):
        return 0  # who may not write has begun nothing
    n_aborted = 0
    for key, upload in list(_list(bucket, config, f"{prefix}/" if prefix else "")):
        _send("DELETE", bucket, config, key, {"uploadId": upload})
        n_aborted += 1
    return n_aborted


def _list(
    bucket: Bucket, config: credentials.Config, prefix: str
) -> Iterator[tuple[str, str]]:
    """Keys and ids of uploads, which come in pages."""
    query = {"uploads": "", "prefix": prefix}
    while True:
        page = xml.etree.ElementTree.fromstring(_send("GET", bucket, config, "", query))
        for upload in page.findall("{*}Upload"):
            yield _text(upload, "Key"), _text(upload, "UploadId")
        if _text(page, "IsTruncated") != "true":
            return
        query["key-marker"] = _text(page, "NextKeyMarker")
        query["upload-id-marker"] = _text(page, "NextUploadIdMarker")


def _text(element: xml.etree.ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}", "")


@retry
def _send(
    method: str,
    bucket: Bucket,
    config: credentials.Config,
    key: str,
    query: dict[str, str],
) -> bytes:
    root = config.get("endpoint") or config.get("base_url")
    if not root and bucket.scheme == "s3":
        root = f"https://s3.{config['region']}.amazonaws.com"
    path = urllib.parse.quote(f"{bucket.name}/{key}".rstrip("/"))
    # botocore signs blanks as %20, and so they must be sent.
    encoded = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
    url = f"{root or _GOOGLE_URL}/{path}?{encoded}"
    try:
        answer = _session().request(
            method,
            url,
            headers=_signed_headers(method, url, bucket, config),
            timeout=_TIMEOUT_S,
            verify=credentials.s3_certificates() if bucket.scheme == "s3" else True,
        )
    except (
        requests.exceptions.ChunkedEncodingError,
        requests.exceptions.ContentDecodingError,
    ) as error:
        raise BrokenError(f"{bucket.url(key)}: the connection is cut") from error
    except requests.RequestException as error:
        raise StoreError(f"{bucket.url(key)}: the server does not answer") from error
    if not answer.ok and answer.status_code != requests.codes.not_found:
        raise StoreError(f"{bucket.url(key)}: HTTP status {answer.status_code}")
    return answer.content


def _session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=_RETRIES))
    return session


def _signed_headers(
    method: str, url: str, bucket: Bucket, config: credentials.Config
) -> dict[str, str]:
    if bucket.scheme == "gs":
        token = config["credential_provider"]()["token"]
        own = config.get("client_options", {}).get("default_headers", {})
        return {"Authorization": f"Bearer {token}", **own}
    return _s3_headers(method, url, config)


def _s3_headers(
    method: str, url: str, config: typing.Mapping[str, typing.Any]
) -> dict[str, str]:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    provider = config.get("credential_provider")
    keys = provider() if provider else config
    token = keys.get("token") or keys.get("session_token")
    signer = S3SigV4Auth(
        Credentials(keys["access_key_id"], keys["secret_access_key"], token),
        "s3",
        config["region"],
    )
    request = AWSRequest(method, url)
    signer.add_auth(request)
    return dict(request.headers.items())
