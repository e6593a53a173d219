"""Small trainings of TIPS on drawn scenes, started as the recipes start.

A teacher that assigns one prototype to every image has an entropy of 0, one that tells
nothing apart an entropy of ln k; the terms then stay at ln k, their value at chance.
"""

import dataclasses
import math

import numpy as np
import pytest

from pipeline import records
from pipeline.demo_web import descriptions, drawn_pair
from tests.support import tiny_export
from tests.support.runs import metric_lines, write_recipe
from trainer import train
from trainer.config import (
    AntiCollapse,
    CropConfig,
    Ema,
    OptimizerConfig,
    PatchLoss,
    RunConfig,
    Schedule,
)
from trainer.configs import demo

pytestmark = pytest.mark.slow

N_SCENES, N_STEPS = 512, 400


def scene(number: int) -> records.Sample:
    rng = np.random.default_rng(number)
    picture = drawn_pair.sample_picture(rng)
    image = drawn_pair.encode_jpeg(picture.rgb, rng)
    texts = descriptions.captions(picture.scene)
    return tiny_export.sample(
        number,
        sample_id=records.sample_id(image, b""),
        image=image,
        width=picture.rgb.shape[1],
        height=picture.rgb.shape[0],
        alt_text=texts["medium"],
        captions={name: (texts[name],) for name in tiny_export.GRANULARITIES},
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    return tiny_export.write(folder, [scene(number) for number in range(N_SCENES)])


def small(vocabulary, anti_collapse):
    """The demo's run with the recipes' start, and an average that a short run moves.

    It ends within the warm-up of the teacher's temperature, as a recipe's first third.
    """
    recipe = demo.get_config()
    crop = CropConfig(size_px=84, min_area=0.6, flip_probability=0.0)
    vision = dataclasses.replace(recipe.model.vision, n_layers=2, position_grid=(6, 6))
    text = dataclasses.replace(
        recipe.model.text, vocabulary_size=tiny_export.VOCABULARY_SIZE
    )
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data,
            batch_size=32,
            granularity_weights={"short": 1.0, "detailed": 1.0},
            tokenizer=str(vocabulary),
            global_crop=crop,
            local_crop=dataclasses.replace(recipe.data.local_crop, size_px=42),
        ),
        model=dataclasses.replace(recipe.model, vision=vision, text=text),
        self_supervision=dataclasses.replace(
            recipe.self_supervision,
            ema=Ema.FULL,
            patch_loss=PatchLoss.IBOT,
            anti_collapse=anti_collapse,
            n_teacher_warmup_steps=3 * N_STEPS,
            ema_decay=0.98,
            final_ema_decay=0.99,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            schedule=Schedule.RSQRT,
            n_warmup_steps=N_STEPS // 4,
            n_frozen_head_steps=N_STEPS // 20,
            clip_by_module=True,
        ),
        n_steps=N_STEPS,
        run=RunConfig(n_steps_per_log=10, n_steps_per_checkpoint=N_STEPS),
    )


@pytest.mark.parametrize("anti_collapse", AntiCollapse)
def test_terms_fall_and_the_teacher_neither_collapses_nor_stays_uniform(
    tmp_path, scenes, vocabulary, anti_collapse
):
    path = write_recipe(tmp_path, small(vocabulary, anti_collapse))
    flags = ["--config", path, "--data", scenes, "--workdir", tmp_path / "run"]
    train.main([*map(str, flags)])
    lines = metric_lines(tmp_path / "run")

    def mean(name, part):
        return float(np.mean([line[name] for line in part]))

    last, uniform = lines[-5:], math.log(demo.get_config().model.head.n_prototypes)
    names = ("distillation", "patch", "teacher_entropy_cls", "teacher_entropy_patch")
    found = {name: round(mean(name, last) / uniform, 3) for name in names}
    print(found)  # with `pytest -s`
    for name, value in found.items():
        assert 0.2 < value < 0.98, name
    first = lines[5:10]
    for name in ("contrastive_alt_text", "contrastive_synthetic_caption"):
        assert mean(name, last) < 0.9 * mean(name, first)
