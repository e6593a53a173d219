import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import reference
from tests.support.jaxprs import equations
from trainer.step import prototype_loss
from trainer.step.prototype_loss import Scores

RNG = np.random.default_rng(0)
B, T, D, K = 3, 5, 4, 7


def unit(*shape, axis=-1):
    x = RNG.normal(size=shape)
    return np.float32(x / np.linalg.norm(x, axis=axis, keepdims=True))


STUDENT = (unit(B, T, D), unit(D, K, axis=0), np.float32(0.1))
TEACHER = (unit(B, T, D), unit(D, K, axis=0), np.float32(0.07))
BIAS = np.float32(RNG.normal(size=K))


@functools.partial(jax.jit, static_argnums=3)
def match(student, teacher, bias, n_prototypes_per_chunk=2):
    return prototype_loss.cross_entropy(
        Scores(*student),
        Scores(*teacher),
        bias,
        n_prototypes_per_chunk=n_prototypes_per_chunk,
    )


@functools.partial(jax.jit, static_argnums=(3, 4))
def sinkhorn_bias(
    bottleneck, matrix, temperature, n_prototypes_per_chunk, n_iterations
):
    return prototype_loss.sinkhorn_bias(
        bottleneck,
        matrix,
        temperature,
        n_prototypes_per_chunk=n_prototypes_per_chunk,
        n_iterations=n_iterations,
    )


def float64(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def logits_of(scores):
    vectors, matrix, temperature = float64(*scores)
    return vectors.reshape(-1, vectors.shape[-1]) @ matrix / temperature


@pytest.mark.parametrize("n_prototypes_per_chunk", [1, 2, 3, 5, 64])
def test_the_loss_equals_its_plain_reference_in_chunks_of_any_size(
    n_prototypes_per_chunk,
):
    expected = reference.cross_entropy(float64(*STUDENT), float64(*TEACHER), BIAS)
    found = match(STUDENT, TEACHER, BIAS, n_prototypes_per_chunk).cross_entropy
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("argument", range(3))
@pytest.mark.parametrize("n_prototypes_per_chunk", [2, 64])
def test_the_gradient_equals_finite_differences(argument, n_prototypes_per_chunk):
    weights = RNG.normal(size=(B, T))  # a gradient of its own for each token

    def loss(student):
        found = match(student, TEACHER, BIAS, n_prototypes_per_chunk)
        return (found.cross_entropy * weights).sum()

    gradient = jax.jit(jax.grad(loss))(STUDENT)[argument]
    direction = RNG.normal(size=STUDENT[argument].shape)
    ends = []
    for sign in (1, -1):
        moved = float64(*STUDENT)
        moved[argument] = moved[argument] + sign * 1e-6 * direction
        found = reference.cross_entropy(moved, float64(*TEACHER), BIAS)
        ends.append((found * weights).sum())
    expected = (ends[0] - ends[1]) / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5)


def test_one_token_of_the_teacher_serves_all_of_the_student():
    first = (TEACHER[0][:, :1], *TEACHER[1:])
    repeated = (np.repeat(TEACHER[0][:, :1], T, axis=1), *TEACHER[1:])
    expected = reference.cross_entropy(float64(*STUDENT), float64(*repeated), BIAS)
    found = match(STUDENT, first, BIAS)
    np.testing.assert_allclose(found.cross_entropy, expected, rtol=1e-5)


def test_nothing_of_the_teacher_has_a_gradient():
    def loss(student, teacher, bias):
        found = match(student, teacher, bias)
        return found.cross_entropy.sum() + found.teacher_entropy

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    student, *teachers = gradient(STUDENT, TEACHER, BIAS)
    assert all(np.any(part) for part in student)
    assert not any(np.any(part) for part in jax.tree.leaves(teachers))


def test_biases_have_no_gradient():
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(bottleneck, matrix):
        bias = prototype_loss.sinkhorn_bias(
            bottleneck, matrix, 0.07, n_prototypes_per_chunk=2
        )
        mean = prototype_loss.mean_logits(bottleneck, matrix)
        return bias[0] + prototype_loss.center_bias(mean, 0.07)[0] + mean[0]

    assert not any(np.any(part) for part in jax.jit(gradient)(*TEACHER[:2]))


def test_logits_of_bfloat16_vectors_are_float32():
    def rounded(x):
        return jnp.asarray(x, jnp.bfloat16)

    student, teacher = (
        (rounded(vectors), matrix, temperature)
        for vectors, matrix, temperature in (STUDENT, TEACHER)
    )
    exact = [
        float64(vectors, rounded(matrix), temperature)
        for vectors, matrix, temperature in (student, teacher)
    ]
    found = match(student, teacher, BIAS).cross_entropy
    assert found.dtype == jnp.float32
    expected = reference.cross_entropy(*exact, BIAS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-6)


def gradient_jaxpr(dtype, n_prototypes_per_chunk):
    def loss(student):
        found = match(student, TEACHER, BIAS, n_prototypes_per_chunk)
        return (found.cross_entropy * np.arange(T)).sum()

    student = (jnp.asarray(STUDENT[0], dtype), *STUDENT[1:])
    return jax.make_jaxpr(jax.grad(loss))(student), jax.jit(jax.grad(loss))(student)


def test_gradients_of_bfloat16_vectors_are_close():
    (_, exact), (_, rounded) = (
        gradient_jaxpr(dtype, 3) for dtype in (jnp.float32, jnp.bfloat16)
    )
    for ours, theirs in zip(rounded, exact, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.float32(ours) / scale, theirs / scale, atol=1e-2)


def test_no_array_holds_the_logits_of_all_tokens():
    jaxpr, _ = gradient_jaxpr(jnp.float32, 2)
    sizes = [v.aval.size for eqn in equations(jaxpr) for v in eqn.outvars]
    assert max(sizes) == B * T * D < B * T * K


def test_a_student_that_tells_nothing_apart_costs_the_logarithm_of_the_prototypes():
    student = (np.zeros_like(STUDENT[0]), *STUDENT[1:])
    found = match(student, TEACHER, BIAS).cross_entropy
    np.testing.assert_allclose(found, math.log(K), rtol=1e-6)


def test_a_uniform_teacher_has_the_entropy_of_all_prototypes():
    teacher = (np.zeros_like(TEACHER[0]), *TEACHER[1:])
    found = match(STUDENT, teacher, np.zeros(K, np.float32))
    assert float(found.teacher_entropy) == pytest.approx(math.log(K), rel=1e-6)
    assert float(found.cross_entropy.min()) > math.log(K)


def test_a_student_equal_to_its_teacher_costs_the_teachers_entropy():
    found = match(TEACHER, TEACHER, np.zeros(K, np.float32))
    mean = float(found.cross_entropy.mean())
    assert mean == pytest.approx(float(found.teacher_entropy), rel=1e-6)


def test_used_prototypes_are_counted_once_and_with_the_bias():
    vectors = np.eye(K, dtype=np.float32)[[[0, 1, 1], [3, 0, 3]]]
    teacher = (vectors, np.eye(K, dtype=np.float32), np.float32(0.1))
    nothing, one = np.zeros(K, np.float32), np.float32(np.arange(K) == 6) * 100
    assert int(match(teacher, teacher, nothing).n_used_prototypes) == 3
    assert int(match(teacher, teacher, one).n_used_prototypes) == 1


def test_the_order_of_images_does_not_matter():
    order = RNG.permutation(B)
    student, teacher = ((side[0][order], *side[1:]) for side in (STUDENT, TEACHER))
    found = match(student, teacher, BIAS).cross_entropy
    expected = match(STUDENT, TEACHER, BIAS).cross_entropy[order]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_center_is_taken_from_the_logits_before_the_temperature():
    logits = RNG.normal(size=K)
    bias = prototype_loss.center_bias(jnp.float32(BIAS), 0.07)
    np.testing.assert_allclose(
        reference.softmax(logits / 0.07 + np.asarray(bias, np.float64)),
        reference.softmax((logits - BIAS) / 0.07),
        rtol=1e-5,
    )


def test_mean_logits_are_those_of_every_token_of_every_image():
    found = prototype_loss.mean_logits(*TEACHER[:2])
    expected = logits_of((*TEACHER[:2], 1)).mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_center_keeps_most_of_its_old_value():
    found = prototype_loss.update_center(jnp.float32([1, 0]), jnp.float32([0, 2]), 0.9)
    np.testing.assert_allclose(found, [0.9, 0.2], rtol=1e-6)


@pytest.mark.parametrize("n_prototypes_per_chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("n_iterations", [1, 3])
def test_sinkhorn_as_a_bias_equals_its_plain_reference(
    n_prototypes_per_chunk, n_iterations
):
    bias = sinkhorn_bias(*TEACHER, n_prototypes_per_chunk, n_iterations)
    logits = logits_of(TEACHER)
    found = [reference.softmax(row + np.asarray(bias, np.float64)) for row in logits]
    np.testing.assert_allclose(
        found, reference.sinkhorn(logits, n_iterations), rtol=2e-5
    )


def test_sinkhorn_gives_all_prototypes_the_same_share():
    logits = logits_of(TEACHER)

    def shares(n_iterations):
        bias = np.asarray(sinkhorn_bias(*TEACHER, 2, n_iterations), np.float64)
        p = np.array([reference.softmax(row + bias) for row in logits])
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
        return p.sum(axis=0)

    np.testing.assert_allclose(shares(300), B * T / K, rtol=1e-3)
    assert np.ptp(shares(3)) < np.ptp(shares(1))
