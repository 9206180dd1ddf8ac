"""The model as it is trained: the base in its compute dtype, what is tuned on it in fp32, kernels chosen."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunery.config import TrainSpec
from tunery.training.attention import register_attention
from tunery.training.checks import check_device
from tunery.training.lora import fuse
from tunery.training.sharding import shard, wants_shards
from tunery.training.tuning import attach_value_head, decoder_layers, transformers_model, tune
from tunery.versions import VALUE_HEAD

COMPILED_PARAMETERS = 300_000_000  # of smaller models a whole training takes less than compiling their layers


def build_model(spec: TrainSpec, path: Path, device: str) -> nn.Module:
    """The base of `path` with what `spec` tunes on it. Raises ModelError for impossible targets, ConfigError for
    quantization_bit without a GPU."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = _quantized(spec, device) if spec.quantization_bit else {}
    # Weights that are kept as a model keep their bits, and autocast rounds copies; an adapter's base may be rounded.
    dtype = compute_dtype(spec, device) if spec.finetuning_type == "lora" else "auto"
    model: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=register_attention(),
        trust_remote_code=spec.trust_remote_code,
        **options,
    )
    if wants_shards(spec):  # from main memory, so that no GPU ever holds all of it
        model = adapt(model, spec, device)
        shard(model, device)
        return model
    model = model if options else model.to(device)
    if not spec.reward_model:
        return adapt(model, spec)
    judge = _reward_model(model, Path(spec.reward_model))
    model = adapt(model, spec)
    vars(model)["judge"] = judge  # past nn.Module, since it is no part of the model
    return model


def _reward_model(base: Any, folder: Path) -> nn.Module:
    """The reward model in `folder`, on the very weights of `base`, which have to stay as they are."""
    from peft import PeftModel
    from safetensors.torch import load_file

    held = {id(t): t for t in (*base.parameters(), *base.buffers())}
    judge: Any = PeftModel.from_pretrained(copy.deepcopy(base, held), str(folder))
    fuse(judge)
    attach_value_head(judge)
    judge.load_state_dict(load_file(folder / VALUE_HEAD), strict=False)
    return judge.requires_grad_(False).eval()


def _quantized(spec: TrainSpec, device: str) -> dict[str, Any]:
    """QLoRA's settings: 4 bits as NF4, its scales quantised too."""
    from transformers import BitsAndBytesConfig

    check_device(spec, not device.startswith("cpu"))
    config = BitsAndBytesConfig(
        load_in_4bit=spec.quantization_bit == 4,
        load_in_8bit=spec.quantization_bit == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(spec, device),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def adapt(model: Any, spec: TrainSpec, device: str | None = None) -> nn.Module:
    """Choose what of `model` is tuned, and make it ready to train on `device`, by default where it lies."""
    place = next(model.parameters()).device
    kind = (device or place.type).split(":")[0]
    model = tune(model, spec)
    model.config.use_cache = False
    if spec.finetuning_type != "lora" and compute_dtype(spec, kind) == torch.float32:
        model.float()  # nothing casts then, so all of it is of one dtype
    fuse(model, fp8=spec.fp8)
    if spec.gradient_checkpointing:
        checkpoint_activations(model)
    if spec.neftune_noise_alpha:
        add_noise(model, spec.neftune_noise_alpha)
    large = kind == "cuda" and sum(p.numel() for p in model.parameters()) > COMPILED_PARAMETERS
    if large if spec.torch_compile is None else spec.torch_compile:
        compile_layers(model)
        model.enable_input_require_grads()  # or the first layer, whose input has no gradient, is compiled apart
    return (model if spec.quantization_bit else model.to(place)).train()


def checkpoint_activations(model: Any) -> None:
    """Keep only each layer's input for backward, and compute the rest again: a third more work, far less memory."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def add_noise(model: Any, alpha: float) -> None:
    """NEFTune (arXiv:2310.05914): in training, uniform noise up to alpha / sqrt(L d) on the d-wide embeddings of a row
    of L tokens. A pack's rows are told apart by their positions, which restart at 0."""
    inner = transformers_model(model)
    lengths: list[Tensor] = []

    def measure(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        row = (kwargs["position_ids"][0] == 0).cumsum(0) - 1  # (T,)
        lengths[:] = [torch.bincount(row)[row]]

    def disturb(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        if not module.training:
            return out
        size = alpha / (lengths[0] * out.shape[-1]).sqrt()  # (T,)
        return out + (2 * torch.rand_like(out) - 1) * size[:, None].to(out.dtype)

    inner.register_forward_pre_hook(lambda m, a, k: measure(m, a, k) if m.training else None, with_kwargs=True)
    inner.get_input_embeddings().register_forward_hook(disturb)


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

    def tokens_that_fit(self, tokens: int, tuned: int, share: float = 0.85) -> int:
        """How many tokens fit into `share` of the free memory, when the passes here had `tokens`; 512s.

        `tuned` parameters have a gradient, which the passes here had too, and Adam's two moments, which come later.
        """
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] - 12 * tuned
        return int(share * free / max(1, (self.used - 4 * tuned) / tokens)) // 512 * 512


def compile_layers(model: nn.Module, on: bool = True) -> None:
    """Compile each decoder layer by itself: they share one graph, so that costs a layer's time, not a model's."""
    torch._dynamo.config.recompile_limit = 64  # the sizes of packs, checkpointing on and off
    for layer in decoder_layers(model):
        if on:
            layer.compile(dynamic=False)
        else:
            layer._compiled_call_impl = None


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Layers run as they are: passes without gradient are soon done, and would be compiled apart."""
    layers = decoder_layers(model)
    compiled = [layer._compiled_call_impl for layer in layers]
    for layer in layers:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, own in zip(layers, compiled, strict=True):
            layer._compiled_call_impl = own


def compute_dtype(spec: TrainSpec, device: str) -> torch.dtype:
    """What the frozen base computes in. A CPU without bf16 instructions emulates bf16, slower than fp32."""
    if spec.fp16:
        return torch.float16
    if spec.bf16 is not None:
        return torch.bfloat16 if spec.bf16 else torch.float32
    native = not device.startswith("cpu") or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
