"""S3 and Cloud Storage over HTTP on this machine, with objects in memory.

Serves the REST API of S3 and the XML API of Cloud Storage, which are the same verbs
with other headers; a request with a bearer token or `x-goog-` headers is Google's.
No signature is checked. A process of its own, so that its time is not the client's:
`python -m tests.support.fake_object_store --port 9000 --bucket bucket`.
"""

import argparse
import collections
import dataclasses
import datetime
import email.utils
import functools
import hashlib
import json
import re
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from xml.sax.saxutils import escape

from tests.support import store_process, store_requests
from tests.support.local_server import LocalServer
from tests.support.object_table import Entry, Key, ObjectTable
from tests.support.quick_http import Headers, Reply, make_handler
from tests.support.store_errors import error, xml_reply
from tests.support.store_requests import Request

MIN_PART_BYTES = 5 << 20  # of an upload, but for its last part
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclasses.dataclass
class Upload:
    """An object that is sent in parts, which have numbers."""

    key: Key
    parts: dict[int, bytes] = dataclasses.field(default_factory=dict)


class FakeObjectStore(LocalServer):
    """Keeps objects by bucket and key, and every request."""

    def __init__(self, buckets: Iterable[str] = ("bucket",), port: int = 0) -> None:
        """Listens on a free port unless one is given."""
        self.buckets = set(buckets)
        self.objects = ObjectTable()
        self.uploads: dict[str, Upload] = {}
        self.requests: list[Request] = []
        self.page_size = 1000  # of listings, at most
        self.region = store_process.REGION
        self.answers: Callable[[Request], Reply | None] = lambda request: None
        self.required_token: str | None = None
        self.token_life_s = 3600
        self.latency_s = 0.0  # before each answer
        self.n_bytes_read = 0  # of objects
        self.n_open = self.max_open = 0  # requests that have no answer yet
        self._lock = threading.RLock()
        self._operations = {
            name: getattr(self, f"_{name}")
            for name in (*store_requests.OPERATIONS.values(), "copy", "token")
        }
        super().__init__(make_handler(self._answer), port)

    def environment(self, scheme: str) -> dict[str, str]:
        """The variables that lead `s3://` or `gs://` here."""
        return store_process.environment(scheme, self.url)

    def bucket_url(self, scheme: str) -> str:
        """The first bucket, such as `s3://bucket`."""
        return f"{scheme}://{min(self.buckets)}"

    def counts(self) -> collections.Counter[str]:
        """Operation to the number of its requests."""
        with self._lock:
            return collections.Counter(one.operation for one in self.requests)

    def forget_requests(self) -> None:
        """Counts from here on."""
        with self._lock:
            self.requests.clear()
            self.n_bytes_read = self.max_open = 0

    def _answer(self, method: str, target: str, headers: Headers, body: bytes) -> Reply:
        if target == store_process.COUNTS:
            return Reply(200, json.dumps(self.counts()).encode())
        request = store_requests.parse(method, target, headers, body)
        self._note(request)
        with self._lock:
            self.n_open += 1
            self.max_open = max(self.max_open, self.n_open)
        time.sleep(self.latency_s)  # others are answered meanwhile
        reply = self._reply_to(request)
        with self._lock:
            self.n_open -= 1
            if request.operation == "get" and reply.status < 300:
                self.n_bytes_read += len(reply.body)
        return reply

    def _reply_to(self, request: Request) -> Reply:
        reply = self.answers(request)
        if reply is None:
            with self._lock:
                reply = self._refuse(request) or self._operations[request.operation](
                    request
                )
        is_error = reply.status >= 300
        return (
            dataclasses.replace(reply, body=b"")
            if is_error and request.method == "HEAD"
            else reply
        )

    def _note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(dataclasses.replace(request, body=b""))

    def _refuse(self, request: Request) -> Reply | None:
        """The answer to what is wrong whatever is asked."""
        if request.operation == "unknown":
            return error("NotImplemented")
        if request.operation == "token":
            return None
        if self.required_token is not None and not self._is_signed(request):
            return error("AuthenticationRequired")
        if request.bucket not in self.buckets:
            return error("NoSuchBucket", BucketName=request.bucket)
        return None

    def _is_signed(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.required_token}"

    def _token(self, request: Request) -> Reply:
        """What Google's OAuth server answers to service accounts and users."""
        del request
        content = {
            "access_token": self.required_token or "token",
            "expires_in": self.token_life_s,
            "token_type": "Bearer",
        }
        body = json.dumps(content).encode()
        return Reply(200, body, {"Content-Type": "application/json"})

    def _head_bucket(self, request: Request) -> Reply:
        is_s3 = request.scheme == "s3"
        return Reply(200, headers={"x-amz-bucket-region": self.region} if is_s3 else {})

    def _get(self, request: Request) -> Reply:
        entry = self.objects.entry((request.bucket, request.key))
        if entry is None:
            return error("NoSuchKey", Key=request.key)
        headers = _headers_of(entry, request.scheme)
        expected = request.headers.get("if-match")
        if expected not in (None, "*", entry.etag):
            return error("PreconditionFailed", Condition="If-Match")
        if request.headers.get("if-none-match") in ("*", entry.etag):
            return Reply(304, headers=headers)
        return _part_of(entry.data, request.headers.get("range", ""), headers)

    _head = _get

    def _put(self, request: Request) -> Reply:
        return self._refuse_write(request) or self._store(request, request.body)

    def _store(self, request: Request, data: bytes, etag: str | None = None) -> Reply:
        entry = self.objects.put((request.bucket, request.key), data, etag)
        headers = _headers_of(entry, request.scheme)
        del headers["Last-Modified"], headers["Accept-Ranges"]
        return Reply(200, headers=headers)

    def _refuse_write(self, request: Request) -> Reply | None:
        """The answer to conditions that do not hold."""
        entry = self.objects.entry((request.bucket, request.key))
        generation = request.headers.get("x-goog-if-generation-match")
        if generation not in (None, str(entry.generation if entry else 0)):
            return error("PreconditionFailed", Details="x-goog-if-generation-match")
        if request.headers.get("if-none-match") == "*" and entry:
            return error("PreconditionFailed", Condition="If-None-Match")
        expected = request.headers.get("if-match")
        if expected and not entry:
            return error("NoSuchKey", Key=request.key)
        if entry and expected not in (None, "*", entry.etag):
            return error("PreconditionFailed", Condition="If-Match")
        return None

    def _copy(self, request: Request) -> Reply:
        path = urllib.parse.unquote(request.copied_from).removeprefix("/")
        bucket, _, key = path.partition("/")
        source = self.objects.entry((bucket, key))
        if source is None:
            return error("NoSuchKey", Key=key)
        if refusal := self._refuse_write(request):
            return refusal
        entry = self.objects.put((request.bucket, request.key), source.data)
        return xml_reply(
            f"<CopyObjectResult><ETag>{escape(entry.etag)}</ETag>"
            f"<LastModified>{_iso(int(entry.updated_s))}</LastModified></CopyObjectResult>"
        )

    def _delete(self, request: Request) -> Reply:
        is_there = (request.bucket, request.key) in self.objects
        if is_there:
            del self.objects[request.bucket, request.key]
        elif request.scheme == "gs":
            return error("NoSuchKey", Key=request.key)
        return Reply(204)

    def _delete_many(self, request: Request) -> Reply:
        keys = [one.text or "" for one in _parse_xml(request.body).iter("Key")]
        for key in keys:
            self.objects.pop((request.bucket, key), None)
        deleted = (f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return xml_reply(f"<DeleteResult>{''.join(deleted)}</DeleteResult>")

    def _list(self, request: Request) -> Reply:
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        token = urllib.parse.unquote(query.get("continuation-token", ""))
        after = token or query.get("start-after", "")
        skipped = token if delimiter and token.endswith(delimiter) else ""
        n_names = min(int(query.get("max-keys", 1000)), self.page_size)
        names = self.objects.names(request.bucket, prefix, delimiter, after, skipped)
        page = [name for _, name in zip(range(n_names), names, strict=False)]
        is_truncated = bool(page) and next(names, None) is not None
        encode = urllib.parse.quote if query.get("encoding-type") == "url" else str
        content = [
            f"<Name>{request.bucket}</Name><Prefix>{escape(encode(prefix))}</Prefix>",
            f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{n_names}</MaxKeys>",
            f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated>",
        ]
        if is_truncated:
            marker = urllib.parse.quote(page[-1])
            content.append(f"<NextContinuationToken>{marker}</NextContinuationToken>")
        for name in page:
            content.append(self._listed(request, name, escape(encode(name)), delimiter))
        inside = "".join(content)
        return xml_reply(f"<ListBucketResult>{inside}</ListBucketResult>")

    def _listed(self, request: Request, name: str, text: str, delimiter: str) -> str:
        """A key, or a part of keys that ends with the delimiter, in a listing."""
        behind_prefix = name[len(request.query.get("prefix", "")) :]
        if delimiter and behind_prefix.endswith(delimiter):
            return f"<CommonPrefixes><Prefix>{text}</Prefix></CommonPrefixes>"
        entry = self.objects.entry((request.bucket, name))
        assert entry is not None
        return (
            f"<Contents><Key>{text}</Key><LastModified>{_iso(int(entry.updated_s))}</LastModified>"
            f"<ETag>{escape(entry.etag)}</ETag><Size>{len(entry.data)}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )

    def _create_upload(self, request: Request) -> Reply:
        upload_id = f"upload-{len(self.requests)}"
        self.uploads[upload_id] = Upload((request.bucket, request.key))
        return xml_reply(
            "<InitiateMultipartUploadResult>"
            f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
            f"<UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
        )

    def _upload(self, request: Request) -> Upload | None:
        upload = self.uploads.get(request.query["uploadId"])
        is_its = upload and upload.key == (request.bucket, request.key)
        return upload if is_its else None

    def _put_part(self, request: Request) -> Reply:
        if not (upload := self._upload(request)):
            return error("NoSuchUpload", UploadId=request.query["uploadId"])
        upload.parts[int(request.query["partNumber"])] = request.body
        return Reply(200, headers={"ETag": _quoted_md5(request.body)})

    def _complete_upload(self, request: Request) -> Reply:
        if not (upload := self._upload(request)):
            return error("NoSuchUpload", UploadId=request.query["uploadId"])
        named = [
            (int(part.findtext("PartNumber", "0")), part.findtext("ETag", ""))
            for part in _parse_xml(request.body).iter("Part")
        ]
        parts = [upload.parts.get(number, b"") for number, _ in named]
        etags = [etag.strip('"') for _, etag in named]
        if etags != [_quoted_md5(part).strip('"') for part in parts]:
            return error("InvalidPart")
        if any(len(part) < MIN_PART_BYTES for part in parts[:-1]):
            return error("EntityTooSmall")
        if refusal := self._refuse_write(request):
            return refusal
        del self.uploads[request.query["uploadId"]]
        digest = hashlib.md5(b"".join(map(bytes.fromhex, etags))).hexdigest()
        stored = self._store(request, b"".join(parts), f"{digest}-{len(parts)}")
        etag = escape(stored.headers["ETag"])
        return xml_reply(
            f"<CompleteMultipartUploadResult><Bucket>{request.bucket}</Bucket>"
            f"<Key>{escape(request.key)}</Key><ETag>{etag}</ETag>"
            "</CompleteMultipartUploadResult>",
            headers=dict(stored.headers),
        )

    def _abort_upload(self, request: Request) -> Reply:
        if not self._upload(request):
            return error("NoSuchUpload", UploadId=request.query["uploadId"])
        del self.uploads[request.query["uploadId"]]
        return Reply(204)

    def _list_uploads(self, request: Request) -> Reply:
        uploads = "".join(
            f"<Upload><Key>{escape(upload.key[1])}</Key>"
            f"<UploadId>{upload_id}</UploadId></Upload>"
            for upload_id, upload in self.uploads.items()
            if upload.key[0] == request.bucket
            and upload.key[1].startswith(request.query.get("prefix", ""))
        )
        return xml_reply(
            f"<ListMultipartUploadsResult><Bucket>{request.bucket}</Bucket>{uploads}"
            "</ListMultipartUploadsResult>"
        )


def _headers_of(entry: Entry, scheme: str) -> Headers:
    headers = {
        "ETag": entry.etag,
        "Last-Modified": email.utils.formatdate(entry.updated_s, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    if scheme == "gs":
        headers["x-goog-generation"] = str(entry.generation)
    return headers


def _part_of(data: bytes, asked: str, headers: Headers) -> Reply:
    """The bytes that a header asks for, all if it asks for none."""
    found = _RANGE.fullmatch(asked)
    if not found or found[1] == found[2] == "":
        return Reply(200, data, headers)
    if found[1]:
        start, last = int(found[1]), int(found[2] or len(data))
        if last < start:
            return Reply(200, data, headers)
    else:  # the last bytes; a suffix of none of them cannot be given
        start, last = max(0, len(data) - int(found[2])), len(data)
    stop = min(last + 1, len(data))
    if start >= stop:
        total = {"Content-Range": f"bytes */{len(data)}"}
        return error("InvalidRange", total, ActualObjectSize=str(len(data)))
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Reply(206, memoryview(data)[start:stop], headers)


def _quoted_md5(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@functools.lru_cache
@functools.lru_cache(maxsize=1024)
def _iso(updated_s: int) -> str:
    updated = datetime.datetime.fromtimestamp(updated_s, datetime.UTC)
    return updated.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _parse_xml(body: bytes) -> ET.Element:
    """The document, whose tags lose their namespaces."""
    root = ET.fromstring(body)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", action="append", required=True)
    args = parser.parse_args()
    with FakeObjectStore(args.bucket, args.port) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
