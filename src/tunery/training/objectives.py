"""What a step minimises: the loss of a pack as a sum, and what that sum is divided by over the whole batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunery.training.attention import view
from tunery.training.packing import Pack


class Objective(Protocol):
    """One `stage`. The loss of a batch is the sum of `loss` over its packs divided by the sum of `weight`."""

    def weight(self, pack: Pack) -> float:
        """The pack's part of the divisor."""
        ...

    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        """Summed loss (a scalar, fp32) and further sums to report, divided like the loss."""
        ...


class Supervised:
    """`stage: sft` and `pt`: mean cross-entropy of the supervised tokens."""

    def weight(self, pack: Pack) -> float:
        return float(len(pack.labels))

    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        return F.cross_entropy(logits_of(model, pack).float(), pack.labels, reduction="sum"), {}


def logits_of(model: nn.Module, pack: Pack) -> Tensor:
    """(K, V): what the model says at the supervised places, in its own dtype."""
    seen: Any = view(pack)
    further = {} if seen is None else {"view": seen}
    return model(
        input_ids=pack.ids, position_ids=pack.positions, logits_to_keep=pack.keep, use_cache=False, **further
    ).logits[0]


def log_probabilities(model: nn.Module, pack: Pack) -> Tensor:
    """(S,): summed log-probability of each row's supervised tokens."""
    tokens = -F.cross_entropy(logits_of(model, pack).float(), pack.labels, reduction="none")  # (K,)
    return torch.zeros(pack.rows, device=tokens.device).index_add(0, pack.owner, tokens)


def objective_of(stage: str) -> Objective:
    """The objective that `stage` names."""
    return {"sft": Supervised}[stage]()
