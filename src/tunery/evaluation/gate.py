"""The gate: conditions on metrics that a version has to meet, "slot_f1>=0.9, exact_match>=baseline-0.01"."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunery.config import nearest
from tunery.errors import ConfigError
from tunery.tasks import DEFINITIONS

_CONDITION = re.compile(
    r"\s*(?P<metric>[\w.]+)\s*(?P<sign>>=|<=|>|<)\s*"
    r"(?:(?P<baseline>baseline)\s*(?:(?P<plus>[+-])\s*(?P<offset>\d*\.?\d+))?|(?P<number>-?\d*\.?\d+))\s*"
)
_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True, slots=True)
class Condition:
    """metric sign (baseline +) number."""

    metric: str
    sign: str
    number: float
    baseline: bool

    def __str__(self) -> str:
        right = f"baseline{self.number:+g}" if self.baseline and self.number else f"{self.number:g}"
        return f"{self.metric}{self.sign}{'baseline' if self.baseline and not self.number else right}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition as it turned out. `value` or `bound` is None, and it fails, when the metric was not scored."""

    condition: str
    value: float | None
    bound: float | None
    passed: bool


def parse_gate(text: str) -> list[Condition]:
    """The conditions of a gate, joined by commas. Raises ConfigError for one that cannot be read."""
    found = []
    for part in text.split(","):
        m = _CONDITION.fullmatch(part)
        if not m:
            raise ConfigError(
                f'gate "{part.strip()}" is not of the form METRIC>=NUMBER or METRIC>=baseline-NUMBER',
                hint='for example --gate "slot_f1>=0.9, exact_match>=baseline-0.01"',
            )
        if m["metric"] not in DEFINITIONS:
            near = nearest(m["metric"], DEFINITIONS)
            raise ConfigError(
                f'gate: there is no metric "{m["metric"]}"',
                hint=f'did you mean "{near}"?' if near else f"one of: {', '.join(DEFINITIONS)}",
            )
        number = float(m["number"] or 0) if not m["baseline"] else float(f"{m['plus'] or ''}{m['offset'] or 0}")
        found.append(Condition(m["metric"], m["sign"], number, bool(m["baseline"])))
    return found


def check_gate(
    conditions: Sequence[Condition], metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None
) -> list[Verdict]:
    """Judge metrics (name -> Metric or its dict). Raises ConfigError when a baseline is asked for and there is none."""
    verdicts = []
    for condition in conditions:
        if condition.baseline and baseline is None:
            raise ConfigError(
                f"gate {condition}: there is no baseline", hint="name an earlier evaluation or version with --baseline"
            )
        value = _value(metrics.get(condition.metric))
        below = _value((baseline or {}).get(condition.metric)) if condition.baseline else 0.0
        bound = below + condition.number if below is not None else None
        passed = value is not None and bound is not None and _SIGNS[condition.sign](value, bound - _epsilon(condition))
        verdicts.append(Verdict(str(condition), value, bound, passed))
    return verdicts


def _epsilon(condition: Condition) -> float:
    """So that baseline-0.01 forgives what floating point adds to it."""
    return 1e-12 if condition.sign == ">=" else -1e-12 if condition.sign == "<=" else 0.0


def _value(metric: Any) -> float | None:
    return metric["value"] if isinstance(metric, Mapping) else metric.value if metric is not None else None
