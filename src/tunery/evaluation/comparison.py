"""Two models on the same rows: is the difference more than chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tunery.errors import DataError
from tunery.tasks import DEFINITIONS, Profile, Scores, Task
from tunery.tasks.score import RESAMPLES, labels, ratios, resampled, score

TESTS = {
    "paired_bootstrap": "rows drawn with replacement, the same for both models; p is twice the share of draws in which "
    "the difference is not on its side of zero (Efron and Tibshirani 1993)",
    "mcnemar": "exact binomial test on the rows that only one of the two has right (McNemar 1947)",
}


@dataclass(frozen=True)
class Difference:
    """B minus A of one metric, with its 95 % interval and the p value of no difference."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    test: str


@dataclass(frozen=True)
class Comparison:
    """Two models, A and B, on the `n` rows both have answered. `only_a`, `only_b`: exactly right by one alone."""

    a: str
    b: str
    n: int
    metrics: Mapping[str, Difference]
    only_a: Sequence[str]
    only_b: Sequence[str]
    definitions: Mapping[str, str]
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    task: Task,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    label_a: str,
    label_b: str,
    profile: Profile | None = None,
) -> Comparison:
    """Compare column `label_a` of report `a` with column `label_b` of report `b` (as report.json has them).

    Rows are paired by id, input and gold; rows of only one report are left out and counted. Raises DataError when
    none is in both.
    """
    mine = {_key(s): s for s in a["samples"]}
    theirs = {_key(s): s for s in b["samples"]}
    keys = [k for k in mine if k in theirs]
    if not keys:
        raise DataError("the two evaluations have no row in common", hint="evaluate both on the same dataset")
    golds = [mine[k]["gold"] for k in keys]
    texts = [mine[k].get("text", mine[k]["input"]) for k in keys]
    said_a = [mine[k]["answers"][label_a]["text"] for k in keys]
    said_b = [theirs[k]["answers"][label_b]["text"] for k in keys]
    one = score(task, list(zip(said_a, golds, strict=True)), texts=texts, profile=profile, resamples=2)
    two = score(task, list(zip(said_b, golds, strict=True)), texts=texts, profile=profile, resamples=2)
    drawn_a, drawn_b = _draws(one), _draws(two)
    found = {}
    for name in drawn_a:
        va, vb = one.metrics[name].value, two.metrics[name].value
        if va is None or vb is None:
            continue
        draws = drawn_b[name] - drawn_a[name]
        draws = draws[~np.isnan(draws)]
        low, high = np.percentile(draws, [2.5, 97.5])
        below, above = (draws <= 0).mean(), (draws >= 0).mean()
        p = min(1.0, 2 * float(min(below, above)) + 1 / len(draws))
        found[name] = Difference(va, vb, vb - va, float(low), float(high), p, "paired_bootstrap")
    right_a, right_b = [r.exact for r in one.rows], [r.exact for r in two.rows]
    only_a = [k for k, x, y in zip(keys, right_a, right_b, strict=True) if x and not y]
    only_b = [k for k, x, y in zip(keys, right_a, right_b, strict=True) if y and not x]
    exact = asdict(found["exact_match"]) | {"p": mcnemar(len(only_a), len(only_b)), "test": "mcnemar"}
    ordered = {name: found[name] for name in DEFINITIONS if name in found} | {"exact_match": Difference(**exact)}
    left_out = len(a["samples"]) + len(b["samples"]) - 2 * len(keys)
    return Comparison(
        label_a, label_b, len(keys), ordered, [k[0] for k in only_a], [k[0] for k in only_b],
        {n: DEFINITIONS[n] for n in ordered} | TESTS, left_out,
    )  # fmt: skip


def _key(sample: Mapping[str, Any]) -> tuple[str, str, str]:
    return sample["id"], sample["input"], sample["gold"]


def _draws(scores: Scores) -> dict[str, np.ndarray]:
    found = ratios(resampled(scores.table, RESAMPLES), scores.ratios, scores.gold_attributes)
    return {name: found[:, i] for i, name in enumerate(labels(scores.ratios)) if name in DEFINITIONS}


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of the discordant pairs being a fair coin's."""
    n = only_a + only_b
    ways = total = 1  # n over i, and the sum of them
    for i in range(min(only_a, only_b)):
        ways = ways * (n - i) // (i + 1)
        total += ways
    return min(1.0, 2 * total / 2**n)
