"""What an output means: parsed, canonicalised, constrained, scored and grounded by one object in every stage."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tunery.errors import ConfigError, DataError
from tunery.tasks.base import Structure, Task
from tunery.tasks.functions import FunctionTask
from tunery.tasks.grounding import Grounding, ground
from tunery.tasks.labels import LabelTask, TextTask, is_label_set
from tunery.tasks.objects import JsonTask
from tunery.tasks.profile import Profile, learn
from tunery.tasks.score import DEFINITIONS, RowScore, Scores, score_rows

__all__ = [
    "DEFINITIONS", "Grounding", "Profile", "RowScore", "Scores", "Structure", "Task", "check_fit", "ground",
    "infer_task", "learn", "score_rows", "task_by_name",
]  # fmt: skip

TASKS: dict[str, type[Task]] = {t.name: t for t in (FunctionTask, JsonTask, LabelTask, TextTask)}


def task_by_name(name: str) -> Task:
    """A built-in task, or one's own by import path: "module:Class", the current folder being on the path.

    Raises ConfigError for a name that is neither.
    """
    if name in TASKS:
        return TASKS[name]()
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f'unknown task "{name}"', hint=f'one of: {", ".join(TASKS)}; or your own: "module:Class"')
    if "" not in sys.path:
        sys.path.append("")
    try:
        task = getattr(importlib.import_module(module), attribute)()
    except Exception as error:
        raise ConfigError(f'task "{name}" cannot be loaded: {error}', hint='name it "module:Class"') from None
    if not isinstance(task, Task):
        raise ConfigError(f'task "{name}" is not a tunery.tasks.Task', hint="derive its class from it")
    task.name = name  # what a version records, so that it finds the class again
    return task


def infer_task(targets: Sequence[str], share: float = 0.9) -> Task:
    """The first task that parses at least `share` of the targets; free text when none does."""
    sample = list(targets[:: max(1, len(targets) // 500)])
    for task in (FunctionTask(), JsonTask()):
        if sample and sum(task.parse(t) is not None for t in sample) >= share * len(sample):
            return task
    return LabelTask() if is_label_set(sample) else TextTask()


def check_fit(task: Task, outputs: Sequence[str]) -> None:
    """Raise DataError when `task` can parse none of `outputs`: it would teach nothing and score nothing."""
    if outputs and all(task.parse(output) is None for output in outputs):
        raise DataError(
            f'the task "{task.name}" can parse none of {len(outputs):,} outputs; the first: {outputs[0][:60]!r}',
            hint=f'they look like the task "{infer_task(outputs).name}"; without a task it is told from them',
        )
