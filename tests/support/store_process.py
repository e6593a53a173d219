"""A store of the tests in a process of its own, and the variables that lead to one."""

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator

REGION = "us-east-1"
COUNTS = "/-/counts"  # the path of the counts; no bucket has such a name


def environment(scheme: str, url: str) -> dict[str, str]:
    """The variables that lead `s3://` or `gs://` to a server."""
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": url}
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
    }


@dataclasses.dataclass(frozen=True)
class ServerProcess:
    """A store in a process of its own."""

    url: str

    def environment(self, scheme: str) -> dict[str, str]:
        """The variables that lead `s3://` or `gs://` there."""
        return environment(scheme, self.url)

    def counts(self) -> dict[str, int]:
        """Operation to the number of its requests."""
        with urllib.request.urlopen(f"{self.url}{COUNTS}") as answer:
            return json.load(answer)


@contextlib.contextmanager
def start_process(buckets: Iterable[str]) -> Iterator[ServerProcess]:
    """A store whose processor time is not the client's."""
    command = [sys.executable, "-m", "tests.support.fake_object_store"]
    command += [f"--bucket={bucket}" for bucket in buckets]
    root = pathlib.Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as made:
        assert made.stdout is not None
        yield ServerProcess(made.stdout.readline().strip())
        made.kill()
