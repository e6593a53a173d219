"""Texts of a hard scene: captions from its truth, and alt text like that of the web.

A caption is true, and names visible objects with the largest first. Alt text names one
object at best, among the words of people who sell pictures.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.demo_web.descriptions import by_visible_area
from pipeline.demo_web.scene import Scene, SceneObject
from tools.ablation.scenes import Pair

GRANULARITIES = ("short", "medium", "detailed")

_ABOUT_FORMS = (
    "photo of a {}",
    "photos of {}",
    "{} free download",
    "art of the {}",
    "a bad photo of a {}",
    "{} in a video game",
    "buy {} poster online",
    "the small {}",
    "many {} wallpaper hd",
    "photo of the large {}",
)
_JUNK = (
    "best prices free shipping on all posters",
    "follow us for more photos",
    "wallpaper hd free download",
    "new art in our online shop",
    "the best video game of the year",
    "photos of our summer sale",
)


def captions(scene: Scene) -> dict[str, str]:
    """Returns granularity to caption: the largest object, the two largest, or all."""
    objects = by_visible_area(scene)
    nouns = [_noun(one) for one in objects]
    return {
        "short": nouns[0],
        "medium": f"{nouns[0]} next to {nouns[1]}",
        "detailed": f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        f" on a {scene.background.kind} background",
    }


def alt_text(scene: Scene, rng: np.random.Generator) -> str:
    """Alt text that names one object of the scene, chosen at random."""
    objects = scene.objects
    return _name_object(objects[int(rng.integers(len(objects)))].pair, rng)


def wrong_alt_text(
    scene: Scene, pairs: Sequence[Pair], rng: np.random.Generator
) -> str:
    """Alt text that names one of `pairs` whose color no object of the scene has."""
    colors = {one.color for one in scene.objects}
    absent = [pair for pair in pairs if pair[0] not in colors]
    return _name_object(absent[int(rng.integers(len(absent)))], rng)


def junk_alt_text(rng: np.random.Generator) -> str:
    """Alt text that describes no picture."""
    return str(rng.choice(_JUNK))


def _name_object(pair: Pair, rng: np.random.Generator) -> str:
    return str(rng.choice(_ABOUT_FORMS)).format(" ".join(pair))


def _noun(one: SceneObject) -> str:
    return f"{'an' if one.color[0] in 'aeiou' else 'a'} {one.color} {one.shape}"
