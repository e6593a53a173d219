"""Floating-point operations of a train step, and the peak they are held against.

Counted from the configuration: two for each multiply-add of a matrix product, padded
tokens included. Element-wise work is left out, and so is what is computed again: the
rematerialized blocks, each chunk of logits in the backward pass, the second direction
of InfoNCE, the iterations of Sinkhorn, the first pass over microbatches. So the share
of the peak is model FLOPs utilization (MFU), and a step that computes less again gains.
Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
from flax import nnx

from trainer.config import (
    Ema,
    HeadConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
    TransformerConfig,
    VisionConfig,
)
from trainer.models.layers import PLAIN, ParamMaker
from trainer.models.prototype_head import PrototypeHead
from trainer.models.transformer import EncoderBlock
from trainer.models.vit import N_CLS_TOKENS

FORWARD_AND_BACKWARD = 3  # a product, and the gradient to each of its factors


@dataclasses.dataclass(frozen=True)
class Peak:
    """The most that a device can do, with the name that goes beside a share of it."""

    name: str
    flops_per_s: float


_A100 = Peak("A100, bfloat16", 312e12)

# What JAX calls a device to its dense peak. Sources: Google Cloud's pages "TPU v4",
# "TPU v5e", "TPU v5p" and "TPU v6e"; NVIDIA's data sheets of A100, H100 and H200
# Tensor Core GPUs, SXM, half of what they give "with sparsity".
PEAKS = {
    "TPU v4": Peak("TPU v4, bfloat16", 275e12),
    "TPU v5 lite": Peak("TPU v5e, bfloat16", 197e12),
    "TPU v5e": Peak("TPU v5e, bfloat16", 197e12),
    "TPU v5": Peak("TPU v5p, bfloat16", 459e12),
    "TPU v5p": Peak("TPU v5p, bfloat16", 459e12),
    "TPU v6 lite": Peak("TPU v6e, bfloat16", 918e12),
    "TPU v6e": Peak("TPU v6e, bfloat16", 918e12),
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": Peak("H100 SXM, bfloat16", 989e12),
    "NVIDIA H200": Peak("H200, bfloat16", 989e12),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of training on an image, and what it is held against."""

    flops_per_image: int
    n_devices: int  # of all processes, which share a step
    peak: Peak | None  # of one device; None where it is not known


class Forward(NamedTuple):
    """Operations of the forward pass for each image of a batch."""

    trained: int  # with a gradient: the student
    frozen: int  # without: the teacher


def cost(config: TrainConfig, teacher_model: ModelConfig | None = None) -> Cost:
    """On the devices of this run; `teacher_model` is that of a frozen teacher."""
    return Cost(per_image(config, teacher_model), jax.device_count(), peak(config))


def peak(config: TrainConfig) -> Peak | None:
    """`run.peak_flops_per_s` if there is one, otherwise by the table."""
    if config.run.peak_flops_per_s:
        return Peak("run.peak_flops_per_s", config.run.peak_flops_per_s)
    return PEAKS.get(jax.devices()[0].device_kind)


def per_image(config: TrainConfig, teacher_model: ModelConfig | None = None) -> int:
    """Of a train step, divided by its batch."""
    trained, frozen = forward(config, teacher_model)
    return FORWARD_AND_BACKWARD * trained + frozen


def forward(config: TrainConfig, teacher_model: ModelConfig | None = None) -> Forward:
    """The passes of the train step; a term that is switched off costs nothing."""
    model, data, ssl = config.model, config.data, config.self_supervision
    taught = teacher_model or model
    size_px, width = data.global_crop.size_px, model.vision.width
    whole = of_vision(model.vision, size_px)
    head, teacher_head = (of_head(m.head, m.vision.width) for m in (model, taught))
    logits = 2 * data.batch_size * width  # of an image, with all texts
    trained, frozen = whole + 2 * of_text(model.text) + 2 * logits, 0
    if ssl.patch_weight > 0:
        n_patches = _n_patches(model.vision, size_px)
        trained += n_patches * head + (whole if ssl.mask_ratio > 0 else 0)
        frozen += _n_patches(taught.vision, size_px) * teacher_head
    if ssl.distillation_weight > 0:
        local = of_vision(model.vision, data.local_crop.size_px)
        n_views = data.n_local_crops + ssl.is_global_crop_distilled
        trained += data.n_local_crops * local + n_views * head
        frozen += teacher_head
    if ssl.is_on and ssl.ema is not Ema.HEAD:
        frozen += of_vision(taught.vision, size_px)
    return Forward(trained, frozen)


def of_vision(config: VisionConfig, size_px: int) -> int:
    """One image of `size_px` by `size_px`, forward."""
    n_patches = _n_patches(config, size_px)
    embedding = 2 * n_patches * 3 * config.patch_size_px**2 * config.width
    return embedding + _of_blocks(config, n_patches + N_CLS_TOKENS)


def of_text(config: TextConfig) -> int:
    """One text, forward."""
    return _of_blocks(config, config.max_tokens)


def of_head(config: HeadConfig, width: int) -> int:
    """One token through the prototype head and its prototypes, forward."""
    return 2 * _n_weights(PrototypeHead(config, width, ParamMaker(None), PLAIN))


def _of_blocks(config: TransformerConfig, n_tokens: int) -> int:
    weights = _n_weights(EncoderBlock(config, ParamMaker(None)))
    attention = 2 * n_tokens * config.width  # scores, and the mixing of values
    return 2 * config.n_layers * n_tokens * (weights + attention)


def _n_weights(module: nnx.Module) -> int:
    """Of the matrices of a module: so many multiply-adds a token."""
    params = nnx.to_pure_dict(nnx.state(module))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(x.shape) for path, x in leaves if path[-1].key == "kernel")


def _n_patches(config: VisionConfig, size_px: int) -> int:
    return (size_px // config.patch_size_px) ** 2
