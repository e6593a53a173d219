"""Loading a checkpoint takes hardly more memory than the checkpoint is large."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from pipeline.models.paligemma import PaliGemma
from tests.support import tiny_checkpoints

# The token table is a fifth of the weights, as in the published 3B models.
LARGER = {
    "hidden_size": 512,
    "intermediate_size": 2560,
    "num_hidden_layers": 12,
    "vocab_size": 24_000,
}

# Prints the peak of the memory that loading adds, in bytes; Linux only.
PROGRAM = """
import re, sys
import jax
from pathlib import Path
from pipeline.config.captions import Granularity
from pipeline.models import device_placement, paligemma_captioner, weights

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", text)[1]) * 1024

jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
checkpoint = paligemma_captioner.PaliGemmaCheckpoint.open(
    Granularity("", sys.argv[1], dtype=sys.argv[2]))
grid = device_placement.Placement.of()
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
loaded = weights.load_module(checkpoint.build, checkpoint.folder, sys.argv[2],
                             lambda name, x: grid.weight(x, None))
jax.block_until_ready(loaded[1])
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)
def test_peak_memory_is_at_most_1_3_checkpoints(tmp_path: Path, dtype: str):
    n_bytes = write_checkpoint(tmp_path, dtype)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = int(done.stdout.splitlines()[-1])
    assert n_bytes > 100e6
    assert 0.9 * n_bytes < peak <= 1.3 * n_bytes


def write_checkpoint(folder: Path, dtype: str) -> int:
    """A PaliGemma of ones; returns the size of its file."""
    tiny_checkpoints.write_paligemma(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= LARGER
    config |= {"projection_dim": 512, "vocab_size": 24_000}
    path.write_text(json.dumps(config))
    checkpoint = tiny_checkpoints.paligemma_config("gemma").from_pretrained(folder)
    abstract = nnx.eval_shape(lambda: PaliGemma(checkpoint, rngs=nnx.Rngs(0)))
    tensors = {
        ".".join(map(str, name)): np.ones(leaf.shape, getattr(ml_dtypes, dtype, dtype))
        for name, leaf in nnx.to_flat_state(nnx.state(abstract))
    }
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    return file.stat().st_size
