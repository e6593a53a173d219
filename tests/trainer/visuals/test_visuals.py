"""What pictures are made of, against NumPy and worked numbers."""

import unicodedata

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.safe_text import visible
from trainer.models.layers import ParamMaker
from trainer.models.transformer import EncoderBlock
from trainer.models.vit import VisionTransformer
from trainer.visuals import attention, overlays, page, pca_colors, sheets, views

RNG = np.random.default_rng(0)
PATCHES = RNG.normal(size=(3, 4, 5, 8)) * np.arange(1, 9) + 2


def by_svd(features):
    """Centerd rows and their three first right singular vectors."""
    rows = features.reshape(-1, features.shape[-1])
    rows = rows - rows.mean(axis=0)
    return rows, np.linalg.svd(rows, full_matrices=False)[2][:3]


def test_components_are_the_first_singular_vectors():
    basis = pca_colors.fit_basis(PATCHES)
    rows, vectors = by_svd(PATCHES)
    signs = np.sign((basis.vectors.T * vectors).sum(axis=1))
    np.testing.assert_allclose(basis.vectors.T, vectors * signs[:, None], atol=1e-9)
    expected = (rows @ basis.vectors).reshape(3, 4, 5, 3)
    np.testing.assert_allclose(pca_colors.project(basis, PATCHES), expected, atol=1e-9)
    variances = expected.reshape(-1, 3).var(axis=0)
    assert (np.diff(variances) < 0).all()


def test_the_sign_of_a_component_does_not_hang_on_the_order_of_patches():
    turned = pca_colors.fit_basis(PATCHES[::-1, ::-1])
    basis = pca_colors.fit_basis(PATCHES)
    np.testing.assert_allclose(turned.vectors, basis.vectors, atol=1e-9)
    largest = np.abs(basis.vectors).argmax(axis=0)
    assert (basis.vectors[largest, range(3)] > 0).all()


def test_a_color_means_the_same_in_all_images():
    same = PATCHES.copy()
    same[1] = same[0]
    found = pca_colors.to_colors(pca_colors.fit_basis(same), same)
    np.testing.assert_array_equal(found[0], found[1])
    values = pca_colors.project(pca_colors.fit_basis(same), same).reshape(-1, 3)
    low, high = np.percentile(values, (1, 99), axis=0)
    expected = 255 * ((values - low) / (high - low)).clip(0, 1)
    np.testing.assert_array_equal(found.reshape(-1, 3), expected.round())


def test_patches_that_are_all_alike_are_black():
    features = np.ones((1, 2, 2, 8))
    assert not pca_colors.to_colors(pca_colors.fit_basis(features), features).any()


def test_patches_that_are_not_numbers_are_an_error():
    with pytest.raises(ValueError, match="patch features are not finite"):
        pca_colors.fit_basis(np.full((1, 2, 2, 8), np.nan))


@pytest.fixture(scope="module")
def block(tiny):
    """One block with parameters that are all random, and what goes into it."""
    model = EncoderBlock(tiny.model.vision, ParamMaker(1))
    state = jax.tree.map(
        lambda x: RNG.normal(scale=0.5, size=x.shape).astype(np.float32),
        nnx.to_pure_dict(nnx.state(model)),
    )
    nnx.update(model, state)
    return model, RNG.normal(size=(2, 6, tiny.model.vision.width)).astype(np.float32)


def test_attention_is_the_softmax_of_the_block_by_hand(block):
    model, tokens = block
    own = model.MultiHeadDotProductAttention_0
    x = np.asarray(model.LayerNorm_0(tokens))
    query, key = (
        np.einsum("btd,dhc->bthc", x, layer.kernel[...]) + layer.bias[...]
        for layer in (own.query, own.key)
    )
    found = np.asarray(model.attention(tokens, 2))
    assert found.shape == (2, 2, 2, 6)
    for b, head, token in np.ndindex(2, 2, 2):
        logits = key[b, :, head] @ query[b, token, head] / np.sqrt(8)
        expected = np.exp(logits - logits.max())
        expected /= expected.sum()
        np.testing.assert_allclose(found[b, head, token], expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)


def test_attention_is_what_the_block_mixes_values_by(block):
    model, tokens = block
    own = model.MultiHeadDotProductAttention_0
    x = model.LayerNorm_0(tokens)
    weights = own.weights(x, tokens.shape[1])
    mixed = np.einsum("bhqk,bkhc->bqhc", weights, own.value(x))
    np.testing.assert_allclose(own.out(mixed), own(x, None), atol=1e-5)


def test_attention_is_that_of_the_last_block(tiny):
    model = VisionTransformer(tiny.model.vision, ParamMaker(0))
    image = RNG.random((1, 28, 42, 3), np.float32)
    tokens, grid = model.encoder.embed(image, None)
    (block,) = model.encoder.transformer.blocks
    found = model.cls_attention(image)
    assert (found.shape, grid) == ((1, 2, 2, 8), (2, 3))
    np.testing.assert_array_equal(found, block.attention(tokens, 2))


def test_maps_are_the_mean_of_heads_and_each_head_over_the_patches():
    weights = RNG.random((3, 2, 8))
    found = attention.attention_maps(weights, (2, 3))
    assert found.shape == (2, 4, 2, 3)
    for token, head, row, column in np.ndindex(2, 3, 2, 3):
        expected = weights[head, token, 2 + 3 * row + column]
        assert found[token, 1 + head, row, column] == expected
    np.testing.assert_allclose(found[:, 0], found[:, 1:].mean(axis=1))


def test_heat_goes_from_black_to_the_largest_weight():
    weights = np.array([[0.0, 0.2], [0.4, 0.1]])
    found = attention.heat_map(weights)
    np.testing.assert_array_equal(found, attention.heat_map(10 * weights))
    assert found[0, 0].max() < 10
    assert found[1, 0].min() > 100
    assert not attention.heat_map(np.zeros((2, 2))).astype(int).max() > 10


def test_an_overlay_mixes_the_color_of_the_class_into_the_photo():
    photo = np.full((1, 3, 3), 100, np.uint8)
    palette = np.array([[255, 0, 0], [0, 0, 200]], np.uint8)
    found = overlays.overlay(photo, np.array([[0, 1, -1]]), palette)
    assert found.tolist() == [[[193, 40, 40], [40, 40, 160], [100, 100, 100]]]


def test_classes_have_different_colors_that_do_not_hang_on_their_number():
    palette = overlays.palette(254)
    assert len(np.unique(palette, axis=0)) == 254
    np.testing.assert_array_equal(overlays.palette(3), palette[:3])


def test_shares_are_of_all_pixels_the_largest_first():
    classes = np.array([[2, 2, 2, 0], [5, 0, -1, -1]])
    found = [(2, 3 / 8), (0, 2 / 8), (5, 1 / 8)]
    assert overlays.class_shares(classes) == found


def test_a_sheet_has_its_pictures_where_they_belong():
    red, blue = (np.full((4, 5, 3), c, np.uint8) for c in ((255, 0, 0), (0, 0, 255)))
    found = sheets.make_sheet([[sheets.Tile(red, ""), sheets.Tile(blue, "")]] * 2)
    assert (found[:4, :5] == red).all()
    assert (found[:4, 11:16] == blue).all()
    assert (found[28:32, 11:16] == blue).all()
    assert (found[4:22] == 255).all()


def test_a_label_stays_in_its_column():
    tile = np.zeros((4, 30, 3), np.uint8)
    found = sheets.make_sheet([[sheets.Tile(tile, "W" * 500), sheets.Tile(tile, "")]])
    is_ink = (found[4:22] < 128).any(axis=(0, 2))
    assert is_ink[:30].any()
    assert not is_ink[30:].any()


def test_a_query_is_not_its_own_neighbor_wherever_it_stands_among_equals():
    found = views._others(np.array([4, 1, 3]), np.array([1.0, 1.0, 0.5]), 1)
    assert found == [(4, 1.0), (3, 0.5)]


@settings(max_examples=30)
@given(st.text(max_size=40))
def test_visible_text_prints_and_is_cut(text):
    found = visible(text, 20)
    assert len(found) <= 20
    hidden = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of characters, line ends
    assert not hidden & {unicodedata.category(one) for one in found}
    if text.isprintable() and " " not in text and len(text) <= 20:
        assert found == text


def test_names_on_the_page_are_text():
    name = "</style><img src=x onerror=alert(1)>\u202e\n"
    shown = page.ImageSection(
        visible(name), [page.Figure("00.png", b"png", visible(name))]
    )
    text = page.render_page(visible(name), [shown])
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert text.count("&lt;/style&gt;&lt;img src=x onerror=alert(1)&gt;[U+202E]") == 3
    assert text.count("<img ") == 1
    assert "default-src 'none'; img-src data:;" in text.replace("&#39;", "'")
