"""Runs that begin with a trained model, or learn from one."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.runs import write_recipe
from trainer import export, tokenizer, train
from trainer.config import Ema, InitParts
from trainer.distributed import sharding
from trainer.exchange import formats
from trainer.loop import checkpoints
from trainer.models import two_tower
from trainer.pretrained import starting_point
from trainer.pretrained.starting_point import find_starting_point
from trainer.pretrained.trained_model import find_trained_model
from trainer.step import state, teacher
from trainer.step.objective import Objective
from trainer.step.optimizer import make_optimizer


@pytest.fixture(scope="module", params=[Ema.HEAD, Ema.FULL])
def teacher_run(request, tiny, workdir_of):
    return workdir_of(with_ssl(tiny, ema=request.param))


@pytest.fixture(scope="module")
def plain_run(tiny, workdir_of):
    """Trained without self-supervision."""
    return workdir_of(with_ssl(tiny, distillation_weight=0.0, patch_weight=0.0))


def with_ssl(config, *, teacher_from="", **changes):
    ssl = dataclasses.replace(config.self_supervision, **changes)
    return dataclasses.replace(config, self_supervision=ssl, teacher_from=teacher_from)


def student_of(tiny, folder):
    """Wider than its teacher, with another number of layers."""
    sizes = {"width": 24, "n_layers": 2}
    model = dataclasses.replace(
        tiny.model,
        vision=dataclasses.replace(tiny.model.vision, **sizes),
        text=dataclasses.replace(tiny.model.text, **sizes),
    )
    return with_ssl(
        dataclasses.replace(tiny, model=model),
        ema=Ema.FROZEN,
        mask_ratio=0.0,
        is_global_crop_distilled=True,
        teacher_from=str(folder),
    )


def initial(config):
    optimizer = make_optimizer(config.optimizer, config.n_steps)
    mesh = sharding.make_mesh()
    return starting_point.initial_state(
        config, optimizer, mesh, find_starting_point(config)
    )


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def student_run(tmp_path_factory, tiny, export, workdir_of):
    """Its configuration, and a function that trains in a workdir: to step 6."""
    config = student_of(tiny, workdir_of(tiny))
    recipe = write_recipe(tmp_path_factory.mktemp("student"), config)

    def run(workdir):
        flags = ["--config", recipe, "--data", export, "--workdir", workdir]
        train.main([str(flag) for flag in flags])
        return find_trained_model(workdir)

    return config, run


@pytest.fixture(scope="module")
def student(tmp_path_factory, student_run):
    return student_run[1](tmp_path_factory.mktemp("trained"))


def test_a_student_trains_and_no_checkpoint_holds_its_teacher(student_run, student):
    config, _ = student_run
    before = initial(config)
    assert student.step == config.n_steps
    names = checkpoints.part_names(student.folder / "checkpoints", 6, "training")
    assert names == {"centers", "opt_state", "step"}
    params = student.params(before["params"])
    with pytest.raises(AssertionError):
        assert_same(params["vision"], before["params"]["vision"])


@pytest.fixture
def stopped(tmp_path, student_run, student):
    """A student's workdir after step 3, and the checkpoints of its teacher."""
    teacher_steps = pathlib.Path(student_run[0].teacher_from, "checkpoints")
    shutil.copytree(student.folder, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "checkpoints" / "6")
    shutil.copytree(teacher_steps, tmp_path / "kept")
    yield tmp_path / "work", teacher_steps
    shutil.rmtree(teacher_steps)
    shutil.copytree(tmp_path / "kept", teacher_steps)


def another(tiny, workdir_of):
    """The checkpoint of a model with other parameters."""
    return workdir_of(dataclasses.replace(tiny, rng_seed=1)) / "checkpoints" / "6"


def test_a_resumed_student_has_the_teacher_that_it_started_with(
    stopped, student_run, student, tiny, workdir_of
):
    """Though that has been trained on."""
    workdir, teacher_steps = stopped
    shutil.copytree(another(tiny, workdir_of), teacher_steps / "9")
    shapes = initial(student_of(tiny, student.folder))["params"]
    assert_same(student_run[1](workdir).params(shapes), student.params(shapes))


def test_a_teacher_may_be_moved(stopped, student_run, student, tmp_path, export):
    workdir, teacher_steps = stopped
    shutil.copytree(teacher_steps.parent, tmp_path / "moved")
    config = student_of(student_run[0], tmp_path / "moved")
    recipe = write_recipe(tmp_path, config)
    flags = ["--config", recipe, "--data", export, "--workdir", workdir]
    train.main([str(flag) for flag in flags])
    shapes = initial(config)["params"]
    found = find_trained_model(workdir)
    assert_same(found.params(shapes), student.params(shapes))


def test_another_teacher_in_its_place_is_refused(
    stopped, student_run, tiny, workdir_of, capsys
):
    workdir, teacher_steps = stopped
    shutil.rmtree(teacher_steps / "6")
    shutil.copytree(another(tiny, workdir_of), teacher_steps / "6")
    with pytest.raises(SystemExit, match="2"):
        student_run[1](workdir)
    assert "fingerprints.teacher.digest=" in capsys.readouterr().err
    (teacher_steps / "6").rename(teacher_steps / "9")
    with pytest.raises(SystemExit, match="2"):
        student_run[1](workdir)
    assert ", step 6: expected one of 9" in capsys.readouterr().err


def test_a_teacher_is_what_taught(tiny, teacher_run):
    found = find_trained_model(teacher_run)
    taught, centers = found.teacher()
    ema = found.config.self_supervision.ema
    shapes = state.init_state(found.config, make_optimizer(tiny.optimizer, 6))
    student = found.params({"vision": shapes["params"]["vision"]})["vision"]
    assert taught.keys() == {"vision", "head"}
    if ema is Ema.HEAD:
        assert_same(taught["vision"], student)
    else:
        with pytest.raises(AssertionError):
            assert_same(taught["vision"], student)
    assert_same(initial(student_of(tiny, teacher_run))["teacher"], taught)
    assert_same(initial(student_of(tiny, teacher_run))["centers"], centers)


@pytest.mark.slow
def test_a_student_that_is_its_teacher_meets_itself(tiny, workdir_of):
    """The cross-entropies of all patches and of the global CLS 1 are entropies."""
    given = {"mask_ratio": 0.0, "student_temperature": 1.0, "teacher_temperature": 1.0}
    folder = str(workdir_of(tiny))
    alone = with_ssl(tiny, ema=Ema.FROZEN, **given, teacher_from=folder)
    beside = with_ssl(alone, is_global_crop_distilled=True, teacher_from=folder)
    now = initial(alone)
    now["params"] = now["params"] | now["teacher"]
    now["centers"] = jax.tree.map(jnp.zeros_like, now["centers"])
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 60, (2, 8, 12)).astype(np.int32)
    batch = {
        "image": rng.integers(0, 256, (8, 28, 28, 3), np.uint8),
        "local_crops": rng.integers(0, 256, (8, 2, 14, 14, 3), np.uint8),
        "mask": np.zeros((8, 2, 2), bool),
        "alt_text": ids[0],
        "synthetic_caption": ids[1],
    }

    def terms_of(config):
        objective = Objective(config, teacher_model=tiny.model)
        return objective.terms(now["params"], now, batch)[:2]

    (local, metrics), (both, _) = terms_of(alone), terms_of(beside)
    entropy = float(metrics["teacher_entropy_patch"])
    assert float(local["patch"]) == pytest.approx(entropy, rel=1e-5)
    entropy = float(metrics["teacher_entropy_cls"])
    expected = (entropy + 2 * float(local["distillation"])) / 3
    assert float(both["distillation"]) == pytest.approx(expected, rel=1e-5)
    assert float(local["distillation"]) > entropy


def test_a_new_run_starts_from_what_was_trained(tiny, teacher_run):
    """With positions of its own grid, teacher and centers; step 0, optimizer anew."""
    vision = dataclasses.replace(tiny.model.vision, position_grid=(4, 4))
    ema = find_trained_model(teacher_run).config.self_supervision.ema
    config = dataclasses.replace(
        with_ssl(tiny, ema=ema),
        model=dataclasses.replace(tiny.model, vision=vision),
        init_from=str(teacher_run),
    )
    now = initial(config)
    start = find_trained_model(teacher_run)
    shapes = initial(tiny)["params"]
    before = start.params(shapes)
    assert_same(now["params"]["text"], before["text"])
    assert_same(now["params"]["head"], before["head"])
    positions = now["params"]["vision"]["encoder"]["ToTokenSequence_0"]
    assert positions["posembed_input"].shape == (1, 4, 4, 16)
    assert_same(now["centers"], start.teacher()[1])
    assert_same(now["teacher"]["head"], start.teacher()[0]["head"])
    assert now["teacher"].keys() == set(
        teacher.averaged_modules(config.self_supervision)
    )
    assert int(now["step"]) == 0
    assert np.abs(now["centers"]["patch"]).max() > 0


@pytest.mark.parametrize("part", [InitParts.VISION, InitParts.TEXT])
def test_a_run_may_take_one_encoder_alone(tiny, plain_run, part):
    config = from_start(with_ssl(tiny, ema=Ema.FULL), plain_run, part)
    now, fresh = initial(config), initial(with_ssl(tiny, ema=Ema.FULL))["params"]
    taken = find_trained_model(plain_run).params({part: fresh[part]})
    assert_same(now["params"], fresh | taken)
    assert_same(now["teacher"]["vision"], now["params"]["vision"])
    with pytest.raises(AssertionError):
        assert_same(taken[part], fresh[part])


@pytest.fixture(scope="module")
def exported(tmp_path_factory, teacher_run):
    """A workdir's model without its head, as Hugging Face's folder."""
    folder = tmp_path_factory.mktemp("export") / "tips"
    flags = {"--checkpoint": teacher_run, "--format": "hf", "--output": folder}
    export.main([str(part) for pair in flags.items() for part in pair])
    return folder


def test_a_run_may_start_from_the_towers_of_an_export(tiny, teacher_run, exported):
    """With a head of its own, a teacher of what it starts from, and a larger grid."""
    ssl = find_trained_model(teacher_run).config.self_supervision
    vision = dataclasses.replace(tiny.model.vision, position_grid=(4, 4))
    fresh = dataclasses.replace(
        with_ssl(tiny, ema=ssl.ema),
        model=dataclasses.replace(tiny.model, vision=vision),
    )
    config = dataclasses.replace(
        fresh, init_from=str(exported), init_parts=InitParts.TOWERS
    )
    now, before = initial(config), initial(fresh)
    start = find_trained_model(teacher_run).params(initial(tiny)["params"])
    start = two_tower.resize_positions(start, (4, 4))
    for name in ("vision", "text"):
        assert_same(now["params"][name], start[name])
    for name in ("head", "mask_token"):
        assert_same(now["params"][name], before["params"][name])
    temperature = float(now["params"]["log_temperature_synthetic_caption"])
    assert temperature == pytest.approx(float(start["log_temperature_alt_text"]))
    kept = teacher.averaged_modules(config.self_supervision)
    assert_same(now["teacher"], {name: now["params"][name] for name in kept})
    assert_same(now["centers"], before["centers"])


def test_an_export_has_no_head_and_cannot_teach(tiny, exported):
    with pytest.raises(ValueError, match="with a head, or init_parts=towers"):
        find_starting_point(dataclasses.replace(tiny, init_from=str(exported)))
    with pytest.raises(ValueError, match="expected a model with a head"):
        find_starting_point(student_of(tiny, exported))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "nowhere"}, "nowhere/config.json: No such file"),
        ({"init_from": "PLAIN"}, "with a head, or init_parts=towers, or text"),
        ({"init_from": "PLAIN", "width": 32}, "expected a model with a head"),
        (
            {"init_from": "PLAIN", "width": 32, "init_parts": InitParts.TEXT},
            "init_from=.*: model.text.width=16 there, expected 32",
        ),
        ({"ema": Ema.FROZEN, "teacher_from": "nowhere"}, "nowhere/config.json: No"),
        ({"ema": Ema.FROZEN, "teacher_from": "PLAIN"}, "expected a model with a head"),
    ],
)
def test_a_model_that_does_not_fit_is_named(tiny, plain_run, changes, message):
    given = {
        name: str(plain_run) if value == "PLAIN" else value
        for name, value in changes.items()
    }
    config = tiny
    if width := given.pop("width", None):
        model = dataclasses.replace(
            config.model,
            vision=dataclasses.replace(config.model.vision, width=width),
            text=dataclasses.replace(config.model.text, width=width),
        )
        config = dataclasses.replace(config, model=model)
    if ema := given.pop("ema", None):
        config = with_ssl(config, ema=ema, teacher_from=given.pop("teacher_from"))
    config = dataclasses.replace(config, **given)
    with pytest.raises(ValueError, match=message):
        find_starting_point(config)


def test_other_prototypes_than_the_teachers_are_an_error(tiny, teacher_run):
    config = student_of(tiny, teacher_run)
    head = dataclasses.replace(config.model.head, n_prototypes=8)
    model = dataclasses.replace(config.model, head=head)
    with pytest.raises(ValueError, match="n_prototypes=8: expected 12, those of the"):
        find_starting_point(dataclasses.replace(config, model=model))


def test_a_run_that_goes_on_does_not_look_for_its_start(tiny):
    config = dataclasses.replace(tiny, init_from="nowhere")
    assert find_starting_point(config, is_new=False).start is None


def test_a_frozen_teacher_has_a_workdir_and_another_has_none(tiny):
    with pytest.raises(ValueError, match="teacher_from='': expected a workdir with"):
        with_ssl(tiny, ema=Ema.FROZEN)
    with pytest.raises(ValueError, match="teacher_from='x': expected a workdir with"):
        with_ssl(tiny, teacher_from="x")


@pytest.fixture
def other_vocabulary(tmp_path):
    """As many pieces as the tests' vocabulary has, of other texts."""
    words = [f"{a}{b}{c}" for a in "xyzw" for b in "klmnop" for c in "aeiou"]
    path = tmp_path / "other.model"
    path.write_bytes(tokenizer.train_vocabulary(words * 3, 64))
    return path


def exports(folder, teacher_run):
    """The model in the three formats."""
    for form in formats.READ:
        flags = ("--checkpoint", teacher_run, "--format", form)
        export.main([*map(str, flags), "--output", str(folder / form)])
        yield folder / form


def from_start(config, start, parts=InitParts.TOWERS, vocabulary=None):
    data = config.data
    if vocabulary is not None:
        data = dataclasses.replace(data, tokenizer=str(vocabulary))
    return dataclasses.replace(
        config, data=data, init_from=str(start), init_parts=parts
    )


def test_the_image_encoder_needs_no_vocabulary(tiny, teacher_run, other_vocabulary):
    config = from_start(tiny, teacher_run, InitParts.VISION, other_vocabulary)
    assert find_starting_point(config).start is not None


@pytest.mark.parametrize("parts", sorted(set(InitParts) - {InitParts.VISION}))
def test_a_start_with_another_vocabulary_is_refused_and_both_are_named(
    tiny, teacher_run, other_vocabulary, parts
):
    ssl = find_trained_model(teacher_run).config.self_supervision
    config = with_ssl(tiny, ema=ssl.ema)
    config = from_start(config, teacher_run, parts, other_vocabulary)
    with pytest.raises(ValueError, match=r"another than data\.tokenizer=") as raised:
        find_starting_point(config)
    assert str(teacher_run / "tokenizer.model") in str(raised.value)
    assert str(other_vocabulary) in str(raised.value)
    assert find_starting_point(config, is_new=False).start is None


def test_an_export_of_any_format_with_another_vocabulary_is_refused(
    tmp_path, tiny, teacher_run, other_vocabulary, capsys
):
    for start in exports(tmp_path, teacher_run):
        assert find_starting_point(from_start(tiny, start)).start is not None
        with pytest.raises(ValueError, match=r"another than data\.tokenizer="):
            find_starting_point(from_start(tiny, start, vocabulary=other_vocabulary))
        (start / "tokenizer.model").unlink()
        capsys.readouterr()
        if (start / "tokenizer.json").exists():
            assert find_starting_point(from_start(tiny, start)).start is not None
            with pytest.raises(ValueError, match=r"tokenizer\.json is another than"):
                find_starting_point(
                    from_start(tiny, start, vocabulary=other_vocabulary)
                )
            assert not capsys.readouterr().err
        else:
            find_starting_point(from_start(tiny, start, vocabulary=other_vocabulary))
            assert "no tokenizer.model next to" in capsys.readouterr().err


def test_the_same_vocabulary_in_another_place_needs_no_word(
    tmp_path, tiny, teacher_run, capsys
):
    ssl = find_trained_model(teacher_run).config.self_supervision
    copy = tmp_path / "copy.model"
    copy.write_bytes(pathlib.Path(tiny.data.tokenizer).read_bytes())
    config = with_ssl(tiny, ema=ssl.ema)
    assert find_starting_point(from_start(config, teacher_run, vocabulary=copy)).start
    assert not capsys.readouterr().err


def test_texts_that_were_not_lower_cased_are_refused(tiny, tmp_path, teacher_run):
    folder = next(iter(exports(tmp_path, teacher_run)))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    with pytest.raises(ValueError, match=r"do_lower_case=false, expected true"):
        find_starting_point(from_start(tiny, folder))


@pytest.mark.parametrize(
    ("patch_px", "crops", "message"),
    [
        (28, (56, 28), "its patches are of 14 px, expected 28 as model.vision"),
        (7, (28, 14), "its patches are of 14 px, expected 7 as model.vision"),
    ],
)
def test_a_teacher_of_other_patches_is_refused(
    tmp_path, tiny, teacher_run, export, patch_px, crops, message, capsys
):
    config = student_of(tiny, teacher_run)
    vision = dataclasses.replace(config.model.vision, patch_size_px=patch_px)
    global_crop, local_crop = (
        dataclasses.replace(crop, size_px=size)
        for crop, size in zip(
            (config.data.global_crop, config.data.local_crop), crops, strict=True
        )
    )
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vision=vision),
        data=dataclasses.replace(
            config.data, global_crop=global_crop, local_crop=local_crop
        ),
    )
    recipe, work = write_recipe(tmp_path, config), tmp_path / "work"
    flags = ["--config", recipe, "--data", export, "--workdir", work]
    with pytest.raises(SystemExit) as exit_info:
        train.main([str(flag) for flag in flags])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not work.exists()


@pytest.mark.parametrize("term", ["distillation_weight", "patch_weight"])
def test_a_teacher_that_has_not_learned_a_term_is_refused(tiny, workdir_of, term):
    folder = workdir_of(with_ssl(tiny, **{term: 0.0}))
    with pytest.raises(ValueError, match=f"self_supervision.{term}=0 there, expected"):
        find_starting_point(student_of(tiny, folder))
    config = student_of(tiny, folder)
    silent = {term: 0.0, "is_global_crop_distilled": False}
    config = with_ssl(config, teacher_from=str(folder), **silent)
    assert find_starting_point(config).teacher is not None


def test_a_student_teaches_with_its_own_encoder_and_head(tiny, workdir_of):
    """It has no teacher of its own but the frozen one, which is another model."""
    student = workdir_of(with_ssl(tiny, ema=Ema.FROZEN, teacher_from="gone"))
    shapes = initial(tiny)["params"]
    own = find_trained_model(student).params({n: shapes[n] for n in ("vision", "head")})
    assert_same(initial(student_of(tiny, student))["teacher"], own)
    config = from_start(tiny, student, InitParts.ALL)
    assert_same(initial(config)["teacher"]["head"], own["head"])
