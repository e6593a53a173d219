"""True descriptions of a drawn scene, from one noun to a full text.

In: a `Scene`. Out: its captions at three granularities and alt text as a web page might
have it. The grammar is small and regular: objects come largest first, by visible area,
and relations are those to the largest.
"""

import re

import numpy as np

from pipeline.demo_web.scene import (
    COLOR_TO_RGB,
    SHAPE_TO_CONTOURS,
    Layout,
    Scene,
    SceneObject,
    measure,
)

_PAIR = re.compile(rf"\b({'|'.join(COLOR_TO_RGB)}) ({'|'.join(SHAPE_TO_CONTOURS)})s?\b")

_ALT_TEXT_FORMS = (
    "{}",
    "photo of {}",
    "picture of {}",
    "image showing {}",
    "{}, vector graphic",
    "drawing of {}",
    "illustration of {}",
    "here you can see {}",
)


def captions(scene: Scene) -> dict[str, str]:
    """Captions by granularity: `short`, `medium` and `detailed`."""
    layout = measure(scene.objects)
    order = _by_visible_area(layout)
    objects = [scene.objects[i] for i in order]
    relations = [_relation(scene, layout, order[0], i) for i in order[1:]]
    return {
        "short": objects[0].shape,
        "medium": _medium(scene, objects),
        "detailed": _detailed(scene, objects, relations),
    }


def named_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """The (color, shape) pairs that an English text names, in its order."""
    return tuple((color, shape) for color, shape in _PAIR.findall(text.lower()))


def alt_text(scene: Scene, rng: np.random.Generator) -> str:
    """True English alt text of a scene, in one of several wordings."""
    texts = captions(scene)
    largest = _full_noun(scene.objects[_by_visible_area(measure(scene.objects))[0]])
    bodies = (texts["medium"], texts["detailed"], f"{largest} on {_ground(scene)}")
    body = bodies[int(rng.choice(3, p=(0.5, 0.2, 0.3)))]
    return _ALT_TEXT_FORMS[int(rng.integers(len(_ALT_TEXT_FORMS)))].format(body)


def by_visible_area(scene: Scene) -> tuple[SceneObject, ...]:
    """The objects, largest first."""
    return tuple(scene.objects[i] for i in _by_visible_area(measure(scene.objects)))


def _by_visible_area(layout: Layout) -> list[int]:
    areas = layout.visible_areas
    return sorted(range(len(areas)), key=lambda i: (-areas[i], i))


def _noun(obj: SceneObject) -> str:
    article = "an" if obj.color[0] in "aeiou" else "a"
    return f"{article} {obj.color} {obj.shape}"


def _full_noun(obj: SceneObject) -> str:
    return f"a {obj.size} {obj.texture} {obj.color} {obj.shape}"


def _ground(scene: Scene) -> str:
    return f"a {scene.background.kind} {scene.background.name} background"


def _medium(scene: Scene, objects: list[SceneObject]) -> str:
    if len(objects) == 1:
        article_name = _with_article(scene.background.name)
        return f"{_noun(objects[0])} on {article_name} background"
    return f"{_noun(objects[0])} next to {_noun(objects[1])}"


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _detailed(scene: Scene, objects: list[SceneObject], relations: list[str]) -> str:
    others = [
        f"{_full_noun(obj)} {relation} it"
        for obj, relation in zip(objects[1:], relations, strict=True)
    ]
    return ", ".join([f"{_full_noun(objects[0])} on {_ground(scene)}", *others])


def _relation(scene: Scene, layout: Layout, largest: int, other: int) -> str:
    """Where another object is to the largest: over it, or on the side it mostly is."""
    if layout.overlaps[largest][other]:
        return "overlapping"
    dx = scene.objects[other].cx - scene.objects[largest].cx
    dy = scene.objects[other].cy - scene.objects[largest].cy
    if abs(dx) >= abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"
