"""What is tuned: LoRA's weights on a frozen base, some layers of the base, or all of it; and how that is kept.

An adapter is always one for the base as it is. PiSSA, which moves a part of each base weight into LoRA, is written as
LoRA of twice the rank: [A; A0] and [B, -B0], what was learnt less what it started from.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tunery.config import TrainSpec
from tunery.errors import ModelError
from tunery.training.checks import words


def tune(model: Any, spec: TrainSpec) -> Any:
    """`model` with what `spec` tunes in fp32 and the rest frozen. Raises ModelError for names that it does not have."""
    if spec.finetuning_type == "lora":
        model = _with_lora(model, spec)
    else:
        model.requires_grad_(spec.finetuning_type == "full")
        if spec.finetuning_type == "freeze":
            _unfreeze(model, spec)
        model.untuned = copy.deepcopy(model.config), {name: p.dtype for name, p in model.named_parameters()}
    if spec.stage in ("rm", "ppo"):
        attach_value_head(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _with_lora(model: Any, spec: TrainSpec) -> Any:
    from peft import LoraConfig, get_peft_model

    targets, saved = words(spec.lora_target), words(spec.additional_target)
    known = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
    if missing := [name for name in saved if name.rsplit(".", 1)[-1] not in known]:
        raise ModelError(
            f"additional_target: this model has no {', '.join(missing)}", hint=f"it has {', '.join(sorted(known))}"
        )
    exact: bool | str = True
    if spec.pissa_init:
        exact = "pissa" if spec.pissa_iter < 0 else f"pissa_niter_{spec.pissa_iter}"
    lora = LoraConfig(
        r=spec.lora_rank or 8,
        lora_alpha=spec.lora_alpha or 16,
        lora_dropout=spec.lora_dropout,
        target_modules="all-linear" if targets == ["all"] else targets,
        modules_to_save=saved or None,
        ensure_weight_tying=bool(saved) and bool(getattr(model.config, "tie_word_embeddings", False)),
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        init_lora_weights=exact,  # pyright: ignore[reportArgumentType]
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(model, lora)
    except ValueError as exc:
        linears = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"lora_target {spec.lora_target!r} does not fit this model: {exc}",
            hint=f"its linear layers are {', '.join(linears)}; or use lora_target: all",
        ) from None
    if spec.pissa_init:
        model.pissa_start = {n: p.detach().float().cpu().clone() for n, p in _lora_weights(model).items()}
    return model


def _lora_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def _unfreeze(model: Any, spec: TrainSpec) -> None:
    layers = decoder_layers(model)
    count = spec.freeze_trainable_layers  # the last ones; below zero, the first
    if count == 0 or abs(count) > len(layers):
        raise ModelError(f"freeze_trainable_layers: {count}, but this model has {len(layers)} layers")
    inside = {name for name, _ in layers[0].named_children()}
    kinds = words(spec.freeze_trainable_modules)
    outside = {
        name.rsplit(".", 1)[-1]: module
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) and not any(part.isdigit() for part in name.split("."))
    }
    extra = words(spec.freeze_extra_modules)
    for key, names, known in (
        ("freeze_trainable_modules", kinds, inside | {"all"}),
        ("freeze_extra_modules", extra, set(outside)),
    ):
        if missing := sorted(set(names) - known):
            raise ModelError(f"{key}: this model has no {', '.join(missing)}", hint=f"choose of {sorted(known)}")
    for layer in layers[-count:] if count > 0 else layers[:-count]:
        for module in [layer] if "all" in kinds else [getattr(layer, name) for name in kinds]:
            module.requires_grad_(True)
    for name in extra:
        outside[name].requires_grad_(True)


class ValueHead(nn.Module):
    """TRL's and LLaMA-Factory's `v_head`: one number from a hidden state. At first it is zero, whatever it sees."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(size, 1)
        nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: Tensor) -> Tensor:  # (N, H) -> (N,), fp32
        with torch.autocast(hidden.device.type, enabled=False):
            return self.summary(hidden.float())[:, 0]


def attach_value_head(model: Any) -> None:
    """Give `model` a value head, as `v_head`."""
    model.v_head = ValueHead(model.config.get_text_config().hidden_size).to(next(model.parameters()).device)


def transformers_model(model: Any) -> Any:
    """The transformers model inside PEFT's, or the model itself."""
    return model.base_model.model if hasattr(model, "peft_config") else model


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers, first to last."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and hasattr(module[0], "self_attn"):
            return list(module)
    return []
