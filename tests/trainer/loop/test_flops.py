"""Counts of operations against worked figures, the traced step and the compiler."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.support import objectives
from trainer.config import (
    ComputeConfig,
    ContrastiveLoss,
    CropConfig,
    DataConfig,
    Ema,
    FeedForward,
    OptimizerConfig,
    RunConfig,
    SelfSupervisionConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
    tips_model,
)
from trainer.loop import flops
from trainer.models import two_tower
from trainer.models.text_encoder import text_flops
from trainer.models.vit import vision_flops
from trainer.step.train_step import make_train_step

B14 = tips_model("B/14")


def b14(**self_supervision) -> TrainConfig:
    return TrainConfig(
        model=B14,
        data=DataConfig(tokenizer="", batch_size=8192, granularity_weights={}),
        self_supervision=SelfSupervisionConfig(**self_supervision),
        optimizer=OptimizerConfig(learning_rate=1e-3, n_warmup_steps=0),
        n_steps=1,
    )


def test_b14_costs_what_its_sizes_give_by_hand():
    d, mlp, n_layers = 768, 3072, 12

    def blocks(t):
        return n_layers * (2 * t * (4 * d * d + 2 * d * mlp) + 4 * t * t * d)

    whole = 2 * 256 * 588 * d + blocks(258)
    local = 2 * 49 * 588 * d + blocks(51)
    assert vision_flops(B14.vision, 224) == whole
    assert vision_flops(B14.vision, 98) == local
    assert text_flops(B14.text) == blocks(64)
    giga = [round(x / 1e9, 2) for x in (whole, local, blocks(64))]
    assert giga == [46.51, 8.8, 11.02]


def test_a_swiglu_has_three_matrices_of_two_thirds():
    sizes = {"width": 96, "n_layers": 1, "n_heads": 2, "mlp_dim": 192}
    gelu = vision_flops(VisionConfig(**sizes), 14)
    swiglu = VisionConfig(**sizes, feed_forward=FeedForward.SWIGLU)
    assert vision_flops(swiglu, 14) == gelu  # 3 x 128 = 2 x 192


def test_a_step_of_b14_sums_up_its_passes():
    whole, local, text = 46.506, 8.803, 11.023  # GFLOP, as above
    head = 2 * (768 * 2048 + 2048 * 2048 + 2048 * 256 + 256 * 32768) / 1e9
    logits = 2 * 2 * 8192 * 768 / 1e9
    contrastive = whole + 2 * text + logits
    patch, distillation = whole + 256 * head, 6 * (local + head)
    passes = {
        (1, 2, Ema.HEAD): (contrastive + patch + distillation, 257 * head),
        (1, 2, Ema.FULL): (contrastive + patch + distillation, 257 * head + whole),
        (0, 2, Ema.HEAD): (contrastive + patch, 256 * head),
        (1, 0, Ema.HEAD): (contrastive + distillation, head),
        (0, 0, Ema.FULL): (contrastive, 0),
    }
    for (alpha, beta, ema), (trained, frozen) in passes.items():
        config = b14(distillation_weight=alpha, patch_weight=beta, ema=ema)
        found = flops.flops_per_image(config) / 1e9
        assert found == pytest.approx(3 * trained + frozen, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": Ema.FULL}, {"patch_weight": 0.0}, {"distillation_weight": 0.0}],
)
def test_the_forward_pass_has_the_products_that_are_counted(changes):
    """All of them, to the last one, but those of the centers.

    One local crop, as the teacher's logits are made once for each, and the sigmoid
    loss, which has no second direction. Crops as large as the learned grid, which then
    needs no resizing.
    """
    base = objectives.config()
    config = objectives.config(
        model=dataclasses.replace(base.model, contrastive_loss=ContrastiveLoss.SIGMOID),
        data=dataclasses.replace(
            base.data, local_crop=CropConfig(size_px=56), n_local_crops=1
        ),
        **changes,
    )
    case = objectives.Run(config)
    batch = objectives.batch()
    batch["local_crops"] = batch["image"][:, None]
    state = case.initial()
    traced = jax.make_jaxpr(case.objective.terms)(state["params"], state, batch)
    head = config.model.head
    ssl = config.self_supervision
    n_centers = (ssl.patch_weight > 0) + (ssl.distillation_weight > 0)
    centers = n_centers * 2 * head.bottleneck_dim * head.n_prototypes
    expected = objectives.N_IMAGES * sum(flops.forward_flops(config)) + centers
    assert products(traced.jaxpr) == expected


def products(jaxpr) -> int:
    """Operations of all matrix products of a traced program, loops unrolled."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            n_terms = math.prod(shape[axis] for axis in contracted)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * n_terms
        n_trips = eqn.params.get("length", 1)
        total += sum(n_trips * products(inner) for inner in bodies(eqn.params))
    return total


def bodies(params: dict) -> list:
    """Programs inside an operation, such as the body of a loop."""
    parts = [getattr(value, "jaxpr", value) for value in params.values()]
    return [part for part in parts if hasattr(part, "eqns")]


# What the compiler counts beyond the products is element-wise: 0.6 % of them in layers
# of 384, 13 % in layers of 16.
@pytest.mark.parametrize(("width", "surplus"), [(16, 0.15), (384, 0.01)])
def test_the_compiler_counts_the_same_and_element_wise_work(width, surplus):
    sizes = {"width": width, "n_heads": 2, "mlp_dim": 4 * width, "n_layers": 2}
    model = dataclasses.replace(
        B14,
        vision=VisionConfig(**sizes, position_grid=(4, 4)),
        text=TextConfig(**sizes, vocabulary_size=50, max_tokens=16),
    )
    graph = two_tower.graph(model)

    def both(params, image, ids):
        towers = nnx.merge(graph, params)
        return towers.encode_image(image), towers.encode_text(ids)

    image = jax.ShapeDtypeStruct((2, 56, 56, 3), jnp.uint8)
    ids = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    lowered = jax.jit(both).lower(two_tower.abstract_params(model), image, ids)
    counted = 2 * (vision_flops(model.vision, 56) + text_flops(model.text))
    ratio = lowered.compile().cost_analysis()["flops"] / counted
    assert 1 <= ratio < 1 + surplus


def with_frozen(config, *patterns):
    frozen = dataclasses.replace(config.optimizer, frozen=patterns)
    return dataclasses.replace(config, optimizer=frozen)


def test_a_frozen_encoder_costs_its_forward_pass_alone():
    clip = b14(distillation_weight=0, patch_weight=0)
    whole = flops.flops_per_image(clip) - 2 * vision_flops(B14.vision, 224)
    assert flops.flops_per_image(with_frozen(clip, "vision/.*")) == whole
    some = with_frozen(clip, "vision/.*/encoderblock_1/.*")
    assert flops.flops_per_image(some) == flops.flops_per_image(clip)
    masked = b14(distillation_weight=0)  # trains the mask token
    assert flops.flops_per_image(with_frozen(masked, "vision/.*")) == (
        flops.flops_per_image(masked)
    )


@pytest.mark.parametrize("is_scanned", [False, True])
def test_the_backward_pass_of_a_frozen_encoder_is_not_computed(is_scanned):
    config = objectives.config(
        distillation_weight=0,
        patch_weight=0,
        compute=ComputeConfig(scan_layers=is_scanned),
    )
    trained, frozen = map(compiled_flops, (config, with_frozen(config, "vision/.*")))
    n, width = objectives.N_IMAGES, config.model.vision.width
    pixels = 2 * n * 16 * (14 * 14 * 3) * width  # have no gradient in either
    backward = 2 * n * vision_flops(config.model.vision, 56) - pixels
    assert backward < trained - frozen < 1.3 * backward


def compiled_flops(config) -> float:
    run = objectives.Run(config)
    step = make_train_step(run.config, run.optimizer)
    return (
        step.lower(run.initial(), objectives.batch()).compile().cost_analysis()["flops"]
    )


@pytest.mark.parametrize(
    ("kind", "name", "flops_per_s"),
    [
        ("TPU v4", "TPU v4", 275e12),
        ("TPU v5 lite", "TPU v5e", 197e12),
        ("TPU v5p", "TPU v5p", 459e12),
        ("TPU v6 lite", "TPU v6e", 918e12),
        ("NVIDIA A100-SXM4-80GB", "A100", 312e12),
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 989e12),
        ("NVIDIA H200", "H200", 989e12),
    ],
)
def test_a_device_has_the_peak_of_its_data_sheet(monkeypatch, kind, name, flops_per_s):
    device = dataclasses.make_dataclass("Device", ["device_kind"])(kind)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    peak = flops.Peak(f"{name}, bfloat16", flops_per_s)
    assert flops.find_peak(b14()) == peak


def test_the_peak_of_a_cpu_is_not_known_unless_it_is_given():
    config = b14()
    assert flops.step_cost(config).peak is None
    run = RunConfig(peak_flops_per_s=1e12)
    cost = flops.step_cost(dataclasses.replace(config, run=run))
    assert cost.peak == flops.Peak("run.peak_flops_per_s", 1e12)
    assert cost.flops_per_image == flops.flops_per_image(config)
