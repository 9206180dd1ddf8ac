"""LoRA's linear layer in fewer and larger operations: PEFT's parameters, PEFT's result.

PEFT computes `W x + s B A x` as separate modules with casts and elementwise steps between them, each with its own
backward. On small models those cost more than the matrix products. Here forward is three products and backward five,
all in the compute dtype. Under torch.compile the plain formula is left to the compiler.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn


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


class _Float8Linear(torch.autograd.Function):
    """A frozen weight's product and its input's gradient in fp8 (e4m3), a scale for each row and column.

    The weight is kept twice, scaled by output and by input channel, since the two products contract over different
    sides of it: the memory of one bf16 copy. Needs a GPU of compute capability 8.9 or more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, w_scale: Tensor, wt: Tensor, wt_scale: Tensor) -> Tensor:
        # x (T, I), w (O, I) fp8 with w_scale (O, 1), wt (I, O) fp8 with wt_scale (I, 1)
        ctx.save_for_backward(wt, wt_scale)
        return _product(x, w, w_scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wt, wt_scale = ctx.saved_tensors
        return _product(grads[0], wt, wt_scale), None, None, None, None


def _product(x: Tensor, w: Tensor, w_scale: Tensor) -> Tensor:
    x8, x_scale = to_float8(x)
    product: Any = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return product(x8, w.t(), scale_a=x_scale, scale_b=w_scale.t(), out_dtype=x.dtype, use_fast_accum=True)


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> e4m3 values (N, K) and the fp32 scale of each row (N, 1): x is about their product."""
    scale = x.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / torch.finfo(E4M3).max
    return (x / scale).to(E4M3), scale


def fuse(model: nn.Module, *, fp8: bool = False) -> int:
    """Give every plain PEFT LoRA linear of `model` the fused forward; returns how many.

    Layers with dropout, DoRA, a LoRA bias or another base than `nn.Linear` keep PEFT's own. With `fp8` the frozen
    weights of the fused layers are replaced by fp8 ones.
    """
    from peft.tuners.lora import Linear

    count = 0
    for module in model.modules():
        if isinstance(module, Linear) and _plain(module):
            module.forward = _forward_of(module, fp8)
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


def _forward_of(module: Any, fp8: bool) -> Any:
    (name,) = module.active_adapters
    base, a, b, scale = module.base_layer, module.lora_A[name], module.lora_B[name], module.scaling[name]
    dtype = base.weight.dtype
    weights: tuple[Tensor, ...] = ()
    if fp8:
        weights = (*to_float8(base.weight.data), *to_float8(base.weight.data.t().contiguous()))
        base.weight.data = base.weight.data.new_empty(0)  # its memory is wanted

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            low_a, low_b = a.weight.to(dtype), b.weight.to(dtype)
            if weights:
                flat = x.to(dtype).reshape(-1, x.shape[-1])
                out = _Float8Linear.apply(flat, *weights)
                out = out if base.bias is None else out + base.bias
                if not module.disable_adapters:
                    out = torch.addmm(out, flat @ low_a.t(), low_b.t(), alpha=scale)
                return out.view(*x.shape[:-1], -1)
            if module.disable_adapters:  # the model is its own reference
                return F.linear(x.to(dtype), base.weight, base.bias)
            if torch.compiler.is_compiling():
                flat = x.to(dtype)
                return F.linear(flat, base.weight, base.bias) + F.linear(F.linear(flat, low_a), low_b) * scale
            return _LoraLinear.apply(x.to(dtype), base.weight, base.bias, low_a, low_b, scale)

    return forward
