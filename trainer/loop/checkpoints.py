"""Checkpoints: parameters, optimizer and data position, written in the background.

Each is a folder `checkpoints/STEP` with the items `params` (all that evaluation and
export need), `training` (optimizer state and step) and `data` (position in the
stream). None of it depends on the devices or on the number of processes: a run may
resume with others. Step 0, the untrained model, is always kept.
"""

import atexit
import contextlib
import functools
import hashlib
import pathlib
import tempfile
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from trainer.step.state import State


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written. The message names its folder."""


class Checkpoints:
    """The checkpoints of one workdir. A context; leaving it waits for all writing."""

    def __init__(
        self,
        folder: pathlib.Path,
        n_kept: int,
        n_steps_per_kept: int = 0,
        left_out: Collection[str] = (),
    ):
        """Keeps the latest, and those of every `n_steps_per_kept` steps, if not 0.

        `left_out` are parts of the state that are found elsewhere.
        """
        kept: list[checkpoint_managers.PreservationPolicy] = [
            checkpoint_managers.LatestN(n_kept),
            checkpoint_managers.CustomSteps([0]),
        ]
        if n_steps_per_kept:
            kept.append(checkpoint_managers.EveryNSteps(n_steps_per_kept))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._left_out = {"params", *left_out}
        self._manager = ocp.CheckpointManager(_literal_path(folder), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        with contextlib.nullcontext() if error else self._writing():
            self._manager.close()

    def save(self, state: State, batches: grain.DatasetIterator) -> None:
        """Saves under the state's step. Copies first, so the state may be donated.

        Raises CheckpointError if this checkpoint or the one before cannot be written.
        """
        training = self._training_of(state)
        with self._writing():
            self._manager.save(
                int(state["step"]),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state["params"]),
                    training=ocp.args.StandardSave(training),
                    data=ocp.args.JsonSave(batches.get_state()),
                ),
            )

    def _training_of(self, state: State) -> State:
        """What the item `training` holds."""
        return {k: part for k, part in state.items() if k not in self._left_out}

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises CheckpointError as `save` does.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        remedy = "the same command goes on from the latest checkpoint"
        return _explain(self._folder, remedy)

    def resume(self, shapes: State, batches: grain.DatasetIterator) -> State | None:
        """Returns the latest state without the parts that are left out.

        Sets `batches` to continue after it. Every array is read into the sharding that
        `shapes` gives it, see `trainer.step.state.abstract_state`. Returns None if
        there is no checkpoint. Raises CheckpointError if the latest one is damaged, or
        of another state.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        remedy = (
            "expected a whole checkpoint, remove the folder to go on from the one"
            " before"
        )
        place = self._folder / str(step)
        with _explain(place, remedy):
            path = _literal_path(self._folder) / str(step) / "training"
            found = _kinds(_read_structure(path))
        training = self._training_of(shapes)
        _check_same_state(place, found, _kinds(training))
        with _explain(place, remedy):
            restored = self._restore(step, shapes["params"], training)
        batches.set_state(restored["data"])
        return {"params": restored["params"], **restored["training"]}

    def _restore(self, step: int, params: dict, training: dict) -> Mapping[str, Any]:
        return self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                training=ocp.args.StandardRestore(training),
                data=ocp.args.JsonRestore(),
            ),
        )


def find_steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the finished checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(folder))


def part_names(folder: pathlib.Path, step: int, item: str) -> set[str]:
    """Returns the names of the parts of an item of one checkpoint."""
    return set(_read_structure(_literal_path(folder) / str(step) / item))


def digest(folder: pathlib.Path, step: int) -> str:
    """SHA-256 of the lists of files of a checkpoint, whose names are drawn at random.

    So it tells checkpoints apart without reading their arrays.
    """
    found = hashlib.sha256()
    for item in ("params", "training"):
        found.update((folder / str(step) / item / "manifest.ocdbt").read_bytes())
    return found.hexdigest()


def _read_structure(path: pathlib.Path) -> Mapping[str, Any]:
    """The tree of an item of a checkpoint, with descriptions of its arrays."""
    # The handler itself: around it, Orbax warns of a file that we do not write.
    return ocp.PyTreeCheckpointHandler().metadata(path).tree


def _kinds(tree: Any) -> dict[str, str]:
    """Path of every array to its type and shape."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{x.shape}"
        for path, x in leaves
        if hasattr(x, "shape")
    }


def _check_same_state(
    path: pathlib.Path, found: Mapping[str, str], wanted: Mapping[str, str]
) -> None:
    """Raises CheckpointError if a checkpoint was written of another state.

    Otherwise Orbax would fail with a listing of both, or round what it finds.
    """
    for name in sorted(found.keys() | wanted.keys()):
        there, here = found.get(name, "nothing"), wanted.get(name, "nothing")
        if there != here:
            raise CheckpointError(
                f"{path.absolute()}: {name} is {there}, expected {here}; an earlier"
                " version of the trainer wrote it, train again in another --workdir"
            )


def load_item(folder: pathlib.Path, step: int, item: str, shapes: dict) -> dict:
    """Reads the parts of an item that `shapes` names; others are not read.

    Raises CheckpointError if a part is missing.
    """
    path = _literal_path(folder) / str(step) / item
    places = ocp.checkpoint_utils.construct_restore_args(shapes)
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(
            path,
            args=ocp.args.PyTreeRestore(
                shapes, restore_args=places, partial_restore=True
            ),
        )
    for name, leaf in jax.tree_util.tree_leaves_with_path(found):
        # A missing part stays an abstract array.
        if isinstance(leaf, jax.ShapeDtypeStruct):
            key = jax.tree_util.keystr(name, simple=True, separator="/")
            place = folder.absolute() / str(step) / item
            raise CheckpointError(f"{place}: expected {key} in it")
    return found


@contextlib.contextmanager
def _explain(path: pathlib.Path, remedy: str) -> Iterator[None]:
    """Turns whatever Orbax raises into a CheckpointError of one line."""
    try:
        yield
    except Exception as error:  # Orbax raises plain Exception, and errors of others
        reason = _first_cause(error)
        raise CheckpointError(f"{path.absolute()}: {reason}; {remedy}") from error


@functools.cache
def _literal_path(folder: pathlib.Path) -> pathlib.Path:
    """An absolute path of the folder that Orbax does not read as a pattern.

    It reads brackets and stars as patterns, and TensorStore reads backslashes as
    slashes: a checkpoint saved in such a folder was never found again.
    """
    place = folder.absolute()
    if str(place).isprintable() and not set(str(place)) & set("[]*?\\"):
        return place
    link = tempfile.TemporaryDirectory()
    atexit.register(link.cleanup)
    (path := pathlib.Path(link.name, "folder")).symlink_to(place)
    return path


def _first_cause(error: Exception) -> str:
    """The first cause, without the listings that the libraries add."""
    first = str(error.__cause__ or error).partition(" [source")[0]
    return textwrap.shorten(first, 300)
