"""What the terms of self-distillation share: student and teacher over prototypes."""

import dataclasses
import math
from typing import Any

from jaxtyping import Array, Float, Int32

from trainer.config import AntiCollapse, HeadConfig, SelfSupervisionConfig
from trainer.models.prototype_head import PrototypeHead
from trainer.step import prototype_loss, teacher
from trainer.step.prototype_loss import Scores
from trainer.step.terms.term import BatchPart, Metrics, PartTerm


@dataclasses.dataclass(frozen=True)
class PrototypeTerm(PartTerm):
    """A cross-entropy of student and teacher; it keeps a center of the latter."""

    config: SelfSupervisionConfig
    head: HeadConfig

    needs_teacher = True

    def initial_state(self, params: dict) -> Float[Array, "k"]:
        """A center of zeros."""
        return teacher.init_center(self.head)

    def next_state(
        self, kept: Any, statistics: Any, params: dict, step: Int32[Array, ""]
    ) -> Float[Array, "k"]:
        """The center moves towards the teacher's mean logits."""
        momentum = self.config.center_momentum
        return prototype_loss.update_center(kept, statistics, momentum)

    def chance(self, n_pairs: int) -> float:
        """ln k for k prototypes."""
        return math.log(self.head.n_prototypes)


def compare(
    config: SelfSupervisionConfig,
    tokens: tuple[Float[Array, "b t d"], Float[Array, "b t d"]],
    heads: tuple[PrototypeHead, PrototypeHead],
    part: BatchPart,
) -> tuple[prototype_loss.Match, Float[Array, "k"], Float[Array, ""]]:
    """Compares tokens of the student with those of the teacher, each by its head.

    Also returns the teacher's mean logits, and its temperature.
    """
    (student, target), (student_head, teacher_head) = tokens, heads
    temperature = teacher.temperature_at(part.step, config)
    scores = Scores(teacher_head(target), teacher_head.prototypes(), temperature)
    match = prototype_loss.cross_entropy(
        Scores(
            student_head(student),
            student_head.prototypes(),
            config.student_temperature,
        ),
        scores,
        _bias(config, part.kept, scores),
        n_prototypes_per_chunk=config.n_prototypes_per_chunk,
    )
    mean = prototype_loss.mean_logits(scores.bottleneck, scores.prototypes)
    return match, mean, temperature


def describe(
    name: str, match: prototype_loss.Match, temperature: Float[Array, ""]
) -> Metrics:
    """What a comparison tells of the teacher; `name` is that of its tokens."""
    return {
        "teacher_temperature": temperature,
        f"teacher_entropy_{name}": match.teacher_entropy,
        f"n_used_prototypes_{name}": match.n_used_prototypes.astype(float),
    }


def _bias(
    config: SelfSupervisionConfig, center: Float[Array, "k"], scores: Scores
) -> Float[Array, "k"]:
    if config.anti_collapse is AntiCollapse.CENTERING:
        return prototype_loss.center_bias(center, scores.temperature)
    return prototype_loss.sinkhorn_bias(
        *scores, n_prototypes_per_chunk=config.n_prototypes_per_chunk
    )
