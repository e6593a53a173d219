"""Real object stores on this machine.

versitygw serves `s3://`, fake-gcs-server `gs://`, Azurite `az://`;
`make .engines/installed` brings them. The helpers at the end look into a store without
the code under test.
"""

import contextlib
import dataclasses
import itertools
import json
import tempfile
import urllib.parse
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import certificates
from tests.support.server_processes import ServerProcess, free_port
from tests.support.signed_requests import send

ENGINES = Path(__file__).parents[2] / ".engines"
_VERSITYGW = ENGINES / "versitygw"
_GCS_SERVER = ENGINES / "gcs-server"
_AZURITE = ENGINES / "node_modules" / ".bin" / "azurite-blob"
_ADMIN = "administrator"
_AZURE_ACCOUNT = "devstoreaccount1"  # Azurite's own, in its documentation
_AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeks"
    "oGMGw=="
)
# What users of S3 may do with objects, and with the bucket.
_S3_USERS = {
    "reader": (("s3:GetObject",), ("s3:ListBucket",)),
    "writer": (("s3:PutObject",), ()),
    "not_lister": (("s3:GetObject", "s3:PutObject", "s3:DeleteObject"), ()),
}


@dataclasses.dataclass(frozen=True)
class Server:
    """A store with one bucket.

    Attributes:
      url: the endpoint.
      environment: the variables that lead a process there, as one who may do all.
      users: the variables of others by name. S3: "reader", "writer" and "not_lister",
        who may do only that, and "anonymous", who may read `bucket`-public.
    """

    scheme: str
    bucket: str
    url: str
    environment: dict[str, str]
    process: ServerProcess
    users: Mapping[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    def start(self) -> None:
        """Starts it again, on the same port and data."""
        self.process.start()

    def stop(self) -> None:
        """Ends it, so that connections are refused."""
        self.process.stop()


@contextlib.contextmanager
def start_s3(region: str = "us-east-1", is_tls: bool = False) -> Iterator[Server]:
    """versitygw with `s3://bucket` and the readable `s3://bucket-public`.

    Args:
      is_tls: with a certificate of its own, which AWS_CA_BUNDLE names.
    """
    _require(_VERSITYGW, "Go")
    port = free_port()
    url = f"{'https' if is_tls else 'http'}://127.0.0.1:{port}"
    environment = {"AWS_ENDPOINT_URL": url, "AWS_REGION": region}
    options = ["--keep-alive", "--quiet", "--region", region]
    options += ["--port", f"127.0.0.1:{port}"]
    options += ["--access", _ADMIN, "--secret", _secret(_ADMIN)]
    with tempfile.TemporaryDirectory(prefix="s3-") as name:
        folder = Path(name)
        if is_tls:
            certificate, key = certificates.write(folder)
            options += ["--cert", str(certificate), "--key", str(key)]
            environment["AWS_CA_BUNDLE"] = str(certificate)
        command = [str(_VERSITYGW), *options, *_s3_folders(folder)]
        process = ServerProcess(command, port, folder / "log")
        users = {user: environment | _s3_keys(user) for user in _S3_USERS}
        users["anonymous"] = environment | {"AWS_SKIP_SIGNATURE": "true"}
        administrator = environment | _s3_keys(_ADMIN)
        server = Server("s3", "s3://bucket", url, administrator, process, users)
        with _running(process):
            _make_s3_buckets(server)
            yield server


@contextlib.contextmanager
def start_gcs() -> Iterator[Server]:
    """fake-gcs-server with `gs://bucket`, completed by the program in `gcs_server`.

    It asks for no credentials. Uploads that are open do not outlive a stop.
    """
    _require(_GCS_SERVER, "Go")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="gcs-") as name:
        options = ["-address", f"127.0.0.1:{port}", "-folder", f"{name}/data"]
        process = ServerProcess([str(_GCS_SERVER), *options], port, Path(name) / "log")
        environment = {"STORAGE_EMULATOR_HOST": url}
        with _running(process):
            send(environment, "POST", f"{url}/storage/v1/b", body=b'{"name": "bucket"}')
            yield Server("gs", "gs://bucket", url, environment, process)


@contextlib.contextmanager
def start_azure() -> Iterator[Server]:
    """Azurite with `az://bucket`."""
    _require(_AZURITE, "npm")
    port = free_port()
    url = f"http://127.0.0.1:{port}/{_AZURE_ACCOUNT}"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={_AZURE_ACCOUNT};"
        f"AccountKey={_AZURE_KEY};BlobEndpoint={url};"
    )
    with tempfile.TemporaryDirectory(prefix="azure-") as name:
        options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        options += ["--blobPort", str(port), "--location", name]
        process = ServerProcess([str(_AZURITE), *options], port, Path(name) / "log")
        environment = {"AZURE_STORAGE_CONNECTION_STRING": connection}
        with _running(process):
            send(environment, "PUT", f"{url}/bucket", {"restype": "container"})
            yield Server("az", "az://bucket", url, environment, process)


def _require(program: Path, tool_chain: str) -> None:
    if not program.exists():
        pytest.skip(
            f"{program.name} is missing: install {tool_chain}, then run"
            " `make .engines/installed`"
        )


@contextlib.contextmanager
def _running(process: ServerProcess) -> Iterator[None]:
    process.start()
    try:
        yield
    finally:
        process.stop()


def _secret(user: str) -> str:
    return f"secret-of-{user}"


def _s3_keys(user: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": _secret(user)}


def _s3_folders(folder: Path) -> list[str]:
    """The options that keep objects, their attributes and the users in `folder`."""
    iam, data, sidecar = (folder / name for name in ("iam", "data", "sidecar"))
    for path in (iam, data, sidecar):
        path.mkdir()
    accounts = {
        user: {"access": user, "secret": _secret(user), "role": "user"}
        for user in _S3_USERS
    }
    (iam / "users.json").write_text(json.dumps({"accessAccounts": accounts}))
    return ["--iam-dir", str(iam), "posix", "--sidecar", str(sidecar), str(data)]


def _make_s3_buckets(server: Server) -> None:
    own = [_allow("bucket", user, *actions) for user, actions in _S3_USERS.items()]
    everybody = _allow("bucket-public", "*", ("s3:GetObject",), ("s3:ListBucket",))
    for bucket, allowed in (("bucket", own), ("bucket-public", [everybody])):
        url = f"{server.url}/{bucket}"
        send(server.environment, "PUT", url)
        statements = list(itertools.chain(*allowed))
        policy = {"Version": "2012-10-17", "Statement": statements}
        body = json.dumps(policy).encode()
        send(server.environment, "PUT", url, {"policy": ""}, body)


def _allow(
    bucket: str, user: str, on_objects: tuple[str, ...], on_bucket: tuple[str, ...]
) -> list[dict[str, object]]:
    resource = f"arn:aws:s3:::{bucket}"
    parts = ((on_objects, f"{resource}/*"), (on_bucket, resource))
    return [
        {"Effect": "Allow", "Principal": user, "Action": actions, "Resource": place}
        for actions, place in parts
        if actions
    ]


def list_objects(server: Server, prefix: str = "") -> dict[str, int]:
    """Key to bytes of all objects of the bucket."""
    if server.scheme == "az":
        return _azure_blobs(server, prefix)
    query = {"list-type": "2", "prefix": prefix}
    found: dict[str, int] = {}
    while True:
        page = _get(server, query)
        found |= {
            entry.findtext("Key", ""): int(entry.findtext("Size", ""))
            for entry in page.iter("Contents")
        }
        if token := page.findtext("NextContinuationToken"):
            query["continuation-token"] = token
        else:
            return found


def open_uploads(server: Server) -> list[str]:
    """Keys of multipart uploads that are neither completed nor aborted.

    On Azure: of blobs of which only blocks are there.
    """
    if server.scheme == "az":
        uncommitted = _azure_blobs(server, "", include="uncommittedblobs")
        return sorted(uncommitted.keys() - _azure_blobs(server, "").keys())
    uploads = _get(server, {"uploads": ""}).iter("Upload")
    return sorted(upload.findtext("Key", "") for upload in uploads)


def _azure_blobs(server: Server, prefix: str, **query: str) -> dict[str, int]:
    query |= {"restype": "container", "comp": "list", "prefix": prefix}
    found: dict[str, int] = {}
    while True:
        page = _get(server, query)
        found |= {
            entry.findtext("Name", ""): int(entry.findtext(".//Content-Length", ""))
            for entry in page.iter("Blob")
        }
        if marker := page.findtext("NextMarker"):
            query["marker"] = marker
        else:
            return found


def _get(server: Server, query: Mapping[str, str]) -> xml.etree.ElementTree.Element:
    """An answer about the bucket, its names without namespaces."""
    bucket = urllib.parse.urlsplit(server.bucket).netloc
    text = send(server.environment, "GET", f"{server.url}/{bucket}", query)
    page = xml.etree.ElementTree.fromstring(text)
    for element in page.iter():
        element.tag = element.tag.rpartition("}")[2]
    return page
