"""Zero-shot classification: the class whose name is most similar to the image.

Pure functions of features. Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from trainer.evals.scores.features import normalize
from trainer.evals.sets import label_names
from trainer.evaluation_config import PromptSet

# CLIP's authors found these seven to do as well as all of their eighty on ImageNet.
_CLIP = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
# Those of TCL (arXiv:2212.00785), which the released TIPS code takes to segment.
_TCL = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)
PROMPTS: Mapping[PromptSet, tuple[str, ...]] = {
    PromptSet.PLAIN: ("a photo of a {}", "a {}"),
    PromptSet.CLIP: _CLIP,
    PromptSet.TCL: _TCL,
}


def prompts(names: Sequence[str], which: PromptSet) -> list[str]:
    """Returns every name in every sentence, name by name."""
    spoken = map(label_names.spoken_name, names)
    return [sentence.format(name) for name in spoken for sentence in PROMPTS[which]]


def class_features(
    prompt_features: Float[np.ndarray, "classes prompts d"],
) -> Float[np.ndarray, "classes d"]:
    """Returns the mean of each class's normalized prompt features, normalized."""
    return normalize(normalize(prompt_features).mean(axis=1))


def accuracy(
    image_features: Float[np.ndarray, "n d"],
    class_features: Float[np.ndarray, "classes d"],
    labels: Int[np.ndarray, "n"],
) -> float:
    """Returns the share of images whose own class has the highest cosine.

    A tie with another class counts as wrong, so constant features score 0, not 1.
    """
    cosines = normalize(image_features) @ normalize(class_features).T
    rows = np.arange(len(labels))
    own = cosines[rows, labels]
    cosines[rows, labels] = -np.inf
    return float((own > cosines.max(axis=1)).mean())
