"""The libraries that `benchmarks.store` measures, behind the same five functions.

In: the variables of a store, as `tests.support` sets them. Out: a library that reads,
lists and writes objects of one bucket, by key. Libraries are imported when they are
made, so that one that is missing is an ImportError.
"""

import os
import typing
from collections.abc import Callable, Iterator

_CHUNK_BYTES = 1 << 20  # of a stream, as its reader asks for them


class Library(typing.Protocol):
    """What all libraries do for one bucket."""

    def read(self, key: str) -> typing.Any: ...
    def read_range(self, key: str, start: int, length: int) -> typing.Any: ...
    def list(self, prefix: str) -> int: ...
    def stream(self, key: str) -> Iterator[int]: ...
    def write(self, key: str, data: bytes) -> None: ...


def _lengths(file: typing.Any) -> Iterator[int]:
    """The bytes of each piece of a file that is read from its start to its end."""
    with file:
        while piece := file.read(_CHUNK_BYTES):
            yield len(piece)


class Ours:
    """`pipeline.storage.files`."""

    def __init__(self, scheme: str, bucket: str) -> None:
        from pipeline.storage import files

        self._files, self._root = files, f"{scheme}://{bucket}"

    def read(self, key: str) -> bytes:
        return self._files.read(f"{self._root}/{key}")

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._files.read_range(f"{self._root}/{key}", start, length)

    def list(self, prefix: str) -> int:
        return len(self._files.list_below(f"{self._root}/{prefix}"))

    def stream(self, key: str) -> Iterator[int]:
        return _lengths(self._files.open_stream(f"{self._root}/{key}"))

    def write(self, key: str, data: bytes) -> None:
        self._files.write(f"{self._root}/{key}", data)


def _emulator_token() -> typing.Any:
    return {"token": "token", "expires_at": None}


class Obstore:
    """obstore alone, as its documentation uses it."""

    def __init__(self, scheme: str, bucket: str) -> None:
        import obstore.store

        self._obstore = obstore
        self._store: typing.Any
        if scheme == "gs":
            self._store = obstore.store.GCSStore(
                bucket,
                base_url=os.environ["STORAGE_EMULATOR_HOST"],
                credential_provider=_emulator_token,
                client_options={"allow_http": True},
            )
            return
        self._store = obstore.store.S3Store(
            bucket,
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            client_options={"allow_http": True, "timeout": "1h"},
        )

    def read(self, key: str) -> typing.Any:
        return self._obstore.get(self._store, key).bytes()

    def read_range(self, key: str, start: int, length: int) -> typing.Any:
        return self._obstore.get_range(self._store, key, start=start, length=length)

    def list(self, prefix: str) -> int:
        pages = self._obstore.list(self._store, prefix, chunk_size=1000)
        return sum(len(page) for page in pages)

    def stream(self, key: str) -> Iterator[int]:
        for piece in self._obstore.get(self._store, key).stream():
            yield len(piece)

    def write(self, key: str, data: bytes) -> None:
        self._obstore.put(self._store, key, data)


class Fsspec:
    """s3fs or gcsfs."""

    def __init__(self, scheme: str, bucket: str) -> None:
        self._bucket = bucket
        if scheme == "gs":
            import gcsfs

            url = os.environ["STORAGE_EMULATOR_HOST"]
            self._system = gcsfs.GCSFileSystem(token="anon", endpoint_url=url)
        else:
            import s3fs

            url = os.environ["AWS_ENDPOINT_URL"]
            self._system = s3fs.S3FileSystem(client_kwargs={"endpoint_url": url})

    def read(self, key: str) -> bytes:
        return self._system.cat_file(f"{self._bucket}/{key}")

    def read_range(self, key: str, start: int, length: int) -> bytes:
        path = f"{self._bucket}/{key}"
        return self._system.cat_file(path, start=start, end=start + length)

    def list(self, prefix: str) -> int:
        return len(self._system.find(f"{self._bucket}/{prefix}"))

    def stream(self, key: str) -> Iterator[int]:
        return _lengths(self._system.open(f"{self._bucket}/{key}", "rb"))

    def write(self, key: str, data: bytes) -> None:
        self._system.pipe_file(f"{self._bucket}/{key}", data)


class Pyarrow:
    """pyarrow.fs."""

    def __init__(self, scheme: str, bucket: str) -> None:
        from pyarrow import fs

        self._fs, self._bucket = fs, bucket
        if scheme == "gs":
            host = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")
            self._system = fs.GcsFileSystem(
                anonymous=True, scheme="http", endpoint_override=host
            )
        else:
            url = os.environ["AWS_ENDPOINT_URL"]
            self._system = fs.S3FileSystem(endpoint_override=url)

    def read(self, key: str) -> bytes:
        with self._system.open_input_stream(f"{self._bucket}/{key}") as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._system.open_input_file(f"{self._bucket}/{key}") as file:
            return file.read_at(length, start)

    def list(self, prefix: str) -> int:
        chosen = self._fs.FileSelector(f"{self._bucket}/{prefix}", recursive=True)
        return sum(found.is_file for found in self._system.get_file_info(chosen))

    def stream(self, key: str) -> Iterator[int]:
        return _lengths(self._system.open_input_stream(f"{self._bucket}/{key}"))

    def write(self, key: str, data: bytes) -> None:
        with self._system.open_output_stream(f"{self._bucket}/{key}") as file:
            file.write(data)


class Boto3:
    """boto3, one client of all threads."""

    def __init__(self, scheme: str, bucket: str) -> None:
        import boto3
        import botocore.config

        del scheme
        config = botocore.config.Config(max_pool_connections=32)
        self.client = boto3.client("s3", config=config)
        self._bucket = bucket

    def _get(self, key: str, **asked: str) -> typing.Any:
        return self.client.get_object(Bucket=self._bucket, Key=key, **asked)["Body"]

    def read(self, key: str) -> bytes:
        return self._get(key).read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._get(key, Range=f"bytes={start}-{start + length - 1}").read()

    def list(self, prefix: str) -> int:
        pages = self.client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self._bucket, Prefix=prefix)
        return sum(page["KeyCount"] for page in found)

    def stream(self, key: str) -> Iterator[int]:
        return _lengths(self._get(key))

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self._bucket, Key=key, Body=data)


class SmartOpen(Boto3):
    """smart_open, with one client of boto3; it lists with boto3, too."""

    def __init__(self, scheme: str, bucket: str) -> None:
        import smart_open

        super().__init__(scheme, bucket)
        self._module = smart_open

    def _open(self, key: str, mode: str) -> typing.Any:
        parameters = {"client": self.client}
        url = f"s3://{self._bucket}/{key}"
        return self._module.open(
            url, mode, transport_params=parameters, compression="disable"
        )

    def read(self, key: str) -> bytes:
        with self._open(key, "rb") as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._open(key, "rb") as file:
            file.seek(start)
            return file.read(length)

    def stream(self, key: str) -> Iterator[int]:
        return _lengths(self._open(key, "rb"))

    def write(self, key: str, data: bytes) -> None:
        with self._open(key, "wb") as file:
            file.write(data)


class GoogleCloudStorage:
    """google-cloud-storage, one client of all threads."""

    def __init__(self, scheme: str, bucket: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        del scheme
        client = storage.Client(project="none", credentials=AnonymousCredentials())
        self._bucket = client.bucket(bucket)

    def read(self, key: str) -> bytes:
        return self._bucket.blob(key).download_as_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        last = start + length - 1
        return self._bucket.blob(key).download_as_bytes(start=start, end=last)

    def list(self, prefix: str) -> int:
        return sum(1 for _ in self._bucket.list_blobs(prefix=prefix))

    def stream(self, key: str) -> Iterator[int]:
        return _lengths(self._bucket.blob(key).open("rb"))

    def write(self, key: str, data: bytes) -> None:
        self._bucket.blob(key).upload_from_string(data)


class Beam:
    """Beam's file systems."""

    def __init__(self, scheme: str, bucket: str) -> None:
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions

        flags = ["--no_auth"]
        if scheme == "s3":
            keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
            names = ("s3_access_key_id", "s3_secret_access_key", "s3_region_name")
            flags = [f"--s3_endpoint_url={os.environ['AWS_ENDPOINT_URL']}"]
            flags += [
                f"--{name}={os.environ[key]}"
                for name, key in zip(names, keys, strict=True)
            ]
        FileSystems.set_options(PipelineOptions(flags))
        self._systems, self._root = FileSystems, f"{scheme}://{bucket}"

    def _open(self, key: str) -> typing.Any:
        path = f"{self._root}/{key}"
        return self._systems.open(path, compression_type="uncompressed")

    def read(self, key: str) -> bytes:
        with self._open(key) as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._open(key) as file:
            file.seek(start)
            return file.read(length)

    def list(self, prefix: str) -> int:
        (found,) = self._systems.match([f"{self._root}/{prefix}/**"])
        return len(found.metadata_list)

    def stream(self, key: str) -> Iterator[int]:
        return _lengths(self._open(key))

    def write(self, key: str, data: bytes) -> None:
        path = f"{self._root}/{key}"
        with self._systems.create(path, compression_type="uncompressed") as file:
            file.write(data)


NAME_TO_LIBRARY: dict[str, Callable[[str, str], Library]] = {
    "obstore": Obstore,
    "ours": Ours,
    "s3fs, gcsfs": Fsspec,
    "pyarrow.fs": Pyarrow,
    "boto3": Boto3,
    "smart_open": SmartOpen,
    "google-cloud-storage": GoogleCloudStorage,
    "Beam": Beam,
}
ONLY_S3 = ("boto3", "smart_open")
ONLY_GCS = ("google-cloud-storage",)
