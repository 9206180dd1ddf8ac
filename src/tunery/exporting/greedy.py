"""Whether a model still says the same: greedy answers before and after, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_TOKENS = 64  # of one answer


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer, and by how much its logit leads the next best one's."""

    token: int
    lead: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two answers part: the `step` of the first model, and the other's token."""

    prompt: int
    at: int
    step: Step
    other: int | None  # None: the other's answer ends here


def greedy(model: Any, prompt: Sequence[int], stop_ids: Sequence[int]) -> list[Step]:
    """The most likely token again and again, until a stop token (which is the last step) or MAX_TOKENS."""
    import torch

    steps: list[Step] = []
    ids, cache = torch.tensor([list(prompt)], device=model.device), None
    with torch.no_grad():
        while len(steps) < MAX_TOKENS and not (steps and steps[-1].token in stop_ids):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            values, tokens = out.logits[0, -1].float().topk(2)
            steps.append(Step(int(tokens[0]), float(values[0] - values[1])))
            ids, cache = tokens[:1][None], out.past_key_values
    return steps


def differences(before: Sequence[Sequence[Step]], after: Sequence[Sequence[Step]]) -> list[Difference]:
    """Where the answers to each prompt part; empty when all are the same."""
    found = []
    for prompt, (one, two) in enumerate(zip(before, after, strict=True)):
        for at, step in enumerate(one):
            other = two[at].token if at < len(two) else None
            if other != step.token:
                found.append(Difference(prompt, at, step, other))
                break
    return found
