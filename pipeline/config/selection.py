"""What a recipe says about `select`: thresholds, filters and the kinds of retrieval."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Literal

from pipeline.config.duplicates import (
    ENCODER,
    Descriptor,
    EvaluationDuplicates,
    PoolDuplicates,
    Resemblance,
)
from pipeline.config.language_codes import expect_codes
from pipeline.records import Drop, Pair
from recipes.settings import Settings, check_types
from recipes.validation import ADDED_LATER, expect, expect_cosine

DropRule = Callable[[Pair], Drop | None]


@dataclasses.dataclass(frozen=True)
class ShortText(Settings):
    """What the language filter does with texts too short to tell their language.

    `keep` passes them, `drop` drops them, `alignment` passes those whose alignment
    score is at least `min_score`: an English encoder finds foreign words misaligned.
    """

    policy: Literal["keep", "drop", "alignment"]  # as above
    max_words: int  # texts of at most this many words are short
    min_score: float = -1.0  # cosine

    def __post_init__(self) -> None:
        expect(self.max_words >= 1, "max_words", self.max_words, "at least 1")
        expect_cosine("min_score", self.min_score)


@dataclasses.dataclass(frozen=True)
class KeepLanguages(Settings):
    """Keeps alt text in one of `languages`, detected with `min_probability`.

    Another language counts as such from `min_foreign_probability` on: what a detector
    is less sure of passes, and its alignment score decides.
    """

    languages: tuple[str, ...] = ("en",)
    min_probability: float = 0.0  # the most probable language counts
    min_foreign_probability: float = 0.0
    short_text: ShortText | None = None

    def __post_init__(self) -> None:
        for name in ("min_probability", "min_foreign_probability"):
            value = getattr(self, name)
            expect(0 <= value <= 1, name, value, "0 to 1")
        expect(bool(self.languages), "languages", self.languages, "at least one")
        expect_codes(self.languages)


@dataclasses.dataclass(frozen=True)
class MinScore(Settings):
    """Keeps alignment scores of at least `min_score`."""

    min_score: float  # cosine; does not carry over between encoders

    def __post_init__(self) -> None:
        expect_cosine("min_score", self.min_score)


@dataclasses.dataclass(frozen=True)
class KeepFraction(Settings):
    """Keeps the best-aligned `keep_fraction` of what passed rules and language.

    That is a share of all sources together, or of each one by itself.
    """

    keep_fraction: float
    # A share of each source by itself, so that a poor one is not left out whole.
    per_source: bool = dataclasses.field(default=False, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        is_valid = 0 < self.keep_fraction <= 1
        expect(is_valid, "keep_fraction", self.keep_fraction, "0 < fraction <= 1")


@dataclasses.dataclass(frozen=True)
class NearSeeds(Settings):
    """Keeps images at least `min_similarity` from some curated seed."""

    min_similarity: float  # cosine of image embeddings

    def __post_init__(self) -> None:
        expect_cosine("min_similarity", self.min_similarity)


@dataclasses.dataclass(frozen=True)
class NearestToSeeds(Settings):
    """Keeps the `k` images nearest to each curated seed.

    The default is what DINOv2 takes for its largest sets; for ImageNet-1k it takes 32
    (arXiv:2304.07193, appendix A). TIPS publishes no number.
    """

    k: int = 4
    set_to_k: Mapping[str, int] = dataclasses.field(default_factory=dict)  # or `k`

    def __post_init__(self) -> None:
        expect(self.k >= 1, "k", self.k, "at least 1")
        for name, k in self.set_to_k.items():
            expect(k >= 1, f"set_to_k[{name!r}]", k, "at least 1")

    def k_of(self, set_name: str) -> int:
        """Returns how many images each seed of that set keeps."""
        return self.set_to_k.get(set_name, self.k)


@dataclasses.dataclass(frozen=True)
class SeededClusters(Settings):
    """Keeps images of the clusters of the pool that enough seeds of a set lie in.

    Which images of a cluster is left to chance, which depends on the sample id and
    `rng_seed`. The first four defaults are DINOv2's, for about a billion images
    (arXiv:2304.07193, appendix A). TIPS publishes no number.
    """

    n_clusters: int = 100_000  # of k-means over the pool
    min_seeds: int = 4  # of one set, in a cluster that is kept
    max_per_cluster: int = 10_000  # images that a cluster gives a set
    max_per_set: int = 1_000_000  # images that a set keeps
    n_iterations: int = 10  # of k-means
    n_training: int = 256  # images a cluster for k-means, the bound of FAISS
    rng_seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "rng_seed" else 1
            expect(value >= least, field.name, value, f"at least {least}")
        expected = f"at most max_per_set={self.max_per_set}"
        is_valid = self.max_per_cluster <= self.max_per_set
        expect(is_valid, "max_per_cluster", self.max_per_cluster, expected)


Retrieval = NearSeeds | NearestToSeeds | SeededClusters


@dataclasses.dataclass(frozen=True)
class CapPerSeed(Settings):
    """Keeps about `max_count` of the images that have the same nearest seed."""

    max_count: int
    rng_seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        _expect_cap(self.max_count, self.rng_seed)


@dataclasses.dataclass(frozen=True)
class CapPerCluster(Settings):
    """Keeps about `max_count` images of each k-means cluster of what is left."""

    max_count: int
    n_clusters: int  # of k-means over what is left
    n_iterations: int = 10  # of k-means
    n_training: int = 256  # images a cluster for k-means, the bound of FAISS
    rng_seed: int = 0  # of k-means and of the draws

    def __post_init__(self) -> None:
        _expect_cap(self.max_count, self.rng_seed)
        self.training()

    def training(self) -> SeededClusters:
        """Returns how the clusters are found."""
        return SeededClusters(
            n_clusters=self.n_clusters,
            n_iterations=self.n_iterations,
            n_training=self.n_training,
            rng_seed=self.rng_seed,
        )


@dataclasses.dataclass(frozen=True)
class CapPerConcept(Settings):
    """Keeps about `max_count` pairs of each concept, and those that a rarer one keeps.

    A concept is a line of the file `concepts`, as `pipeline.selection.concepts` reads
    it. The defaults are MetaCLIP's for 400 million pairs (arXiv:2309.16671, algorithm
    1); TIPS does nothing of the kind.
    """

    concepts: str  # file
    max_count: int = 20_000
    keep_unmatched: bool = False  # pairs whose text names no concept
    rng_seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        expect(bool(self.concepts), "concepts", self.concepts, "the path of a file")
        _expect_cap(self.max_count, self.rng_seed)


Cap = CapPerSeed | CapPerCluster | CapPerConcept


def _expect_cap(max_count: int, rng_seed: int) -> None:
    expect(max_count >= 1, "max_count", max_count, "at least 1")
    expect(rng_seed >= 0, "rng_seed", rng_seed, "at least 0")


@dataclasses.dataclass(frozen=True)
class SafetyHead(Settings):
    """Drops images that a linear head on their embeddings calls unsafe.

    The head is a file as `pipeline.selection.safety` reads it.
    """

    head: str  # file
    max_probability: float  # more is unsafe; means something for one head only

    def __post_init__(self) -> None:
        expect(bool(self.head), "head", self.head, "the path of a file")
        is_valid = 0 <= self.max_probability <= 1
        expect(is_valid, "max_probability", self.max_probability, "0 to 1")


def needs_seeds(caps: tuple[Cap, ...]) -> bool:
    """Whether a cap searches for seeds."""
    return any(isinstance(cap, CapPerSeed) for cap in caps)


@dataclasses.dataclass(frozen=True)
class SelectionConfig(Settings):
    """What `select` drops, in this order; None or () switches a step off.

    The first two steps and `safety` say what must not be used, so they hold for sources
    with `keep_all` as well.
    """

    # Those that img2dataset refuses, besides those of its users.
    opt_out_directives: tuple[str, ...] = (
        "noai",
        "noimageai",
        "noindex",
        "noimageindex",
    )
    drop_list: str = ""  # glob of files as `pipeline.sources.drop_lists` reads them
    drop_rules: tuple[
        DropRule, ...
    ] = ()  # on one pair: `pipeline.selection.rules`, or own
    language: KeepLanguages | None = None
    alignment: MinScore | KeepFraction | None = None  # of the image and its alt text
    # Pairs of the same image bytes; that with the smallest sample id stays.
    drop_exact_duplicates: bool = True
    safety: SafetyHead | None = dataclasses.field(default=None, metadata=ADDED_LATER)
    max_evaluation_similarity: float | None = None  # cosine; more is a near-duplicate
    evaluation_duplicates: EvaluationDuplicates | None = dataclasses.field(
        default=None, metadata=ADDED_LATER
    )  # by other descriptors
    pool_duplicates: PoolDuplicates | None = dataclasses.field(
        default=None, metadata=ADDED_LATER
    )
    # Images of an evaluation or seed set that are compared one by one; a larger set is
    # searched by inverted lists, which miss up to about 1 % of the nearest images.
    max_exact_set: int = dataclasses.field(default=1_000_000, metadata=ADDED_LATER)
    # Of an evaluation or seed set that is compared with: `select` warns of images that
    # cannot be read, and stops if they are a larger share.
    max_unreadable_reference_share: float = dataclasses.field(
        default=0.9, metadata=ADDED_LATER
    )
    retrieval: Retrieval | None = None  # keeps what is near curated seeds
    # Thins out what there is most of, one cap after the other.
    balance: tuple[Cap, ...] = dataclasses.field(default=(), metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        n = self.max_exact_set
        expect(n >= 0, "max_exact_set", n, "at least 0")
        share = self.max_unreadable_reference_share
        is_share = 0 <= share <= 1
        expect(is_share, "max_unreadable_reference_share", share, "0 to 1")
        for directive in self.opt_out_directives:
            is_valid = re.fullmatch(r"[a-z0-9_-]+", directive) is not None
            expected = "lower-case directives such as 'noai'"
            expect(is_valid, "opt_out_directives", directive, expected)
        for rule in self.drop_rules:  # plain functions have no fingerprint
            is_valid = dataclasses.is_dataclass(rule) and not isinstance(rule, type)
            expect(is_valid, "drop_rules", rule, "instances of dataclasses")
            check_types(rule)
        if self.max_evaluation_similarity is not None:
            expect_cosine("max_evaluation_similarity", self.max_evaluation_similarity)
        by_encoder = [r.descriptor.name for r in self.evaluation_bounds].count(
            "encoder"
        )
        expected = "None beside a bound of the encoder in evaluation_duplicates"
        similarity = self.max_evaluation_similarity
        expect(by_encoder < 2, "max_evaluation_similarity", similarity, expected)

    @property
    def named_files(self) -> tuple[str, ...]:
        """Returns the files whose contents are part of the settings."""
        heads = (self.safety.head,) if self.safety else ()
        lists = (cap.concepts for cap in self.balance if isinstance(cap, CapPerConcept))
        return (*heads, *lists)

    @property
    def evaluation_bounds(self) -> tuple[Resemblance, ...]:
        """Returns the bounds on similarity to evaluation images, in the order tried."""
        similarity = self.max_evaluation_similarity
        duplicates = self.evaluation_duplicates
        by = duplicates.by if duplicates else ()
        return by if similarity is None else (Resemblance(ENCODER, similarity), *by)

    @property
    def pool_bounds(self) -> tuple[Resemblance, ...]:
        """Returns the bounds on similarity within the pool."""
        return self.pool_duplicates.by if self.pool_duplicates else ()

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """Returns the descriptors that `score` computes besides the embeddings."""
        found = {r.descriptor for r in (*self.evaluation_bounds, *self.pool_bounds)}
        asked = (d for d in found if d != ENCODER)
        return tuple(sorted(asked, key=lambda descriptor: descriptor.name))
