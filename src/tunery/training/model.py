"""The model as it is trained: the base in its compute dtype, what is tuned on it in fp32, kernels chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunery.config import TrainSpec
from tunery.errors import ModelError
from tunery.training.attention import register_attention
from tunery.training.lora import fuse


def build_model(spec: TrainSpec, path: Path, device: str) -> nn.Module:
    """The base of `path` with what `spec` tunes on it. Raises ModelError for impossible targets."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=compute_dtype(spec, device),
        attn_implementation=register_attention(),
        trust_remote_code=spec.trust_remote_code,
    )
    return adapt(model.to(device), spec)


def adapt(model: Any, spec: TrainSpec) -> nn.Module:
    """Put fp32 LoRA weights on `model`, and make it ready to train where it lies."""
    from peft import LoraConfig, get_peft_model

    device = next(model.parameters()).device
    model.config.use_cache = False
    targets = spec.lora_target if isinstance(spec.lora_target, list) else spec.lora_target.split(",")
    targets = [t.strip() for t in targets]
    lora = LoraConfig(
        r=spec.lora_rank or 8,
        lora_alpha=spec.lora_alpha or 16,
        lora_dropout=spec.lora_dropout,
        target_modules="all-linear" if targets == ["all"] else targets,
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
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    fuse(model, fp8=spec.fp8)
    if spec.gradient_checkpointing:
        checkpoint_activations(model)
    if spec.torch_compile if spec.torch_compile is not None else device.type == "cuda":
        compile_layers(model)
    return model.to(device).train()


def transformers_model(model: Any) -> Any:
    """The transformers model inside PEFT's, or the model itself."""
    return model.base_model.model if hasattr(model, "peft_config") else model


def checkpoint_activations(model: Any) -> None:
    """Keep only each layer's input for backward, and compute the rest again: a third more work, far less memory."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


class MemoryPerToken:
    """What forward and backward inside this context needed of a GPU's memory, and what its rest is enough for."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.used = 0

    def __enter__(self) -> MemoryPerToken:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.used = torch.cuda.max_memory_allocated() - self._before

    def tokens_that_fit(self, tokens: int, share: float = 0.85) -> int:
        """How many tokens fit into `share` of the free memory, when the passes here had `tokens`; 512s."""
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        return int(share * free / max(1, self.used / tokens)) // 512 * 512


def compile_layers(model: nn.Module, on: bool = True) -> None:
    """Compile each decoder layer by itself: they share one graph, so that costs a layer's time, not a model's."""
    torch._dynamo.config.recompile_limit = 64  # the sizes of packs, the first layer, checkpointing on and off
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and hasattr(module[0], "self_attn"):
            for layer in module:
                if on:
                    layer.compile(dynamic=False)
                else:
                    layer._compiled_call_impl = None


def compute_dtype(spec: TrainSpec, device: str) -> torch.dtype:
    """What the frozen base computes in. A CPU without bf16 instructions emulates bf16, slower than fp32."""
    if spec.fp16:
        return torch.float16
    if spec.bf16 is not None:
        return torch.bfloat16 if spec.bf16 else torch.float32
    native = not device.startswith("cpu") or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
