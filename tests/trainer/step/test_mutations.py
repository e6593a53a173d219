"""Faults that a trainer may well have, planted one at a time: the tests notice each.

Every mutation changes one line in a copy of the project, and runs the tests that should
fail. `make test-slow` runs this; it takes long.
"""

import dataclasses
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
OBJECTIVE = "step/test_objective.py"
PROTOTYPES = "step/test_prototype_loss.py"
LOSSES = "step/test_losses.py"
ATTENTION = "models/test_attention.py"
CONTRASTIVE = "step/terms/test_contrastive.py"
METRICS = "evals/scores/test_scores.py"


@dataclasses.dataclass(frozen=True)
class Mutation:
    name: str
    file: str  # below trainer/
    old: str
    new: str
    tests: str  # below tests/trainer/


MUTATIONS = (
    Mutation(
        "EMA decay on the wrong side",
        "step/teacher.py",
        "decay * old + (1 - decay) * new",
        "(1 - decay) * old + decay * new",
        OBJECTIVE,
    ),
    Mutation(
        "teacher never updated",
        "step/train_step.py",
        '"teacher": teacher.update_teacher(',
        '"teacher": state["teacher"] or teacher.update_teacher(',
        OBJECTIVE,
    ),
    Mutation(
        "center never updated",
        "step/train_step.py",
        "**kept,",
        '"centers": state["centers"],',
        OBJECTIVE,
    ),
    Mutation(
        "center momentum swapped",
        "step/prototype_loss.py",
        "momentum * center + (1 - momentum) * logits",
        "(1 - momentum) * center + momentum * logits",
        PROTOTYPES,
    ),
    Mutation(
        "center added",
        "step/prototype_loss.py",
        "return -jax.lax.stop_gradient(center) / temperature",
        "return jax.lax.stop_gradient(center) / temperature",
        PROTOTYPES,
    ),
    Mutation(
        "center not sharpened",
        "step/prototype_loss.py",
        "return -jax.lax.stop_gradient(center) / temperature",
        "return -jax.lax.stop_gradient(center)",
        PROTOTYPES,
    ),
    Mutation(
        "prototype temperature multiplies",
        "step/prototype_loss.py",
        "scores.bottleneck, chunk) / scores.temperature",
        "scores.bottleneck, chunk) * scores.temperature",
        PROTOTYPES,
    ),
    Mutation(
        "teacher learns",
        "step/prototype_loss.py",
        "return found, None, None",
        "return found, found, None",
        PROTOTYPES,
    ),
    Mutation(
        "a gradient as if the teacher told nothing",
        "step/prototype_loss.py",
        "dlogits = (slope * (q - p)).astype(x.dtype)",
        "dlogits = (slope * q).astype(x.dtype)",
        PROTOTYPES,
    ),
    Mutation(
        "a gradient that every token has",
        "step/prototype_loss.py",
        "slope = (slopes[0] / temperature)[..., None]",
        "slope = (slopes[0].mean() / temperature)[None, None, None]",
        PROTOTYPES,
    ),
    Mutation(
        "sums of earlier prototypes not scaled down",
        "step/prototype_loss.py",
        "mixed = mixed * shrink + (masses * logits).sum(axis=-1)",
        "mixed = mixed + (masses * logits).sum(axis=-1)",
        PROTOTYPES,
    ),
    Mutation(
        "prototypes that fill a chunk counted",
        "step/prototype_loss.py",
        "cut(jnp.zeros_like(bias), LOWEST)",
        "cut(jnp.zeros_like(bias))",
        PROTOTYPES,
    ),
    Mutation(
        "contrastive temperature multiplies",
        "step/losses.py",
        "row = row / temperature\n        return jax.nn.logsumexp",
        "row = row * temperature\n        return jax.nn.logsumexp",
        LOSSES,
    ),
    Mutation(
        "features not normalized",
        "step/losses.py",
        "image, text = (l2_normalize(x.astype(jnp.float32)) for x in features)",
        "image, text = (x.astype(jnp.float32) for x in features)",
        LOSSES,
    ),
    Mutation(
        "one direction only",
        "step/losses.py",
        "pairs = jnp.stack([image, text]), jnp.stack([text, image])",
        "pairs = jnp.stack([image, image]), jnp.stack([text, text])",
        LOSSES,
    ),
    Mutation(
        "psum left out",
        "step/losses.py",
        "return jax.lax.psum(sum_over_rows(image, text, parameters, gather), axes)",
        "return sum_over_rows(image, text, parameters, gather)",
        "step/test_losses_on_devices.py",
    ),
    Mutation(
        "a mean over devices in place of the sum",
        "step/losses.py",
        "return jax.lax.psum(sum_over_rows",
        "return jax.lax.pmean(sum_over_rows",
        "step/test_losses_on_devices.py",
    ),
    Mutation(
        "an image that is its own neighbor",
        "step/terms/koleo.py",
        "is_own = jnp.arange(len(columns)) == number",
        "is_own = jnp.arange(len(columns)) == -1",
        "step/terms/test_koleo.py",
    ),
    Mutation(
        "rows of other devices taken for a device's own",
        "step/terms/koleo.py",
        "return search(rows, jax.lax.axis_index(axes) * len(rows))",
        "return search(rows, 0)",
        "step/test_losses_on_devices.py",
    ),
    Mutation(
        "activations left to the compiler",
        "distributed/sharding.py",
        "return _constrain(x, PartitionSpec(BATCH_AXES))",
        "return x",
        "step/test_sharded_step.py",
    ),
    Mutation(
        "the state comes back in other shardings",
        "step/train_step.py",
        "out_shardings=(places, sharding.replicated(mesh)),",
        "out_shardings=sharding.replicated(mesh),",
        "step/test_sharded_step.py",
    ),
    Mutation(
        "parameters shared across slices",
        "distributed/sharding.py",
        "        shape, (n_slices, 1), devices, allow_split_physical_axes=True",
        "        shape, (1, n_slices), devices, allow_split_physical_axes=True",
        "distributed/test_sharding.py",
    ),
    Mutation(
        "mask inverted in the loss",
        "step/losses.py",
        "masked = mean_where(mask, cross_entropy)",
        "masked = mean_where(~mask, cross_entropy)",
        LOSSES,
    ),
    Mutation(
        "mean over the batch before images",
        "step/losses.py",
        "return (sums / jnp.maximum(is_counted.sum(axis=1), 1)).mean()",
        "return sums.sum() / jnp.maximum(is_counted.sum(), 1)",
        LOSSES,
    ),
    Mutation(
        "iBOT++ that is iBOT",
        "step/losses.py",
        "    if config.patch_loss is PatchLoss.IBOT:\n",
        "    if True:\n",
        LOSSES,
    ),
    Mutation(
        "weights of the terms left out",
        "step/objective.py",
        "loss += weight * value.nats",
        "loss += value.nats",
        "step/test_train_step.py",
    ),
    Mutation(
        "captions swapped between CLS tokens",
        "step/terms/contrastive.py",
        "batch.features[View.WHOLE][:, self.pair.token - 1],",
        "batch.features[View.WHOLE][:, 2 - self.pair.token],",
        CONTRASTIVE,
    ),
    Mutation(
        "the temperature of another text",
        "step/terms/contrastive.py",
        "temperature = batch.model.temperatures()[text]",
        'temperature = batch.model.temperatures()["alt_text"]',
        CONTRASTIVE,
    ),
    Mutation(
        "texts swapped where they are encoded",
        "step/objective.py",
        "features |= dict(zip(map(str, self._texts), encoded, strict=True))",
        "features |= dict(zip(map(str, self._texts), encoded[::-1], strict=True))",
        "step/test_train_step.py",
    ),
    Mutation(
        "targets not stopped",
        "step/objective.py",
        "return teaching, jax.lax.stop_gradient(targets)",
        "return teaching, targets",
        "step/test_views.py",
    ),
    Mutation(
        "one center for both tokens",
        "step/terms/patch.py",
        'place = Place("centers", "patch")',
        'place = Place("centers", "cls")',
        OBJECTIVE,
    ),
    Mutation(
        "mask on the view of the contrastive loss",
        "step/objective.py",
        "masks = _interleave(jnp.zeros_like(mask), mask)",
        "masks = _interleave(mask, jnp.zeros_like(mask))",
        "step/test_views.py",
    ),
    Mutation(
        "distillation of CLS 2",
        "step/objective.py",
        "local_cls = cls[:, 0].reshape(b, m, -1)",
        "local_cls = cls[:, 1].reshape(b, m, -1)",
        "step/test_views.py",
    ),
    Mutation(
        "local crops of other images",
        "step/objective.py",
        "local_cls = cls[:, 0].reshape(b, m, -1)",
        "local_cls = cls[:, 0].reshape(m, b, -1).swapaxes(0, 1)",
        "step/test_views.py",
    ),
    Mutation(
        "a part's own loss not averaged",
        "step/objective.py",
        "return sum(products.values()) + own.loss / n_parts, own",
        "return sum(products.values()) + own.loss, own",
        OBJECTIVE,
    ),
    Mutation(
        "contrastive gradient of parts left out",
        "step/objective.py",
        "return sum(products.values()) + own.loss / n_parts, own",
        "return own.loss / n_parts, own",
        OBJECTIVE,
    ),
    Mutation(
        "the mask hides the rest",
        "data/patch_masks.py",
        'mask.flat[np.argsort(order, kind="stable")[:n_hidden]] = True',
        'mask.flat[np.argsort(order, kind="stable")[n_hidden:]] = True',
        "data/test_patch_masks.py",
    ),
    Mutation(
        "a block read by two streams",
        "data/block_shuffle.py",
        "own = range(max(start, places.start), min(end, places.stop))",
        "own = range(start, end)",
        "data/test_block_shuffle.py",
    ),
    Mutation(
        "all streams in the same windows",
        "data/block_shuffle.py",
        "start = share * n + min(share, n_longer)",
        "start = 0 * n + min(share, n_longer)",
        "data/test_block_shuffle.py",
    ),
    Mutation(
        "streams of a mixture that take turns together",
        "data/row_order.py",
        "first = stream * self._n_rows_per_stream",
        "first = 0 * self._n_rows_per_stream",
        "data/test_row_order.py",
    ),
    Mutation(
        "streams that start in the middle of a set",
        "data/row_order.py",
        "position = (now[turn] - before[turn]) * self._n_streams + stream",
        "position = now[turn] * self._n_streams + stream",
        "data/test_row_order.py",
    ),
    Mutation(
        "rows of hosts swapped",
        "data/batch_stream.py",
        "rows = range(self.shard_index, self.n_rows, self.shard_count)",
        "rows = range(self.n_rows)[self.shard_count - 1 - self.shard_index ::"
        " self.shard_count]",
        "data/test_pod_input.py",
    ),
    Mutation(
        "rows of loader processes one after another",
        "data/batch_stream.py",
        "return rows[number % self.n_parts :: self.n_parts]",
        "n = len(rows) // self.n_parts; i = number % self.n_parts\n"
        "        return rows[i * n : (i + 1) * n]",
        "data/test_pod_input.py",
    ),
    Mutation(
        "blocks kept though they were shown",
        "data/block_cache.py",
        "if slot.n_uses == n_uses:",
        "if n_uses == 0:",
        "data/test_pod_input.py",
    ),
    Mutation(
        "positions left out",
        "models/vit.py",
        "return (grid + positions).astype(image.dtype)",
        "return grid.astype(image.dtype)",
        "models/test_vit.py",
    ),
    Mutation(
        "attention in place of values",
        "models/transformer.py",
        "x = x + attention.out(attention.value(self.LayerNorm_0(x)))",
        "x = x + attention(self.LayerNorm_0(x), None)",
        "models/test_vit.py",
    ),
    Mutation(
        "attention that is drawn not scaled",
        "models/attention.py",
        "logits = logits / math.sqrt(query.shape[-1])",
        "logits = 1.0 * logits",
        "visuals/test_visuals.py",
    ),
    Mutation(
        "a kernel that sees padding",
        "models/attention_on_tpu.py",
        "    if mask is not None:\n",
        "    if False:\n",
        ATTENTION,
    ),
    Mutation(
        "a kernel with the padding of another row",
        "models/attention_on_tpu.py",
        "return masks[0][row] if masks else None",
        "return masks[0][0] if masks else None",
        ATTENTION,
    ),
    Mutation(
        "a kernel whose logits are not scaled",
        "models/attention_on_tpu.py",
        "_TO_KEYS) * (1 / math.sqrt(query.shape[-1]))",
        "_TO_KEYS)",
        ATTENTION,
    ),
    Mutation(
        "a kernel's gradient of the last queries alone",
        "models/attention_on_tpu.py",
        "of_keys += _sums(",
        "of_keys = _sums(",
        ATTENTION,
    ),
    Mutation(
        "a gradient of weights that need not sum to 1",
        "models/attention_on_tpu.py",
        "of_logits = weights * (of_weights - mean) * scale",
        "of_logits = weights * of_weights * scale",
        ATTENTION,
    ),
    Mutation(
        "products of attention's gradient in float32",
        "models/layers.py",
        "return _einsum_of_low_precision(spec, x, y)\n",
        "return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)\n",
        "step/test_product_types.py",
    ),
    Mutation(
        "products of the prototypes' gradient in float32",
        "step/prototype_loss.py",
        "dlogits = (slope * (q - p)).astype(x.dtype)",
        "dlogits = slope * (q - p)",
        "step/test_product_types.py",
    ),
    Mutation(
        "plain attention that sees padding",
        "models/attention.py",
        "if is_valid is not None:\n            lowest",
        "if False:\n            lowest",
        ATTENTION,
    ),
    Mutation(
        "a kernel for other devices",
        "models/attention.py",
        'device.device_kind.startswith("NVIDIA")',
        'device.platform == "gpu"',
        ATTENTION,
    ),
    Mutation(
        "neighbors vote alike",
        "evals/scores/knn.py",
        "weights = np.exp(cosines.astype(np.float64) / TEMPERATURE)",
        "weights = np.ones(cosines.shape)",
        METRICS,
    ),
    Mutation(
        "an image finds itself",
        "evals/scores/fine_grained.py",
        "cosines = jnp.where(is_own, -jnp.inf, cosines)",
        "cosines = jnp.where(is_own, cosines, cosines)",
        METRICS,
    ),
    Mutation(
        "classes without pixels counted",
        "evals/scores/segmentation.py",
        '"mean_iou": float(np.nanmean(by_class)),',
        '"mean_iou": float(np.nansum(by_class) / len(by_class)),',
        METRICS,
    ),
    Mutation(
        "depth beyond the limits scored",
        "evals/scores/depth.py",
        "is_valid = is_known(truth, limits)",
        "is_valid = truth > 0",
        METRICS,
    ),
    Mutation(
        "the last window wins",
        "evals/scores/zero_shot_segmentation.py",
        "total[window] += _probabilities(",
        "total[window] = _probabilities(",
        "evals/scores/test_zero_shot_segmentation.py",
    ),
)


def test_every_fault_changes_one_place_of_the_code():
    for mutation in MUTATIONS:
        source = (ROOT / "trainer" / mutation.file).read_text()
        assert source.count(mutation.old) == 1, mutation.name
        for name in mutation.tests.split():
            assert (ROOT / "tests/trainer" / name).exists(), mutation.name


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_fault_is_noticed(mutation: Mutation, tmp_path: pathlib.Path):
    for name in ("trainer", "tests", "pipeline", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "trainer" / mutation.file
    source = path.read_text()
    assert source.count(mutation.old) == 1
    path.write_text(source.replace(mutation.old, mutation.new))
    tests = [f"tests/trainer/{name}" for name in mutation.tests.split()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    # 1: tests ran and failed; it is 2 where they could not even be collected.
    assert done.returncode == 1, done.stdout[-2000:]
