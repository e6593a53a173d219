"""Retrieval between images and texts: recall at k, both ways. Pure functions."""

import numpy as np
from jaxtyping import Float, Int

from trainer.evals.scores.features import normalize

KS = (1, 5, 10)
_CHUNK = 1024  # queries compared at a time, to bound memory


def recalls(
    image_features: Float[np.ndarray, "images d"],
    text_features: Float[np.ndarray, "texts d"],
    text_to_image: Int[np.ndarray, "texts"],
) -> dict[str, dict[str, float]]:
    """Returns recall at 1, 5 and 10, both ways. Any of its texts finds an image.

    `text_to_image[j]` is the image that text j describes.
    """
    images = np.arange(len(image_features))
    to_text = ranks(image_features, text_features, images, text_to_image)
    to_image = ranks(text_features, image_features, text_to_image, images)
    return {
        "image_to_text": {f"recall@{k}": float((to_text < k).mean()) for k in KS},
        "text_to_image": {f"recall@{k}": float((to_image < k).mean()) for k in KS},
    }


def ranks(
    queries: Float[np.ndarray, "q d"],
    candidates: Float[np.ndarray, "c d"],
    query_ids: Int[np.ndarray, "q"],
    candidate_ids: Int[np.ndarray, "c"],
) -> Int[np.ndarray, "q"]:
    """Counts, per query, the wrong candidates that come before the best right one.

    A candidate is right if it has the query's id. A wrong one with the same cosine
    comes before it, so constant features find nothing.
    """
    queries, candidates = normalize(queries), normalize(candidates)
    found = []
    for start in range(0, len(queries), _CHUNK):
        part = slice(start, start + _CHUNK)
        cosines = queries[part] @ candidates.T
        is_right = query_ids[part, None] == candidate_ids
        best = np.where(is_right, cosines, -np.inf).max(axis=1, keepdims=True)
        found.append(((cosines >= best) & ~is_right).sum(axis=1))
    return np.concatenate(found)
