"""Each refusal of a store is one line: the place and what to set, without secrets."""

import pytest

from pipeline.storage import files, object_clients, places
from pipeline.storage.object_errors import CredentialsError, StoreError
from tests.support.quick_http import Reply
from tests.support.store_errors import error

SECRET = "wJalrXUtnFEMI-K7MDENG"
FUNCTIONS = {
    "get": files.read,
    "list": files.list_folder,
    "put": lambda path: files.write(path, b"x"),
}
REFUSALS = [
    (error("AccessDenied"), PermissionError, "not allowed to"),
    (error("AllAccessDisabled"), PermissionError, "not allowed to"),
    (error("InvalidAccessKeyId"), CredentialsError, "does not know the access key"),
    (error("SignatureDoesNotMatch"), CredentialsError, "AWS_SECRET_ACCESS_KEY"),
    (error("ExpiredToken"), CredentialsError, "has expired"),
    (error("InvalidToken"), CredentialsError, "refuses the session token"),
    (error("RequestTimeTooSkewed"), StoreError, "set the clock"),
    (error("UserProjectMissing"), StoreError, "GOOGLE_CLOUD_QUOTA_PROJECT"),
    (error("NoSuchBucket"), StoreError, "no such bucket"),
    (error("AuthenticationRequired"), StoreError, "credentials are needed"),
    (
        error("AuthorizationHeaderMalformed", Region="eu-west-3"),
        StoreError,
        "set AWS_REGION=eu-west-3",
    ),
    (
        error("PermanentRedirect", {"x-amz-bucket-region": "eu-west-3"}),
        StoreError,
        "the region is wrong; set AWS_REGION",
    ),
    (Reply(400, b"<html>" + b"x" * 9999), StoreError, "HTTP status 400"),
    (Reply(400, f"<a>{SECRET}</a>".encode()), StoreError, "HTTP status 400"),
]


def error_of(path: str, function) -> OSError:
    with pytest.raises(OSError, match=path) as caught:
        function(path)
    return caught.value


@pytest.fixture(autouse=True)
def secrets(server, monkeypatch):
    del server
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(object_clients, "_RETRIES", object_clients._QUICK_RETRIES)


@pytest.mark.parametrize(("reply", "kind", "text"), REFUSALS)
@pytest.mark.parametrize("operation", ["get", "list", "put"])
def test_a_refusal_is_one_line(server, bucket, operation, reply, kind, text):
    server.answers = lambda request: reply if request.operation == operation else None
    found = error_of(f"{bucket}/run/a", FUNCTIONS[operation])
    assert isinstance(found, kind), found
    line = str(found)
    assert f"{bucket}/run" in line
    if bucket.startswith("s3") or "AWS" not in text:
        assert text in line
    assert len(line) < 300
    for part in ("\n", "<", SECRET, "127.0.0.1"):
        assert part not in line


def test_another_bucket_is_not_there(bucket):
    other = bucket.replace("://bucket", "://other")
    for name in ("get", "list", "put"):
        found = error_of(f"{other}/a", FUNCTIONS[name])
        assert str(found).endswith("no such bucket; expected one that exists")
        assert not isinstance(found, FileNotFoundError)


@pytest.mark.parametrize("place", ["run/a", "run/*.tar", "run/"])
def test_a_check_of_places_says_what_is_wrong(server, bucket, place):
    places.check([("--input", f"{bucket}/{place}")])
    server.answers = lambda request: error("AccessDenied")
    with pytest.raises(ValueError, match=f"^--input=.*{bucket}/run") as caught:
        places.check([("--input", f"{bucket}/{place}")])
    assert "\n" not in str(caught.value)


def test_a_store_that_is_busy_for_a_moment_is_asked_again(server, bucket):
    replies = [error("SlowDown"), error("SlowDown")]
    server.answers = lambda request: (
        replies.pop() if replies and request.operation == "put" else None
    )
    files.write(f"{bucket}/a", b"x")
    assert server.counts()["put"] == 3
    assert files.read(f"{bucket}/a") == b"x"


def test_a_store_that_stays_busy_says_so(server, bucket):
    server.answers = lambda request: error("SlowDown")
    assert "SlowDown" in str(error_of(f"{bucket}/a", files.read))


def test_a_put_whose_answer_was_lost_has_created_the_object(server, bucket):
    lost = []

    def lose(request):
        if request.operation != "put" or lost:
            return None
        lost.append(request)
        server.objects["bucket", request.key] = request.body
        return Reply(500, b"x")

    server.answers = lose
    assert files.create(f"{bucket}/a", b"mine")
    assert not files.create(f"{bucket}/a", b"another's")


def test_nobody_listens(server, bucket, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    object_clients.forget_clients()
    with pytest.raises(ValueError, match="nobody listens"):
        places.check([("--input", f"{bucket}/a")])


@pytest.mark.parametrize(("spelling", "key"), [("s3a", "AWS_"), ("gcs", "GOOGLE_")])
def test_other_spellings_of_a_scheme_get_the_same_advice(server, spelling, key):
    server.answers = lambda request: error("InvalidToken")
    line = str(error_of(f"{spelling}://bucket/a", files.read))
    assert line.startswith(f"{spelling}://bucket/a: the store refuses")
    assert f"set {key}" in line
