import numpy as np
import pytest

from pipeline.selection.duplicates.synthetic_copies import NAME_TO_COPY

RGB = np.random.default_rng(0).integers(0, 255, (40, 100, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", NAME_TO_COPY)
@pytest.mark.parametrize("size", [(40, 100), (1, 1), (3, 200)])
def test_a_copy_is_a_picture_and_leaves_the_original_alone(name, size):
    rgb = RGB[: size[0], :1].repeat(size[1], axis=1)
    before = rgb.copy()
    copy = NAME_TO_COPY[name](rgb)
    assert copy.dtype == np.uint8
    assert copy.shape[2] == 3
    assert min(copy.shape) >= 1
    np.testing.assert_array_equal(rgb, before)
    np.testing.assert_array_equal(copy, NAME_TO_COPY[name](rgb))


def test_copies_are_what_their_names_say():
    copies = {name: copy(RGB) for name, copy in NAME_TO_COPY.items()}
    sizes = {name: copy.shape[:2] for name, copy in copies.items()}
    resized = {name: size for name, size in sizes.items() if size != (40, 100)}
    assert resized == {
        "half size": (20, 50),
        "crop 90 %": (38, 95),
        "crop 80 %": (36, 89),
        "crop 60 %": (31, 77),
        "border": (44, 104),
    }
    np.testing.assert_array_equal(copies["unchanged"], RGB)
    np.testing.assert_array_equal(copies["mirror"], RGB[:, ::-1])
    np.testing.assert_array_equal(copies["border"][2:-2, 2:-2], RGB)
    np.testing.assert_array_equal(copies["crop 60 %"], RGB[4:35, 11:88])
    assert (copies["border"][0] == 255).all()
    changed = [name for name, copy in copies.items() if not np.array_equal(copy, RGB)]
    assert changed == list(NAME_TO_COPY)[1:]
