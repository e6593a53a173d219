"""Which matrix products of a step in bfloat16 are float32, forward and backward."""

import dataclasses

import jax
import pytest
from jax._src import source_info_util

from tests.support import objectives
from tests.support.jaxprs import equations
from trainer.config import (
    AddedTerm,
    AntiCollapse,
    ComputeConfig,
    CropConfig,
    Ema,
    FeedForward,
    Remat,
)
from trainer.step.train_step import make_train_step

# Functions that multiply in float32, and why.
EXACT = {
    "_dot": "a contrastive loss: cosines over a temperature of a hundredth",
    "of_row": "KoLeo: which image is nearest",
    "mean_logits": "the center of the teacher: one product for the whole batch",
}


def config(**changes):
    """Local crops have the size of the global one: no positions are resized."""
    base = objectives.config(
        terms=(AddedTerm(term="trainer.step.terms.koleo:KoLeo", weight=0.1),),
        **changes,
    )
    crops = {"local_crop": CropConfig(size_px=56), "n_local_crops": 1}
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, **crops),
        model=dataclasses.replace(
            base.model,
            vision=dataclasses.replace(
                base.model.vision, feed_forward=FeedForward.SWIGLU
            ),
        ),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"compute": ComputeConfig(dtype="bfloat16"), "ema": Ema.FULL},
        {
            "compute": ComputeConfig(
                dtype="bfloat16", remat=Remat.DOTS_AND_ATTENTION, scan_layers=True
            ),
            "anti_collapse": AntiCollapse.SINKHORN,
        },
    ],
    ids=["tips", "tipsv2"],
)
def test_only_losses_multiply_in_float32(changes):
    run = objectives.Run(config(**changes))
    batch = objectives.batch()
    batch["local_crops"] = batch["image"][:, None]
    step = make_train_step(run.config, run.optimizer)
    products = [
        equation
        for equation in equations(jax.make_jaxpr(step)(run.initial(), batch))
        if equation.primitive.name == "dot_general"
    ]
    exact = [x for x in products if any(v.aval.dtype != "bfloat16" for v in x.invars)]
    assert {function_of(equation) for equation in exact} == set(EXACT)
    assert len(products) > 3 * len(exact)


def function_of(equation) -> str:
    """The innermost function of the trainer that an operation comes from."""
    frames = source_info_util.user_frames(equation.source_info.traceback)
    return next(
        frame.function_name.split(".")[-1]
        for frame in frames
        if "/trainer/" in frame.file_name and "/tests/" not in frame.file_name
    )
