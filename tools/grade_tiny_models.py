"""Grades the two tiny checkpoints on drawn scenes that they have not seen.

    python -m tools.grade_tiny_models

Prints one JSON object. The truth is known exactly, since the scenes are drawn here.
"""

import argparse
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from curation_configs import demo
from pipeline.config.captions import Granularity
from pipeline.demo_web import descriptions, rendering
from pipeline.demo_web import scene as drawing
from pipeline.models.encoders import SiglipEncoder
from pipeline.models.paligemma_captioner import PaliGemmaCaptioner
from tools import scene_batches

CHECKPOINTS = "curation_configs/checkpoints"
_BATCH_SIZE = 64


def unseen_scenes(n: int, rng_seed: int = 1_000_003) -> list[drawing.Scene]:
    rng = np.random.default_rng(rng_seed)
    return [drawing.sample_scene(rng) for _ in range(n)]


def area_under_curve(
    positives: npt.NDArray[np.float64], negatives: npt.NDArray[np.float64]
) -> float:
    """Probability that a positive scores above a negative; ties count half."""
    below = np.searchsorted(np.sort(negatives), positives, "left")
    not_above = np.searchsorted(np.sort(negatives), positives, "right")
    return float((below + not_above).mean() / 2 / len(negatives))


def alignment(encoder: SiglipEncoder, scenes: list[drawing.Scene]) -> dict[str, float]:
    """AUC of the alignment score: own alt text against that of another scene."""
    rng = np.random.default_rng(0)
    pictures = [rendering.draw(scene)[0] for scene in scenes]
    images = encoder.encode_images(np.stack([*map(encoder.prepare_image, pictures)]))
    texts = encoder.encode_texts([descriptions.alt_text(s, rng) for s in scenes])
    own = (images * texts).sum(axis=1)
    other = (images * np.roll(texts, 1, axis=0)).sum(axis=1)
    return (
        {"auc": area_under_curve(own, other)}
        | _quantiles("own", own)
        | _quantiles("other", other)
    )


def copies(encoder: SiglipEncoder, scenes: list[drawing.Scene]) -> dict[str, float]:
    """Similarities of pictures to their altered copies, and to the nearest other."""
    rng = np.random.default_rng(0)
    pictures = [
        scene_batches.Picture(*rendering.draw(scene), texts={}) for scene in scenes
    ]
    views = [pictures, [scene_batches.alter(p, rng) for p in pictures]]
    embedded = [
        encoder.encode_images(np.stack([encoder.prepare_image(p.rgb) for p in view]))
        for view in views
    ]
    similarities = embedded[0] @ embedded[1].T
    own = similarities.diagonal().copy()
    np.fill_diagonal(similarities, -1)
    nearest = similarities.max(axis=1)
    return _quantiles("copy", own) | _quantiles("nearest_other", nearest)


def captions(
    captioner: PaliGemmaCaptioner, scenes: list[drawing.Scene]
) -> dict[str, dict[str, float]]:
    """Shares of correct captions, by prompt.

    `pairs_right`: of the (color, shape) pairs named, those in the picture.
    `pairs_found`: of the pairs in the picture, those named. `largest_right`: captions
    whose first noun is the largest object. `exact`: captions that equal the grammar's.
    """
    pictures = [captioner.prepare_image(rendering.draw(scene)[0]) for scene in scenes]
    parts = [
        captioner.encode(pictures[i : i + _BATCH_SIZE])
        for i in range(0, len(pictures), _BATCH_SIZE)
    ]
    graded = {}
    for granularity in demo.get_config().granularities:
        texts = [
            caption.text
            for features in parts
            for (caption,) in captioner.caption(
                features,
                [granularity.prompt] * features.n_images,
                granularity,
                np.zeros((features.n_images, 1, 2), np.uint32),
            )
        ]
        graded[granularity.prompt] = _grade(texts, scenes, granularity.name)
    return graded


def tiny_captioner(folder: str = CHECKPOINTS) -> PaliGemmaCaptioner:
    granularity = Granularity("", f"{folder}/tiny-paligemma", batch_size=_BATCH_SIZE)
    return PaliGemmaCaptioner.load(granularity)


def _grade(
    texts: list[str], scenes: list[drawing.Scene], granularity: str
) -> dict[str, float]:
    named = [descriptions.named_pairs(text) for text in texts]
    objects = [descriptions.by_visible_area(scene) for scene in scenes]
    true = [{obj.pair for obj in there} for there in objects]
    n_right = sum(
        pair in there
        for pairs, there in zip(named, true, strict=True)
        for pair in pairs
    )
    n_found = sum(
        pair in pairs
        for pairs, there in zip(named, true, strict=True)
        for pair in there
    )
    exact = [descriptions.captions(scene)[granularity] for scene in scenes]
    right: dict[str, Any] = {
        "exact": np.mean([a == b for a, b in zip(texts, exact, strict=True)])
    }
    if granularity == "short":
        nouns = [there[0].shape for there in objects]
        right["largest_right"] = np.mean(
            [a == b for a, b in zip(texts, nouns, strict=True)]
        )
    else:
        firsts = [
            pairs[:1] == (there[0].pair,)
            for pairs, there in zip(named, objects, strict=True)
        ]
        right["largest_right"] = np.mean(firsts)
        right["pairs_right"] = n_right / max(sum(map(len, named)), 1)
        right["pairs_found"] = n_found / sum(map(len, true))
    return {name: round(float(value), 4) for name, value in right.items()}


def _quantiles(name: str, values: npt.NDArray[np.floating]) -> dict[str, float]:
    shares = (0.01, 0.05, 0.5, 0.95, 0.99)
    found = np.quantile(values, shares)
    return {
        f"{name}_p{share * 100:g}": round(float(value), 4)
        for share, value in zip(shares, found, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", default=CHECKPOINTS)
    parser.add_argument("--n-scenes", type=int, default=500)
    arguments = parser.parse_args()
    scenes = unseen_scenes(arguments.n_scenes)
    folder = arguments.checkpoints
    encoder = SiglipEncoder.load(f"{folder}/tiny-siglip", _BATCH_SIZE, "float32")
    grades: dict[str, Any] = {
        "alignment": alignment(encoder, scenes),
        "copies": copies(encoder, scenes),
    }
    grades["captions"] = captions(tiny_captioner(folder), scenes)
    print(json.dumps(grades, indent=1))


if __name__ == "__main__":
    main()
