"""Drawn pictures: true texts and masks, and sizes in range."""

import numpy as np

from pipeline.demo_web import crawl, defects, descriptions, drawn_pair
from pipeline.demo_web.scene import class_id, sample_scene


def test_texts_and_masks_name_the_objects_and_the_largest():
    for seed in range(20):
        picture = drawn_pair.sample_picture(np.random.default_rng(seed))
        pairs = [obj.pair for obj in picture.scene.objects]
        captions = descriptions.captions(picture.scene)
        named = descriptions.named_pairs(captions["detailed"])
        assert sorted(named) == sorted(pairs)
        ids, n_px = np.unique(picture.mask[picture.mask > 0], return_counts=True)
        assert set(ids) == {class_id(*pair) for pair in pairs}
        assert ids[n_px.argmax()] == class_id(*named[0])
        assert crawl.largest_class(picture.scene) == " ".join(named[0])
        assert captions["short"] == named[0][1]


def test_sizes_and_aspects_are_in_range():
    shapes = [
        drawn_pair.sample_picture(np.random.default_rng(seed)).mask.shape
        for seed in range(40)
    ]
    assert all(96 <= min(shape) <= 160 for shape in shapes)
    assert all(max(shape) / min(shape) <= 1.52 for shape in shapes)
    assert 2 <= sum(height != width for height, width in shapes) <= 20


def test_mismatched_alt_text_shares_nothing_with_the_picture(rng):
    for _ in range(20):
        scene = sample_scene(rng)
        named = descriptions.named_pairs(defects.other_scenes_alt_text(scene, rng))
        largest = descriptions.by_visible_area(scene)[0]
        assert named
        assert not set(named) & {obj.pair for obj in scene.objects}
        assert named[0][0] != largest.color
        assert named[0][1] != largest.shape
