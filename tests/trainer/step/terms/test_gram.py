import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.step.terms.gram import Gram, gram_distance

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 3, 4, 5))  # three images of four patches


def plain(student, teacher):
    """The definition, image by image."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        x, y = (p / np.linalg.norm(p, axis=1, keepdims=True) for p in (ours, theirs))
        total += np.linalg.norm(x @ x.T - y @ y.T) ** 2 / len(x) ** 2
    return total / len(student)


def test_it_is_the_distance_of_the_cosines_of_patches():
    found = jax.jit(jax.value_and_grad(gram_distance, argnums=(0, 1)))
    value, (slope, of_teacher) = found(jnp.float32(STUDENT), jnp.float32(TEACHER))
    assert float(value) == pytest.approx(plain(STUDENT, TEACHER), rel=1e-5)
    direction = RNG.normal(size=STUDENT.shape)
    ends = [plain(STUDENT + sign * 1e-6 * direction, TEACHER) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-4)
    assert not of_teacher.any()


def test_a_rotation_of_all_patches_changes_nothing():
    rotation, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    assert float(gram_distance(jnp.float32(STUDENT), STUDENT @ rotation)) < 1e-6


def test_the_copy_is_kept_until_its_step():
    term = Gram(n_steps_per_copy=3)
    kept, params = {"w": jnp.zeros(2)}, {"vision": {"w": jnp.ones(2)}}
    found = [
        float(term.next_state(kept, None, params, jnp.int32(step))["w"][0])
        for step in range(6)
    ]
    assert found == [0, 0, 1, 0, 0, 1]


def test_a_copy_that_is_never_due_is_refused():
    with pytest.raises(ValueError, match="n_steps_per_copy=0: expected more than 0"):
        Gram(n_steps_per_copy=0)
