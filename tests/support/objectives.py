"""A tiny model and a random batch, for tests of the objective and the step."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh

from trainer.config import (
    CropConfig,
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimizerConfig,
    SelfSupervisionConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from trainer.distributed import sharding
from trainer.step.objective import Objective
from trainer.step.optimizer import make_optimizer
from trainer.step.state import init_state, place_on_mesh
from trainer.step.train_step import make_train_step

N_IMAGES = 8
# Names of terms.
ALT_TEXT = "contrastive_alt_text"
SYNTHETIC_CAPTION = "contrastive_synthetic_caption"
DISTILLATION = "distillation"
PATCH = "patch"
_SIZES = {"width": 16, "n_heads": 2, "mlp_dim": 32}


def config(**changes) -> TrainConfig:
    """Global crops of 4 x 4 patches, two local crops of 2 x 2.

    Changes are fields of `self_supervision`, or of the configuration itself.
    """
    names = {field.name for field in dataclasses.fields(SelfSupervisionConfig)}
    own = {name: value for name, value in changes.items() if name in names}
    others = {name: value for name, value in changes.items() if name not in names}
    fields = {
        "model": ModelConfig(
            vision=VisionConfig(**_SIZES, n_layers=1, position_grid=(4, 4)),
            text=TextConfig(**_SIZES, n_layers=1, vocabulary_size=50, max_tokens=6),
            head=HeadConfig(
                n_prototypes=24, hidden_dim=16, n_layers=2, bottleneck_dim=8
            ),
        ),
        "data": DataConfig(
            tokenizer="tokenizer.model",
            batch_size=N_IMAGES,
            granularity_weights={},
            global_crop=CropConfig(size_px=56),
            local_crop=CropConfig(size_px=28),
            n_local_crops=2,
        ),
        "optimizer": OptimizerConfig(learning_rate=3e-3, n_warmup_steps=2),
        "n_steps": 100,
        "self_supervision": SelfSupervisionConfig(
            **{"n_prototypes_per_chunk": 3} | own
        ),
    }
    return TrainConfig(**fields | others)


def without_key_biases(params: dict) -> list:
    """Attention does not see a bias that all keys share: its gradient is rounding.

    Adam makes it as large as any other.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [
        leaf
        for path, leaf in leaves
        if not jax.tree_util.keystr(path, simple=True, separator="/").endswith(
            "key/bias"
        )
    ]


def batch(rng_seed: int = 0) -> dict[str, np.ndarray]:
    """Noise with 12 of 16 patches hidden, and texts of random tokens."""
    rng = np.random.default_rng(rng_seed)
    hidden = np.arange(16) < 12
    masks = [rng.permutation(hidden).reshape(4, 4) for _ in range(N_IMAGES)]
    ids = rng.integers(1, 50, (2, N_IMAGES, 6)).astype(np.int32)
    return {
        "image": rng.integers(0, 256, (N_IMAGES, 56, 56, 3), np.uint8),
        "local_crops": rng.integers(0, 256, (N_IMAGES, 2, 28, 28, 3), np.uint8),
        "mask": np.stack(masks),
        "alt_text": ids[0],
        "synthetic_caption": ids[1],
    }


@dataclasses.dataclass(frozen=True)
class Run:
    """What is needed to look at single steps."""

    config: TrainConfig
    grid: tuple[int, int] | None = None  # devices by data and fsdp; None: no mesh
    has_noise: bool = True  # some parameters start at zero and would hide mistakes

    @property
    def mesh(self):
        if self.grid is None:
            return None
        devices = np.array(jax.devices()[: math.prod(self.grid)])
        return Mesh(devices.reshape(self.grid), sharding.BATCH_AXES)

    @property
    def objective(self) -> Objective:
        return Objective(self.config, self.mesh)

    def initial(self) -> dict:
        state = init_state(self.config, self.optimizer)
        rng = np.random.default_rng(1)
        if self.has_noise:
            state["params"] = jax.tree.map(
                lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32),
                state["params"],
            )
        return state if self.mesh is None else place_on_mesh(state, self.mesh)

    @property
    def optimizer(self):
        return make_optimizer(self.config.optimizer, self.config.n_steps)

    def gradients(self) -> tuple[dict, dict]:
        """Metrics of the first step and gradients, on the host."""
        rows = batch()
        if self.mesh is not None:
            rows = sharding.to_devices(self.mesh, rows)
        state = self.initial()
        found = jax.jit(self.objective.gradients)(state["params"], state, rows)
        (loss, (metrics, _)), gradients = jax.device_get(found)
        return {"loss": loss, **metrics}, gradients

    def trained(
        self, n_steps: int, rows: dict[str, np.ndarray] | None = None
    ) -> tuple[dict, list[dict]]:
        """State and metrics after steps on one repeated batch, on the host."""
        train_step = make_train_step(self.config, self.optimizer, self.mesh)
        state, history = self.initial(), []
        rows = batch() if rows is None else rows
        if self.mesh is not None:
            rows = sharding.to_devices(self.mesh, rows)
        for _ in range(n_steps):
            state, metrics = train_step(state, rows)
            history.append({name: float(value) for name, value in metrics.items()})
        return jax.device_get(state), history
