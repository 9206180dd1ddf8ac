"""How sure an answer is: from the log-probabilities of its tokens, calibrated on rows whose truth is known.

What is not known is None, never 1.0: an answer without log-probabilities, a value that cannot be located in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tunery.tasks.base import Structure

_FEW = 20  # fewer rows than this, or all of them right or all wrong, calibrate nothing
_ENOUGH_FOR_ISOTONIC = 200


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: characters [start, end) of the answer's text, and its log-probability (natural)."""

    start: int
    end: int
    logprob: float


def tokens_of(pieces: Sequence[str], logprobs: Sequence[float]) -> list[Token]:
    """Tokens from their texts in order. Raises ValueError when there are not as many log-probabilities."""
    tokens, at = [], 0
    for piece, logprob in zip(pieces, logprobs, strict=True):
        tokens.append(Token(at, at + len(piece), logprob))
        at += len(piece)
    return tokens


def placed(
    ids: Sequence[int], logprobs: Sequence[float], text: str, tokenizer: Any, cache: dict[int, str]
) -> list[Token]:
    """The tokens of an answer where they stand in `text.strip()`; `cache` keeps tokens' texts from answer to answer.

    A token that ends the answer, or is a part of a character, has no characters of its own.
    """
    lead = len(text) - len(text.lstrip())
    tokens = tokens_of(_pieces(ids, text, tokenizer, cache), logprobs)
    return [Token(max(0, t.start - lead), t.end - lead, t.logprob) for t in tokens]


def _pieces(ids: Sequence[int], text: str, tokenizer: Any, cache: dict[int, str]) -> list[str]:
    """What each token adds to `text`."""
    for token in ids:
        if token not in cache:
            cache[token] = tokenizer.decode([token], skip_special_tokens=True)
    parts = [cache[token] for token in ids]
    if "".join(parts) == text:
        return parts
    done, parts = "", []  # a character of several tokens, or a tokenizer whose tokens depend on their neighbours
    for i in range(len(ids)):
        now = tokenizer.decode(list(ids[: i + 1]), skip_special_tokens=True)
        if now.endswith("\ufffd"):
            now = done
        parts.append(now[len(done) :])
        done = now
    return parts


def row_confidence(tokens: Sequence[Token]) -> float | None:
    """The probability of the whole answer, its end included: the product over its tokens."""
    return _probability([t.logprob for t in tokens])


def span_confidence(tokens: Sequence[Token], start: int, end: int) -> float | None:
    """The probability of characters [start, end) given what stands before: the product over tokens touching them."""
    return _probability([t.logprob for t in tokens if t.start < end and t.end > start])


def _probability(logprobs: Sequence[float]) -> float | None:
    if not logprobs or any(math.isnan(p) for p in logprobs):
        return None
    return math.exp(min(0.0, sum(logprobs)))


def slot_confidences(structure: Structure, text: str, tokens: Sequence[Token]) -> list[float | None]:
    """One confidence a slot of `structure`, which was parsed from `text`; None for a slot that is not found there.

    A slot's span is its value and the character after it: that the value ends there is part of having it right.
    An empty value stands for its attribute's name and brackets.
    """
    found: list[float | None] = []
    at, last = 0, None
    for path, value in structure.slots:
        if path != last:
            name = path.rpartition(".")[2].removesuffix("[]")
            start = _named(text, name, at) if path != "function" else at
            at = start + len(name) if start > at else at
        else:
            start = at
        last = path
        where = text.find(value, at) if value else start
        if where < 0:
            found.append(None)
            continue
        at = where + len(value) if value else at
        end = at + 1 if value else min(len(text), at + 2)
        found.append(span_confidence(tokens, where, end))
    return found


def _named(text: str, name: str, at: int) -> int:
    """Where an attribute's name stands next: as a JSON key, before its bracket, or at all; `at` when nowhere."""
    for form, before in ((f'"{name}"', 1), (f"{name}[", 0), (name, 0)):
        if (found := text.find(form, at)) >= 0:
            return found + before
    return at


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A map from raw to calibrated confidence, learnt from `n` judged ones.

    isotonic: a step-free monotone curve through the points (x, y), by pool-adjacent-violators (Zadrozny and Elkan
    2002); platt: 1 / (1 + exp(-(x[0] * logit(p) + y[0]))) (Platt 1999), of which temperature scaling is the case y = 0
    and x = 1 / temperature. Results stay within [1 / (n + 2), (n + 1) / (n + 2)], Laplace's rule of succession: n rows
    cannot tell more than that.
    """

    kind: Literal["isotonic", "platt"]
    x: tuple[float, ...]
    y: tuple[float, ...]
    n: int

    def __call__(self, confidence: float | None) -> float | None:
        """The calibrated confidence; None stays None."""
        if confidence is None:
            return None
        if self.kind == "isotonic":
            value = float(np.interp(confidence, self.x, self.y))
        else:
            value = float(_sigmoid(self.x[0] * _logit(np.array(confidence)) + self.y[0]))
        return min(max(value, 1 / (self.n + 2)), (self.n + 1) / (self.n + 2))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibrator:
        return cls(values["kind"], tuple(values["x"]), tuple(values["y"]), values["n"])


def calibrate(confidences: Sequence[float | None], correct: Sequence[bool | int]) -> Calibrator | None:
    """Isotonic where there are 200 judged confidences, Platt's two parameters where there are fewer.

    None where nothing can be learnt: fewer than 20, or all of them right, or all wrong.
    """
    p, truth = _known(confidences, correct)
    if len(p) < _FEW or truth.min() == truth.max():
        return None
    if len(p) >= _ENOUGH_FOR_ISOTONIC:
        return Calibrator("isotonic", *_pool_adjacent_violators(p, truth), len(p))
    slope, shift = _platt(_logit(p), truth)
    return Calibrator("platt", (slope,), (shift,), len(p))


def _pool_adjacent_violators(p: np.ndarray, truth: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    order = np.argsort(p, kind="stable")
    blocks: list[list[float]] = []  # [sum of truth, number, sum of p]
    for value, right in zip(p[order], truth[order], strict=True):
        blocks.append([float(right), 1.0, float(value)])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return tuple(b[2] / b[1] for b in blocks), tuple(b[0] / b[1] for b in blocks)


def _platt(z: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Newton's method on the logistic loss with Platt's smoothed targets and a small ridge."""
    positive, n = truth.sum(), len(truth)
    target = np.where(truth > 0, (positive + 1) / (positive + 2), 1 / (n - positive + 2))
    design = np.stack([z, np.ones(n)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(50):
        q = _sigmoid(design @ weights)
        gradient = design.T @ (q - target) + 1e-3 * (weights - np.array([1.0, 0.0]))
        hessian = (design * (q * (1 - q))[:, None]).T @ design + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return max(float(weights[0]), 0.0), float(weights[1])


def reliability(
    confidences: Sequence[float | None], correct: Sequence[bool | int], bins: int = 10
) -> list[dict[str, Any]]:
    """Equal-width bins of confidence, empty ones left out: {"low", "high", "n", "confidence", "accuracy"} (means)."""
    p, truth = _known(confidences, correct)
    place = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "n": int((place == b).sum()),
            "confidence": float(p[place == b].mean()),
            "accuracy": float(truth[place == b].mean()),
        }
        for b in range(bins)
        if (place == b).any()
    ]


def expected_calibration_error(
    confidences: Sequence[float | None], correct: Sequence[bool | int], bins: int = 10
) -> float | None:
    """The mean over rows of |accuracy - confidence| of their bin (Guo et al. 2017); None without a known confidence."""
    curve = reliability(confidences, correct, bins)
    n = sum(b["n"] for b in curve)
    return sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in curve) / n if n else None


def risk_coverage(
    confidences: Sequence[float | None], correct: Sequence[bool | int]
) -> list[tuple[float, float, float]]:
    """(threshold, coverage, risk): keeping what is at least that sure keeps this share, of which that share is wrong.

    One point a distinct confidence, the surest first (El-Yaniv and Wiener 2010). Rows of unknown confidence are
    never kept and count in the coverage's denominator.
    """
    p, truth = _known(confidences, correct)
    order = np.argsort(-p, kind="stable")
    p, wrong = p[order], np.cumsum(1 - truth[order])
    ends = np.flatnonzero(np.append(p[1:] != p[:-1], True)) if len(p) else []
    return [(float(p[i]), float(i + 1) / len(confidences), float(wrong[i] / (i + 1))) for i in ends]


def _known(confidences: Sequence[float | None], correct: Sequence[bool | int]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(c, int(r)) for c, r in zip(confidences, correct, strict=True) if c is not None]
    table = np.array(pairs, dtype=float).reshape(len(pairs), 2)
    return table[:, 0], table[:, 1]


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -700, 700)))
