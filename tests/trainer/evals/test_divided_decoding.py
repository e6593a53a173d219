"""Several processes decode their parts of a chunk, and all get all images.

The processes are threads that meet where images are exchanged; that two real processes
measure what one does is in `test_train_in_processes.py`.
"""

import collections
import threading
from concurrent import futures
from typing import Any

import jax
import numpy as np
import pytest

from trainer.distributed import processes
from trainer.evals.sets.samples import Sample, SampleError
from trainer.evals.task_inputs import Evaluation
from trainer.evaluation_config import EvaluationConfig

N_PROCESSES = 3


DECODED: collections.Counter[tuple[str, int]] = collections.Counter()


class Counted(Sample):
    """Tells which process decoded it."""

    def to_square(self, size_px):
        DECODED[self.key, jax.process_index()] += 1
        if self.label == "broken":
            raise SampleError(f"{self.key}: broken")
        return np.full((size_px, size_px, 3), int(self.key), np.uint8)


@pytest.fixture
def on_all(monkeypatch):
    """Runs a function in each process, and returns what each returned or raised."""
    number, parts = threading.local(), {}
    barrier = threading.Barrier(N_PROCESSES)

    def gather(rows):
        parts[number.value] = rows
        barrier.wait(timeout=60)
        joined = np.stack([parts[i] for i in range(N_PROCESSES)])
        barrier.wait(timeout=60)
        return joined

    def run(function):
        def in_process(i):
            number.value = i
            try:
                return function()
            except SampleError as error:
                return error

        with futures.ThreadPoolExecutor(N_PROCESSES) as pool:
            return list(pool.map(in_process, range(N_PROCESSES)))

    monkeypatch.setattr(jax, "process_count", lambda: N_PROCESSES)
    monkeypatch.setattr(jax, "process_index", lambda: getattr(number, "value", None))
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    DECODED.clear()
    return run


def evaluation():
    """Without an encoder and a set, which decoding does not read."""
    missing: Any = None
    return Evaluation(missing, {}, missing, EvaluationConfig(size_px=14))


def samples(n, broken=()):
    return [
        Counted(str(i), str(i), {}, {}, label="broken" if i in broken else "")
        for i in range(n)
    ]


@pytest.mark.parametrize("n", [1, 3, 7, 8])
def test_all_processes_get_all_images_and_each_is_decoded_once(on_all, n):
    for images in on_all(lambda: evaluation().squeeze_images(samples(n))):
        assert images.shape == (n, 14, 14, 3)
        assert images[:, 0, 0, 0].tolist() == list(range(n))
    decoded = collections.Counter(key for key, _ in DECODED.elements())
    assert decoded == {str(i): 1 for i in range(n)}


def test_an_image_that_is_broken_for_one_process_ends_all(on_all):
    found = on_all(lambda: evaluation().squeeze_images(samples(7, broken=(4,))))
    other = "an image that another process decodes is broken"
    assert [str(error) for error in found] == [other, "4: broken", other]
