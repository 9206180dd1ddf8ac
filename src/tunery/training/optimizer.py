"""The optimizer and its learning rate over time, with transformers' names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tunery.config import TrainSpec
from tunery.errors import ConfigError


def build_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """Over all that `model` tunes. As with transformers, vectors (biases, norms) do not decay; with
    `loraplus_lr_ratio`, LoRA's B learns that much faster than A (arXiv:2402.12354)."""
    rate = spec.learning_rate or 1e-4
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            faster = spec.loraplus_lr_ratio if spec.loraplus_lr_ratio and ".lora_B." in name else 1.0
            decay = spec.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate * faster, decay), []).append(parameter)
    parameters = [
        {"params": members, "lr": own, "initial_lr": own, "weight_decay": decay}
        for (own, decay), members in groups.items()
    ]
    if spec.optim == "sgd":
        return torch.optim.SGD(parameters, lr=rate)
    betas = spec.adam_beta1, spec.adam_beta2 or 0.999
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, eps=spec.adam_epsilon, fused=True)


def lr_factor(spec: TrainSpec, total: int) -> Callable[[int], float]:
    """Step (0-based) to share of the peak learning rate, by transformers' own schedulers.

    Raises ConfigError for `lr_scheduler_kwargs` that the scheduler does not take.
    """
    from transformers import get_scheduler

    nothing = torch.optim.SGD([torch.zeros(1)], lr=spec.learning_rate or 1e-4)
    warmup = spec.warmup_steps or math.ceil(spec.warmup_ratio * total)
    try:
        found: Any = get_scheduler(spec.lr_scheduler_type, nothing, warmup, total, spec.lr_scheduler_kwargs)
    except (TypeError, ValueError) as exc:
        raise ConfigError(
            f"lr_scheduler_type: {spec.lr_scheduler_type} with {spec.lr_scheduler_kwargs or 'no lr_scheduler_kwargs'}: "
            f"{exc}",
            hint="lr_scheduler_kwargs are the arguments of transformers' scheduler",
        ) from None
    return found.lr_lambdas[0]
