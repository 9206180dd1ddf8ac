"""Does a model copy names, or does it know them? The same rows once more, with names that nobody has ever seen."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from tunery.data.augment import made_up
from tunery.tasks import Profile, Task
from tunery.types import Example, Message

_NAME = re.compile(r"[A-Z][A-Za-z]{2}|[A-Z]+\d")
_CALENDAR = re.compile(
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|june|july|august|(?:septem|octo|novem|decem)ber",
    re.IGNORECASE,
)


def with_unseen_names(
    task: Task, examples: Sequence[Example], profile: Profile, instruction: str | None, *, seed: int = 0
) -> dict[int, Example]:
    """By row index, examples whose copied values are replaced by made-up ones of the same shape, in text and target.

    A value is replaced where it has a capital letter and is no date, stands exactly once in the row's own text and
    once in its target, and the target means the same but for it. Rows without such a value are left out.
    """
    rng = random.Random(seed)
    copied = {path: a for path, a in profile.attributes.items() if a.kind == "copied"}
    found = {}
    head = f"{instruction}\n" if instruction else ""
    for i, example in enumerate(examples):
        structure = task.parse(example.target or "")
        if structure is None or not example.messages or example.messages[-1].role != "user":
            continue
        content = example.messages[-1].content
        before = head if head and content.startswith(head) else ""
        text, target = content.removeprefix(before), example.target or ""
        for path, value in structure.slots:
            name = task.attribute(path)
            if name not in copied or not _NAME.search(value) or _CALENDAR.search(value):
                continue
            word = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")
            if len(word.findall(text)) != 1 or len(word.findall(target)) != 1:
                continue
            new = made_up(value, rng)
            swapped = word.sub(lambda _, new=new: new, target)
            expected = sorted((p, new if (p, v) == (path, value) else v) for p, v in task_slots(task, target))
            if new in copied[name].values or sorted(task_slots(task, swapped)) != expected:
                continue
            text, target = word.sub(lambda _, new=new: new, text), swapped
        if target != example.target:
            messages = (*example.messages[:-1], Message("user", before + text))
            found[i] = replace(example, messages=messages, target=target)
    return found


def task_slots(task: Task, text: str) -> list[tuple[str, str]]:
    """The slots of an output; none when it does not parse."""
    structure = task.parse(text)
    return list(structure.slots) if structure else []
