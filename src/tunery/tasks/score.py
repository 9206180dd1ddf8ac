"""Scores of predicted against gold outputs, each with its definition and a bootstrap interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunery.tasks.base import Task
from tunery.types import Metric

DEFINITIONS = {
    "exact_match": "the output equals the gold output, character for character",
    "canonical_match": "the same after parsing: attribute order, list order and spacing do not count",
    "slot_f1": "micro F1 over (function.attribute, value) slots, the function itself being one; value text must match",
    "parse_rate": "the output is of the task's form",
}


@dataclass(frozen=True, slots=True)
class RowScore:
    """Scores of one row: 0 or 1 each, and slot counts (hits, predicted, gold)."""

    exact: int
    canonical: int
    parsed: int
    hits: int
    predicted: int
    gold: int

    @property
    def slot_errors(self) -> int:
        """Slots missed plus slots made up."""
        return self.predicted + self.gold - 2 * self.hits


def score_row(task: Task, text: str, gold: str) -> RowScore:
    """Score one output. A gold output that the task cannot parse counts by exact match alone."""
    said, wanted = task.parse(text), task.parse(gold)
    exact = int(text == gold)
    said_slots = Counter(said.slots) if said else Counter()
    gold_slots = Counter(wanted.slots) if wanted else Counter()
    same = int(said is not None and wanted is not None and said.canonical == wanted.canonical)
    return RowScore(
        exact=exact,
        canonical=max(exact, same),
        parsed=int(said is not None),
        hits=(said_slots & gold_slots).total(),
        predicted=said_slots.total(),
        gold=gold_slots.total(),
    )


def score_rows(task: Task, pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, Metric], list[RowScore]]:
    """Metrics over (output, gold) pairs by name, as in DEFINITIONS, and the scores of each row."""
    rows = [score_row(task, text, gold) for text, gold in pairs]
    table = np.array([[r.exact, r.canonical, r.parsed, r.hits, r.predicted, r.gold] for r in rows], dtype=float)
    table = table.reshape(len(rows), 6)
    metrics = {
        "exact_match": bootstrap(table[:, [0]], _mean),
        "canonical_match": bootstrap(table[:, [1]], _mean),
        "slot_f1": bootstrap(table[:, 3:6], _f1),
        "parse_rate": bootstrap(table[:, [2]], _mean),
    }
    return metrics, rows


def bootstrap(table: np.ndarray, statistic, *, resamples: int = 1000, seed: int = 0) -> Metric:
    """Percentile bootstrap (Efron 1979), 95 %, rows resampled together.

    `table` is (n, k); `statistic` maps column sums (..., k) and n to values (...).
    """
    n = len(table)
    if n == 0:
        return Metric(None, None, None, 0)
    rng = np.random.default_rng(seed)
    value = float(statistic(table.sum(0), n))
    # Multinomial weights are the counts that resampling n rows with replacement gives.
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples)  # (resamples, n)
    low, high = np.percentile(statistic(weights @ table, n), [2.5, 97.5])
    return Metric(value, float(low), float(high), n)


def _mean(sums: np.ndarray, n: int) -> np.ndarray:
    return sums[..., 0] / n


def _f1(sums: np.ndarray, n: int) -> np.ndarray:
    hits, predicted, gold = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.where(predicted + gold > 0, 2 * hits / np.maximum(predicted + gold, 1), 1.0)
