"""What an output means: parsed, canonicalised and scored by one object in every stage."""

from tunery.tasks.base import Structure, Task, infer_task, task_by_name
from tunery.tasks.score import bootstrap, score_rows

__all__ = ["Structure", "Task", "bootstrap", "infer_task", "score_rows", "task_by_name"]
