"""What a person should know about labelled rows before paying for a training run on them."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunery.data.files import reasons
from tunery.data.template import inputs
from tunery.errors import DataError
from tunery.types import Dataset, Example

Severity = Literal["error", "warning", "note"]

# name(...) from the first character to the last: what function-shaped outputs look like from afar
_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(.*\)\s*", re.DOTALL)
_CALL_SHARE = 0.9  # of the outputs of a dataset, for the others to be called odd
_SHOWN = 3  # examples a finding shows
NEAR = 0.8  # Jaccard similarity of 5-character shingles from which inputs count as nearly the same


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
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows of the file that are not in `rows`
    histogram: tuple[tuple[int, int, int], ...] = ()  # (from, below, rows) of the lengths
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # attribute -> value -> count

    @property
    def read(self) -> int:
        """Rows of the file: kept and dropped."""
        return self.rows + sum(self.dropped.values())


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Numbers by dataset, and findings, worst first."""

    splits: tuple[SplitStats, ...]
    findings: tuple[Finding, ...]
    cutoff_len: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing stops training."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        splits = [{**asdict(split), "read": split.read} for split in self.splits]
        return {"ok": self.ok, **asdict(self), "splits": splits}


def check(
    datasets: Sequence[Dataset],
    *,
    tokenizer: Any = None,
    template: Any = None,
    task: Any = None,
    profile: Any = None,
    cutoff_len: int | None = None,
    quarantined: Sequence[Sequence[DataError]] = (),
) -> CheckResult:
    """Look through datasets that are used together, as train, val and test are; the first is what is learnt from.

    `template` (or a bare `tokenizer`) makes lengths tokens, which `cutoff_len` is compared with. `task` (a
    tunery.tasks.Task) must parse every target, and makes attributes known; `profile` (a tunery.tasks.profile.Profile)
    says which of them are closed sets. `quarantined` are the faults met on loading, a list a dataset.
    """
    splits: list[SplitStats] = []
    findings: list[Finding] = []
    prompts = {id(dataset): [_fold(*(m.content for m in e.messages)) for e in dataset.examples] for dataset in datasets}
    slots = {id(d): _slots(d, task) for d in datasets} if task is not None else {}
    known = _values(slots[id(datasets[0])]) if slots else {}
    for dataset, faults in zip(datasets, quarantined or [()] * len(datasets), strict=True):
        lengths, unit = _lengths(dataset, tokenizer, template)
        rows = slots.get(id(dataset), [])
        splits.append(_stats(dataset, prompts[id(dataset)], lengths, unit, faults, _values(rows)))
        findings += _faults(faults)
        findings += _characters(dataset)
        findings += _targets(dataset, task, rows)
        findings += _repeats(dataset, prompts[id(dataset)])
        findings += _to_avoid(dataset)
        if profile is not None and rows:
            findings += _closed_sets(dataset, rows, known, profile, learnt=dataset is datasets[0])
        if cutoff_len is not None and unit == "tokens":
            findings += _too_long(dataset, lengths, cutoff_len)
    for i, first in enumerate(datasets):
        for second in datasets[i + 1 :]:
            findings += _leakage(first, second, prompts[id(first)], prompts[id(second)])
    findings += _near_leakage(datasets, prompts)
    rank = {"error": 0, "warning": 1, "note": 2}
    ordered = tuple(sorted(findings, key=lambda finding: rank[finding.severity]))
    return CheckResult(tuple(splits), ordered, cutoff_len)


def _stats(
    dataset: Dataset,
    prompts: list[str],
    lengths: list[int],
    unit: Any,
    faults: Sequence[DataError],
    attributes: Mapping[str, Counter[str]],
) -> SplitStats:
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
        dropped=reasons(faults),
        histogram=_histogram(lengths),
        attributes={path: dict(values.most_common()) for path, values in attributes.items()},
    )


def _histogram(lengths: Sequence[int], bins: int = 20) -> tuple[tuple[int, int, int], ...]:
    """(from, below, rows) of equal steps of 1, 2 or 5 times a power of ten."""
    if not lengths:
        return ()
    least, most = min(lengths), max(lengths)
    step = 1
    while (most - least) // step >= bins:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    counts = Counter(length // step for length in lengths)
    return tuple((i * step, (i + 1) * step, counts[i]) for i in range(least // step, most // step + 1))


def _lengths(dataset: Dataset, tokenizer: Any, template: Any) -> tuple[list[int], Literal["tokens", "characters"]]:
    """Length of prompt and target together, a row."""
    examples = dataset.examples
    if template is not None:
        sizes = {row.id: len(row) for row in template.rows([e for e in examples if e.target is not None])}
        bare = [e for e in examples if e.target is None]
        sizes |= {e.id: len(ids) for e, ids in zip(bare, template.prompts(bare), strict=True)}
        return [sizes[e.id] for e in examples], "tokens"
    texts = ["\n".join((*(m.content for m in e.messages), e.target or "")) for e in examples]
    if tokenizer is not None:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]], "tokens"
    return [len(text) for text in texts], "characters"


def _slots(dataset: Dataset, task: Any) -> list[tuple[tuple[str, str], ...] | None]:
    """The (attribute, value) pairs of every target; None where the task cannot parse it."""
    out: list[tuple[tuple[str, str], ...] | None] = []
    for example in dataset.examples:
        structure = task.parse(example.target) if example.target else None
        pairs = structure and tuple((task.attribute(path), value) for path, value in structure.slots)
        out.append(pairs)
    return out


def _values(rows: Sequence[tuple[tuple[str, str], ...] | None]) -> dict[str, Counter[str]]:
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for pairs in rows:
        for path, value in pairs or ():
            values[path][value] += 1
    return dict(sorted(values.items(), key=lambda item: -item[1].total()))


def _faults(faults: Sequence[DataError]) -> Iterable[Finding]:
    """Rows that are no examples, a finding a kind of fault."""
    kinds: dict[str, list[DataError]] = defaultdict(list)
    for fault in faults:
        (kind,) = reasons([fault])
        kinds[kind].append(fault)
    for group in kinds.values():
        shown = tuple(_brief(str(fault), 160) for fault in group[:_SHOWN])
        hint = f" ({group[0].hint})" if group[0].hint else ""
        yield Finding("error", "fault", f"{group[0].message}{hint}", group[0].where or "", len(group), shown)


# UTF-8 that was read as Windows-1252 and written again: "Ã©" for "é", "â€™" for "’"
_MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf]|â€[\u2122\u0153\u009d\u201c\u201d\u0098-\u009f™œ]|ðŸ")
_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\u2028\u2029\ufeff]")


def _characters(dataset: Dataset) -> Iterable[Finding]:
    lost, twice, control = [], [], []
    for example in dataset.examples:
        text = "\n".join((*(m.content for m in example.messages), example.target or ""))
        if text.isascii() and text.isprintable():
            continue
        if "\ufffd" in text:
            lost.append(example)
        if _MOJIBAKE.search(text):
            twice.append(example)
        if _CONTROL.search(text):
            control.append(example)
    if lost:
        message = "rows hold U+FFFD, which stands for characters that were lost"
        yield _finding("warning", "lost_characters", message, dataset, lost)
    if twice:
        message = "rows look encoded twice (as Ã© for é)"
        yield _finding("warning", "encoded_twice", message, dataset, twice)
    if control:
        yield _finding("note", "control_characters", "rows hold control characters", dataset, control)


def _to_avoid(dataset: Dataset) -> Iterable[Finding]:
    bad = [e for e in dataset.examples if e.meta.get("kto_tag") is False]
    if bad:
        message = "answers are tagged as ones to avoid: supervised training refuses them"
        yield _finding("warning", "to_avoid", message, dataset, bad, outputs=True)


def _closed_sets(
    dataset: Dataset,
    rows: Sequence[tuple[tuple[str, str], ...] | None],
    known: Mapping[str, Counter[str]],
    profile: Any,
    *,
    learnt: bool,
) -> Iterable[Finding]:
    """Values that a closed set does not have; in the rows that it was learnt from, ones that look like a slip."""
    closed = {path for path, attribute in profile.attributes.items() if attribute.kind == "closed"}
    odd: dict[tuple[str, str], list[Example]] = defaultdict(list)
    slips = {(p, v): near for p in closed for v, near in _slips(known.get(p, Counter()))} if learnt else {}
    for example, pairs in zip(dataset.examples, rows, strict=True):
        for path, value in set(pairs or ()):
            if path in closed and ((path, value) in slips if learnt else value not in known.get(path, ())):
                odd[path, value].append(example)
    if not odd:
        return
    shown = []
    for (path, value), examples in list(odd.items())[:_SHOWN]:
        near = f'; did they mean "{slips[path, value]}"?' if learnt else ""
        shown.append(f"{_place(dataset, examples[0])}: {path} = {value!r}{near}")
    first = next(iter(odd.values()))[0]
    count = len({e.id for examples in odd.values() for e in examples})
    if learnt:
        yield Finding("note", "slip", "rare values of closed sets that resemble a frequent one",
                      _place(dataset, first), count, tuple(shown))  # fmt: skip
    else:
        yield Finding("warning", "outside", "rows hold values that their closed set does not have in the first split",
                      _place(dataset, first), count, tuple(shown))  # fmt: skip


def _slips(values: Counter[str]) -> Iterable[tuple[str, str]]:
    """(rare value, frequent value that differs by a letter or so); numbers differ on purpose."""
    from difflib import SequenceMatcher

    rare = [v for v, n in values.items() if n <= max(1, values.total() // 1000) and len(v) > 3 and v.isascii()]
    for value in rare[:200]:
        if any(c.isdigit() for c in value):
            continue
        for other, n in values.items():
            if n >= 20 * values[value] and SequenceMatcher(None, value.lower(), other.lower()).ratio() >= 0.85:
                yield value, other
                break


def _targets(dataset: Dataset, task: Any, rows: Sequence[tuple[tuple[str, str], ...] | None]) -> Iterable[Finding]:
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
        odd = [e for e, pairs in zip(examples, rows, strict=True) if pairs is None and (e.target or "").strip()]
        shape = f"a {task.name} output"
    else:
        odd = [e for e in filled if not _CALL.fullmatch(e.target or "")]
        shape = "a function call, as the others are"
        if len(odd) > (1 - _CALL_SHARE) * len(filled):
            return
    if odd:
        wrong = task is not None and len(odd) == len(filled)  # the task, rather than the rows
        severity: Severity = "error" if wrong else "warning"
        yield _finding(severity, "odd_output", f"outputs that are not {shape}", dataset, odd, outputs=True)


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


def _near_leakage(datasets: Sequence[Dataset], prompts: Mapping[int, list[str]]) -> Iterable[Finding]:
    """As leakage, but of inputs that differ in little; the instruction that all share does not count."""
    if len(datasets) < 2:
        return
    from tunery.data.near import Shingled, nearest_of

    every = inputs([e for d in datasets for e in d.examples])
    own, at = [], 0
    for dataset in datasets:
        own.append(every[at : at + len(dataset)])
        at += len(dataset)
    shingled = [Shingled(texts) for texts in own]
    for i, first in enumerate(datasets):
        seen = set(prompts[id(first)])
        for k, second in enumerate(datasets[i + 1 :], i + 1):
            pairs = nearest_of(shingled[i], shingled[k], NEAR)
            pairs = [p for p in pairs if prompts[id(second)][p[1]] not in seen]  # those are exact leakage
            if not pairs:
                continue
            pairs.sort(key=lambda pair: -pair[2])
            shown = tuple(
                f"{_place(first, first.examples[a])} ~ {_place(second, second.examples[b])} ({s:.2f}): "
                f"{_brief(own[k][b])}"
                for a, b, s in pairs[:_SHOWN]
            )
            message = f'rows of "{second.name}" nearly repeat an input of "{first.name}"'
            where = _place(second, second.examples[pairs[0][1]])
            yield Finding("warning", "near_leakage", message, where, len(pairs), shown)


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
    if dataset.name == dataset.uri:  # named by its path, since another file is called so too
        file = dataset.uri
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
