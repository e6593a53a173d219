"""Credentials and addresses of object stores, as their own tools find them.

In: flags, environment variables, profiles, metadata servers. Out: keyword arguments of
obstore's stores. Keys of the environment need no further library; profiles, single
sign-on and roles are read by botocore, Google's default credentials by google-auth.
"""

import datetime
import functools
import http.client
import os
import ssl
import threading
import typing
import urllib.error
import urllib.request

from pipeline.storage.object_errors import KEYS, CredentialsError
from pipeline.storage.object_urls import Bucket
from pipeline.storage.store_flags import flag

if typing.TYPE_CHECKING:
    import botocore.session

Config = dict[str, typing.Any]

_REGION_TIMEOUT_S = 2.0
_N_REGION_TRIES = 2
_REGION_HEADER = "x-amz-bucket-region"
# Keys are looked up again, not fetched again; botocore renews those that have less
# than ten minutes left.
_TOKEN_LIFE = datetime.timedelta(minutes=5)
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_S3_API_VERSION = "2006-03-01"  # the only one there is


def config_of(bucket: Bucket) -> Config:
    """The arguments of the class of obstore that reads a bucket.

    Raises:
      CredentialsError: if there are no keys, and no word that none are needed.
    """
    if bucket.scheme == "s3":
        return {"bucket": bucket.name, **s3_config(bucket.name)}
    if bucket.scheme == "gs":
        return {"bucket": bucket.name, **gcs_config()}
    return azure_config(bucket.name)


def s3_config(bucket: str) -> Config:
    """The arguments of `S3Store` for a bucket.

    Raises:
      CredentialsError: if there are no keys, and no AWS_SKIP_SIGNATURE either.
    """
    if flag("s3_api_version") not in (None, _S3_API_VERSION):
        version = flag("s3_api_version")
        raise ValueError(f"--s3_api_version={version}: expected {_S3_API_VERSION}")
    endpoint = _s3_endpoint()
    config: Config = {"region": _s3_region(bucket, endpoint), **_s3_keys()}
    if endpoint:
        config["endpoint"] = endpoint
    else:  # a dot in the host's name does not fit Amazon's certificate
        config["virtual_hosted_style_request"] = "." not in bucket
    return config | {"client_options": _s3_client_options(endpoint)}


def _s3_client_options(endpoint: str) -> Config:
    options: Config = {"allow_http": endpoint.startswith("http://")}
    bundle = s3_certificates()
    if bundle is False:
        return options | {"allow_invalid_certificates": True}
    if bundle is not True:
        with open(bundle, "rb") as file:
            options["root_certificate"] = file.read()
    return options


def s3_certificates() -> bool | str:
    """The file of certificates to trust; True is the system's, False trusts all."""
    given = flag("s3_verify")
    if given is None or str(given).lower() in ("true", "1"):
        return os.environ.get("AWS_CA_BUNDLE") or True
    return False if str(given).lower() in ("false", "0") else str(given)


def _s3_endpoint() -> str:
    """Where S3 is, "" for Amazon's own."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    found = flag("s3_endpoint_url") or _from_environment(*names)
    found = found or _profile().get("endpoint_url", "")
    if found and "://" not in found:
        scheme = "http" if flag("s3_disable_ssl") else "https"
        return f"{scheme}://{found}"
    return found


def _s3_region(bucket: str, endpoint: str) -> str:
    """The region that the store names for a bucket, else the one that is set."""
    host = endpoint.rstrip("/") or "https://s3.amazonaws.com"
    return (
        flag("s3_region_name")
        or _ask_for_region(f"{host}/{bucket}")
        or _from_environment("AWS_REGION", "AWS_DEFAULT_REGION")
        or _profile().get("region")
        or "us-east-1"
    )


def _ask_for_region(url: str) -> str:
    """S3 names the region of a bucket to everybody; "" where a server does not."""
    for _ in range(_N_REGION_TRIES):
        try:
            status, region = _head(url)
        except (OSError, ValueError, http.client.HTTPException):
            continue  # the first real request says what is wrong
        if region or status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            return region
    return ""


def _head(url: str) -> tuple[int, str]:
    """The status of a bucket for everybody, and its region if the store names it."""
    request = urllib.request.Request(url, method="HEAD")
    context = _tls_context() if url.startswith("https://") else None
    try:
        with urllib.request.urlopen(
            request, timeout=_REGION_TIMEOUT_S, context=context
        ) as answer:
            return answer.status, answer.headers.get(_REGION_HEADER, "")
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get(_REGION_HEADER, "")


def _tls_context() -> ssl.SSLContext:
    certificates = s3_certificates()
    if isinstance(certificates, str):
        return ssl.create_default_context(cafile=certificates)
    context = ssl.create_default_context()
    if not certificates:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _s3_keys() -> Config:
    if _is_set("AWS_SKIP_SIGNATURE"):
        return {"skip_signature": True}
    names = ("access_key_id", "secret_access_key", "session_token")
    given = {name: flag(f"s3_{name}") for name in names}
    if not given["access_key_id"]:
        given = {name: _from_environment(f"AWS_{name.upper()}") for name in names}
    if given["access_key_id"] and given["secret_access_key"]:
        return {name: value for name, value in given.items() if value}
    return {"credential_provider": _S3Credentials()}


def _profile() -> dict[str, typing.Any]:
    """The settings of the profile; {} where keys come from elsewhere.

    botocore takes 0.3 s to import.
    """
    if "credential_provider" not in _s3_keys():
        return {}
    return _aws_session().get_scoped_config()


class _S3Credentials:
    """Keys as botocore finds them, which renews those that expire."""

    def __init__(self) -> None:
        import botocore.exceptions

        try:
            self._credentials = _aws_session().get_credentials()
        except botocore.exceptions.BotoCoreError as error:
            raise CredentialsError(f"{error}") from error
        if self._credentials is None:
            raise CredentialsError(
                f"no credentials; set {KEYS['s3']}; public buckets need only"
                " AWS_SKIP_SIGNATURE=true"
            )

    def __call__(self) -> Config:
        keys = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": _soon(),
        }


@functools.cache
def _aws_session() -> "botocore.session.Session":
    import botocore.session

    return botocore.session.Session()


def gcs_config() -> Config:
    """The arguments of `GCSStore`, but for the bucket.

    Raises:
      CredentialsError: if there are none, and no GOOGLE_SKIP_SIGNATURE either.
    """
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator:
        url = emulator if "://" in emulator else f"http://{emulator}"
        options = {"allow_http": url.startswith("http://")}
        token = {"token": "emulator", "expires_at": None}
        return {
            "base_url": url.rstrip("/"),
            "credential_provider": lambda: token,
            "client_options": options,
        }
    if flag("no_auth") or _is_set("GOOGLE_SKIP_SIGNATURE"):
        return {"skip_signature": True}
    credentials = _GoogleCredentials()
    headers = {}
    if credentials.paying_project:
        headers["x-goog-user-project"] = credentials.paying_project
    return {
        "credential_provider": credentials,
        "client_options": {"default_headers": headers},
    }


def expect_keys_to_write(client: typing.Any) -> None:
    """obstore signs what it writes to Cloud Storage, and would look for keys for long.

    Raises:
      CredentialsError: if a client of Cloud Storage is to do without keys.
    """
    is_google = type(client).__name__ == "GCSStore"
    if is_google and client.config.get("skip_signature") == "true":
        raise CredentialsError(f"expected credentials to write; set {KEYS['gs']}")


class _GoogleCredentials:
    """Tokens of Google's default credentials, impersonated where a flag asks for it."""

    def __init__(self) -> None:
        import google.auth
        import google.auth.exceptions
        import google.auth.impersonated_credentials
        import google.auth.transport.requests

        self._lock = threading.Lock()
        self._request = google.auth.transport.requests.Request()
        try:
            self._credentials, _ = google.auth.default([_GOOGLE_SCOPE])
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise CredentialsError(
                f"no credentials; set {KEYS['gs']}; public buckets need only"
                " GOOGLE_SKIP_SIGNATURE=true"
            ) from error
        if accounts := flag("impersonate_service_account"):
            *delegates, target = accounts.split(",")
            self._credentials = google.auth.impersonated_credentials.Credentials(
                self._credentials, target, [_GOOGLE_SCOPE], delegates
            )

    @property
    def paying_project(self) -> str:
        """The project that is billed for buckets whose requester pays, or ""."""
        found = os.environ.get("GOOGLE_CLOUD_QUOTA_PROJECT")
        return found or getattr(self._credentials, "quota_project_id", None) or ""

    def __call__(self) -> Config:
        with self._lock:
            if not self._credentials.valid:
                self._credentials.refresh(self._request)
            expiry = self._credentials.expiry
        expires_at = expiry.replace(tzinfo=datetime.UTC) if expiry else _soon()
        return {"token": self._credentials.token, "expires_at": expires_at}


def azure_config(container: str) -> Config:
    """The arguments of `AzureStore` for `CONTAINER` or `CONTAINER@ACCOUNT...`.

    What a connection string does not say, the library reads from AZURE_STORAGE_...
    """
    name, _, account = container.partition("@")
    text = flag("azure_connection_string") or os.environ.get(
        "AZURE_STORAGE_CONNECTION_STRING", ""
    )
    parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    endpoint = flag("blob_service_endpoint") or parts.get("BlobEndpoint", "")
    config = {
        "container_name": name,
        "account_name": account.partition(".")[0] or parts.get("AccountName"),
        "account_key": parts.get("AccountKey"),
        "sas_key": parts.get("SharedAccessSignature"),
        "endpoint": endpoint.rstrip("/"),
        "client_id": flag("azure_managed_identity_client_id"),
    }
    given: Config = {name: value for name, value in config.items() if value}
    if not given.get("account_name") and not _from_environment(
        "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME"
    ):
        raise CredentialsError(f"no account; set {KEYS['az']}")
    options = {"allow_http": endpoint.startswith("http://")}
    return given | {"client_options": options}


def _soon() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + _TOKEN_LIFE


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def _from_environment(*names: str) -> str:
    return next(filter(None, map(os.environ.get, names)), "")
