"""The loss of a batch, and its gradient.

The terms that the configuration declares (`trainer.step.terms`) say what they read. The
student sees the global crop whole and with hidden patches, and the local crops: each
once, and only if a term reads it. The whole view is the targets' too in TIPSv2; a
teacher with an encoder of its own, as in TIPS, sees it as well. Nothing here
is random but stochastic depth, which follows keys.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from trainer.config import Ema, ModelConfig, TrainConfig
from trainer.data.batches import Batch
from trainer.distributed.sharding import tracing_for
from trainer.models import two_tower
from trainer.models.layers import l2_normalize
from trainer.models.two_tower import TwoTower
from trainer.models.vit import VisionOutput
from trainer.step.state import State
from trainer.step.stochastic_depth import sample_keys, view_keys
from trainer.step.terms.declared import declared_terms, student_views, texts
from trainer.step.terms.term import (
    BatchPart,
    BatchTerm,
    Metrics,
    PartTerm,
    Term,
    Value,
    View,
    Views,
    WholeBatch,
)

# The keys of stochastic depth in a batch, and the numbers of what they differ by: the
# whole view is 0, the masked one 1.
_KEYS = "drop_keys"
_FIRST_TEXT, _FIRST_CROP = 2, 10

Features = dict[str, Float[Array, "b ..."]]  # CLS tokens by `View`, and texts


class Found(NamedTuple):
    """What some terms found in a batch, or in a part of it."""

    loss: Float[Array, ""]  # their weighted sum
    terms: Metrics
    metrics: Metrics
    statistics: dict[str, Any]  # by the name of a `Place`


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
        self.weighted = declared_terms(config)
        self._of_batch = [(w, t) for w, t in self.weighted if isinstance(t, BatchTerm)]
        self._of_part = [(w, t) for w, t in self.weighted if isinstance(t, PartTerm)]
        self._compared = [term for _, term in self._of_batch]
        self._texts = texts(self._compared)
        self._views = student_views(config, [term for _, term in self.weighted])

    def gradients(self, params: dict, state: State, batch: Batch) -> tuple:
        """((loss, (metrics, statistics)), gradient of the parameters)."""
        batch = self._with_keys(batch, state)
        n_parts = self._config.compute.n_microbatches
        with tracing_for(self._mesh):
            if n_parts == 1:
                loss = jax.value_and_grad(self._loss, has_aux=True)
                return loss(params, state, batch)
            return self._gradients_in_parts(params, state, _split_batch(batch, n_parts))

    def terms(self, params: dict, state: State, batch: Batch) -> tuple:
        """(terms, further metrics, statistics for `next_kept`) of a whole batch."""
        with tracing_for(self._mesh):
            _, found = self._whole(params, state, batch)
        return found.terms, found.metrics, found.statistics

    def _loss(self, params: dict, state: State, batch: Batch) -> tuple:
        loss, found = self._whole(params, state, batch)
        return loss, (found.terms | found.metrics, found.statistics)

    def _whole(self, params: dict, state: State, batch: Batch) -> tuple:
        model = nnx.merge(self._graph, params)
        views = self.encode_views(model, batch)
        compared = self._compare_batch(model, self._features(model, views, batch))
        own = self._compare_part(model, views, state, batch)
        metrics = compared.metrics | own.metrics | self._chance(len(batch["image"]))
        terms = compared.terms | own.terms
        found = own._replace(terms=terms, metrics=metrics)
        return compared.loss + own.loss, found

    def _gradients_in_parts(self, params: dict, state: State, parts: Batch) -> tuple:
        """The same result from microbatches, one after the other.

        The terms that compare the whole batch need the features of all parts, so a
        first pass encodes these without a gradient. A second pass encodes each part
        again; the gradient of these terms flows through it as that of a linear function
        of its features.
        Source: Gao et al. 2021, arXiv:2101.06983 (gradient cache).
        """
        n_parts = self._config.compute.n_microbatches
        compared_views = student_views(self._config, self._compared)

        def features_of(part: Batch) -> Features:
            model = nnx.merge(self._graph, params)
            views = self.encode_views(model, part, compared_views)
            return self._features(model, views, part)

        def compare_all(params: dict, features: Features) -> tuple:
            model = nnx.merge(self._graph, params)
            found = self._compare_batch(model, jax.tree.map(_join_parts, features))
            return found.loss, found.terms | found.metrics

        def part_loss(params: dict, part: Batch, slopes: Features) -> tuple:
            model = nnx.merge(self._graph, params)
            views = self.encode_views(model, part)
            features = self._features(model, views, part)
            products = jax.tree.map(
                lambda x, slope: (x * slope).sum(), features, slopes
            )
            own = self._compare_part(model, views, state, part)
            return sum(products.values()) + own.loss / n_parts, own

        features = jax.lax.map(features_of, parts)
        (value, facts), (gradients, slopes) = jax.value_and_grad(
            compare_all, argnums=(0, 1), has_aux=True
        )(params, features)

        def add_part(total: dict, part_and_slopes: tuple) -> tuple:
            gradients, own = jax.grad(part_loss, has_aux=True)(params, *part_and_slopes)
            return jax.tree.map(jnp.add, total, gradients), own

        gradients, own = jax.lax.scan(add_part, gradients, (parts, slopes))
        own = jax.tree.map(lambda x: x.mean(axis=0), own)
        n_pairs = n_parts * parts["image"].shape[1]
        metrics = facts | own.terms | own.metrics | self._chance(n_pairs)
        return (value + own.loss, (metrics, own.statistics)), gradients

    def _with_keys(self, batch: Batch, state: State) -> Batch:
        """Adds the keys of stochastic depth, if an encoder has it."""
        model = self._config.model
        if not model.vision.drop_path and not model.text.drop_path:
            return batch
        seed, ids = self._config.rng_seed, batch["sample_id"]
        return {**batch, _KEYS: sample_keys(seed, state["step"], ids)}

    def encode_views(
        self, model: TwoTower, batch: Batch, wanted: frozenset[View] | None = None
    ) -> Views:
        """Encodes each view that is wanted once; None: those that some term reads."""
        wanted = self._views if wanted is None else wanted
        whole, masked = self._encode_global(model, batch, wanted)
        local_cls: Any = None
        if View.LOCAL in wanted:
            crops = batch["local_crops"]
            b, m = crops.shape[:2]
            keys = _view_keys(batch, range(_FIRST_CROP, _FIRST_CROP + m))
            rows = crops.reshape(b * m, *crops.shape[2:])
            cls = model.encode_image(rows, keys=keys).cls
            local_cls = cls[:, 0].reshape(b, m, -1)
        return Views(whole, masked, local_cls)

    def _encode_global(
        self, model: TwoTower, batch: Batch, wanted: frozenset[View]
    ) -> tuple[Any, Any]:
        """Encodes the whole and the masked view, both in one pass."""
        image = batch["image"]
        if View.MASKED not in wanted:
            whole = None
            if View.WHOLE in wanted:
                whole = model.encode_image(image, keys=_view_keys(batch, (0,)))
            return whole, whole if self._ssl.mask_ratio == 0 else None
        mask = batch["mask"]
        if View.WHOLE not in wanted:
            return None, model.encode_image(image, mask, _view_keys(batch, (1,)))
        masks = _interleave(jnp.zeros_like(mask), mask)
        keys = _view_keys(batch, (0, 1))
        both = model.encode_image(_interleave(image, image), masks, keys)
        cls, patches = map(_deinterleave, both)
        whole, masked = map(VisionOutput, cls, patches)
        return whole, masked

    def _features(self, model: TwoTower, views: Views, batch: Batch) -> Features:
        """The features that terms of the whole batch compare.

        Encodes the texts of every image in one pass of the text encoder.
        """
        read = frozenset[View]().union(*(term.views for term in self._compared))
        view_to_cls = {
            View.WHOLE: views.whole and views.whole.cls,
            View.MASKED: views.masked and views.masked.cls,
            View.LOCAL: views.local_cls,
        }
        features = {str(view): view_to_cls[view] for view in sorted(read)}
        if self._texts:
            ids = _interleave(*(batch[text] for text in self._texts))
            n = len(self._texts)
            keys = _view_keys(batch, range(_FIRST_TEXT, _FIRST_TEXT + n))
            encoded = _deinterleave(model.encode_text(ids, keys), n)
            features |= dict(zip(map(str, self._texts), encoded, strict=True))
        return features

    def _compare_batch(self, model: TwoTower, features: Features) -> Found:
        n_rows = self._config.compute.n_rows_per_chunk
        whole = WholeBatch(model, features, self._mesh, n_rows)
        found = _sum(self._of_batch, [term.value(whole) for _, term in self._of_batch])
        if (cls := features.get(View.WHOLE)) is not None:
            found.metrics["cls_cosine"] = _cls_cosine(cls)
        return found

    def _compare_part(
        self, model: TwoTower, views: Views, state: State, batch: Batch
    ) -> Found:
        teaching, targets = self.teach(views, state, batch)

        def encode_image(vision: dict, image: Array) -> VisionOutput:
            params = state["params"] | {"vision": vision}
            return nnx.merge(self._graph, params).encode_image(image)

        values = []
        for _, term in self._of_part:
            place = term.place
            kept = None if place is None else state[place.group][place.name]
            part = BatchPart(
                model,
                views,
                targets,
                teaching,
                batch,
                state["step"],
                kept,
                encode_image,
            )
            values.append(term.value(part))
        return _sum(self._of_part, values)

    def teach(self, views: Views, state: State, batch: Batch) -> tuple[Any, Any]:
        """The teacher, and its output for the whole view; None if no term needs it."""
        if not any(term.needs_teacher for _, term in self._of_part):
            return None, None
        own = {"vision": state["params"]["vision"]}
        teaching = nnx.merge(self._teacher_graph, own | state["teacher"])
        is_own = self._ssl.ema is Ema.HEAD
        targets = views.whole if is_own else teaching.encode_image(batch["image"])
        return teaching, jax.lax.stop_gradient(targets)

    def _chance(self, n_pairs: int) -> dict[str, float]:
        name_to_chance = {term.name: term.chance(n_pairs) for _, term in self.weighted}
        return {
            f"{name}_chance": chance
            for name, chance in name_to_chance.items()
            if chance is not None
        }


def _cls_cosine(cls: Float[Array, "b 2 d"]) -> Float[Array, ""]:
    """The mean cosine of both CLS tokens, which start equal: 1 until they split."""
    first, second = jnp.moveaxis(l2_normalize(cls), 1, 0)
    return (first * second).sum(axis=-1).mean()


def _view_keys(batch: Batch, views: Sequence[int]) -> Any:
    """Keys for the views of each sample, in turn; None without stochastic depth."""
    return view_keys(batch[_KEYS], views) if _KEYS in batch else None


def _sum(terms: Iterable[tuple[float, Term]], values: Iterable[Value]) -> Found:
    """Adds up terms by their weights."""
    loss, found = jnp.float32(0), Found(jnp.float32(0), {}, {}, {})
    for (weight, term), value in zip(terms, values, strict=True):
        loss += weight * value.nats
        found.terms[term.name] = value.nats
        found.metrics.update(value.metrics)
        if value.statistics is not None and term.place is not None:
            found.statistics[term.place.name] = value.statistics
    return found._replace(loss=loss)


def _interleave(*groups: Array) -> Array:
    """Takes rows in turn, so that all stay on the device that holds the image."""
    return jnp.stack(groups, axis=1).reshape(-1, *groups[0].shape[1:])


def _deinterleave(rows: Array, n_groups: int = 2) -> tuple[Array, ...]:
    """The inverse of `_interleave`."""
    groups = rows.reshape(-1, n_groups, *rows.shape[1:])
    return tuple(groups[:, number] for number in range(n_groups))


def _split_batch(batch: Batch, n_parts: int) -> Batch:
    """`[b, ...]` to `[n_parts, b / n_parts, ...]`.

    A part has every n-th row, so that it is sharded over the devices as the batch is.
    """
    return jax.tree.map(
        lambda x: x.reshape(-1, n_parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def _join_parts(parts: Array) -> Array:
    """The inverse of `_split_batch`."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])
