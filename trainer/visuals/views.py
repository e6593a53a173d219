"""What an encoder sees in photos: one sheet per photo for each kind of view.

In: an evaluation (encoder, settings) and samples. Out: `View`s, in the order of the
samples.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from recipes.safe_text import visible
from trainer.evals.scores import features, knn, maps
from trainer.evals.scores import segmentation as masks
from trainer.evals.segmentation_tasks import name_vectors, segment_whole
from trainer.evals.sets.samples import Sample, errors_about
from trainer.evals.task_inputs import Evaluation
from trainer.visuals import attention, overlays, pca_colors
from trainer.visuals.sheets import RGB, Tile, fit_to_side, make_legend, make_sheet

_LARGE_PX, _SMALL_PX = 336, 140
_N_COLUMNS = 8
_N_NEIGHBORS = 6
_N_LEGEND = 12
TOKENS = ("CLS 1, alt text", "CLS 2, synthetic")


class View(NamedTuple):
    """A sheet, its kind, and its caption."""

    kind: str
    sheet: RGB
    says: str


def feature_views(run: Evaluation, samples: Sequence[Sample]) -> Iterator[View]:
    """Shows principal components of patches, with one basis for all samples."""
    found = run.encoder.patches(run.params, run.squeeze_images(samples)).patches
    basis = pca_colors.fit_basis(found)
    for sample, patches in zip(samples, found, strict=True):
        photo = fit_to_side(sample.image(), _LARGE_PX)
        colors = maps.nearest(pca_colors.to_colors(basis, patches), photo.shape[:2])
        rows = [[Tile(photo, "photo"), Tile(colors, "patches")]]
        says = "Patch features: three principal components as red, green and blue."
        yield View("features", make_sheet(rows), says)


def class_views(
    run: Evaluation,
    samples: Sequence[Sample],
    names: Sequence[str],
    *,
    has_truth: bool,
) -> Iterator[View]:
    """Shows the class of each pixel by its name, and the true mask if there is one."""
    classes = name_vectors(run, names)
    palette = overlays.palette(len(names))
    for sample in run.show_progress(samples, "classes"):
        photo = fit_to_side(sample.image(), _LARGE_PX)
        shape = photo.shape[:2]
        label_to_classes = {"found by name": segment_whole(run, sample, classes, shape)}
        if has_truth and "mask" in sample.parts:
            first = run.settings.masks_from
            label_to_classes["true"] = _truth(sample, names, first, shape)
        tiles = [Tile(photo, "photo")]
        for label, found in label_to_classes.items():
            tiles.append(Tile(overlays.overlay(photo, found, palette), label))
        largest = overlays.class_shares(np.stack([*label_to_classes.values()]))[
            :_N_LEGEND
        ]
        entries = [(names[one.number], palette[one.number]) for one in largest]
        rows = [tiles, *_wrap(make_legend(entries, photo.shape[1]), len(tiles))]
        says = _list_shares(
            overlays.class_shares(label_to_classes["found by name"]), names
        )
        yield View("classes", make_sheet(rows), f"Zero-shot segmentation: {says}.")


def neighbor_views(
    run: Evaluation, searched: Sequence[Sample], n_queries: int
) -> Iterator[View]:
    """Shows the first samples, each with its nearest among all, by each token."""
    cls, _ = run.embed(searched)
    by_token = list(features.by_token(cls).values())[: len(TOKENS)]
    n_nearest = min(_N_NEIGHBORS + 1, len(searched))
    found = [knn.nearest(one, one[:n_queries], n_nearest) for one in by_token]
    for query in range(n_queries):
        rows, said = [], []
        for token, (cosines, nearest) in zip(TOKENS, found, strict=True):
            near = _others(nearest[query], cosines[query], query)
            rows.append([_thumbnail(searched[query], token)])
            rows[-1] += [_thumbnail(searched[i], f"{cosine:.3f}") for i, cosine in near]
            names = ", ".join(visible(searched[i].key) for i, _ in near)
            said.append(f"{token}: {names or 'none'}.")
        says = f"Nearest of {len(searched)} images, with cosines. {' '.join(said)}"
        yield View("neighbors", make_sheet(rows), says)


def attention_views(run: Evaluation, samples: Sequence[Sample]) -> Iterator[View]:
    """Shows the attention of both CLS tokens in the last block, head by head."""
    found = run.encoder.attention(run.params, run.squeeze_images(samples))
    if not np.isfinite(found).all():
        raise ValueError("attention is not finite")
    side = -(-run.size_px // run.encoder.patch_px)
    for sample, weights in zip(samples, found, strict=True):
        photo = fit_to_side(sample.image(), _SMALL_PX)
        rows: list[list[Tile]] = []
        for token, own in zip(
            TOKENS, attention.attention_maps(weights, (side, side)), strict=True
        ):
            heats = [maps.nearest(attention.heat_map(x), photo.shape[:2]) for x in own]
            labels = ["mean of heads", *(f"head {i}" for i in range(1, len(own)))]
            tiles = [Tile(photo, token), *map(Tile, heats, labels)]
            rows += _wrap(tiles, _N_COLUMNS)
        on_patches = weights[..., -side * side :].sum(axis=-1).mean(axis=0)
        shares = " and ".join(f"{share:.0%}" for share in on_patches)
        says = (
            f"Attention of CLS 1 and CLS 2 in the last block; {shares} is on patches."
        )
        yield View("attention", make_sheet(rows), says)


def _truth(
    sample: Sample, names: Sequence[str], first_value: int, shape: tuple[int, int]
) -> Int[np.ndarray, "h w"]:
    with errors_about(sample.name):
        classes = masks.to_classes(sample.mask(), names, first_value)
    return maps.nearest(classes, shape)


def _list_shares(shares: Sequence[overlays.Share], names: Sequence[str]) -> str:
    parts = (f"{visible(names[one.number])} {one.share:.0%}" for one in shares)
    return ", ".join(itertools.islice(parts, _N_LEGEND))


def _others(
    rows: Int[np.ndarray, "k"], cosines: np.ndarray, own: int
) -> list[tuple[int, float]]:
    """The nearest without the query itself, which may be anywhere among equals."""
    pairs = zip(rows.tolist(), cosines.tolist(), strict=True)
    return [(row, cosine) for row, cosine in pairs if row != own][:_N_NEIGHBORS]


def _wrap(tiles: list[Tile], n_columns: int) -> list[list[Tile]]:
    return [tiles[i : i + n_columns] for i in range(0, len(tiles), n_columns)]


def _thumbnail(sample: Sample, label: str) -> Tile:
    return Tile(fit_to_side(sample.image(), _SMALL_PX), label)
