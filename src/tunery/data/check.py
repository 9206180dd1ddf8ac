"""What a person should know about labelled rows before paying for a training run on them."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunery.types import Dataset, Example

Severity = Literal["error", "warning", "note"]

# name(...) from the first character to the last: what function-shaped outputs look like from afar
_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(.*\)\s*", re.DOTALL)
_CALL_SHARE = 0.9  # of the outputs of a dataset, for the others to be called odd
_SHOWN = 3  # examples a finding shows


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. An error stops training, a warning puts its results in doubt, a note informs."""

    severity: Severity
    code: str  # stable: "duplicates", "leakage", ...
    message: str
    where: str  # the first place, "train.jsonl:41"
    count: int  # rows, or groups of rows, concerned
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitStats:
    """Numbers of one dataset. Lengths are in `unit`: tokens when a tokenizer or template was given."""

    name: str
    uri: str
    rows: int
    distinct_inputs: int
    distinct_outputs: int
    shared_prefix: int  # characters with which every prompt starts
    unit: Literal["tokens", "characters"]
    mean_length: float
    longest: tuple[tuple[str, int], ...]  # (place, length) of the longest rows, prompt and target together
    functions: Mapping[str, int]  # leading function -> rows, most frequent first; empty for other outputs


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Numbers by dataset, and findings, worst first."""

    splits: tuple[SplitStats, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stops training."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def check(
    datasets: Sequence[Dataset],
    *,
    tokenizer: Any = None,
    template: Any = None,
    task: Any = None,
    cutoff_len: int | None = None,
) -> CheckResult:
    """Look through datasets that are used together, as train, val and test are.

    `template` (or a bare `tokenizer`) makes lengths tokens, which `cutoff_len` is compared with; `task` must
    parse every target.
    """
    splits: list[SplitStats] = []
    findings: list[Finding] = []
    prompts = {id(dataset): [_fold(*(m.content for m in e.messages)) for e in dataset.examples] for dataset in datasets}
    for dataset in datasets:
        lengths, unit = _lengths(dataset, tokenizer, template)
        splits.append(_stats(dataset, prompts[id(dataset)], lengths, unit))
        findings += _targets(dataset, task)
        findings += _repeats(dataset, prompts[id(dataset)])
        if cutoff_len is not None and unit == "tokens":
            findings += _too_long(dataset, lengths, cutoff_len)
    for i, first in enumerate(datasets):
        for second in datasets[i + 1 :]:
            findings += _leakage(first, second, prompts[id(first)], prompts[id(second)])
    rank = {"error": 0, "warning": 1, "note": 2}
    return CheckResult(tuple(splits), tuple(sorted(findings, key=lambda finding: rank[finding.severity])))


def _stats(dataset: Dataset, prompts: list[str], lengths: list[int], unit: Any) -> SplitStats:
    targets = [e.target for e in dataset.examples if e.target is not None]
    functions = Counter(match[1] for target in targets if (match := _CALL.fullmatch(target)))
    if sum(functions.values()) < _CALL_SHARE * len(targets):
        functions.clear()
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:_SHOWN]
    texts = ["\n".join(m.content for m in e.messages) for e in dataset.examples]
    return SplitStats(
        name=dataset.name,
        uri=dataset.uri,
        rows=len(dataset),
        distinct_inputs=len(set(prompts)),
        distinct_outputs=len(set(targets)),
        shared_prefix=_shared_prefix(texts),
        unit=unit,
        mean_length=round(sum(lengths) / len(lengths), 1) if lengths else 0.0,
        longest=tuple((_place(dataset, dataset.examples[i]), lengths[i]) for i in order),
        functions=dict(functions.most_common()),
    )


def _lengths(dataset: Dataset, tokenizer: Any, template: Any) -> tuple[list[int], Literal["tokens", "characters"]]:
    """Length of prompt and target together, a row."""
    examples = dataset.examples
    if template is not None:
        prompts = template.prompts(examples)
        answered = [e for e in examples if e.target is not None]
        targets = {row.id: len(row.target) for row in template.rows(answered)}
        return [len(ids) + targets.get(e.id, 0) for e, ids in zip(examples, prompts, strict=True)], "tokens"
    texts = ["\n".join((*(m.content for m in e.messages), e.target or "")) for e in examples]
    if tokenizer is not None:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]], "tokens"
    return [len(text) for text in texts], "characters"


def _targets(dataset: Dataset, task: Any) -> Iterable[Finding]:
    examples = dataset.examples
    empty = [e for e in examples if not (e.target or "").strip()]
    if empty:
        yield _finding("error", "empty_target", "rows without an answer", dataset, empty)
    filled = [e for e in examples if (e.target or "").strip()]
    if len(filled) > 1 and len({e.target for e in filled}) == 1:
        yield _finding("warning", "one_output", "every row has the same output", dataset, filled)
    padded = [e for e in filled if e.target != (e.target or "").strip()]
    if padded:
        yield _finding("note", "outer_space", "outputs begin or end with white space", dataset, padded, outputs=True)
    if task is not None:
        odd = [e for e in filled if task.parse(e.target) is None]
        shape = f"a {task.name} output"
    else:
        odd = [e for e in filled if not _CALL.fullmatch(e.target or "")]
        shape = "a function call, as the others are"
        if len(odd) > (1 - _CALL_SHARE) * len(filled):
            return
    if odd:
        yield _finding("warning", "odd_output", f"outputs that are not {shape}", dataset, odd, outputs=True)


def _repeats(dataset: Dataset, prompts: list[str]) -> Iterable[Finding]:
    """Rows with the same input: with the same output they are duplicates, otherwise they contradict."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for prompt, example in zip(prompts, dataset.examples, strict=True):
        groups[prompt].append(example)
    duplicates: list[tuple[Example, Example]] = []
    clashes: list[tuple[Example, Example]] = []
    for group in groups.values():
        first_of: dict[str, Example] = {}
        for example in group:
            first = first_of.setdefault(_fold(example.target or ""), example)
            if first is not example:
                duplicates.append((first, example))
        if len(first_of) > 1:
            clashes.append(tuple(list(first_of.values())[:2]))  # pyright: ignore[reportArgumentType]
    if duplicates:
        shown = [f"{_place(dataset, a)} = {_place(dataset, b)}: {_input(b)}" for a, b in duplicates]
        message = "rows repeat an earlier row, input and output"
        yield Finding(
            "warning",
            "duplicates",
            message,
            _place(dataset, duplicates[0][1]),
            len(duplicates),
            tuple(shown[:_SHOWN]),
        )
    if clashes:
        shown = [
            f"{_place(dataset, a)} {_brief(a.target or '')} / {_place(dataset, b)} {_brief(b.target or '')}"
            for a, b in clashes
        ]
        message = "inputs with more than one output"
        yield Finding(
            "warning",
            "contradictions",
            message,
            _place(dataset, clashes[0][0]),
            len(clashes),
            tuple(shown[:_SHOWN]),
        )


def _leakage(a: Dataset, b: Dataset, prompts_a: list[str], prompts_b: list[str]) -> Iterable[Finding]:
    """Inputs of `b` that `a` has too: a score on one after training on the other flatters."""
    seen = dict(zip(prompts_a, a.examples, strict=True))
    both = [(seen[prompt], example) for prompt, example in zip(prompts_b, b.examples, strict=True) if prompt in seen]
    if both:
        shown = tuple(f"{_place(a, x)} = {_place(b, y)}: {_input(y)}" for x, y in both[:_SHOWN])
        message = f'rows of "{b.name}" have an input that "{a.name}" has too'
        yield Finding("warning", "leakage", message, _place(b, both[0][1]), len(both), shown)


def _too_long(dataset: Dataset, lengths: list[int], cutoff_len: int) -> Iterable[Finding]:
    long = [(e, n) for e, n in zip(dataset.examples, lengths, strict=True) if n > cutoff_len]
    if long:
        shown = tuple(f"{_place(dataset, e)}: {n} tokens" for e, n in sorted(long, key=lambda p: -p[1])[:_SHOWN])
        message = f"rows are longer than cutoff_len {cutoff_len}"
        yield Finding("error", "too_long", message, _place(dataset, long[0][0]), len(long), shown)


def _finding(
    severity: Severity,
    code: str,
    message: str,
    dataset: Dataset,
    rows: Sequence[Example],
    *,
    outputs: bool = False,
) -> Finding:
    shown = tuple(f"{_place(dataset, e)}: {_brief(repr(e.target)) if outputs else _input(e)}" for e in rows[:_SHOWN])
    return Finding(severity, code, message, _place(dataset, rows[0]), len(rows), shown)


def _place(dataset: Dataset, example: Example) -> str:
    file = example.meta.get("file") or os.path.basename(dataset.uri) or dataset.name
    row = example.meta.get("row")
    return f"{file}:{row}" if row is not None else f"{dataset.name} {example.id}"


def _fold(*texts: str) -> str:
    """Texts as they compare: case and white space folded."""
    return "\x1f".join(" ".join(text.split()) for text in texts).casefold()


def _shared_prefix(texts: Sequence[str]) -> int:
    """Characters with which all texts start; 0 when they are all one text."""
    first, last = min(texts, default=""), max(texts, default="")  # the two that differ earliest
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), len(first) if first != last else 0)


def _input(example: Example) -> str:
    """The user's text without its first line, which is the instruction when there are more."""
    return _brief(example.text.partition("\n")[2] or example.text)


def _brief(text: str, width: int = 90) -> str:
    """A text on one line, its middle left out when it is long."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width // 2]} … {line[-width // 2 :]}"
