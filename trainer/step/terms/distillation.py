"""DINO's term: CLS 1 of the local crops against the teacher's of the global crop.

Source: Caron et al. 2021, arXiv:2104.14294; with one global crop as in TIPS.
"""

import jax.numpy as jnp

from trainer.config import ModelConfig, TrainConfig
from trainer.models.prototype_head import head_flops
from trainer.step import losses
from trainer.step.terms import prototypes
from trainer.step.terms.term import BatchPart, Forward, Place, Value, View


class Distillation(prototypes.PrototypeTerm):
    """Every local crop, and possibly the global one, against the global crop."""

    name = "distillation"
    place = Place("centers", "cls")

    @property
    def views(self) -> frozenset[View]:
        """The local crops, and the whole view where it is compared too."""
        is_global = self.config.is_global_crop_distilled
        return frozenset({View.LOCAL, View.WHOLE} if is_global else {View.LOCAL})

    @property
    def reach(self) -> frozenset[str]:
        """Encoder and head."""
        return frozenset({"vision", "head"})

    def value(self, part: BatchPart) -> Value:
        """The mean over images and crops."""
        ours = part.views.local_cls
        if self.config.is_global_crop_distilled:
            ours = jnp.concatenate([part.views.whole.cls[:, :1], ours], axis=1)
        match, mean, temperature = prototypes.compare(
            self.config,
            (ours, part.targets.cls[:, :1]),
            (part.model.head.cls_head, part.teaching.head.cls_head),
            part,
        )
        nats = losses.distillation_loss(match.cross_entropy)
        return Value(nats, prototypes.describe("cls", match, temperature), mean)

    def flops(self, config: TrainConfig, taught: ModelConfig) -> Forward:
        """The heads, once for each crop and once for the teacher."""
        n_crops = config.data.n_local_crops + self.config.is_global_crop_distilled
        head = head_flops(self.head, config.model.vision.width)
        return Forward(n_crops * head, head_flops(taught.head, taught.vision.width))
