"""A trained model, found by its workdir or its export: to evaluate it or to start from
it.

    trained = find_trained_model("WORKDIR")
    params = trained.params(two_tower.abstract_params(trained.config.model))
"""

import dataclasses
import pathlib
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from trainer.config import (
    CropConfig,
    DataConfig,
    OptimizerConfig,
    SelfSupervisionConfig,
    TrainConfig,
    Weights,
)
from trainer.distributed import sharding
from trainer.exchange import exported_weights, formats
from trainer.exchange.exported_weights import ExportedWeights
from trainer.loop import checkpoints, workdir
from trainer.models import two_tower
from trainer.step import teacher


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """One checkpoint of a workdir."""

    folder: pathlib.Path  # the workdir
    config: TrainConfig
    step: int
    weights: Weights = dataclasses.field(default=Weights.STUDENT, kw_only=True)

    def with_weights(self, weights: Weights) -> "TrainedModel":
        """Returns the same checkpoint, read with the image encoder of another.

        Raises ValueError if it has none.
        """
        if weights is Weights.TEACHER:
            ssl = self.config.self_supervision
            ssl.require_averaged_encoder(f"weights={weights}")
        return dataclasses.replace(self, weights=weights)

    def params(self, shapes: dict) -> dict:
        """Reads the modules of `shapes`; see `two_tower.abstract_params`.

        Where these have shardings, so have the arrays.
        """
        taught = {"vision"} if self.weights is Weights.TEACHER else set[str]()
        kept = {name: shapes[name] for name in shapes.keys() & taught}
        own = {name: shapes[name] for name in shapes.keys() - taught}
        found = self._load("params", own) if own else {}
        if kept:
            found |= self._load("training", {"teacher": kept})["teacher"]
        return found

    def module_names(self) -> set[str]:
        """Returns the names of the modules that `params` can read."""
        folder = self.folder / workdir.CHECKPOINTS
        return checkpoints.part_names(folder, self.step, "params")

    def teacher(
        self, mesh: Mesh | None = None, names: Collection[str] = teacher.MODULES
    ) -> tuple[dict, dict]:
        """Reads image encoder and head as they taught at this step, and the centers.

        For the student of a frozen teacher they are its own. Reads only the modules
        of `names`, onto a mesh if there is one.
        """
        shapes = two_tower.abstract_params(self.config.model, has_head=True)
        ssl = self.config.self_supervision
        wanted = {name: shapes[name] for name in names}
        kept = {
            "teacher": {
                name: wanted.pop(name)
                for name in teacher.averaged_modules(ssl)
                if name in wanted
            },
            "centers": jax.eval_shape(
                lambda: teacher.init_centers(self.config.model.head, ssl)
            ),
        }
        stored = self._load("training", _placed(mesh, kept))
        own = self.params(_placed(mesh, wanted)) if wanted else {}
        return {**own, **stored["teacher"]}, stored["centers"]

    def digest(self) -> str:
        """Tells this checkpoint from others; see `checkpoints.digest`."""
        return checkpoints.digest(self.folder / workdir.CHECKPOINTS, self.step)

    def exported_weights(self) -> ExportedWeights:
        """Returns both towers as they are exported."""
        has_head = self.config.self_supervision.is_on
        shapes = two_tower.abstract_params(self.config.model, has_head=has_head)
        return exported_weights.from_params(
            self.params(exported_weights.exported_params(shapes)),
            self.config.model,
            self.config.data.global_crop.size_px,
            self.step,
            exported_weights.exported_text(self.config.contrastive),
        )

    def _load(self, item: str, shapes: dict) -> dict:
        folder = self.folder / workdir.CHECKPOINTS
        return checkpoints.load_item(folder, self.step, item, shapes)


@dataclasses.dataclass(frozen=True)
class ImportedModel(TrainedModel):
    """An export, ours or another's: both towers, without a head and without a teacher.

    Only `model`, `data.tokenizer` and the size of the global crop of its configuration
    are known; the rest says that nothing else was trained.
    """

    model: ExportedWeights

    def params(self, shapes: dict) -> dict:
        """Returns the modules of `shapes`; see `TrainedModel.params`."""
        found = self.model.params()
        return {
            name: jax.tree.map(_place, found[name], part)
            for name, part in shapes.items()
        }

    def module_names(self) -> set[str]:
        """Returns the names of the modules of the export."""
        return set(self.model.params())

    def exported_weights(self) -> ExportedWeights:
        """Returns the weights as they were read."""
        return self.model


def _placed(mesh: Mesh | None, shapes: dict) -> dict:
    return shapes if mesh is None else sharding.with_places(mesh, shapes)


def _place(values: np.ndarray, shape: jax.ShapeDtypeStruct) -> Array:
    if shape.sharding is None:
        return jnp.asarray(values)
    return sharding.place_array(np.asarray(values), shape.sharding)


def find_trained_model(
    checkpoint: pathlib.Path, step: int | None = None
) -> TrainedModel:
    """Finds a workdir, one of its checkpoints, or an export; see `formats.read`.

    In a workdir it takes the latest step, or `step`. Raises ValueError if there is
    none.
    """
    checkpoint = checkpoint.absolute()
    if formats.is_export(checkpoint):
        return _read_export(checkpoint, step)
    if checkpoint.parent.name == workdir.CHECKPOINTS and checkpoint.name.isdecimal():
        folder, step = checkpoint.parent.parent, int(checkpoint.name)
    else:
        folder = checkpoint
    formats.check_is_read(folder)
    config = workdir.load_config(folder)
    found = checkpoints.find_steps(folder / workdir.CHECKPOINTS)
    if not found:
        raise ValueError(f"{folder}: no checkpoint, expected a workdir with some")
    step = found[-1] if step is None else step
    if step not in found:
        steps = ", ".join(map(str, found))
        raise ValueError(f"{folder}, step {step}: expected one of {steps}")
    return TrainedModel(folder, config, step)


def _read_export(path: pathlib.Path, step: int | None) -> ImportedModel:
    found = formats.read(path)
    if step is not None:
        raise ValueError(f"step {step}: expected none with {path}, an export")
    folder = path if path.is_dir() else path.parent
    crop = CropConfig(size_px=found.size_px)
    config = TrainConfig(
        model=found.model,
        data=DataConfig(
            tokenizer=str(folder / formats.TOKENIZER),
            batch_size=2,
            granularity_weights={},
            global_crop=crop,
            local_crop=crop,
            n_local_crops=0,
        ),
        optimizer=OptimizerConfig(learning_rate=1.0, n_warmup_steps=0),
        n_steps=1,
        self_supervision=SelfSupervisionConfig(distillation_weight=0, patch_weight=0),
    )
    return ImportedModel(folder, config, found.step, found)
