"""The Task seam and the three tasks that are built in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunery.errors import ConfigError
from tunery.tasks.functions import parse_calls, render_calls


@dataclass(frozen=True, slots=True)
class Structure:
    """A parsed output: its canonical text, and its slots as (path, value) pairs, duplicates kept."""

    canonical: str
    slots: tuple[tuple[str, str], ...]


class Task:
    """What an output means. A task of one's own sets `name` and defines `parse`; the rest has defaults."""

    name: str = ""

    def parse(self, text: str) -> Structure | None:
        """The meaning of an output; None when it is not of this task's form."""
        raise NotImplementedError

    def attribute(self, path: str) -> str:
        """What the slots of `path` are counted under: the path, unless a task pools several."""
        return path


class FunctionTask(Task):
    """`inform(name[X], genres[a, b])`, one call or several joined by commas.

    Canonical: attributes sorted by name, list values sorted, spacing normalised. A slot is
    (`function.attribute`, value); an attribute without value has the value "". The function itself is the slot
    ("function", name).
    """

    name = "function"

    def parse(self, text: str) -> Structure | None:
        calls = parse_calls(text)
        if calls is None:
            return None
        slots: list[tuple[str, str]] = []
        for call in calls:
            slots.append(("function", call.name))
            for attribute, values in call.attributes:
                slots.extend((f"{call.name}.{attribute}", v) for v in values or ("",))
        return Structure(render_calls(calls, canonical=True), tuple(slots))

    def attribute(self, path: str) -> str:
        """The attribute alone: `inform.name` and `recommend.name` are one `name`."""
        return path.partition(".")[2] or path


class JsonTask(Task):
    """A JSON object or array. Canonical: sorted keys, no spaces. Slots are the leaves by their path."""

    name = "json"

    def parse(self, text: str) -> Structure | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict | list):
            return None
        canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return Structure(canonical, tuple(_leaves(value, "")))


class TextTask(Task):
    """Free text or a label: canonical is the text with spaces folded, and there is one slot."""

    name = "text"

    def parse(self, text: str) -> Structure | None:
        folded = " ".join(text.split())
        return Structure(folded, (("text", folded),)) if folded else None


TASKS: dict[str, type[Task]] = {"function": FunctionTask, "json": JsonTask, "text": TextTask}


def task_by_name(name: str) -> Task:
    """Raises ConfigError for a name that is not built in."""
    if name not in TASKS:
        raise ConfigError(f'unknown task "{name}"', hint=f"one of: {', '.join(TASKS)}")
    return TASKS[name]()


def infer_task(targets: Sequence[str], share: float = 0.9) -> Task:
    """The first task that parses at least `share` of the targets; free text when none does."""
    sample = targets[:: max(1, len(targets) // 500)]
    for task in (FunctionTask(), JsonTask()):
        if sample and sum(task.parse(t) is not None for t in sample) >= share * len(sample):
            return task
    return TextTask()


def _leaves(value: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, f"{path}[]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)
