"""What a run reports of itself: rows and tokens a second, memory, GPU, time left, with LLaMA-Factory's names."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil
import torch
from torch import nn

from tunery.training.packing import Pack

# Dense bf16 FLOP/s of NVIDIA's data sheets, without sparsity; fp16 where a card has no bf16. The first match counts.
PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "V100": 125e12,
}  # fmt: skip


class Clock:
    """Counts a worker's steps from `step` to `total`."""

    def __init__(self, step: int, total: int) -> None:
        self.first, self.total = step, total
        self.began = time.monotonic()
        self.rows = self.executed = self.logical = self.supervised = 0
        self.window: list[tuple[float, int, int, int]] = []
        self.rest()

    def count(self, rows: int, packs: Sequence[Pack]) -> None:
        """`rows` of the whole batch; this worker's `packs`."""
        self.rows += rows
        self.executed += sum(p.ids.numel() for p in packs)
        self.logical += sum(p.logical_tokens for p in packs)
        self.supervised += sum(len(p.labels) for p in packs)
        self.window = [*self.window[-50:], self._now()]

    def rest(self) -> None:
        """What has passed since the last step was no training: rates are taken from here on."""
        self.window = [self._now()]

    def _now(self) -> tuple[float, int, int, int]:
        return time.monotonic(), self.rows, self.logical, self.executed

    def place(self, step: int, epoch: float) -> dict[str, Any]:
        """Where the run is, and how long it has to go; seconds."""
        spent = time.monotonic() - self.began
        left = spent / max(1, step - self.first) * (self.total - step)
        return {
            "current_steps": step,
            "total_steps": self.total,
            "epoch": round(epoch, 4),
            "percentage": round(100 * step / self.total, 2),
            "elapsed_time": round(spent, 1),
            "remaining_time": round(left, 1),
        }

    def rates(self) -> tuple[float, float, float]:
        """Rows a second of the whole batch; this worker's logical and executed tokens a second."""
        (began, *before), (now, *after) = self.window[0], self.window[-1]
        rows, logical, executed = ((b - a) / max(1e-9, now - began) for a, b in zip(before, after, strict=True))
        return rows, logical, executed

    def summary(self, losses: Sequence[float], rows: int, epoch: float) -> dict[str, Any]:
        """train_results.json."""
        spent = time.monotonic() - self.began
        return {
            "epoch": round(epoch, 4),
            "train_loss": sum(losses) / max(1, len(losses)),
            "train_runtime": round(spent, 2),
            "train_samples_per_second": round(self.rows / max(1e-9, spent), 3),
            "train_steps_per_second": round(len(losses) / max(1e-9, spent), 3),
            "executed_tokens": self.executed,
            "logical_tokens": self.logical,
            "supervised_tokens": self.supervised,
            "train_rows": rows,
        }


class Machine:
    """What the worker's machine says of the training on it."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.process = psutil.Process()
        self.flops = flops_per_token(model)
        name = torch.cuda.get_device_name() if self.cuda else ""
        self.peak = next((peak for card, peak in PEAK_FLOPS.items() if card in name), None)

    def row(self, executed_per_second: float) -> Mapping[str, float]:
        """`memory_rss` and `vram_allocated` (its peak) in GiB, `gpu_utilization` in percent, `mfu` as a share.

        MFU (PaLM, arXiv:2204.02311, appendix B) is the FLOP/s that the model's linear layers need for this worker's
        executed tokens, divided by the card's peak. Attention, the output head and recomputed activations are left
        out, so it is a lower bound. A card of unknown peak has none.
        """
        found = {"memory_rss": self.process.memory_info().rss / 2**30}
        if self.cuda:
            found["vram_allocated"] = torch.cuda.max_memory_allocated() / 2**30
            with suppress(ModuleNotFoundError, RuntimeError):  # nvidia-ml-py is not there, or the driver does not tell
                found["gpu_utilization"] = torch.cuda.utilization()
            if self.peak:
                found["mfu"] = executed_per_second * self.flops / self.peak
        return {name: round(value, 3) for name, value in found.items()}


def flops_per_token(model: Any) -> int:
    """FLOPs of a token's forward and backward pass through all linear layers but the output head.

    A weight costs 2 forward, 2 for its input's gradient, and 2 for its own where it is tuned. Sizes come from the
    layers, not from their tensors, which quantised and fp8 layers keep in another shape.
    """
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return sum(m.in_features * m.out_features * (6 if m.weight.requires_grad else 4) for m in layers)
