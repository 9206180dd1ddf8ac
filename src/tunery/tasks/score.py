"""Scores of predicted against gold outputs, each with its definition and a bootstrap interval.

Every metric is a ratio of two sums over rows, so that one resampling of rows gives the intervals of all of them, and
the same resampling of two models' rows compares them in pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunery.tasks.base import Structure, Task
from tunery.tasks.grounding import Grounding, ground
from tunery.tasks.profile import Profile
from tunery.types import Metric

DEFINITIONS = {
    "exact_match": "rows whose output equals the gold output, character for character",
    "canonical_match": "the same after parsing: attribute order, list order and spacing do not count",
    "function_accuracy": "rows whose function is the gold one (all of them, in order, where a row has several calls)",
    "attribute_set": "rows with the gold attributes, whatever their order and values",
    "attribute_order": "rows with the gold attributes in the gold order, whatever their values",
    "slot_precision": "share of predicted slots that are gold; a slot is (function.attribute, value), the function "
    "itself being one; value text must match; an output that does not parse predicts none",
    "slot_recall": "share of gold slots that were predicted",
    "slot_f1": "micro F1: the harmonic mean of slot precision and recall over all slots",
    "slot_precision_macro": "the mean over the gold attributes that were predicted of each one's slot precision",
    "slot_recall_macro": "the mean over the gold attributes of each one's slot recall",
    "slot_f1_macro": "the mean over the gold attributes of each one's slot F1",
    "parse_rate": "rows whose output is of the task's form, from end to end",
    "tolerant_parse_rate": "rows that can be read after forgiving prose around the output, or a cut-off end",
    "grounding_rate": "share of predicted values that stand in the text, word for word or rewritten, among attributes "
    "whose training values do (all attributes, where no training rows are known)",
    "hallucination_rate": "share of predicted values that are not what the training rows lead to expect: one "
    "of the two below",
    "hallucination_copied": "the same among attributes of copied or free text: the value does not stand in the text, "
    "although the training rows' values do",
    "hallucination_closed": "the same among attributes with a closed set: the value is not in the set, or it does not "
    "stand in the text although the training rows' do; an attribute or function that they do not have counts too",
}

MACRO = ("precision", "recall", "f1")
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Value:
    """One predicted value where it stands in the text; `flag` says why it is not what training led to expect."""

    attribute: str
    value: str
    grounding: Grounding
    flag: str | None


@dataclass(frozen=True, slots=True)
class RowScore:
    """Scores of one row: 0 or 1 each, slot counts, and the slots that differ.

    `wrong` holds (attribute, gold value, predicted value); None where one side has nothing. `slots` counts
    (hits, predicted, gold) per attribute.
    """

    exact: int
    canonical: int
    parsed: int
    tolerant: int
    function: int | None
    attributes: int
    order: int
    slots: Mapping[str, tuple[int, int, int]]
    wrong: tuple[tuple[str, str | None, str | None], ...] = ()
    said: Structure | None = None

    @property
    def hits(self) -> int:
        return sum(s[0] for s in self.slots.values())

    @property
    def predicted(self) -> int:
        return sum(s[1] for s in self.slots.values())

    @property
    def gold(self) -> int:
        return sum(s[2] for s in self.slots.values())

    @property
    def slot_errors(self) -> int:
        """Slots missed plus slots made up."""
        return self.predicted + self.gold - 2 * self.hits


def score_row(task: Task, text: str, gold: str, *, wanted: Structure | None = None) -> RowScore:
    """Score one output; `wanted` is `gold` parsed, where a caller has it.

    A gold output that the task cannot parse counts by exact match alone.
    """
    if wanted is None:
        wanted = task.parse(gold)
    attribute = task.attribute
    if text == gold:
        right = {}
        for path, _ in wanted.slots if wanted else ():
            name = attribute(path)
            right[name] = right.get(name, 0) + 1
        parsed = int(wanted is not None)
        function = 1 if "function" in right else None
        slots = {name: (count, count, count) for name, count in right.items()}
        return RowScore(1, 1, parsed, parsed, function, 1, 1, slots, (), wanted)
    said = task.parse(text)
    tolerant = int(said is not None or task.parse_tolerant(text) is not None)
    said_slots = said.slots if said else ()
    gold_slots = wanted.slots if wanted else ()
    left = Counter(said_slots)
    counts: dict[str, list[int]] = {}
    missed: dict[str, list[str]] = {}
    for path, _ in said_slots:
        counts.setdefault(attribute(path), [0, 0, 0])[1] += 1
    for slot in gold_slots:
        name = attribute(slot[0])
        count = counts.setdefault(name, [0, 0, 0])
        count[2] += 1
        if left[slot] > 0:
            left[slot] -= 1
            count[0] += 1
        else:
            missed.setdefault(name, []).append(slot[1])
    made_up: dict[str, list[str]] = {}
    for (path, value), count in left.items():
        if count > 0:
            made_up.setdefault(attribute(path), []).extend([value] * count)
    wrong = []
    for name in {**missed, **made_up}:
        lost, new = missed.get(name, []), made_up.get(name, [])
        for i in range(max(len(lost), len(new))):
            wrong.append((name, lost[i] if i < len(lost) else None, new[i] if i < len(new) else None))
    said_names, gold_names = _names(said_slots), _names(gold_slots)
    functions = [v for p, v in gold_slots if p == "function"]
    return RowScore(
        exact=0,
        canonical=int(said is not None and wanted is not None and said.canonical == wanted.canonical),
        parsed=int(said is not None),
        tolerant=tolerant,
        function=int([v for p, v in said_slots if p == "function"] == functions) if functions else None,
        attributes=int(said is not None and sorted(said_names) == sorted(gold_names)),
        order=int(said is not None and said_names == gold_names),
        slots={name: (c[0], c[1], c[2]) for name, c in counts.items()},
        wrong=tuple(wrong),
        said=said,
    )


def _names(slots: Sequence[tuple[str, str]]) -> list[str]:
    """The attributes in written order, a list's values being one; functions left out, so that they may differ."""
    names: list[str] = []
    last = None
    for path, _ in slots:
        if path != last and path != "function":
            names.append(path.partition(".")[2] or path)
        last = path
    return names


def values_of(task: Task, said: Structure | None, text: str, profile: Profile | None) -> list[Value]:
    """Each value of an output where it stands in `text` (the row's own text, without a shared instruction).

    Functions and attributes without value are judged by the closed sets and not looked up in the text.
    """
    found = []
    for path, value in said.slots if said else ():
        name = task.attribute(path)
        looked_up = bool(value) and path != "function"
        grounding = ground(value, text) if looked_up else Grounding("inferred")
        known = profile.attributes.get(name) if profile else None
        flag = None
        if profile:
            flag = known.deviates(value, grounding.kind) if known else "outside"
        found.append(Value(name, value, grounding, flag))
    return found


@dataclass(frozen=True)
class Scores:
    """Everything that is known of one model's answers.

    `table` (n, 2 M) holds each metric's numerator and denominator per row, in the order of `ratios`.
    """

    rows: Sequence[RowScore]
    metrics: Mapping[str, Metric]
    attributes: Mapping[str, Mapping[str, Metric | int]]
    values: Sequence[Sequence[Value]]
    ratios: Sequence[str] = ()
    table: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    gold_attributes: Sequence[str] = ()

    def confusions(self) -> Counter[tuple[str, str | None, str | None]]:
        """How often (attribute, gold value, predicted value) were taken for each other; None: nothing."""
        return Counter(wrong for row in self.rows for wrong in row.wrong)


def score(
    task: Task,
    pairs: Sequence[tuple[str, str]],
    *,
    texts: Sequence[str] | None = None,
    profile: Profile | None = None,
    resamples: int = RESAMPLES,
) -> Scores:
    """Score (output, gold) pairs; with `texts`, ground the values in them, and with `profile`, judge them.

    A metric that no row can be scored by (no function, no text, no profile) has the value None.
    """
    golds: dict[str, Structure | None] = {}
    rows = []
    for text, gold in pairs:
        if gold not in golds:
            golds[gold] = task.parse(gold)
        rows.append(score_row(task, text, gold, wanted=golds[gold]))
    values = [
        values_of(task, row.said, text, profile) for row, text in zip(rows, texts or [], strict=texts is not None)
    ]
    names, table, gold_attributes = _table(rows, values if texts is not None else None, profile)
    found = estimate(names, table, gold_attributes, resamples=resamples)
    attributes: dict[str, dict[str, Metric | int]] = {}
    for name in sorted({a for row in rows for a in row.slots}):
        counts = np.array([row.slots[name] for row in rows if name in row.slots]).sum(0)
        attributes[name] = {k: found[f"{k}:{name}"] for k in ("precision", "recall", "f1")}
        attributes[name] |= dict(zip(("hits", "predicted", "gold"), map(int, counts), strict=True))
    metrics = {name: found[name] for name in DEFINITIONS if name in found}
    return Scores(rows, metrics, attributes, values, names, table, gold_attributes)


def score_rows(task: Task, pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, Metric], list[RowScore]]:
    """Metrics over (output, gold) pairs by name, as in DEFINITIONS, and the scores of each row."""
    scores = score(task, pairs)
    return dict(scores.metrics), list(scores.rows)


def _table(
    rows: Sequence[RowScore], values: Sequence[Sequence[Value]] | None, profile: Profile | None
) -> tuple[list[str], np.ndarray, list[str]]:
    n = len(rows)
    one = np.ones(n)
    columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def per_row(get: Callable[[RowScore], int]) -> np.ndarray:
        return np.fromiter((get(r) for r in rows), float, n)

    columns["exact_match"] = per_row(lambda r: r.exact), one
    columns["canonical_match"] = per_row(lambda r: r.canonical), one
    columns["function_accuracy"] = (
        per_row(lambda r: r.function or 0),
        per_row(lambda r: r.function is not None),
    )
    columns["attribute_set"] = per_row(lambda r: r.attributes), one
    columns["attribute_order"] = per_row(lambda r: r.order), one
    columns["parse_rate"] = per_row(lambda r: r.parsed), one
    columns["tolerant_parse_rate"] = per_row(lambda r: r.tolerant), one
    names = sorted({a for row in rows for a in row.slots})
    at = {name: i for i, name in enumerate(names)}
    slots = np.zeros((n, len(names), 3))
    for i, row in enumerate(rows):
        for name, counts in row.slots.items():
            slots[i, at[name]] = counts
    every = slots.sum(1)
    columns |= _prf("slot_", "", every)
    for name, i in at.items():
        columns |= _prf("", f":{name}", slots[:, i])
    if values is not None:
        columns |= _grounding_columns(values, profile)
    gold_attributes = [name for name in names if slots[:, at[name], 2].any()]
    stacked = np.stack([c for pair in columns.values() for c in pair], axis=1) if n else np.zeros((0, 2 * len(columns)))
    return list(columns), stacked, gold_attributes


def _prf(before: str, after: str, slots: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    hits, predicted, gold = slots[:, 0], slots[:, 1], slots[:, 2]
    return {
        f"{before}precision{after}": (hits, predicted),
        f"{before}recall{after}": (hits, gold),
        f"{before}f1{after}": (2 * hits, predicted + gold),
    }


def _grounding_columns(
    values: Sequence[Sequence[Value]], profile: Profile | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns are (grounded, to be grounded), then (flagged, all) of copied and of closed attributes."""
    counts = np.zeros((len(values), 6))
    known = profile.attributes if profile else {}
    for i, row in enumerate(values):
        for v in row:
            attribute = known.get(v.attribute)
            expected = v.value and v.attribute != "function"
            if profile is not None:
                expected = expected and attribute is not None and attribute.expected != "inferred"
                at = 4 if attribute is None or attribute.kind == "closed" else 2
                counts[i, at : at + 2] += v.flag is not None, 1
            if expected:
                counts[i, :2] += v.grounding.kind != "inferred", 1
    return {
        "grounding_rate": (counts[:, 0], counts[:, 1]),
        "hallucination_rate": (counts[:, 2] + counts[:, 4], counts[:, 3] + counts[:, 5]),
        "hallucination_copied": (counts[:, 2], counts[:, 3]),
        "hallucination_closed": (counts[:, 4], counts[:, 5]),
    }


def ratios(sums: np.ndarray, names: Sequence[str], gold_attributes: Sequence[str]) -> np.ndarray:
    """Metrics (..., M + 3) from column sums (..., 2 M), as `labels` names them. NaN where nothing was scored."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(sums[..., 1::2] > 0, sums[..., ::2] / sums[..., 1::2], np.nan)
    means = []
    for kind in MACRO:
        each = found[..., [names.index(f"{kind}:{a}") for a in gold_attributes]]
        present = ~np.isnan(each)  # a resample may hold no row with a rare attribute
        n = present.sum(-1)
        means.append(np.where(n > 0, np.where(present, each, 0).sum(-1) / np.maximum(n, 1), np.nan))
    return np.concatenate([found, np.stack(means, axis=-1)], axis=-1)


def labels(names: Sequence[str]) -> list[str]:
    """What the columns of `ratios` are called."""
    return [*names, *(f"slot_{kind}_macro" for kind in MACRO)]


def resampled(table: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Column sums (resamples, k) of `table` (n, k), its n rows drawn with replacement. Same n and seed, same draws."""
    n = len(table)
    rng = np.random.default_rng(seed)
    sums = []
    for start in range(0, resamples, 50):  # in batches, so that the counts of a hundred thousand rows fit in memory
        draws = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(start, min(start + 50, resamples))]
        sums.append(np.stack(draws).astype(float) @ table)
    return np.concatenate(sums)


def estimate(
    names: Sequence[str], table: np.ndarray, gold_attributes: Sequence[str], *, resamples: int = RESAMPLES
) -> dict[str, Metric]:
    """Each metric with its 95 % percentile bootstrap interval (Efron 1979), rows resampled together."""
    n = len(table)
    if n == 0:
        return {name: Metric(None, None, None, 0) for name in labels(names)}
    values = ratios(table.sum(0), names, gold_attributes)
    draws = ratios(resampled(table, resamples), names, gold_attributes)
    found = {}
    for i, name in enumerate(labels(names)):
        drawn = draws[:, i][~np.isnan(draws[:, i])]
        if np.isnan(values[i]) or not len(drawn):
            found[name] = Metric(None, None, None, n)
        else:
            low, high = np.percentile(drawn, [2.5, 97.5])
            found[name] = Metric(float(values[i]), float(low), float(high), n)
    return found
