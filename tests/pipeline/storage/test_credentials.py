"""Credentials are found where the tools of each store find them, and renewed."""

import datetime
import json
import re
import time

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pipeline.storage import credentials, files, object_clients
from pipeline.storage.object_errors import CredentialsError
from tests.support.quick_http import Reply

KEY_OF_REQUEST = re.compile(r"Credential=(\w+)/\d+/([-\w]+)/s3/")
GCS = "gs://bucket/a"
S3 = "s3://bucket/a"


@pytest.fixture
def no_keys(server, monkeypatch, tmp_path):
    """No credentials anywhere, and a home of its own."""
    del server
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    credentials._aws_session.cache_clear()
    yield tmp_path
    credentials._aws_session.cache_clear()


@pytest.fixture
def google(server, no_keys, monkeypatch):
    """Google's own credentials are used, and requests come to this machine."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    make = credentials.gcs_config

    def lead_here():
        config = make()
        config.setdefault("client_options", {})["allow_http"] = True
        return config | {"base_url": server.url}

    monkeypatch.setattr(credentials, "gcs_config", lead_here)
    server.required_token = "the-token"
    return no_keys


def sent(server, name: str) -> list[str]:
    """A header of the requests for objects."""
    return [
        request.headers.get(name, "")
        for request in server.requests
        if request.operation in ("put", "get")
    ]


def key_and_region(server) -> tuple[str, str]:
    """Those that the last request is signed with."""
    return KEY_OF_REQUEST.search(sent(server, "authorization")[-1]).groups()


def test_keys_of_the_environment_sign(server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
    files.write(S3, b"x")
    assert key_and_region(server) == ("mine", "us-east-1")
    assert sent(server, "x-amz-security-token") == ["session"]


def test_flags_come_before_the_environment(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    flags = {
        "s3_endpoint_url": server.url,
        "s3_access_key_id": "given",
        "s3_secret_access_key": "secret",
        "s3_region_name": "eu-west-3",
    }
    options = PipelineOptions([f"--{name}={value}" for name, value in flags.items()])
    files.use_options(options)
    try:
        files.write(S3, b"x")
    finally:
        files.use_options(PipelineOptions([]))
    assert key_and_region(server) == ("given", "eu-west-3")


def test_a_profile_gives_keys_region_and_endpoint(server, no_keys, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    server.region = "eu-west-3"
    (no_keys / "credentials").write_text(
        "[other]\naws_access_key_id=of_profile\naws_secret_access_key=secret\n"
    )
    config = f"[profile other]\nregion=eu-west-3\nendpoint_url={server.url}\n"
    (no_keys / "config").write_text(config)
    monkeypatch.setenv("AWS_PROFILE", "other")
    files.write(S3, b"x")
    assert key_and_region(server) == ("of_profile", "eu-west-3")


def test_the_region_is_the_one_that_the_store_names(server):
    server.region = "eu-west-3"
    files.write(S3, b"x")
    assert key_and_region(server) == ("test", "eu-west-3")
    assert server.counts()["head_bucket"] == 1


@pytest.mark.usefixtures("no_keys")
def test_without_keys_a_line_says_what_to_set():
    line = r"s3://bucket/a: no credentials; set AWS_ACCESS_KEY_ID .*SKIP_SIGNATURE=true"
    with pytest.raises(CredentialsError, match=line):
        files.read(S3)


def test_a_profile_that_is_not_there_is_named(no_keys, monkeypatch):
    del no_keys
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(CredentialsError, match=r"^s3://bucket/a: .*\(none\)"):
        files.read(S3)


def test_keys_that_expire_are_renewed(server, no_keys, monkeypatch):
    """By a program of a profile, as companies have it for their single sign-on."""
    monkeypatch.setattr(credentials, "_TOKEN_LIFE", datetime.timedelta(seconds=1))
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=2)
    keys = {
        "Version": 1,
        "AccessKeyId": "KEY",
        "SecretAccessKey": "secret",
        "SessionToken": "token",
        "Expiration": soon.isoformat(),
    }
    (no_keys / "keys").write_text(json.dumps(keys))
    command = f"sed s/KEY/first/ {no_keys}/keys"
    (no_keys / "config").write_text(f"[default]\ncredential_process = {command}\n")
    files.write(S3, b"x")
    assert key_and_region(server)[0] == "first"
    (no_keys / "keys").write_text(json.dumps(keys | {"AccessKeyId": "second"}))
    time.sleep(1.1)
    files.write(S3, b"x")
    assert key_and_region(server)[0] == "second"


def test_a_program_that_gives_no_keys_is_one_line(no_keys):
    command = "sh -c 'echo sign in first >&2; exit 1'"
    (no_keys / "config").write_text(f"[default]\ncredential_process = {command}\n")
    with pytest.raises(CredentialsError, match="sign in first") as caught:
        files.read(S3)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_keys")
def test_public_buckets_are_read_without_keys(server, monkeypatch):
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    server.objects["bucket", "a"] = b"x"
    assert files.read(S3) == b"x"
    assert sent(server, "authorization") == [""]


def test_the_requester_pays_on_s3(server, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    files.write(S3, b"x")
    assert sent(server, "x-amz-request-payer") == ["requester"]


def write_google_file(folder, monkeypatch, content: dict[str, str]) -> None:
    path = folder / "google.json"
    path.write_text(json.dumps(content))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))


@pytest.fixture
def service_account(server, google, monkeypatch):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    content = {
        "type": "service_account",
        "project_id": "project",
        "client_email": "robot@project.iam.gserviceaccount.com",
        "private_key": text,
        "private_key_id": "1",
        "token_uri": f"{server.url}/token",
    }
    write_google_file(google, monkeypatch, content)


@pytest.mark.usefixtures("service_account")
def test_a_service_account_of_google_asks_for_one_token(server):
    for number in range(5):
        files.write(f"{GCS}{number}", b"x")
    assert server.counts() == {"token": 1, "put": 5}
    assert set(sent(server, "authorization")) == {"Bearer the-token"}


@pytest.mark.usefixtures("service_account")
def test_a_token_that_expires_is_renewed(server):
    server.token_life_s = 1
    files.write(GCS, b"x")
    time.sleep(1.1)
    server.required_token = "the-next-token"
    files.write(GCS, b"x")
    assert server.counts() == {"token": 2, "put": 2}


def test_a_user_of_google_is_signed_in_and_pays(server, google, monkeypatch):
    content = {
        "type": "authorized_user",
        "client_id": "client",
        "client_secret": "secret",
        "refresh_token": "refresh",
        "token_uri": f"{server.url}/token",
        "quota_project_id": "payer",
    }
    monkeypatch.setattr(
        "google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT",
        f"{server.url}/token",
    )
    write_google_file(google, monkeypatch, content)
    files.write(GCS, b"x")
    assert sent(server, "authorization") == ["Bearer the-token"]
    assert sent(server, "x-goog-user-project") == ["payer"]
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "other")
    object_clients.forget_clients()
    files.write(GCS, b"x")
    assert sent(server, "x-goog-user-project")[-1] == "other"


@pytest.mark.usefixtures("google")
def test_without_google_credentials_a_line_says_what_to_set():
    line = "gs://bucket/a: no credentials; set GOOGLE_APPLICATION_CREDENTIALS"
    with pytest.raises(CredentialsError, match=line):
        files.read(GCS)


@pytest.mark.usefixtures("google")
def test_public_buckets_of_google_are_read_without_credentials(server, monkeypatch):
    server.required_token = None
    server.objects["bucket", "a"] = b"x"
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    assert files.read(GCS) == b"x"
    assert sent(server, "authorization") == [""]


@pytest.mark.usefixtures("service_account")
def test_a_refused_token_is_one_line(server):
    server.required_token = "another"
    server.answers = lambda request: None
    files.write(GCS, b"x")
    server.required_token = "changed"
    with pytest.raises(OSError, match="credentials are needed; set GOOGLE") as caught:
        files.read(GCS)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("service_account")
def test_a_service_account_that_google_refuses_is_one_line(server):
    content = {"error": "invalid_grant", "error_description": "Account not found"}
    refusal = Reply(
        400, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    server.answers = lambda request: refusal if request.operation == "token" else None
    with pytest.raises(CredentialsError, match="Account not found") as caught:
        files.read(GCS)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300


@pytest.mark.usefixtures("google")
def test_without_credentials_nothing_is_written_to_google(monkeypatch):
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    line = "gs://bucket/a: expected credentials to write; set GOOGLE_APPLICATION"
    for function in (files.write, files.create):
        with pytest.raises(CredentialsError, match=line):
            function(GCS, b"x")
