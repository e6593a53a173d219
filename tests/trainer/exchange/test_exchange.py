"""What `python -m trainer.export` writes, and what reads it again."""

import dataclasses
import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece

from pipeline.records import VERSION
from tests.support.runs import assert_same
from trainer import evaluate, export
from trainer.config import (
    ContrastivePair,
    Ema,
    FeedForward,
    Text,
    Weights,
    tips_model,
)
from trainer.exchange import exported_weights, formats, npz, torch_names
from trainer.exchange.formats import Format
from trainer.models import two_tower
from trainer.models.vit import resize_grid
from trainer.pretrained.trained_model import find_trained_model

WEIGHTS = {
    Format.HF: ["model.safetensors", "config.json", "preprocessor_config.json"],
    Format.SCENIC: ["tips_vision.npz", "tips_text.npz", "model.json"],
    Format.PYTORCH: ["tips_vision.npz", "tips_text.npz", "model.json"],
}


@pytest.fixture(scope="module")
def work(tiny, workdir_of):
    return workdir_of(tiny)


@pytest.fixture(scope="module", params=[FeedForward.GELU, FeedForward.SWIGLU])
def any_work(request, tiny, workdir_of):
    """3 x 3 positions, and images of 28 px."""
    changes = {"feed_forward": request.param, "position_grid": (3, 3), "n_layers": 2}
    vision = dataclasses.replace(tiny.model.vision, **changes)
    model = dataclasses.replace(tiny.model, vision=vision)
    return workdir_of(dataclasses.replace(tiny, model=model))


def exported(source, form, folder, *flags):
    arguments = ["--checkpoint", source, "--format", form, "--output", folder]
    export.main([str(value) for value in (*arguments, *flags)])
    return folder


def written(folder, form):
    return {name: (folder / name).read_bytes() for name in WEIGHTS[form]}


def tower_sizes(size, grid):
    """The number of PyTorch's vision arrays, and of the values in them."""
    model = tips_model(size, grid)
    shapes = exported_weights.tower_shapes(model)["vision"]
    found = torch_names.vision_shapes(model.vision, shapes)
    return len(found), sum(map(math.prod, found.values()))


def test_the_arrays_of_l14_at_448_px_are_those_of_the_official_file():
    assert tower_sizes("L/14", (32, 32)) == (344, 304_016_384)


def test_pytorch_adds_layer_scale_a_mask_token_and_a_position():
    n_arrays, n_values = tower_sizes("g/14", (32, 32))
    assert n_values == 1_135_826_432 + (40 * 2 + 1 + 1) * 1536
    # Queries, keys and values are one, so are two layers of the MLP; CLS are two.
    assert n_arrays == 726 + 40 * (-4 - 2 + 2) + 2


def test_names_and_shapes_of_pytorch_are_the_official_ones():
    model = dataclasses.replace(
        tips_model("B/14", (32, 32)),
        vision=dataclasses.replace(tips_model("B/14", (32, 32)).vision, n_layers=1),
        text=dataclasses.replace(tips_model("B/14").text, n_layers=1),
    )
    shapes = exported_weights.tower_shapes(model)
    assert torch_names.vision_shapes(model.vision, shapes["vision"]) == {
        "cls_token": (1, 1, 768),
        "register_tokens": (1, 1, 768),
        "pos_embed": (1, 1025, 768),
        "mask_token": (1, 768),
        "patch_embed.proj.weight": (768, 3, 14, 14),
        "patch_embed.proj.bias": (768,),
        "norm.weight": (768,),
        "norm.bias": (768,),
        "blocks.0.ls1.gamma": (768,),
        "blocks.0.ls2.gamma": (768,),
        **{
            f"blocks.0.{name}": shape
            for name, shape in layers("norm{}", "attn.qkv.", "attn.proj", "mlp.fc{}")
        },
    }
    assert torch_names.text_shapes(model.text, shapes["text"]) == {
        "token_embedding.weight": (32_000, 768),
        "ln_final.weight": (768,),
        "ln_final.bias": (768,),
        **{
            f"transformer.resblocks.0.{name}": shape
            for name, shape in layers(
                "ln_{}", "attn.in_proj_", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"
            )
        },
    }


def layers(norm, qkv, out, first, last=""):
    for number in (1, 2):
        yield f"{norm.format(number)}.weight", (768,)
        yield f"{norm.format(number)}.bias", (768,)
    sizes = {
        qkv: (3 * 768, 768),
        f"{out}.": (768, 768),
        f"{first.format(1)}.": (3072, 768),
        f"{(last or first).format(2)}.": (768, 3072),
    }
    for prefix, shape in sizes.items():
        yield f"{prefix}weight", shape
        yield f"{prefix}bias", shape[:1]


def test_pytorch_has_the_layers_as_it_applies_them(any_work):
    """Row i of a weight makes output i; heads follow each other."""
    model = find_trained_model(any_work).exported_weights()
    block = model.params()["vision"]["encoder"]["transformer"]["encoderblock_1"]
    config = model.model.vision
    found = torch_names.vision_to_torch(model.vision, model.mask_token, config)
    attention = block["MultiHeadDotProductAttention_0"]
    x = np.random.default_rng(0).normal(size=16)
    ours = [np.einsum("d,dhk->hk", x, attention[n]["kernel"]) for n in ("query", "key")]
    theirs = np.split(found["blocks.1.attn.qkv.weight"] @ x, 3)
    for one, other in zip(ours, theirs, strict=False):
        np.testing.assert_allclose(one.ravel(), other, rtol=1e-5)
    mixed = np.einsum("hk,hkd->d", x.reshape(2, 8), attention["out"]["kernel"])
    np.testing.assert_allclose(mixed, found["blocks.1.attn.proj.weight"] @ x, rtol=1e-5)
    if config.feed_forward is FeedForward.SWIGLU:
        gate, linear = np.split(found["blocks.1.mlp.w12.weight"] @ x, 2)
        mlp = block["FFNSwiGluFused_0"]
        np.testing.assert_allclose(gate, x @ mlp["Dense_0"]["kernel"], rtol=1e-5)
        np.testing.assert_allclose(linear, x @ mlp["Dense_1"]["kernel"], rtol=1e-5)
    patch = np.random.default_rng(0).normal(size=(14, 14, 3))
    embedding = model.params()["vision"]["encoder"]["ToTokenSequence_0"]["embedding"]
    np.testing.assert_allclose(
        np.tensordot(patch, embedding["kernel"], 3),
        np.einsum("hwc,dchw->d", patch, found["patch_embed.proj.weight"]),
        rtol=1e-5,
    )


@pytest.mark.parametrize("form", formats.READ)
def test_an_export_comes_back_bit_for_bit(tmp_path, any_work, form):
    first = exported(any_work, form, tmp_path / "first")
    second = exported(first, form, tmp_path / "second")
    assert written(first, form) == written(second, form)
    ours, theirs = (
        find_trained_model(any_work).exported_weights(),
        find_trained_model(first).exported_weights(),
    )
    jax.tree.map(np.testing.assert_array_equal, ours.params(), theirs.params())
    assert (ours.size_px, ours.step) == (theirs.size_px, theirs.step) == (28, 6)
    if form is not Format.SCENIC:
        np.testing.assert_array_equal(ours.mask_token, theirs.mask_token)


@pytest.mark.parametrize("form", [Format.HF, Format.PYTORCH])
def test_formats_convert_into_each_other(tmp_path, any_work, form):
    direct = exported(any_work, Format.SCENIC, tmp_path / "direct")
    between = exported(any_work, form, tmp_path / "between")
    around = exported(between, Format.SCENIC, tmp_path / "around")
    assert written(direct, Format.SCENIC) == written(around, Format.SCENIC)


def test_scenic_has_its_keys_and_no_other(tmp_path, any_work):
    folder = exported(any_work, Format.SCENIC, tmp_path / "out")
    model = find_trained_model(any_work).config.model
    expected = exported_weights.tower_shapes(model)
    expected["text"]["temperature_contrastive"] = ()
    for tower in ("vision", "text"):
        with np.load(folder / f"tips_{tower}.npz") as stored:
            found = {key: stored[key].shape for key in stored.files}
            assert {stored[key].dtype for key in found} == {np.dtype("f4")}
        assert found == expected[tower]


@pytest.mark.parametrize("form", [Format.HF, Format.PYTORCH])
def test_pytorch_has_the_positions_of_its_images(tmp_path, tiny, work, form):
    """Resized when the images have more patches than were learned."""
    grids = {28: 2, 70: 5}
    for size_px, side in grids.items():
        flags = ["--image-size-px", size_px]
        folder = exported(work, form, tmp_path / str(size_px), *flags)
        if form is Format.HF:
            stored = safetensors.numpy.load_file(folder / "model.safetensors")
            positions = stored["vision_encoder.pos_embed"]
        else:
            with np.load(folder / "tips_vision.npz") as npz:
                positions = npz["pos_embed"]
        assert positions.shape == (1, 1 + side**2, 16)
        assert not positions[:, 0].any()
        found = find_trained_model(folder)
        assert found.config.data.global_crop.size_px == size_px
        params = find_trained_model(work).params(two_tower.abstract_params(tiny.model))
        expected = two_tower.resize_positions(params, (side, side))["vision"]
        jax.tree.map(
            np.testing.assert_array_equal,
            found.exported_weights().params()["vision"],
            jax.tree.map(np.asarray, expected),
        )


def test_a_position_of_cls_and_layer_scale_are_folded_in(tmp_path, work):
    folder = exported(work, Format.PYTORCH, tmp_path / "out")
    with np.load(folder / "tips_vision.npz") as stored:
        arrays = dict(stored)
    arrays["pos_embed"][:, 0] = 3.0
    arrays["cls_token"] -= 3.0
    for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
        arrays[f"blocks.0.{scale}.gamma"] *= 0.5
        arrays[f"blocks.0.{layer}.weight"] *= 2
        arrays[f"blocks.0.{layer}.bias"] *= 2
    np.savez(folder / "tips_vision.npz", **arrays)
    ours, theirs = (
        find_trained_model(work).exported_weights(),
        find_trained_model(folder).exported_weights(),
    )
    for key, value in ours.vision.items():
        np.testing.assert_allclose(value, theirs.vision[key], atol=1e-6, err_msg=key)


@pytest.mark.parametrize("write", [npz.write_scenic, npz.write_pytorch])
def test_a_released_size_needs_no_description(tmp_path, write):
    """S/14 is known by its width; a name with highres by its images of 448 px."""
    model = exported_weights.released_model(384, (1, 1), side=32)
    params = two_tower.init_params(model, 0)
    written = exported_weights.from_params(params, model, size_px=448, step=3)
    write(written, tmp_path)
    (tmp_path / "model.json").unlink()
    for tower in ("vision", "text"):
        name = f"tips_oss_s14_highres_distilled_{tower}.npz"
        (tmp_path / f"tips_{tower}.npz").rename(tmp_path / name)
    found = npz.read(tmp_path)
    assert (found.model, found.size_px, found.step) == (model, 448, 0)
    jax.tree.map(np.testing.assert_array_equal, found.params(), written.params())


@pytest.mark.parametrize("form", formats.READ)
def test_an_export_measures_as_its_workdir_does(
    tmp_path, capsys, work, evaluation_tar, form
):
    folder = exported(work, form, tmp_path / "out")
    results = []
    for checkpoint in (work, folder):
        capsys.readouterr()
        flags = ["--task", "retrieval", "--data", str(evaluation_tar)]
        evaluate.main(["--checkpoint", str(checkpoint), *flags])
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]


def test_the_average_that_taught_can_be_exported(tmp_path, tiny, workdir_of):
    ssl = dataclasses.replace(tiny.self_supervision, ema=Ema.FULL)
    work = workdir_of(dataclasses.replace(tiny, self_supervision=ssl))
    folder = exported(work, "scenic", tmp_path / "taught", "--weights", "teacher")
    found, own = (find_trained_model(path) for path in (folder, work))
    shapes = two_tower.abstract_params(tiny.model)
    towers = {name: shapes[name] for name in ("vision", "text")}
    taught = own.with_weights(Weights.TEACHER)
    assert_same(found.params(towers)["text"], own.params(towers)["text"])
    assert_same(found.params(towers)["vision"], own.teacher()[0]["vision"])
    assert_same(taught.params(towers), found.params(towers))
    with pytest.raises(AssertionError):
        assert_same(found.params(towers)["vision"], own.params(towers)["vision"])
    card = (folder / "README.md").read_text()
    assert "Image encoder: the average that taught." in card


def test_a_teacher_without_an_average_of_the_encoder_is_not_exported(
    tmp_path, work, capsys
):
    with pytest.raises(SystemExit, match="2"):
        exported(work, "hf", tmp_path / "out", "--weights", "teacher")
    message = "weights=teacher: expected student with self_supervision.ema=head"
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected student with none"):
        find_trained_model(exported(work, "hf", tmp_path / "out")).with_weights(
            Weights.TEACHER
        )


def test_the_temperature_is_that_of_a_text_that_was_trained(tiny, workdir_of):
    pair = ContrastivePair(token=1, text=Text.SYNTHETIC_CAPTION, weight=1.0)
    work = workdir_of(dataclasses.replace(tiny, contrastive=(pair,)))
    found = find_trained_model(work)
    name = "log_temperature_synthetic_caption"
    expected = np.exp(found.params({name: jax.ShapeDtypeStruct((), "f4")})[name])
    assert found.exported_weights().temperature == pytest.approx(expected)


def test_the_card_says_what_was_recorded_and_no_license(tmp_path, work):
    folder = exported(work, Format.HF, tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert "6 of 6 steps of 8 images, 48 in all" in card
    assert "CLS 2 saw synthetic captions (short 1, detailed 3)" in card
    assert "the temperature is that of the alt texts" in card
    assert "Image encoder: the student's." in card
    assert "fingerprint `none`" in card
    assert f"version {VERSION}" in card
    assert "license" not in card
    assert str(work) not in card
    again = exported(folder, Format.SCENIC, tmp_path / "again")
    assert "Converted from `out`" in (again / "README.md").read_text()
    assert (folder / "tokenizer.model").read_bytes() == (
        again / "tokenizer.model"
    ).read_bytes()


def test_the_form_of_gelu_is_chosen_and_written(tmp_path, work):
    for gelu, name in {"tanh": "gelu_pytorch_tanh", "exact": "gelu"}.items():
        folder = exported(work, Format.HF, tmp_path / gelu, "--gelu", gelu)
        config = json.loads((folder / "config.json").read_text())
        assert config["vision_config"]["hidden_act"] == name


def test_an_export_that_fails_leaves_nothing(tmp_path, work):
    found = find_trained_model(work)
    (tmp_path / "lost").mkdir()
    data = dataclasses.replace(found.config.data, tokenizer=str(tmp_path / "lost"))
    config = dataclasses.replace(found.config, data=data)
    broken = dataclasses.replace(found, config=config)
    output = tmp_path / "parent" / "out"
    with pytest.raises(OSError, match="lost"):
        export.export(broken, found.exported_weights(), Format.HF, output, gelu="tanh")
    assert list(output.parent.iterdir()) == []


def error_of(capsys, *flags):
    with pytest.raises(SystemExit) as exit_:
        export.main([str(flag) for flag in flags])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--checkpoint": "nowhere"}, "nowhere/config.json: No such file"),
        ({"--step": 5}, "step 5: expected one of 6"),
        ({"--image-size-px": 30}, "image size 30: expected a multiple of 14 px"),
        ({"--output": "WORK"}, "exists, expected a new folder"),
        (
            {"--format": "scenic", "--gelu": "exact"},
            "--gelu exact: expected tanh with --format scenic, which does not say it",
        ),
        ({"--format": "tflite"}, "invalid choice: 'tflite'"),
    ],
)
def test_a_wrong_command_is_named(tmp_path, capsys, work, changes, message):
    flags = {"--checkpoint": work, "--format": "hf", "--output": tmp_path / "out"}
    flags |= {k: work if v == "WORK" else v for k, v in changes.items()}
    line = error_of(capsys, *[part for pair in flags.items() for part in pair])
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_grid_that_is_no_square_is_for_scenic_alone(
    tmp_path, capsys, tiny, workdir_of
):
    vision = dataclasses.replace(tiny.model.vision, position_grid=(2, 3))
    model = dataclasses.replace(tiny.model, vision=vision)
    work = workdir_of(dataclasses.replace(tiny, model=model))
    flags = ["--checkpoint", work, "--output", tmp_path / "out", "--format"]
    assert "position_grid=(2, 3): expected as many" in error_of(capsys, *flags, "hf")
    exported(work, Format.SCENIC, tmp_path / "out")
    assert find_trained_model(tmp_path / "out").config.model.vision == vision


def damage(folder, kind):
    """Something that goes wrong with downloads and conversions."""
    text, vision = folder / "tips_text.npz", folder / "tips_vision.npz"
    if kind == "no text":
        text.unlink()
    elif kind == "cut":
        vision.write_bytes(vision.read_bytes()[:-100])
    elif kind == "two":
        (folder / "other_vision.npz").touch()
    elif kind == "no sizes":
        (folder / "model.json").unlink()
    else:
        with np.load(text) as stored:
            arrays = dict(stored)
        if kind == "no temperature":
            del arrays["temperature_contrastive"]
        elif kind == "other shape":
            arrays["text_encoder_norm/scale"] = np.zeros(3, "f4")
        elif kind == "extra":
            arrays["head/kernel"] = np.zeros(3, "f4")
        np.savez(text, **arrays)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no text", "tips_text.npz: No such file or directory, expected a tower"),
        ("cut", "tips_vision.npz: .*expected a whole .npz"),
        ("two", r"expected one \*_vision.npz, or one of other_vision.npz, tips_"),
        ("no sizes", "width 16: expected 384, 768, 1024, 1152, 1536"),
        ("no temperature", "expected one positive number, temperature_contrastive"),
        ("other shape", r"norm/scale has shape \(3,\), expected \(16,\)"),
        ("extra", "head/kernel is not expected"),
    ],
)
def test_a_damaged_pair_is_named(tmp_path, work, kind, message):
    folder = exported(work, Format.SCENIC, tmp_path / "out")
    damage(folder, kind)
    with pytest.raises(ValueError, match=message):
        find_trained_model(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"model_type": "siglip"}, "'siglip': expected 'tipsv2'"),
        ("config.json", {"vision_config": {"num_register_tokens": 4}}, "expected 1"),
        ("config.json", {"vision_config": {"hidden_act": "silu"}}, "hidden_act='silu'"),
        ("config.json", {"text_config": {"num_hidden_layers": 2}}, "1.ln_1.weight is"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 9}}, "size in pixels"),
        ("preprocessor_config.json", {"size": None}, "size in pixels"),
        ("preprocessor_config.json", {"do_normalize": True}, "do_normalize=True: exp"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127}, "rescale_factor=0.0"),
        ("preprocessor_config.json", {"resample": 3}, "resample=3: expected 2, as in"),
        ("config.json", {"quantization_config": "of 4 bits"}, "expected weights of fl"),
        ("model.safetensors", None, "expected model.safetensors"),
    ],
)
def test_a_folder_of_another_kind_is_named(tmp_path, work, name, change, message):
    file = exported(work, Format.HF, tmp_path / "out") / name
    if change is None:
        file.unlink()
    else:
        values = json.loads(file.read_text())
        for key, value in change.items():
            nested = isinstance(value, dict) and key.endswith("_config")
            values[key] = values[key] | value if nested else value
        file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        find_trained_model(file.parent)


def test_missing_fields_of_a_preprocessor_are_those_of_its_class(tmp_path, work):
    file = exported(work, Format.HF, tmp_path / "out") / "preprocessor_config.json"
    file.write_text('{"size": 42}')
    assert find_trained_model(file.parent).exported_weights().size_px == 42
    file.write_text("{}")
    assert find_trained_model(file.parent).exported_weights().size_px == 448
    merged = file.with_name("processor_config.json")
    merged.write_text('{"image_processor": {"size": {"height": 56, "width": 56}}}')
    assert find_trained_model(file.parent).exported_weights().size_px == 56


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "float8_e4m3fn"])
def test_weights_that_are_no_floats_are_refused(tmp_path, work, dtype):
    folder = exported(work, Format.HF, tmp_path / "out")
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    name = "vision_encoder.blocks.0.attn.qkv.weight"
    stored[name] = stored[name].astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    safetensors.numpy.save_file(stored, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{name} is \w+: expected floats"):
        find_trained_model(folder)


def test_arrays_that_are_no_floats_are_refused(tmp_path, work):
    text = exported(work, Format.SCENIC, tmp_path / "out") / "tips_text.npz"
    with np.load(text) as found:
        arrays = dict(found)
    arrays["token_emb/emb_var"] = arrays["token_emb/emb_var"].astype(np.int8)
    np.savez(text, **arrays)
    with pytest.raises(ValueError, match="token_emb/emb_var is int8: expected floats"):
        find_trained_model(text.parent)


def test_a_vocabulary_that_cannot_be_exported_is_refused_first(
    tmp_path, capsys, tiny, workdir_of
):
    path = tmp_path / "words.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a red circle and a dog"] * 9),
            model_writer=file,
            model_type="word",
            vocab_size=8,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    size = sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size()
    text = dataclasses.replace(tiny.model.text, vocabulary_size=size)
    data = dataclasses.replace(tiny.data, tokenizer=str(path))
    model = dataclasses.replace(tiny.model, text=text)
    work = workdir_of(dataclasses.replace(tiny, model=model, data=data))
    flags = ["--checkpoint", work, "--output", tmp_path / "out", "--format"]
    line = error_of(capsys, *flags, "hf")
    assert "tokenizer.model: this vocabulary is of whole words; expected" in line
    assert not (tmp_path / "out").exists()
    exported(work, Format.SCENIC, tmp_path / "out")


def smooth(grid, rng):
    coarse = rng.normal(size=(1, 4, 4, 24)).astype(np.float32)
    return np.asarray(resize_grid(coarse, grid, grid))


@pytest.mark.parametrize("kind", ["smooth", "rough"])
def test_positions_that_are_resized_twice_differ_a_little(kind):
    """Learned for 16 x 16 patches, exported for 32 x 32, used for others."""
    rng = np.random.default_rng(0)
    is_smooth = kind == "smooth"
    learned = smooth(16, rng) if is_smooth else rng.normal(size=(1, 16, 16, 24))
    stored = resize_grid(learned.astype(np.float32), 32, 32)
    for side in (16, 24, 32, 48):
        once, twice = (
            np.asarray(resize_grid(x, side, side)) for x in (learned, stored)
        )
        error = np.sqrt(np.square(once - twice).mean() / np.square(once).mean())
        print(f"{kind}, {side} x {side} patches: {error:.3f} of the positions' size")
        assert error < (0.07 if is_smooth else 0.7)


def test_a_step_of_an_export_is_an_error(tmp_path, work):
    folder = exported(work, Format.HF, tmp_path / "out")
    with pytest.raises(ValueError, match=r"step 6: expected none with .*, an export"):
        find_trained_model(folder, 6)


def test_every_format_is_told_apart_from_a_workdir(tmp_path, work):
    for form in formats.READ:
        assert formats.is_export(exported(work, form, tmp_path / form))
    assert not formats.is_export(work)
    assert not formats.is_export(tmp_path / "nowhere")
