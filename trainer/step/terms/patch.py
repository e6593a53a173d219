"""iBOT's and iBOT++'s term: the student's patches against the teacher's.

Source: Zhou et al. 2022, arXiv:2111.07832; TIPSv2, arXiv:2604.12012.
"""

from jaxtyping import Array, Bool, Float

from trainer.config import ModelConfig, TrainConfig
from trainer.models.prototype_head import head_flops
from trainer.models.vit import flatten_grid, n_patches
from trainer.step import losses
from trainer.step.terms import prototypes
from trainer.step.terms.term import BatchPart, Forward, Metrics, Place, Value, View


class Patch(prototypes.PrototypeTerm):
    """Patches of the masked view against those of the teacher's whole view."""

    name = "patch"
    place = Place("centers", "patch")

    @property
    def views(self) -> frozenset[View]:
        """The masked view."""
        return frozenset({View.MASKED})

    @property
    def reach(self) -> frozenset[str]:
        """Encoder and head, and what replaces hidden patches."""
        is_masked = self.config.mask_ratio > 0
        return frozenset({"vision", "head"} | ({"mask_token"} if is_masked else set()))

    def value(self, part: BatchPart) -> Value:
        """The mean over the patches that count."""
        match, mean, temperature = prototypes.compare(
            self.config,
            (
                flatten_grid(part.views.masked.patches),
                flatten_grid(part.targets.patches),
            ),
            (part.model.head.patch_head, part.teaching.head.patch_head),
            part,
        )
        nats = match.cross_entropy
        mask = part.batch["mask"].reshape(len(nats), -1)
        metrics = prototypes.describe("patch", match, temperature)
        metrics |= _patch_means(nats, mask)
        return Value(losses.patch_loss(nats, mask, self.config), metrics, mean)

    def flops(self, config: TrainConfig, taught: ModelConfig) -> Forward:
        """The heads, for each patch of both."""
        size_px = config.data.global_crop.size_px
        return Forward(
            *(
                n_patches(model.vision, size_px)
                * head_flops(model.head, model.vision.width)
                for model in (config.model, taught)
            )
        )


def _patch_means(
    cross_entropy: Float[Array, "b p"], mask: Bool[Array, "b p"]
) -> Metrics:
    """The cross-entropy of hidden and of visible patches, in nats."""
    return {
        "patch_masked": losses.mean_where(mask, cross_entropy),
        "patch_visible": losses.mean_where(~mask, cross_entropy),
    }
