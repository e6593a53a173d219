"""What a term of the loss declares, and what it is given.

A term names what it reads, what its gradient reaches and what it costs. The objective
makes each view once, and only those that some term reads.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from trainer.config import ModelConfig, Text, TrainConfig
from trainer.data.batches import Batch
from trainer.models.two_tower import ImageTeacher, TwoTower
from trainer.models.vit import VisionOutput

Metrics = dict[str, Float[Array, ""]]


class View(enum.StrEnum):
    """What the student sees of an image."""

    WHOLE = "whole"  # the global crop
    MASKED = "masked"  # the global crop with hidden patches
    LOCAL = "local"  # the local crops


class Views(NamedTuple):
    """The student's output for each view of the images; one that no term reads is None.

    A term declares what it reads, so it need not look.
    """

    whole: VisionOutput
    masked: VisionOutput
    local_cls: Float[Array, "b m d"]  # CLS 1 of the local crops


class Value(NamedTuple):
    """What a term found."""

    nats: Float[Array, ""]
    metrics: Metrics = {}  # noqa: RUF012 (never changed)
    # Of the batch, for `next_state`; a mean over microbatches.
    statistics: Any = None


class Forward(NamedTuple):
    """Operations of the forward pass per image of a batch."""

    trained: int  # with a gradient: the student
    frozen: int  # without: the teacher


class Place(NamedTuple):
    """Where the training state keeps what a term keeps: `state[group][name]`."""

    group: str
    name: str


class WholeBatch(NamedTuple):
    """What a `BatchTerm` reads: features of all images of a step."""

    model: TwoTower
    # CLS tokens [b, tokens, d] by `View`, texts [b, d] by `Text`.
    features: Mapping[str, Float[Array, "b ..."]]
    mesh: Mesh | None
    n_rows_per_chunk: int


class BatchPart(NamedTuple):
    """What a `PartTerm` reads: views of the images of a microbatch."""

    model: TwoTower
    views: Views
    targets: VisionOutput  # the teacher's output for the whole view; no gradient
    teaching: ImageTeacher  # like `targets`, for terms that need a teacher
    batch: Batch
    step: Int32[Array, ""]
    kept: Any  # what the term keeps in the training state
    # Encodes images by other parameters of the student's image encoder.
    encode_image: Callable[[dict, Array], VisionOutput]


class Term:
    """One term; a frozen dataclass whose fields are its settings.

    It must say `name`, `reach` and its value. The rest has a default.
    """

    needs_teacher = False  # and the prototype heads
    place: Place | None = None  # None: it keeps nothing

    @property
    def name(self) -> str:
        """The name of its metric."""
        raise NotImplementedError

    @property
    def views(self) -> frozenset[View]:
        """The views that it reads."""
        return frozenset()

    @property
    def reach(self) -> frozenset[str]:
        """The groups of parameters that its gradient reaches."""
        raise NotImplementedError

    def initial_state(self, params: dict) -> Any:
        """What it keeps before the first step."""
        return None

    def next_state(
        self, kept: Any, statistics: Any, params: dict, step: Int32[Array, ""]
    ) -> Any:
        """What it keeps after a step, from the parameters after the update.

        `step` counts the updates before this one.
        """
        return kept

    def chance(self, n_pairs: int) -> float | None:
        """The value for features that tell nothing apart; None if it has none."""
        return None

    def flops(self, config: TrainConfig, taught: ModelConfig) -> Forward:
        """Operations per image beyond those of encoders: heads, comparisons."""
        return Forward(0, 0)


class BatchTerm(Term):
    """A term that compares the images of a whole batch by their features.

    With microbatches its gradient flows through a cache of these features.
    """

    @property
    def texts(self) -> frozenset[Text]:
        """The texts that it reads; CLS tokens are those of `views`."""
        return frozenset()

    def value(self, batch: WholeBatch) -> Value:
        """Compares the features."""
        raise NotImplementedError


class PartTerm(Term):
    """A term that is a mean over images, and can be taken part by part."""

    def value(self, part: BatchPart) -> Value:
        """Compares the views."""
        raise NotImplementedError


class Weighted(NamedTuple):
    """A term and its weight in the total."""

    weight: float
    term: Term
