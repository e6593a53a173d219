"""What a recipe says about near-duplicates: what compares images, and from where on.

A descriptor maps an image to a vector; two images are near-duplicates when the cosine
of their vectors is above a bound. Several descriptors are combined by "any".
"""

import dataclasses

from recipes.settings import Settings
from recipes.validation import expect, expect_cosine, expect_name, expect_names


@dataclasses.dataclass(frozen=True)
class EncoderDescriptor(Settings):
    """The image embedding of the run's encoder, which `score` measures anyway."""

    @property
    def name(self) -> str:
        return "encoder"


@dataclasses.dataclass(frozen=True)
class PerceptualDescriptor(Settings):
    """Gradients of a tiny thumbnail: finds re-encodings, needs no model.

    `pipeline.models.descriptors.Perceptual` computes it.
    """

    @property
    def name(self) -> str:
        return "perceptual"


@dataclasses.dataclass(frozen=True)
class TorchDescriptor(Settings):
    """A TorchScript file that maps images to vectors, such as SSCD's.

    It gets float32 [n, 3, size_px, size_px] with the mean and deviation of ImageNet and
    returns [n, d]. Needs the extra [torch].
    """

    checkpoint: str  # path of the file
    name: str = "sscd"  # of its table, and in decisions
    size_px: int = 320  # both sides: SSCD's own batched preparation squashes as well
    batch_size: int = 32  # images that are described at a time

    def __post_init__(self) -> None:
        expect_name("name", self.name)
        taken = ("encoder", "perceptual")
        expect(self.name not in taken, "name", self.name, "one of its own")
        for field in ("size_px", "batch_size"):
            expect(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")


Descriptor = EncoderDescriptor | PerceptualDescriptor | TorchDescriptor
ENCODER = EncoderDescriptor()


@dataclasses.dataclass(frozen=True)
class Resemblance(Settings):
    """Two images are near-duplicates if their similarity is above `max_similarity`."""

    descriptor: Descriptor  # what compares them
    max_similarity: float  # cosine; does not carry over between descriptors

    def __post_init__(self) -> None:
        expect_cosine("max_similarity", self.max_similarity)


@dataclasses.dataclass(frozen=True)
class Cells(Settings):
    """The k-means cells of the pool in which images are compared with one another.

    An image enters the cell of its nearest centroid, and each other cell whose border
    is nearer than half the distance of two near-duplicates: of two near-duplicates at
    least one then enters the cell of the other, so none are missed. `max_per_image`
    bounds the work and may miss some: none of 363 pairs of photos with 4 cells an image
    (`docs/near_duplicates.md`).
    """

    n_clusters: int = 1000  # a cell of n images costs n * n / 2 comparisons
    max_per_image: int = 4
    n_iterations: int = 5  # of k-means
    n_training: int = 64  # images a cell for k-means
    rng_seed: int = 0  # of k-means

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "rng_seed" else 1
            expect(value >= least, field.name, value, f"at least {least}")


@dataclasses.dataclass(frozen=True)
class EvaluationDuplicates(Settings):
    """Drops what resembles an evaluation image by any of `by`.

    With `whole_component` also what resembles a dropped image, and so on: DINOv2 drops
    whole components (arXiv:2304.07193, appendix A). Low bounds chain far.
    """

    by: tuple[Resemblance, ...]
    whole_component: bool = False
    cells: Cells = Cells()  # for `whole_component`
    alarm_size: int = 100  # images in a component that is reported

    def __post_init__(self) -> None:
        _check_resemblances(self.by)
        expect(self.alarm_size >= 2, "alarm_size", self.alarm_size, "at least 2")


@dataclasses.dataclass(frozen=True)
class PoolDuplicates(Settings):
    """Keeps one image of each component of pool images that resemble one another.

    The image with the smallest sample id stays.
    """

    by: tuple[Resemblance, ...]
    cells: Cells = Cells()
    alarm_size: int = 100  # images in a component that is reported

    def __post_init__(self) -> None:
        _check_resemblances(self.by)
        expect(self.alarm_size >= 2, "alarm_size", self.alarm_size, "at least 2")


def _check_resemblances(by: tuple[Resemblance, ...]) -> None:
    expect(bool(by), "by", by, "at least one resemblance")
    expect_names("by", [resemblance.descriptor.name for resemblance in by])
