import jax
import numpy as np
import pytest

from benchmarks import train as benchmark
from tests.support import objectives


def test_the_largest_batch_is_in_eights_and_leaves_a_twentieth():
    def bytes_at(n_images):  # on each of two devices
        return 1000 + 10 * n_images // 2

    assert benchmark.largest_batch(bytes_at, limit=2000, n_devices=2) == 2 * 88
    with pytest.raises(
        ValueError, match="limit=1100 bytes a device: expected room for 8 images"
    ):
        benchmark.largest_batch(bytes_at, limit=1100, n_devices=2)


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.0, 2.0), (1.0, 0.0)])
def test_a_synthetic_batch_has_what_the_step_reads(weights):
    config = objectives.config(distillation_weight=weights[0], patch_weight=weights[1])
    mesh = objectives.Run(config, grid=(1, 1)).mesh
    batch = next(benchmark.synthetic_batches(config, mesh))
    expected = objectives.batch()
    unread = {"local_crops": weights[0], "mask": weights[1]}
    names = {name for name in expected if unread.get(name, 1)}
    assert batch.keys() == names
    for name, rows in jax.device_get(batch).items():
        assert (rows.shape, rows.dtype) == (expected[name].shape, expected[name].dtype)
    assert np.all(batch["alt_text"] > 0)
