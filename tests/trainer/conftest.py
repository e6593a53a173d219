import io
import json
import pathlib
import tarfile
from collections.abc import Callable, Iterator

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny_export
from tests.support.runs import write_recipe
from trainer import config, tokenizer
from trainer.loop import checkpoints, workdir
from trainer.step import state
from trainer.step.optimizer import make_optimizer


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory) -> Iterator[None]:
    """Runs that start anew load the step that an earlier one compiled."""
    values = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("jax")),
        "jax_persistent_cache_min_compile_time_secs": 1,
    }
    before = {name: jax.config.values[name] for name in values}
    for name in values:
        jax.config.update(name, values[name])
    yield
    for name in values:
        jax.config.update(name, before[name])


@pytest.fixture(scope="session")
def export(tmp_path_factory) -> pathlib.Path:
    """A folder with 24 samples in 2 shards."""
    samples = [tiny_export.sample(number) for number in range(24)]
    return tiny_export.write(tmp_path_factory.mktemp("run") / "tfrecords", samples)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory, export) -> pathlib.Path:
    """A sentencepiece model of the export's texts."""
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.model"
    size = str(tiny_export.VOCABULARY_SIZE)
    tokenizer.main(
        ["--data", str(export), "--vocabulary-size", size, "--output", str(path)]
    )
    return path


@pytest.fixture(scope="session")
def tiny(vocabulary) -> config.TrainConfig:
    """A model of a few thousand parameters and a run of a few steps."""
    sizes = {"width": 16, "n_layers": 1, "n_heads": 2, "mlp_dim": 24}
    return config.TrainConfig(
        model=config.ModelConfig(
            vision=config.VisionConfig(**sizes, position_grid=(2, 2)),
            text=config.TextConfig(
                **sizes, vocabulary_size=tiny_export.VOCABULARY_SIZE, max_tokens=12
            ),
            head=config.HeadConfig(
                n_prototypes=12, hidden_dim=16, n_layers=2, bottleneck_dim=6
            ),
        ),
        data=config.DataConfig(
            tokenizer=str(vocabulary),
            batch_size=8,
            granularity_weights={"short": 1.0, "detailed": 3.0},
            global_crop=config.CropConfig(size_px=28),
            local_crop=config.CropConfig(size_px=14, min_area=0.1, max_area=0.4),
            n_local_crops=2,
        ),
        optimizer=config.OptimizerConfig(learning_rate=3e-3, n_warmup_steps=2),
        n_steps=6,
        run=config.RunConfig(n_threads=1, n_steps_per_log=1, n_steps_per_checkpoint=3),
    )


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, tiny) -> pathlib.Path:
    """`tiny` as a file for `--config`."""
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny)


@pytest.fixture(scope="session")
def workdir_of(tmp_path_factory) -> Callable[[config.TrainConfig], pathlib.Path]:
    """Makes a workdir of a configuration with one checkpoint, full of noise."""

    def make(settings: config.TrainConfig) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("work")
        workdir.claim(folder, settings, shards="none")
        rng = np.random.default_rng(0)
        optimizer = make_optimizer(settings.optimizer, settings.n_steps)
        noise = jax.tree.map(
            lambda x: x + rng.normal(size=x.shape).astype(x.dtype),
            state.init_state(settings, optimizer),
        )
        stream = iter(grain.MapDataset.range(8).to_iter_dataset())
        with checkpoints.Checkpoints(folder / "checkpoints", n_kept=1) as saved:
            saved.save(noise | {"step": jnp.int32(6)}, stream)
        return folder

    return make


@pytest.fixture(scope="session")
def evaluation_tar(tmp_path_factory) -> pathlib.Path:
    """12 images with a label and captions, in the form that evaluations read."""
    path = tmp_path_factory.mktemp("photos") / "a.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(12):
            one = tiny_export.sample(i)
            metadata = {"label": tiny_export.COLORS[i % 3]}
            metadata["captions"] = {name: list(c) for name, c in one.captions.items()}
            for suffix, data in (
                ("jpg", one.image),
                ("json", json.dumps(metadata).encode()),
            ):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
