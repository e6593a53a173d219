"""Floating-point operations of a train step, and the peak of a device.

Operations are counted from the configuration: two for each multiply-add of a matrix
product, padded tokens included. Element-wise work is not counted, nor is anything that
is computed twice: rematerialized blocks, each chunk of logits in the backward pass,
the second direction of InfoNCE, the iterations of Sinkhorn, the first pass over
microbatches. So the share of the peak is model FLOPs utilization (MFU), and a step
that recomputes less gains.
Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B.
"""

import dataclasses

import jax

from trainer.config import Ema, ModelConfig, TrainConfig
from trainer.models.text_encoder import text_flops
from trainer.models.two_tower import abstract_params
from trainer.models.vit import vision_flops
from trainer.step.optimizer import frozen_modules
from trainer.step.terms.declared import declared_terms, student_views, texts
from trainer.step.terms.term import Forward, View

FORWARD_AND_BACKWARD = 3  # a product, and the gradient to each of its factors


@dataclasses.dataclass(frozen=True)
class Peak:
    """The peak of a device, and the name that is shown with a share of it."""

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
    """The cost of training on one image, and the peak that it is compared with."""

    flops_per_image: int
    n_devices: int  # of all processes, which share a step
    peak: Peak | None  # of one device; None where it is not known


def step_cost(config: TrainConfig, teacher_model: ModelConfig | None = None) -> Cost:
    """Returns the cost on this run's devices.

    `teacher_model` is the model of a frozen teacher.
    """
    return Cost(
        flops_per_image(config, teacher_model), jax.device_count(), find_peak(config)
    )


def find_peak(config: TrainConfig) -> Peak | None:
    """Returns `run.peak_flops_per_s` if it is set, otherwise the entry of `PEAKS`."""
    if config.run.peak_flops_per_s:
        return Peak("run.peak_flops_per_s", config.run.peak_flops_per_s)
    return PEAKS.get(jax.devices()[0].device_kind)


def flops_per_image(
    config: TrainConfig, teacher_model: ModelConfig | None = None
) -> int:
    """Operations of a train step, divided by its batch."""
    trained, frozen = forward_flops(config, teacher_model)
    return FORWARD_AND_BACKWARD * trained + frozen


def forward_flops(
    config: TrainConfig, teacher_model: ModelConfig | None = None
) -> Forward:
    """Operations of all passes of the train step; what no term reads costs nothing."""
    model, data, ssl = config.model, config.data, config.self_supervision
    taught = teacher_model or model
    terms = [term for _, term in declared_terms(config)]
    whole = vision_flops(model.vision, data.global_crop.size_px)
    view_to_flops = {
        View.WHOLE: whole,
        View.MASKED: whole,
        View.LOCAL: data.n_local_crops
        * vision_flops(model.vision, data.local_crop.size_px),
    }
    views = student_views(config, terms)
    module_to_flops = {
        "vision": sum(view_to_flops[view] for view in views),
        "text": len(texts(terms)) * text_flops(model.text),
    }
    still = frozen_modules(abstract_params(model, has_head=ssl.is_on), config.optimizer)
    # The mask token learns through a frozen image encoder.
    still -= {"vision"} if View.MASKED in views else set()
    frozen = sum(n for module, n in module_to_flops.items() if module in still)
    trained = sum(module_to_flops.values()) - frozen
    if ssl.ema is not Ema.HEAD and any(term.needs_teacher for term in terms):
        frozen += vision_flops(taught.vision, data.global_crop.size_px)
    own = [term.flops(config, taught) for term in terms]
    return Forward(
        trained + sum(one.trained for one in own),
        frozen + sum(one.frozen for one in own),
    )
