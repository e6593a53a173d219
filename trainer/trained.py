"""A trained model, found by its workdir: for evaluation, and for other runs.

trained = find("WORKDIR")
params = trained.params(two_tower.abstract_params(trained.config.model))
"""

import dataclasses
import pathlib

import jax

from trainer import checkpoints, teacher, workdir
from trainer.config import Ema, TrainConfig
from trainer.models import two_tower


@dataclasses.dataclass(frozen=True)
class Trained:
    """One checkpoint of a workdir."""

    folder: pathlib.Path  # the workdir
    config: TrainConfig
    step: int

    def params(self, shapes: dict) -> dict:
        """The modules of `shapes`; see `two_tower.abstract_params`."""
        return self._load("params", shapes)

    def teacher(self) -> tuple[dict, dict]:
        """Image encoder and head as they taught at this step, and the centres."""
        shapes = two_tower.abstract_params(self.config.model, has_head=True)
        ssl = self.config.self_supervision
        kept = {
            "teacher": {name: shapes[name] for name in teacher.kept(ssl)},
            "centres": jax.eval_shape(
                lambda: teacher.init_centres(self.config.model.head, ssl)
            ),
        }
        stored = self._load("training", kept)
        vision = {"vision": shapes["vision"]}
        own = self.params(vision) if ssl.ema is Ema.HEAD else {}
        return {**own, **stored["teacher"]}, stored["centres"]

    def _load(self, item: str, shapes: dict) -> dict:
        folder = self.folder / workdir.CHECKPOINTS
        return checkpoints.load_item(folder, self.step, item, shapes)


def find(checkpoint: pathlib.Path, step: int | None = None) -> Trained:
    """A workdir or one of its checkpoints; of a workdir the latest unless told.

    Raises ValueError when there is none.
    """
    checkpoint = checkpoint.absolute()
    if checkpoint.parent.name == workdir.CHECKPOINTS and checkpoint.name.isdecimal():
        folder, step = checkpoint.parent.parent, int(checkpoint.name)
    else:
        folder = checkpoint
    config = workdir.load_config(folder)
    found = checkpoints.steps(folder / workdir.CHECKPOINTS)
    if not found:
        raise ValueError(f"{folder}: no checkpoint, expected a workdir with some")
    step = found[-1] if step is None else step
    if step not in found:
        raise ValueError(f"step {step}: expected one of {', '.join(map(str, found))}")
    return Trained(folder, config, step)
