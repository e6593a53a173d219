"""The teacher: what it keeps of the student, and the schedules of its state.

TIPS keeps an exponential moving average (EMA) of image encoder and head. TIPSv2 keeps
one of the head alone, and its encoder is the student's own. In distillation a trained
model teaches, and is not changed. The centers are running means of the teacher's
prototype logits.
Source: TIPS, arXiv:2410.16512; TIPSv2, arXiv:2604.12012, equation 5; the schedules are
those of DINO, Caron et al. 2021, arXiv:2104.14294.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trainer.config import Ema, HeadConfig, SelfSupervisionConfig

CENTERS = ("cls", "patch")


def init_teacher(params: dict, config: SelfSupervisionConfig) -> dict:
    """A copy of what the teacher keeps of the student; nothing if it has no use."""
    return jax.tree.map(
        jnp.copy, {name: params[name] for name in averaged_modules(config)}
    )


def averaged_modules(config: SelfSupervisionConfig) -> tuple[str, ...]:
    """Modules that the teacher has an average of; a frozen one has none."""
    if not config.is_on or config.ema is Ema.FROZEN:
        return ()
    return ("vision", "head") if config.ema is Ema.FULL else ("head",)


def init_centers(
    head: HeadConfig, config: SelfSupervisionConfig
) -> dict[str, Float[Array, "k"]]:
    if not config.is_on:
        return {}
    return {name: jnp.zeros(head.n_prototypes) for name in CENTERS}


def update_teacher(
    teacher: dict,
    params: dict,
    step: Float[Array, ""],
    n_steps: int,
    config: SelfSupervisionConfig,
) -> dict:
    """`params` are those after the update; the decay weighs the old value."""
    if config.ema is Ema.FROZEN:
        return teacher
    decay = decay_at(step, n_steps, config)
    student = {name: params[name] for name in teacher}
    return jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, teacher, student
    )


def decay_at(
    step: Float[Array, ""], n_steps: int, config: SelfSupervisionConfig
) -> Float[Array, ""]:
    """Cosine from `ema_decay` at step 0 to `final_ema_decay` at the last."""
    done = jnp.clip(step / n_steps, 0, 1)
    start, end = config.ema_decay, config.final_ema_decay
    return end - (end - start) * (1 + jnp.cos(math.pi * done)) / 2


def temperature_at(
    step: Float[Array, ""], config: SelfSupervisionConfig
) -> Float[Array, ""]:
    """Linear from the initial temperature over the warm-up, then constant."""
    start, end = config.initial_teacher_temperature, config.teacher_temperature
    if not config.n_teacher_warmup_steps:
        return jnp.float32(end)
    done = jnp.clip(step / config.n_teacher_warmup_steps, 0, 1)
    return start + (end - start) * done
