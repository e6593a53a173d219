"""The tasks by their names: the papers' own, and those of a user's module.

A task of your own is one `Task` in a module of your own; `--task MODULE:NAME` and
`run.evaluations` find it there.
"""

import importlib
from collections.abc import Mapping

from trainer.evals import geometry_tasks, image_tasks, segmentation_tasks
from trainer.evals.task_inputs import Task

TASKS: Mapping[str, Task] = {
    **image_tasks.TASKS,
    **segmentation_tasks.TASKS,
    **geometry_tasks.TASKS,
}


def find_task(name: str) -> Task:
    """Returns the task of a name in `TASKS`, or of `MODULE:NAME`.

    Raises ValueError, with one line for the user, when there is none.
    """
    if name in TASKS:
        return TASKS[name]
    module, is_own, attribute = name.partition(":")
    if not is_own:
        known = ", ".join(TASKS)
        raise ValueError(f"task {name}: expected one of {known}, or MODULE:NAME")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"task {name}: {error}; expected a module") from error
    if not isinstance(found, Task):
        raise ValueError(
            f"task {name}: expected {attribute or 'NAME'} in {module}, a Task of"
            " trainer.evals.task_inputs"
        )
    return found


def text_tasks() -> tuple[str, ...]:
    """Names of the tasks in `TASKS` that need the text encoder."""
    return tuple(name for name, task in TASKS.items() if task.reads_text)
