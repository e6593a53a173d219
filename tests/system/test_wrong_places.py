"""A wrong place in a store is one line within seconds, on real servers.

The line has the place and what to set, and no secret; the exit code is 2.
"""

import os
import pathlib
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from tests.support import object_servers
from tests.support.object_servers import Server, list_objects
from tests.support.signed_requests import send
from tests.support.store_process import start_process

pytestmark = pytest.mark.cloud

LIMIT_S = 15
STORES = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_")
SECRET = "sesame-open"
NOBODY = "http://127.0.0.1:9"
NOWHERE = "http://nowhere.invalid"
S3_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
AZURE = "AZURE_STORAGE_CONNECTION_STRING"
GOOGLE_KEYS = "set GOOGLE_APPLICATION_CREDENTIALS"


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with object_servers.start_s3() as server:
        send(server.environment, "PUT", f"{server.url}/bucket/crawl/0.tar", body=b"x")
        yield server


@pytest.fixture(scope="module")
def azure() -> Iterator[Server]:
    with object_servers.start_azure() as server:
        send(server.environment, "PUT", f"{server.url}/bucket/crawl/0.tar", body=b"x")
        yield server


def error_of(
    environment: dict[str, str], tmp_path: pathlib.Path, bucket: str, **places: str
) -> str:
    """The one line of `curate`; `input` and `output` replace those in the bucket."""
    flags = {"input": f"{bucket}/crawl/*.tar", "output": f"{bucket}/run"} | places
    others = {name: v for name, v in os.environ.items() if not name.startswith(STORES)}
    command = [sys.executable, "-m", "pipeline.run", "curate"]
    command += ["--config", "curation_configs/demo.py"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    begin_s = time.monotonic()
    done = subprocess.run(
        command,
        env={**others, "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    took_s = time.monotonic() - begin_s
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2, line
    assert took_s < LIMIT_S, line
    assert done.stdout == ""
    for secret in (SECRET, *filter(None, secrets_of(environment))):
        assert secret not in line
    return line


def secrets_of(environment: dict[str, str]) -> list[str]:
    parts = environment.get(AZURE, "").split(";")
    keys = [part.partition("=")[2] for part in parts if part.startswith("AccountKey")]
    return [environment.get("AWS_SECRET_ACCESS_KEY", ""), *keys]


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: v for name, v in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": SECRET},
            f"the secret key is not that of the access key; {S3_KEYS}",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "stranger"},
            f"the store does not know the access key; {S3_KEYS}",
        ),
        (
            {"AWS_ENDPOINT_URL": NOBODY},
            "nobody listens there; set AWS_ENDPOINT_URL or --s3_endpoint_url",
        ),
        (
            {"AWS_ENDPOINT_URL": NOWHERE},
            "the name of the server does not resolve;"
            " set AWS_ENDPOINT_URL or --s3_endpoint_url",
        ),
    ],
    ids=["secret", "key", "nobody", "nowhere"],
)
def test_a_wrong_key_or_address_of_s3_is_said(s3, tmp_path, changes, expected):
    line = error_of(s3.environment | changes, tmp_path, "s3://bucket")
    assert line == f"error: --output=s3://bucket/run/: {expected}"


def test_missing_keys_of_s3_are_said(s3, tmp_path):
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    line = error_of(without(s3.environment, *keys), tmp_path, "s3://bucket")
    assert f"--output=s3://bucket/run/: no credentials; {S3_KEYS}; public" in line


@pytest.mark.parametrize(
    ("user", "operation"),
    [("not_lister", "list"), ("reader", "write"), ("anonymous", "list")],
)
def test_what_a_user_of_s3_may_not_do_is_said(s3, tmp_path, user, operation):
    line = error_of(s3.users[user], tmp_path, "s3://bucket")
    said = f"not allowed to {operation}; give the keys this right, or {S3_KEYS}"
    assert line == f"error: --output=s3://bucket/run/: {said}"


def test_a_bucket_or_prefix_that_is_not_there_is_said(s3, tmp_path):
    missing = "no such bucket; expected one that exists"
    other = error_of(s3.environment, tmp_path, "s3://bucket", input="s3://none/*.tar")
    assert "s3://none" in other
    assert missing in other
    line = error_of(s3.environment, tmp_path, "s3://bucket", output="s3://none/run")
    assert line == f"error: --output=s3://none/run/: {missing}"
    empty = error_of(s3.environment, tmp_path, "s3://bucket", input="s3://bucket/n/*")
    assert "s3://bucket/n/*: expected a glob that matches shards" in empty
    assert list_objects(s3) == {"crawl/0.tar": 1}


def test_a_certificate_that_does_not_fit_and_a_wrong_region_are_said(tmp_path):
    with object_servers.start_s3(region="eu-west-1", is_tls=True) as server:
        unknown = without(server.environment, "AWS_CA_BUNDLE")
        line = error_of(unknown, tmp_path, "s3://bucket")
        said = "the certificate does not fit; set AWS_CA_BUNDLE or --s3_verify"
        assert line == f"error: --output=s3://bucket/run/: {said}"
        flag = {"s3_region_name": "us-east-1"}
        line = error_of(server.environment, tmp_path, "s3://bucket", **flag)
        said = "the region is wrong; set AWS_REGION=eu-west-1"
        assert line == f"error: --output=s3://bucket/run/: {said}"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("AccountKey=Eby8", "AccountKey=EbyZ", "not allowed to list;"),
        (
            "AccountName=devstoreaccount1",
            "AccountName=stranger",
            "not allowed to list;",
        ),
        ("", "", "nobody listens there; set BlobEndpoint in"),
        ("127.0.0.1", "nowhere.invalid", "does not resolve; set BlobEndpoint in"),
    ],
    ids=["key", "account", "nobody", "nowhere"],
)
def test_a_wrong_key_or_address_of_azure_is_said(azure, tmp_path, old, new, expected):
    text = azure.environment[AZURE]
    if not new:  # the address of nobody
        port = str(urllib.parse.urlsplit(azure.url).port)
        old, new = f":{port}/", ":9/"
    line = error_of({AZURE: text.replace(old, new)}, tmp_path, "az://bucket")
    assert line.startswith("error: --output=az://bucket/run/: ")
    assert expected in line
    assert AZURE in line


def test_a_missing_account_or_container_of_azure_is_said(azure, tmp_path):
    line = error_of({}, tmp_path, "az://bucket")
    assert f"--output=az://bucket/run/: no account; set {AZURE}, or" in line
    line = error_of(azure.environment, tmp_path, "az://none")
    said = "no such container; expected one that exists"
    assert line == f"error: --output=az://none/run/: {said}"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, f"no credentials; {GOOGLE_KEYS}"),
        ({"STORAGE_EMULATOR_HOST": NOBODY}, "nobody listens there; set STORAGE_EMUL"),
        ({"STORAGE_EMULATOR_HOST": NOWHERE}, "does not resolve; set STORAGE_EMULATOR"),
    ],
    ids=["no-keys", "nobody", "nowhere"],
)
def test_missing_keys_and_wrong_addresses_of_google_are_said(
    tmp_path, environment, expected
):
    line = error_of(environment, tmp_path, "gs://bucket")
    assert line.startswith("error: --output=gs://bucket/run/: ")
    assert expected in line


def test_a_bucket_of_google_that_is_not_there_is_said(tmp_path):
    with start_process(["bucket"]) as server:
        line = error_of(server.environment("gs"), tmp_path, "gs://none")
    said = "no such bucket; expected one that exists"
    assert line == f"error: --output=gs://none/run/: {said}"
