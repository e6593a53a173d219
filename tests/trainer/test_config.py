import dataclasses
import json

import pytest

from trainer import config, config_files

FILE = """
from trainer.config import *

def get_config():
    sizes = {"width": 16, "n_layers": 1, "n_heads": 2, "mlp_dim": 24}
    return TrainConfig(
        model=ModelConfig(vision=VisionConfig(**sizes), text=TextConfig(**sizes)),
        data=DataConfig(
            tokenizer="x.model", batch_size=8, granularity_weights={"short": 1.0}
        ),
        optimizer=OptimizerConfig(learning_rate=0.1, n_warmup_steps=1),
        n_steps=10,
    )
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(FILE)
    return path


def test_a_file_is_loaded_and_kept_as_json(file):
    loaded = config_files.load(file)
    assert loaded.data.batch_size == 8
    values = json.loads(json.dumps(config_files.to_dict(loaded)))
    assert config_files.from_dict(config.TrainConfig, values) == loaded


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("n_steps=20", "n_steps", 20),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 0.001),
        ("optimizer.weight_decay=0", "optimizer.weight_decay", 0.0),
        (
            "optimizer.optimizer=adafactor",
            "optimizer.optimizer",
            config.Optimizer.ADAFACTOR,
        ),
        ("model.vision.position_grid=(8, 4)", "model.vision.position_grid", (8, 4)),
        ("data.tokenizer=a=1.model", "data.tokenizer", "a=1.model"),
        ("data.tokenizer=7", "data.tokenizer", "7"),
        (
            'data.granularity_weights={"a": 1, "b": 2}',
            "data.granularity_weights",
            {"a": 1.0, "b": 2.0},
        ),
        (
            "data.granularity_weights.long=2",
            "data.granularity_weights",
            {"short": 1.0, "long": 2.0},
        ),
        (
            "run.evaluations.retrieval=x/*.tar",
            "run.evaluations",
            {"retrieval": "x/*.tar"},
        ),
    ],
)
def test_an_override_has_the_type_of_its_field(file, override, path, value):
    found = config_files.load(file, [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_a_field_is_set_once(file):
    with pytest.raises(ValueError, match="--set n_steps=20: expected n_steps once"):
        config_files.load(file, ["n_steps=20", "n_steps=30"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "nsteps=1",
            "no field 'nsteps' (nearest: n_steps), expected one of model, data",
        ),
        (
            "data.batchsize=1",
            "no field 'batchsize' (nearest: batch_size), expected one of tok",
        ),
        ("n_steps.x=1", "n_steps=10 has no fields"),
        ("n_steps", "--set n_steps: expected a.b=value"),
        ("n_steps=2.5", "n_steps=2.5: expected int"),
        ("n_steps=many", "n_steps='many': expected int"),
        ("n_steps=True", "n_steps=True: expected int"),
        ("data.batch_size=1", "batch_size=1: expected at least 2"),
        ("optimizer.learning_rate=0", "learning_rate=0.0: expected more than 0"),
        ("optimizer.learning_rate=x", "learning_rate='x': expected float"),
        ("optimizer.optimizer=sgd", "'sgd': expected one of adamw, adafactor"),
        (
            "optimizer.n_warmup_steps=10",
            "n_warmup_steps=10: expected less than n_s",
        ),
        ("model.text.width=32", "text.width=32: expected vision.width=16"),
        ("model.vision.n_heads=3", "width=16: expected a multiple of 2 x n_heads = 6"),
        ("model.vision.position_grid=(8,)", "position_grid=(8,): expected 2 values"),
        ("model.vision=7", "this field is set in a recipe, or through its own fields"),
        (
            "data.granularity_weights.short=0",
            "{'short': 0.0}: expected positive",
        ),
        ("data.global_crop.size_px=100", "size_px=100: expected a multiple of"),
        ("data.global_crop.min_area=2", "min_area=2.0, max_area=1.0: expected 0 <"),
        ("rng_seed=-1", "rng_seed=-1: expected 0 to"),
        ("run.n_workers=-1", "n_workers=-1: expected 0 or more"),
    ],
)
def test_a_wrong_override_is_named_with_what_was_expected(file, override, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (read below)
        config_files.load(file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size=8", "batchsize=8", "unexpected keyword argument 'batchsize'"),
        ("batch_size=8", "batch_size='8'", "batch_size='8': expected int"),
        ("learning_rate=0.1", "learning_rate=-1", "learning_rate=-1: expected more"),
        ("def get_config", "def config", r"expected a function get_config\(\)"),
        ("import *", "import nothing", "cannot import name 'nothing'"),
        ("return TrainConfig", "return dict", "gave dict, expected TrainConfig"),
        ("def get_config():", "def get_config(:", "line 4: SyntaxError: invalid"),
    ],
)
def test_a_wrong_file_is_named(file, old, new, message):
    file.write_text(FILE.replace(old, new))
    with pytest.raises(ValueError, match=rf"--config .*recipe\.py: .*{message}"):
        config_files.load(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.py: expected a Python file"):
        config_files.load(tmp_path / "none.py")


def test_a_kept_configuration_without_a_field_is_an_error(file):
    values = config_files.to_dict(config_files.load(file))
    del values["data"]["batch_size"]
    with pytest.raises(ValueError, match=r"data\.batch_size is missing: expected int"):
        config_files.from_dict(config.TrainConfig, values)


def test_differences_are_named_by_their_path(file):
    before = config_files.load(file)
    after = dataclasses.replace(
        before, n_steps=11, data=dataclasses.replace(before.data, batch_size=9)
    )
    found = list(
        config_files.differences(
            config_files.to_dict(before), config_files.to_dict(after)
        )
    )
    assert found == [("data.batch_size", 8, 9), ("n_steps", 10, 11)]


def test_an_unknown_size_is_told_the_known_ones():
    with pytest.raises(ValueError, match="size=H/14: expected one of S/14, B/14, L/14"):
        config.tips_model("H/14")
