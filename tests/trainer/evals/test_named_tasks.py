"""Tasks by their names: the papers' own, and one of a user's module."""

import pytest

from trainer.evals.task_inputs import Task
from trainer.evals.tasks import TASKS, find_task

OWN = Task(lambda run: {"n_images": 0})


def test_all_tasks_have_their_names():
    assert {
        *("zero_shot_classification", "retrieval", "fine_grained_retrieval"),
        *("knn_classification", "linear_classification"),
        *("linear_segmentation", "dpt_segmentation", "zero_shot_segmentation"),
        *("linear_depth", "dpt_depth", "normals"),
    } == set(TASKS)


def test_a_task_of_a_users_module_is_found():
    assert find_task(f"{__name__}:OWN").measure is OWN.measure


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("segmentation", "task segmentation: expected one of zero_shot_"),
        ("no_module:OWN", "no_module:OWN: No module named 'no_module'; expected"),
        (":OWN", "task :OWN: Empty module name; expected a module"),
        (f"{__name__}:NONE", "expected NONE in .*, a Task of"),
        (f"{__name__}:test_all_tasks_have_their_names", ", a Task of trainer.evals"),
        (f"{__name__}:", "expected NAME in .*, a Task of"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        find_task(name)
    assert "\n" not in str(error.value)
