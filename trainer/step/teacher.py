"""The teacher: its moving averages of the student, and the schedules.

TIPS keeps an exponential moving average (EMA) of image encoder and head. TIPSv2 keeps
one of the head alone, and its encoder is the student's own. In distillation a trained
model teaches and does not change. The centers are running means of the teacher's
prototype logits.
Source: TIPS, arXiv:2410.16512; TIPSv2, arXiv:2604.12012, equation 5; the schedules are
DINO's, Caron et al. 2021, arXiv:2104.14294.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trainer.config import Ema, HeadConfig, SelfSupervisionConfig

CENTERS = ("cls", "patch")
MODULES = ("vision", "head")  # of a teacher


def init_teacher(params: dict, config: SelfSupervisionConfig) -> dict:
    """Copies the modules of the student that the teacher averages."""
    return jax.tree.map(
        jnp.copy, {name: params[name] for name in averaged_modules(config)}
    )


def averaged_modules(config: SelfSupervisionConfig) -> tuple[str, ...]:
    """Names the modules that the teacher averages; a frozen teacher averages none."""
    if not config.is_on or config.ema is Ema.FROZEN:
        return ()
    return MODULES if config.ema is Ema.FULL else ("head",)


def init_centers(
    head: HeadConfig, config: SelfSupervisionConfig
) -> dict[str, Float[Array, "k"]]:
    """Returns zeros for each kind of token; nothing without self-supervision."""
    if not config.is_on:
        return {}
    return {name: init_center(head) for name in CENTERS}


def init_center(head: HeadConfig) -> Float[Array, "k"]:
    """Returns zeros."""
    return jnp.zeros(head.n_prototypes)


def update_teacher(
    teacher: dict,
    params: dict,
    step: Float[Array, ""],
    n_steps: int,
    config: SelfSupervisionConfig,
) -> dict:
    """Returns decay * old + (1 - decay) * student, for each module that is averaged.

    `params` are the student's after the update, and `step` is the one before it.
    """
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
    """The weight of the old average: a cosine from `ema_decay` to `final_ema_decay`."""
    done = jnp.clip(step / n_steps, 0, 1)
    start, end = config.ema_decay, config.final_ema_decay
    return end - (end - start) * (1 + jnp.cos(math.pi * done)) / 2


def temperature_at(
    step: Float[Array, ""], config: SelfSupervisionConfig
) -> Float[Array, ""]:
    """The teacher's temperature: linear over the warm-up, then constant."""
    start, end = config.initial_teacher_temperature, config.teacher_temperature
    if not config.n_teacher_warmup_steps:
        return jnp.float32(end)
    done = jnp.clip(step / config.n_teacher_warmup_steps, 0, 1)
    return start + (end - start) * done
