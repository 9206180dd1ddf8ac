"""What the training rows say about each attribute: a closed set, copied from the text, or free; and how grounded.

Learnt once from rows, used everywhere: grammars enumerate the closed sets, evaluation flags only values that stand
otherwise in the text than the rows led to expect, the data check flags labels that deviate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunery.tasks.base import Task
from tunery.tasks.grounding import Kind, ground

AttributeKind = Literal["closed", "copied", "free"]

_USUAL = 0.95  # "expected" is what this share of an attribute's training values does
_OPEN_DISTINCT = 20  # values that usually stand in the text are copied if more distinct ones than this, or numbers
_COPIED = 0.8  # ... and if new values keep coming, it is enough that this share stands there
_UNSEEN = 0.05  # a set is closed when at most this share of further values is likely to be new
_ENOUGH = 5000  # occurrences whose grounding is looked up: the shares above need no more
_ENUMERABLE = 200  # ... and a person could list it


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute in the training rows.

    `values` counts each distinct value, "" being the attribute without one; `grounding` counts the occurrences with
    a value by how they stand in the text (the first 5,000 of them); `unseen` estimates the chance that a further value
    is a new one (Good-Turing: values seen once, over occurrences); `most` is the highest number of values in one row.
    """

    path: str
    kind: AttributeKind
    values: Mapping[str, int]
    grounding: Mapping[str, int]
    expected: Kind
    unseen: float
    rows: int
    most: int = 1

    @property
    def n(self) -> int:
        """Occurrences, with or without a value."""
        return sum(self.values.values())

    def deviates(self, value: str, kind: Kind) -> str | None:
        """Why `value`, standing so in its text, is not what the training rows lead to expect; None when it is.

        "outside" the closed set; "ungrounded" where the attribute's values are copied from the text. An empty value
        deviates only where none was empty.
        """
        if not value:
            return None if "" in self.values else "outside" if self.kind == "closed" else "ungrounded"
        if self.kind == "closed" and value not in self.values:
            return "outside"
        return "ungrounded" if self.expected != "inferred" and kind == "inferred" else None


@dataclass(frozen=True, slots=True)
class Profile:
    """All attributes of a task's training rows, by path as `Task.attribute` has it; `unparsed` rows taught nothing."""

    task: str
    rows: int
    unparsed: int
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)  # the task's own: see Task.form

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """Undo `to_dict`. Raises KeyError or TypeError for anything else."""
        found = {k: Attribute(**v) for k, v in values["attributes"].items()}
        return cls(values["task"], values["rows"], values["unparsed"], found, values.get("form", {}))


def learn(task: Task, pairs: Iterable[tuple[str, str]]) -> Profile:
    """Learn from training rows, (input text, output text) each.

    The input should be the row's own text, without an instruction that all rows share: words of the instruction
    would pass for grounds. Rows that the task cannot parse are counted and otherwise ignored.
    """
    values: dict[str, Counter[str]] = {}
    kinds: dict[str, Counter[str]] = {}
    rows: Counter[str] = Counter()
    most: dict[str, int] = {}
    outputs: list[str] = []
    unparsed = 0
    for text, output in pairs:
        outputs.append(output)
        structure = task.parse(output)
        if structure is None:
            unparsed += 1
            continue
        slots = [(task.attribute(path), value) for path, value in structure.slots]
        for path, count in Counter(path for path, _ in slots).items():
            rows[path] += 1
            most[path] = max(count, most.get(path, 0))
        for path, value in slots:
            values.setdefault(path, Counter())[value] += 1
            found = kinds.setdefault(path, Counter())
            if value and found.total() < _ENOUGH:
                found[ground(value, text).kind] += 1
    found_attributes = {
        path: _attribute(path, counts, kinds[path], rows[path], most[path]) for path, counts in sorted(values.items())
    }
    return Profile(task.name, len(outputs), unparsed, found_attributes, task.form(outputs))


def _attribute(path: str, values: Counter[str], kinds: Counter[str], rows: int, most: int) -> Attribute:
    filled = {v: c for v, c in values.items() if v}
    n = sum(filled.values())
    unseen = sum(c == 1 for c in filled.values()) / n if n else 0.0
    looked = kinds.total()
    standing = (kinds["verbatim"] + kinds["normalised"]) / looked if looked else 0.0
    numeric = sum(c for v, c in filled.items() if any(x.isdigit() for x in v)) > n / 2
    many = len(filled) > _OPEN_DISTINCT or numeric
    if (standing >= _USUAL and many) or (standing >= _COPIED and unseen > _UNSEEN):
        kind: AttributeKind = "copied"
    elif unseen <= _UNSEEN and len(filled) <= _ENUMERABLE:
        kind = "closed"
    else:
        kind = "free"
    expected: Kind = "inferred"
    if looked and kinds["verbatim"] >= _USUAL * looked:
        expected = "verbatim"
    elif standing >= _USUAL:
        expected = "normalised"
    counts = {k: kinds[k] for k in ("verbatim", "normalised", "inferred")}
    return Attribute(path, kind, dict(values.most_common()), counts, expected, round(unseen, 6), rows, most)
