"""Segmentation scores: intersection over union, from one confusion of all images.

Pure functions of masks. A class that is neither in the truth nor predicted has no score
and is left out of the mean, as in the released TIPS code.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

BACKGROUND = "background"
UNLABELED = 255  # in masks, whatever else they hold
IGNORED = -1  # among classes
_MUCH = 0.01  # of all pixels, to be more than the edges of things


def class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes of masks, in order of their values; see `first_value`.

    Raises ValueError with fewer than 2 classes, or more than a mask can hold.
    """
    if not 2 <= len(names) < UNLABELED:
        raise ValueError(f"{len(names)} classes: expected 2 to {UNLABELED - 1}")
    return tuple(names)


def first_value(names: Sequence[str], given: int = -1) -> int:
    """Returns the value of the first name in masks, 0 or 1: `given`, unless it is -1.

    It is 1, and 0 is ignored, as in ADE20k, unless the names start with "background",
    which then is value 0 and a class like others, as in PASCAL VOC.
    """
    return given if given >= 0 else int(names[0] != BACKGROUND)


def to_classes(
    mask: UInt8[np.ndarray, "h w"], names: Sequence[str], told_first: int = -1
) -> Int[np.ndarray, "h w"]:
    """Returns numbers of classes, `IGNORED` where a pixel has none.

    Raises ValueError, which names the first value that is no class.
    """
    first = first_value(names, told_first)
    classes = mask.astype(np.int64) - first
    classes[(mask == UNLABELED) | (mask < first)] = IGNORED
    wrong = mask[classes >= len(names)]
    if wrong.size:
        last = len(names) - 1 + first
        raise ValueError(
            f"mask value {wrong[0]}: expected 0 to {last}, or {UNLABELED} for none"
        )
    return classes


def doubt_first_value(
    pixels: Int[np.ndarray, "classes"], n_unlabeled: int, names: Sequence[str]
) -> str:
    """Returns signs that masks counted from 1 are counted from 0; "" if there are none.

    `pixels` counts those of each class, `n_unlabeled` those of value 0.
    """
    share = n_unlabeled / max(pixels.sum() + n_unlabeled, 1)
    if pixels[-1] or share < _MUCH:
        return ""
    return (
        f"mask value 0 covers {share:.0%} of the pixels and is ignored, and value"
        f" {len(pixels)}, {names[-1]!r}, occurs nowhere: if masks are counted from 0,"
        " give --set masks_from=0"
    )


def confusion(
    predicted: Int[np.ndarray, "h w"], truth: Int[np.ndarray, "h w"], n_classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts pixels by true class (rows) and predicted class, without ignored ones."""
    is_known = truth != IGNORED
    pairs = truth[is_known] * n_classes + predicted[is_known]
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def ious(
    confusion: Int[np.ndarray, "classes classes"],
) -> Float[np.ndarray, "classes"]:
    """Returns intersection over union per class; NaN where the union is empty."""
    both = np.diag(confusion).astype(float)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return np.divide(both, union, out=np.full(len(both), np.nan), where=union > 0)


def scores(
    confusion: Int[np.ndarray, "classes classes"], names: Sequence[str]
) -> dict[str, object]:
    """Returns means, and the scores of chance.

    Raises ValueError if no pixel has a class.
    """
    if not confusion.sum():
        raise ValueError("no pixel with a class")
    by_class = ious(confusion)
    found = {
        name: float(iou)
        for name, iou in zip(names, by_class, strict=True)
        if not np.isnan(iou)
    }
    return {
        "mean_iou": float(np.nanmean(by_class)),
        "pixel_accuracy": float(np.diag(confusion).sum() / confusion.sum()),
        "baselines": baselines(confusion.sum(axis=1)),
        "iou_by_class": found,
    }


def baselines(pixels: Int[np.ndarray, "classes"]) -> dict[str, float]:
    """Returns the mean IoU of random classes, and of the most frequent class
    everywhere.

    The first is computed from expected counts, over all classes.
    """
    share = pixels / pixels.sum()
    drawn = 1 / len(pixels)
    random = share * drawn / (share + drawn - share * drawn)
    n_present = np.count_nonzero(pixels)
    return {
        "random_mean_iou": float(random.mean()),
        "most_frequent_mean_iou": float(share.max() / n_present),
    }
