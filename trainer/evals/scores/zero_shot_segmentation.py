"""Zero-shot segmentation: each patch takes the class whose name is most similar.

Pure functions of features. The protocol is that of the released TIPS code: patches of
the last block's values, nine sentences a class; the image whole, or by windows whose
probabilities are averaged. Sources: google-deepmind/tips,
`pytorch/TIPS_zeroshot_segmentation.ipynb`; MaskCLIP, arXiv:2112.01071; TCL,
arXiv:2212.00785.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from trainer.evals.scores.features import normalize
from trainer.evals.scores.maps import best_class

Window = tuple[slice, slice]


def resize_short_side(
    image: UInt8[np.ndarray, "h w 3"], size_px: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resizes to a short side of `size_px`, bicubic; the long side is rounded down."""
    height, width = image.shape[:2]
    short = min(height, width)
    return _bicubic(image, (height * size_px // short, width * size_px // short))


def round_up_to_patches(
    image: UInt8[np.ndarray, "h w 3"], patch_px: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resizes to sides that are multiples of the patch, bicubic."""
    height, width = (-(-side // patch_px) * patch_px for side in image.shape[:2])
    return _bicubic(image, (height, width))


def stride(window_px: int, patch_px: int) -> int:
    """Returns three quarters of a window, in whole patches: 336 of 448."""
    return max(1, window_px * 3 // 4 // patch_px) * patch_px


def windows(shape: tuple[int, int], window_px: int, stride_px: int) -> list[Window]:
    """Returns squares that cover an image; the last ones end at its edges."""
    rows, columns = (list(_spans(side, window_px, stride_px)) for side in shape)
    return list(itertools.product(rows, columns))


def cosines(
    patches: Float[np.ndarray, "gh gw d"], classes: Float[np.ndarray, "classes d"]
) -> Float[np.ndarray, "gh gw classes"]:
    """Returns the cosine of every patch with every class."""
    return (normalize(patches) @ normalize(classes).T).astype(np.float32)


def segment(
    patches: Float[np.ndarray, "gh gw d"],
    classes: Float[np.ndarray, "classes d"],
    shape: tuple[int, int],
) -> Int[np.ndarray, "h w"]:
    """Returns the class of each pixel of an image of `shape` that was encoded whole."""
    return best_class(cosines(patches, classes), shape)


def segment_by_windows(
    patches: Sequence[Float[np.ndarray, "gh gw d"]],
    found: Sequence[Window],
    classes: Float[np.ndarray, "classes d"],
    *,
    resized: tuple[int, int],
    shape: tuple[int, int],
) -> Int[np.ndarray, "h w"]:
    """Returns the same from windows of the image, which was `resized` for that.

    The softmax is over cosines as they are, without a temperature.
    """
    total = np.zeros((*resized, len(classes)), np.float32)
    count = np.zeros((*resized, 1), np.float32)
    for one, window in zip(patches, found, strict=True):
        rows, columns = window
        sides = (rows.stop - rows.start, columns.stop - columns.start)
        total[window] += _probabilities(cosines(one, classes), sides)
        count[window] += 1
    return best_class(total / count, shape)


@functools.partial(jax.jit, static_argnames="shape")
def _probabilities(
    cells: Float[Array, "gh gw classes"], shape: tuple[int, int]
) -> Float[Array, "h w classes"]:
    """On a device: windows all have one size, and these are most of the work."""
    pixels = jax.image.resize(cells, (*shape, cells.shape[-1]), "bilinear")
    return jax.nn.softmax(pixels)


def _spans(side: int, window: int, step: int) -> Iterator[slice]:
    for start in range(0, max(side - window + step - 1, 0) // step * step + 1, step):
        stop = min(start + window, side)
        yield slice(max(stop - window, 0), stop)


def _bicubic(
    image: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    if image.shape[:2] == shape:
        return image
    method = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(shape[::-1], method))
