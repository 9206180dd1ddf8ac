"""The parity certificate: before a run packs its rows, it shows that packing changes nothing for this model.

Loss and gradients of a few real rows, packed with the attention that training will use, are compared with the same
rows one by one under transformers' own attention. A model that ignores the mask, slides a window, or keeps a state
along the sequence does not pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunery.training.attention import ATTENTION
from tunery.training.objectives import Supervised
from tunery.training.packing import Pack, build_pack
from tunery.training.sharding import like, whole
from tunery.training.tuning import transformers_model
from tunery.training.units import Unit

# What rounding explains in any case: packed and unpacked sums run in another order, in another kernel.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 1e-2}
_MOST = 100_000_000  # gradient elements that are compared; of more, every n-th parameter


@dataclass(frozen=True)
class Certificate:
    """Relative differences of packed from unpacked: of the summed loss, and of the gradients as one vector.

    `noise` is the difference of the gradients between two attention kernels of transformers over the same unpacked
    rows: what the model's own precision leaves open.
    """

    rows: int
    packed_tokens: int
    unpacked_tokens: int
    loss_error: float
    gradient_error: float
    noise: float
    tolerance: float
    dtype: str

    @property
    def holds(self) -> bool:
        """Whether the loss lies within the tolerance, and the gradients do or differ like noise (NaN does not)."""
        return self.loss_error <= self.tolerance and self.gradient_error <= max(self.tolerance, 2 * self.noise)

    def as_dict(self) -> dict[str, Any]:
        """For parity.json."""
        return asdict(self) | {"holds": self.holds}


def certify(model: Any, packs: Sequence[Pack], units: Sequence[Unit], *, train_on_prompt: bool = False) -> Certificate:
    """Compare `packs` with their `units` unpacked, on the model's device. Weights and gradients stay as they were."""
    device = packs[0].ids.device
    dtype = next((p.dtype for p in model.parameters() if not p.requires_grad), torch.float32)
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    tuned = [p for p in model.parameters() if p.requires_grad]
    compared = tuned[:: 1 + sum(p.numel() for p in tuned) // _MOST]
    # LoRA's B starts at zero, and with it A's gradient: a comparison of zeros would show nothing.
    started = [(p, p.detach().clone()) for name, p in model.named_parameters() if "lora_B" in name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p, _ in started:
            p.add_(like(torch.randn(p.shape, generator=generator) * 0.02, p))
    inner = transformers_model(model)
    alone = [build_pack([(row,)], 0, train_on_prompt=train_on_prompt).to(device) for unit in units for row in unit]
    try:
        loss, gradient = _loss_and_gradient(model, packs, compared)
        with torch.compiler.set_stance("force_eager"):
            inner.set_attn_implementation("sdpa")
            true_loss, true_gradient = _loss_and_gradient(model, alone, compared)
            inner.set_attn_implementation("eager")
            _, other_gradient = _loss_and_gradient(model, alone, compared)
    finally:
        inner.set_attn_implementation(ATTENTION)
        with torch.no_grad():
            for p, old in started:
                p.copy_(old)
        model.zero_grad(set_to_none=True)
    return Certificate(
        rows=len(alone),
        packed_tokens=sum(int((p.unit >= 0).sum()) for p in packs),
        unpacked_tokens=sum(p.ids.numel() for p in alone),
        loss_error=abs(loss - true_loss) / max(abs(true_loss), 1e-12),
        gradient_error=_difference(gradient, true_gradient),
        noise=_difference(other_gradient, true_gradient),
        tolerance=TOLERANCE.get(dtype, 1e-2),
        dtype=str(dtype).removeprefix("torch."),
    )


def _difference(found: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """|found - true| / |true|, all tensors taken as one vector."""
    off = sum((a - b).square().sum().item() for a, b in zip(found, true, strict=True))
    return (off / max(sum(b.square().sum().item() for b in true), 1e-24)) ** 0.5


def _loss_and_gradient(
    model: nn.Module, packs: Iterable[Pack], compared: Sequence[nn.Parameter]
) -> tuple[float, list[Tensor]]:
    model.zero_grad(set_to_none=True)
    total = 0.0
    for pack in packs:
        loss, _ = Supervised().loss(model, pack)
        loss.backward()
        total += loss.item()
    return total, [
        torch.zeros(p.shape, device=p.device) if p.grad is None else whole(p.grad).float().clone() for p in compared
    ]
