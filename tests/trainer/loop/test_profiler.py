import jax
import jax.numpy as jnp
import pytest

from trainer.loop.profiler import Profiler


@pytest.fixture
def add():
    return jax.jit(lambda x: x + 1)


def run(profiler, add, steps):
    x = jnp.float32(0)
    for step in steps:
        x = add(x)
        profiler.after_step(step, {"loss": x})


def traced_steps(workdir):
    paths = workdir.glob("profiles/*/plugins/profile/*/*.xplane.pb")
    assert all(path.stat().st_size for path in paths)
    return sorted(int(p.name) for p in workdir.glob("profiles/*"))


def test_nothing_is_traced_that_nobody_asked_for(tmp_path, add):
    with Profiler(tmp_path, 2) as profiler:
        run(profiler, add, range(1, 5))
    assert list(tmp_path.iterdir()) == []


def test_a_file_asks_for_a_trace_of_the_next_steps_and_is_removed(tmp_path, add):
    request = tmp_path / "profile"
    with Profiler(tmp_path, 2) as profiler:
        run(profiler, add, (1, 2))
        request.touch()
        run(profiler, add, (3, 4))
        assert request.exists()  # steps 4 and 5 are traced
        run(profiler, add, (5, 6))
        assert not request.exists()
        assert traced_steps(tmp_path) == [4]
        request.touch()
        run(profiler, add, range(7, 12))
    assert traced_steps(tmp_path) == [4, 8]
    assert len(list(tmp_path.glob("profiles/*/plugins/profile/*/*.xplane.pb"))) == 2


def test_a_run_that_ends_early_ends_its_trace(tmp_path, add):
    (tmp_path / "profile").touch()

    def interrupted():
        with Profiler(tmp_path, 5) as profiler:
            run(profiler, add, (1, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert traced_steps(tmp_path) == [2]
    assert not (tmp_path / "profile").exists()
    with pytest.raises(RuntimeError, match="No profile started"):
        jax.profiler.stop_trace()


def test_other_processes_do_not_trace(tmp_path, add, monkeypatch):
    (tmp_path / "profile").touch()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Profiler(tmp_path, 1) as profiler:
        run(profiler, add, range(1, 4))
    assert (tmp_path / "profile").exists()
    assert not (tmp_path / "profiles").exists()
