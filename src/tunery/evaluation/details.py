"""What lies behind the metrics: confusions, slices, spans, and how far confidences can be trusted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunery.errors import ConfigError
from tunery.tasks import Profile, Scores, Task
from tunery.tasks.confidence import (
    Calibrator,
    calibrate,
    expected_calibration_error,
    reliability,
    risk_coverage,
)
from tunery.tasks.score import Value
from tunery.types import Example

_SPAN_ROWS = 5000  # nervaluate takes a second for a thousand rows
_VALUES = 20  # of one slice; the rarest are put together


def confusions(scores: Scores, most: int = 200) -> list[dict[str, Any]]:
    """The most frequent {"attribute", "gold", "predicted", "n", "rows"}; None is a slot missed or made up.

    `rows` are the indices of the rows where it happened.
    """
    rows: dict[tuple[str, str | None, str | None], list[int]] = defaultdict(list)
    for i, row in enumerate(scores.rows):
        for wrong in row.wrong:
            rows[wrong].append(i)
    ordered = sorted(rows.items(), key=lambda item: (-len(item[1]), str(item[0])))
    return [
        {"attribute": a, "gold": g, "predicted": p, "n": len(found), "rows": sorted(set(found))}
        for (a, g, p), found in ordered[:most]
    ]


def slices(
    task: Task,
    examples: Sequence[Example],
    texts: Sequence[str],
    golds: Sequence[str],
    profile: Profile | None,
    columns: Sequence[str],
) -> dict[str, list[str]]:
    """Each row's value in each slicing: by names, length, function, and the user's own columns.

    names: "unseen" where a copied gold value was in no training row (only with a profile).
    length: thirds of the rows by the words of their text.
    """
    found: dict[str, list[str]] = {}
    structures = [task.parse(g) for g in golds]
    if profile:
        copied = {path: a.values for path, a in profile.attributes.items() if a.kind == "copied"}
        seen = []
        for structure in structures:
            slots = [(task.attribute(p), v) for p, v in structure.slots] if structure else []
            mine = [(p, v) for p, v in slots if v and p in copied]
            seen.append("no names" if not mine else "seen" if all(v in copied[p] for p, v in mine) else "unseen")
        found["names"] = seen
    lengths = np.array([len(t.split()) for t in texts])
    low, high = (int(q) for q in np.quantile(lengths, [1 / 3, 2 / 3])) if len(lengths) else (0, 0)
    found["length"] = [
        f"1 short (up to {low} words)" if n <= low else f"2 (up to {high})" if n <= high else f"3 long (over {high})"
        for n in lengths
    ]
    functions = [[v for p, v in s.slots if p == "function"] if s else [] for s in structures]
    if any(functions):
        found["function"] = [" + ".join(f) or "(none)" for f in functions]
    check_columns(examples, columns)
    for column in columns:
        found[column] = [str(e.meta.get(column, "(none)")) for e in examples]
    return {name: _common(values) for name, values in found.items() if len(set(values)) > 1}


def check_columns(examples: Sequence[Example], columns: Sequence[str]) -> None:
    """Raises ConfigError for a column that no row has."""
    known = sorted({key for e in examples for key in e.meta} - {"row"})
    for column in columns:
        if column not in known:
            raise ConfigError(
                f'no column "{column}" to slice by', hint=f"the rows have: {', '.join(known) or 'no further columns'}"
            )


def _common(values: list[str]) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    if len(counts) <= _VALUES:
        return values
    kept = set(sorted(counts, key=lambda v: -counts[v])[: _VALUES - 1])
    return [v if v in kept else "(others)" for v in values]


def span_scores(gold: Sequence[Sequence[Value]], said: Sequence[Sequence[Value]]) -> dict[str, Any]:
    """seqeval's entity scores and nervaluate's four schemas (SemEval 2013) over the values that stand in the text.

    seqeval: the same span and attribute, as seqeval counts in strict mode; strict: the same again, where spans that
    overlap others may lose their partner; exact: the same span; partial: spans that overlap; ent_type: overlapping
    spans of the same attribute. Empty where nothing stands in the text. The first 5,000 rows.
    """
    gold, said = gold[:_SPAN_ROWS], said[:_SPAN_ROWS]
    true, predicted = [_spans(values) for values in gold], [_spans(values) for values in said]
    tags = sorted({s["label"] for row in [*true, *predicted] for s in row})
    if not tags:
        return {}
    from nervaluate import Evaluator

    overall = Evaluator(true, predicted, tags=tags, loader="dict").evaluate()["overall"]
    return {"rows": len(true), "seqeval": _entities(true, predicted)} | {
        schema: {
            name: getattr(result, name)
            for name in ("precision", "recall", "f1", "correct", "incorrect", "partial", "missed", "spurious")
        }
        for schema, result in overall.items()
    }


def _entities(
    true: Sequence[Sequence[dict[str, Any]]], predicted: Sequence[Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    """Micro scores of entities, seqeval's in strict mode (which would bring scikit-learn along for this one ratio)."""
    hits = sum(span in row for row, spans in zip(true, predicted, strict=True) for span in spans)
    gold, said = sum(map(len, true)), sum(map(len, predicted))
    return {
        "precision": hits / said if said else 0.0,
        "recall": hits / gold if gold else 0.0,
        "f1": 2 * hits / (gold + said),
        "correct": hits,
        "incorrect": 0,  # a span is right, missed or spurious
        "partial": 0,
        "missed": gold - hits,
        "spurious": said - hits,
    }


def _spans(values: Sequence[Value]) -> list[dict[str, Any]]:
    """Distinct spans; nervaluate's ends are inclusive."""
    spans = {
        (v.attribute, v.grounding.start, v.grounding.end - 1)
        for v in values
        if v.grounding.start is not None and v.grounding.end is not None
    }
    return [{"label": label, "start": start, "end": end} for label, start, end in sorted(spans)]


@dataclass(frozen=True)
class Confidences:
    """Of each row and of each of its slots: the confidence, None where unknown, and whether it was right."""

    row: Sequence[float | None]
    row_right: Sequence[bool]
    slots: Sequence[Sequence[float | None]]
    slots_right: Sequence[Sequence[bool]]


@dataclass(frozen=True)
class Calibrated:
    """Confidences as they are to be shown: calibrated where rows taught how, else None."""

    row: Sequence[float | None]
    slots: Sequence[Sequence[float | None]]


def certainty(here: Confidences, known: Confidences) -> tuple[dict[str, Any], Calibrated]:
    """How far the confidences of `here` can be trusted, and the ones to show, calibrated on the rows of `known`.

    Without rows to calibrate on, a confidence is unknown: the raw probability of a text is not one.
    """
    row = calibrate(known.row, known.row_right)
    slot = calibrate(_flat(known.slots), _flat(known.slots_right))
    shown = Calibrated(
        [row(c) if row else None for c in here.row],
        [[slot(c) if slot else None for c in slots] for slots in here.slots],
    )
    report = {
        "row": _trust(here.row, shown.row, here.row_right, row),
        "slot": _trust(_flat(here.slots), _flat(shown.slots), _flat(here.slots_right), slot),
    }
    return report, shown


def _trust(
    raw: Sequence[float | None], shown: Sequence[float | None], right: Sequence[bool], calibrator: Calibrator | None
) -> dict[str, Any]:
    best = shown if calibrator else raw
    curve = risk_coverage(best, right)
    return {
        "n": len(raw),
        "unknown": sum(c is None for c in raw),
        "calibrator": calibrator and calibrator.to_dict(),
        "ece_raw": expected_calibration_error(raw, right),
        "ece": expected_calibration_error(shown, right) if calibrator else None,
        "reliability": reliability(best, right),
        "risk_coverage": [curve[i] for i in _evenly(len(curve), 100)],
    }


def _evenly(n: int, most: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))})


def _flat(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [x for inner in lists for x in inner]
