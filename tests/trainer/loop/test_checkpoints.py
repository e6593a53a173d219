"""Saving and going on: with a plain state, since any pytree of arrays will do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.config import RunConfig
from trainer.data.batch_stream import stream_batches
from trainer.data.batches import ViewSample
from trainer.data.mixture import Mixture
from trainer.data.shards import Shards
from trainer.data.text_tokenizer import Tokenizer
from trainer.loop import checkpoints


@pytest.fixture
def stream(export, tiny):
    tokenizer = Tokenizer(tiny.data.tokenizer, tiny.model.text.max_tokens)
    shards = Mixture({"web": Shards(export)})
    view = ViewSample(shards, tokenizer, tiny.data, 0, tiny.self_supervision, 14)
    stream = stream_batches(view, RunConfig(n_threads=1))
    yield stream
    stream.close()


def make_state(step):
    return {
        "params": {"layer": {"kernel": jnp.full((300, 300), float(step))}},
        "opt_state": (jnp.arange(4) + step,),
        "step": jnp.int32(step),
    }


def test_the_latest_state_and_position_come_back(tmp_path, stream):
    with checkpoints.Checkpoints(tmp_path, n_kept=2) as saved:
        for step in range(3):
            saved.save(make_state(step), stream)
            expected = next(stream)["sample_id"].tolist()
    with checkpoints.Checkpoints(tmp_path, n_kept=2) as saved:
        state = saved.resume(make_state(0), stream)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(2))
    assert next(stream)["sample_id"].tolist() == expected


@pytest.mark.parametrize("name", ["a[1]", "a*?", "a\\b", "a\nb", "a\udcff", "a{b} #%"])
def test_a_folder_of_any_name_gives_back_what_it_holds(tmp_path, stream, name):
    folder = tmp_path / name
    with checkpoints.Checkpoints(folder, n_kept=2) as saved:
        saved.save(make_state(1), stream)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with checkpoints.Checkpoints(folder, n_kept=2) as saved:
        state = saved.resume(make_state(0), stream)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(1))
    assert checkpoints.part_names(folder, 1, "params") == {"layer"}


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path, stream):
    with checkpoints.Checkpoints(tmp_path, n_kept=2) as saved:
        assert saved.resume(make_state(0), stream) is None
    assert checkpoints.find_steps(tmp_path) == []


def test_the_latest_are_kept_and_the_untrained_one(tmp_path, stream):
    with checkpoints.Checkpoints(tmp_path, n_kept=2) as saved:
        for step in (0, 3, 6, 9):
            saved.save(make_state(step), stream)
    assert checkpoints.find_steps(tmp_path) == [0, 6, 9]
    assert checkpoints.find_steps(tmp_path / "none") == []


def test_every_nth_is_kept_if_asked(tmp_path, stream):
    with checkpoints.Checkpoints(tmp_path, n_kept=1, n_steps_per_kept=6) as saved:
        for step in (0, 3, 6, 9, 12, 15):
            saved.save(make_state(step), stream)
    assert checkpoints.find_steps(tmp_path) == [0, 6, 12, 15]


def test_a_state_may_be_donated_while_it_is_written(tmp_path, stream):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = make_state(5)
    with checkpoints.Checkpoints(tmp_path, n_kept=1) as saved:
        saved.save(state, stream)
        for _ in range(20):
            state = overwrite(state)
    params = checkpoints.load_item(tmp_path, 5, "params", make_state(0)["params"])
    assert set(np.unique(params["layer"]["kernel"])) == {5.0}


def test_parameters_are_loaded_without_modules_that_are_not_asked_for(tmp_path, stream):
    state = make_state(0)
    layer = state["params"]["layer"]
    with checkpoints.Checkpoints(tmp_path, n_kept=1) as saved:
        saved.save(state | {"params": {"layer": layer, "head": jnp.ones(3)}}, stream)
    params = checkpoints.load_item(tmp_path, 0, "params", {"layer": layer})
    jax.tree.map(np.testing.assert_array_equal, params, {"layer": layer})


def test_a_part_that_is_not_there_is_named(tmp_path, stream):
    with checkpoints.Checkpoints(tmp_path, n_kept=1) as saved:
        saved.save(make_state(0), stream)
    wanted = make_state(0)["params"] | {"mask_token": jnp.zeros(3)}
    shapes = jax.eval_shape(lambda: wanted)
    with pytest.raises(ValueError, match="0/params: expected mask_token in it"):
        checkpoints.load_item(tmp_path, 0, "params", shapes)


def test_a_checkpoint_that_was_being_written_when_killed_does_not_count(
    tmp_path, stream
):
    with checkpoints.Checkpoints(tmp_path, n_kept=2) as saved:
        saved.save(make_state(1), stream)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.find_steps(tmp_path) == [1]
    with checkpoints.Checkpoints(tmp_path, n_kept=2) as saved:
        state = saved.resume(make_state(0), stream)
    assert int(state["step"]) == 1


@pytest.mark.parametrize(
    ("opt_state", "message"),
    [
        ((jnp.zeros(4),), r"opt_state/0 is float32\(4,\), expected int32\(4,\)"),
        ((jnp.arange(4), jnp.ones(2)), r"opt_state/1 is float32.*, expected nothing"),
        ((), r"opt_state/0 is nothing, expected int32\(4,\); an earlier version of "),
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused(
    tmp_path, stream, opt_state, message
):
    with checkpoints.Checkpoints(tmp_path, n_kept=2) as saved:
        saved.save(make_state(1) | {"opt_state": opt_state}, stream)
    with (
        checkpoints.Checkpoints(tmp_path, n_kept=2) as saved,
        pytest.raises(checkpoints.CheckpointError, match=message),
    ):
        saved.resume(make_state(0), stream)
