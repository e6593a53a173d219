"""The loss of a batch, and its gradient.

The student sees the global crop twice, whole and with hidden patches, and the local
crops. The whole view gives the contrastive terms and, in TIPSv2, the teacher's targets
as well; a teacher with an encoder of its own, as in TIPS, sees it too. Nothing here is
random.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from trainer.config import AntiCollapse, Ema, ModelConfig, TrainConfig
from trainer.data.batches import Batch
from trainer.models import two_tower
from trainer.models.prototype_head import PrototypeHead
from trainer.models.two_tower import TwoTower
from trainer.models.vit import VisionOutput
from trainer.step import losses, prototype_loss, teacher
from trainer.step.prototype_loss import Scores
from trainer.step.state import State

Metrics = dict[str, Float[Array, ""]]


class Features(NamedTuple):
    """The features of a batch that the contrastive terms compare."""

    cls: Float[Array, "b 2 d"]
    alt_text: Float[Array, "b d"]
    synthetic_caption: Float[Array, "b d"]


class Views(NamedTuple):
    """The student's output for each view of the images; None if no term needs it."""

    whole: VisionOutput
    masked: VisionOutput | None
    local_cls: Float[Array, "b m d"] | None  # CLS 1 of the local crops


class Objective:
    """The loss of a batch and its gradient."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh | None = None,
        teacher_model: ModelConfig | None = None,
    ):
        model, compute = config.model, config.compute
        self._config = config
        self._ssl = config.self_supervision
        self._mesh = mesh
        self._graph = two_tower.graph(model, has_head=self._ssl.is_on, compute=compute)
        self._teacher_graph = two_tower.teacher_graph(teacher_model or model, compute)

    def gradients(self, params: dict, state: State, batch: Batch) -> tuple:
        """((loss, (metrics, mean logits)), gradient of the parameters)."""
        n_parts = self._config.compute.n_microbatches
        if n_parts == 1:
            return jax.value_and_grad(self._loss, has_aux=True)(params, state, batch)
        return self._gradients_in_parts(params, state, _split_batch(batch, n_parts))

    def terms(self, params: dict, state: State, batch: Batch) -> tuple:
        """(terms, further metrics, the teacher's mean logits) of a whole batch."""
        model = nnx.merge(self._graph, params)
        views = self._views(model, batch)
        features = _encode_features(model, views.whole, batch)
        own, metrics, mean_logits = self._self_supervision(model, views, state, batch)
        terms = self._contrastive_terms(model, features) | own
        metrics |= self._describe_terms(model, terms, len(batch["image"]))
        return terms, metrics, mean_logits

    def _loss(self, params: dict, state: State, batch: Batch) -> tuple:
        terms, metrics, mean_logits = self.terms(params, state, batch)
        return losses.total_loss(terms, self._ssl), (metrics, mean_logits)

    def _gradients_in_parts(self, params: dict, state: State, parts: Batch) -> tuple:
        """The same result from microbatches, one after the other.

        The contrastive terms need the features of all parts, so a first pass encodes
        these without a gradient. A second pass encodes each part again; the gradient of
        the contrastive terms flows through it as that of a linear function of its
        features.
        Source: Gao et al. 2021, arXiv:2101.06983 (gradient cache).
        """
        n_parts = self._config.compute.n_microbatches

        def features_of(part: Batch) -> Features:
            model = nnx.merge(self._graph, params)
            return _encode_features(model, model.encode_image(part["image"]), part)

        def contrastive(params: dict, features: Features) -> tuple:
            model = nnx.merge(self._graph, params)
            whole = jax.tree.map(_join_parts, features)
            terms = self._contrastive_terms(model, whole)
            n_pairs = len(whole.cls)
            return losses.contrastive_loss(terms), self._describe_terms(
                model, terms, n_pairs
            )

        def part_loss(params: dict, part: Batch, slopes: Features) -> tuple:
            model = nnx.merge(self._graph, params)
            views = self._views(model, part)
            features = _encode_features(model, views.whole, part)
            products = jax.tree.map(
                lambda x, slope: (x * slope).sum(), features, slopes
            )
            terms, metrics, logits = self._self_supervision(model, views, state, part)
            own = losses.self_supervised_loss(terms, self._ssl)
            return sum(products) + own / n_parts, (own, metrics | terms, logits)

        features = jax.lax.map(features_of, parts)
        (value, facts), (gradients, slopes) = jax.value_and_grad(
            contrastive, argnums=(0, 1), has_aux=True
        )(params, features)

        def add_part(total: dict, part_and_slopes: tuple) -> tuple:
            gradients, aux = jax.grad(part_loss, has_aux=True)(params, *part_and_slopes)
            return jax.tree.map(jnp.add, total, gradients), aux

        gradients, aux = jax.lax.scan(add_part, gradients, (parts, slopes))
        own, metrics, mean_logits = jax.tree.map(lambda x: x.mean(axis=0), aux)
        metrics |= facts | self._add_chance(metrics)
        return (value + own, (metrics, mean_logits)), gradients

    def _views(self, model: TwoTower, batch: Batch) -> Views:
        """Encodes both views of the global crop in one pass, all local crops in one."""
        ssl, image = self._ssl, batch["image"]
        masked: VisionOutput | None
        if ssl.patch_weight > 0 and ssl.mask_ratio > 0:
            mask = batch["mask"]
            masks = _interleave(jnp.zeros_like(mask), mask)
            both = model.encode_image(_interleave(image, image), masks)
            cls, patches = map(_deinterleave, both)
            whole, masked = map(VisionOutput, cls, patches)
        else:
            whole = model.encode_image(image)
            masked = whole if ssl.patch_weight > 0 else None
        local_cls = None
        if ssl.distillation_weight > 0:
            crops = batch["local_crops"]
            b, m = crops.shape[:2]
            cls = model.encode_image(crops.reshape(b * m, *crops.shape[2:])).cls
            local_cls = cls[:, 0].reshape(b, m, -1)
        return Views(whole, masked, local_cls)

    def _contrastive_terms(self, model: TwoTower, features: Features) -> Metrics:
        texts = {
            "alt_text": features.alt_text,
            "synthetic_caption": features.synthetic_caption,
        }
        return losses.contrastive_terms(
            features.cls,
            texts,
            model.temperatures(),
            biases=model.biases(),
            mesh=self._mesh,
            n_rows_per_chunk=self._config.compute.n_rows_per_chunk,
        )

    def _self_supervision(
        self, model: TwoTower, views: Views, state: State, batch: Batch
    ) -> tuple[Metrics, Metrics, dict[str, Float[Array, "k"]]]:
        """Terms, further metrics, and the teacher's mean logits for the centers."""
        if not self._ssl.is_on:
            return {}, {}, {}
        own = {"vision": state["params"]["vision"]}
        teaching = nnx.merge(self._teacher_graph, own | state["teacher"])
        is_own = self._ssl.ema is Ema.HEAD
        targets = views.whole if is_own else teaching.encode_image(batch["image"])
        targets = jax.lax.stop_gradient(targets)
        temperature = teacher.temperature_at(state["step"], self._ssl)
        terms: Metrics = {}
        metrics: Metrics = {"teacher_temperature": temperature}
        mean_logits = dict(state["centers"])  # of a term that is off they stay

        def compare(
            name: str,
            tokens: tuple[Float[Array, "b t d"], Float[Array, "b t d"]],
            heads: tuple[PrototypeHead, PrototypeHead],
        ) -> Float[Array, "b t"]:
            """Tokens and heads of the student and of the teacher."""
            center = state["centers"][name]
            match, mean = self._compare(tokens, heads, center, temperature)
            mean_logits[name] = mean
            metrics[f"teacher_entropy_{name}"] = match.teacher_entropy
            metrics[f"n_used_prototypes_{name}"] = match.n_used_prototypes.astype(float)
            return match.cross_entropy

        if views.local_cls is not None:
            ours = views.local_cls
            if self._ssl.is_global_crop_distilled:
                ours = jnp.concatenate([views.whole.cls[:, :1], ours], axis=1)
            heads = (model.head.cls_head, teaching.head.cls_head)
            nats = compare("cls", (ours, targets.cls[:, :1]), heads)
            terms[losses.DISTILLATION] = losses.distillation_loss(nats)
        if views.masked is not None:
            heads = (model.head.patch_head, teaching.head.patch_head)
            patches = (
                _flatten_grid(views.masked.patches),
                _flatten_grid(targets.patches),
            )
            nats = compare("patch", patches, heads)
            mask = batch["mask"].reshape(len(batch["mask"]), -1)
            terms[losses.PATCH] = losses.patch_loss(nats, mask, self._ssl)
            metrics |= _patch_means(nats, mask)
        return terms, metrics, mean_logits

    def _compare(
        self,
        tokens: tuple[Float[Array, "b t d"], Float[Array, "b t d"]],
        heads: tuple[PrototypeHead, PrototypeHead],
        center: Float[Array, "k"],
        temperature: Float[Array, ""],
    ) -> tuple[prototype_loss.Match, Float[Array, "k"]]:
        """The student compared with the teacher, and the teacher's mean logits."""
        (student, target), (student_head, teacher_head) = tokens, heads
        scores = Scores(teacher_head(target), teacher_head.prototypes(), temperature)
        match = prototype_loss.cross_entropy(
            Scores(
                student_head(student),
                student_head.prototypes(),
                self._ssl.student_temperature,
            ),
            scores,
            self._bias(center, scores),
            n_tokens_per_chunk=self._ssl.n_tokens_per_chunk,
        )
        mean = prototype_loss.mean_logits(scores.bottleneck, scores.prototypes)
        return match, mean

    def _bias(self, center: Float[Array, "k"], scores: Scores) -> Float[Array, "k"]:
        if self._ssl.anti_collapse is AntiCollapse.CENTERING:
            return prototype_loss.center_bias(center, scores.temperature)
        return prototype_loss.sinkhorn_bias(
            *scores, n_tokens_per_chunk=self._ssl.n_tokens_per_chunk
        )

    def _describe_terms(self, model: TwoTower, terms: Metrics, n_pairs: int) -> Metrics:
        """The terms, their chance levels, and the temperatures."""
        temperatures = {
            f"temperature_{kind}": value for kind, value in model.temperatures().items()
        }
        return {**terms, **self._chance(terms, n_pairs), **temperatures}

    def _add_chance(self, metrics: Metrics) -> Metrics:
        names = {losses.DISTILLATION, losses.PATCH} & metrics.keys()
        return self._chance(dict.fromkeys(sorted(names)), n_pairs=2)

    def _chance(self, terms: dict, n_pairs: int) -> dict[str, float]:
        return losses.chance_levels(
            terms,
            n_pairs,
            self._config.model.head.n_prototypes,
            contrastive_loss=self._config.model.contrastive_loss,
        )


def _encode_features(model: TwoTower, whole: VisionOutput, batch: Batch) -> Features:
    """Encodes both texts of every image in one pass of the text encoder."""
    ids = _interleave(batch["alt_text"], batch["synthetic_caption"])
    return Features(whole.cls, *_deinterleave(model.encode_text(ids)))


def _patch_means(
    cross_entropy: Float[Array, "b p"], mask: Bool[Array, "b p"]
) -> Metrics:
    """The cross-entropy of hidden and of visible patches, in nats."""
    return {
        "patch_masked": losses.mean_where(mask, cross_entropy),
        "patch_visible": losses.mean_where(~mask, cross_entropy),
    }


def _flatten_grid(patches: Float[Array, "b gh gw d"]) -> Float[Array, "b p d"]:
    return patches.reshape(len(patches), -1, patches.shape[-1])


def _interleave(first: Array, second: Array) -> Array:
    """Takes rows in turn, so that both stay on the device that holds the image."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _deinterleave(rows: Array) -> tuple[Array, Array]:
    """The inverse of `_interleaved`."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def _split_batch(batch: Batch, n_parts: int) -> Batch:
    """`[b, ...]` to `[n_parts, b / n_parts, ...]`.

    A part has every n-th row, so that it is sharded over the devices as the batch is.
    """
    return jax.tree.map(
        lambda x: x.reshape(-1, n_parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def _join_parts(parts: Array) -> Array:
    """The inverse of `_parts`."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])
