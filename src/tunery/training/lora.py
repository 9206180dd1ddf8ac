"""LoRA's linear layer as one autograd function: PEFT's parameters, PEFT's result, fewer and larger operations.

PEFT computes `W x + s B A x` as separate modules with casts and elementwise steps between them, each with its own
backward. On small models those cost more than the matrix products. Here forward is three products and backward five,
all in the compute dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        # x (..., I), weight (O, I), a (R, I), b (O, R), all of one dtype
        flat = x.reshape(-1, x.shape[-1])
        hidden = flat @ a.t()
        out = F.linear(flat, weight, bias).addmm_(hidden, b.t(), alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, hidden)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, a, b, hidden = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        inner = (grad @ b).mul_(ctx.scale)  # (T, R)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(inner, a).view(*grads[0].shape[:-1], -1)
        return grad_x, None, None, inner.t() @ flat, (grad.t() @ hidden).mul_(ctx.scale), None


def fuse(model: nn.Module) -> int:
    """Give every plain PEFT LoRA linear of `model` the fused forward; returns how many.

    Layers with dropout, DoRA, a LoRA bias or another base than `nn.Linear` keep PEFT's own.
    """
    from peft.tuners.lora import Linear

    count = 0
    for module in model.modules():
        if isinstance(module, Linear) and _plain(module):
            module.forward = _forward_of(module)
            count += 1
    return count


def _plain(module: Any) -> bool:
    (name, *others) = module.active_adapters
    return (
        not others
        and type(module.base_layer) is nn.Linear
        and isinstance(module.lora_dropout[name], nn.Identity)
        and not module.use_dora.get(name)
        and not module.lora_bias.get(name)
        and module.lora_A[name].weight.dtype in (torch.float32, module.base_layer.weight.dtype)
    )


def _forward_of(module: Any) -> Any:
    (name,) = module.active_adapters
    base, a, b, scale = module.base_layer, module.lora_A[name], module.lora_B[name], module.scaling[name]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = base.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            return _LoraLinear.apply(x.to(dtype), base.weight, base.bias, a.weight.to(dtype), b.weight.to(dtype), scale)

    return forward
