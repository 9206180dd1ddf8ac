"""What a run reports of itself: rows a second, tokens, time left, with LLaMA-Factory's names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tunery.training.packing import Pack


class Clock:
    """Counts a worker's steps from `step` to `total`."""

    def __init__(self, step: int, total: int) -> None:
        self.first, self.total = step, total
        self.began = time.monotonic()
        self.rows = self.executed = self.logical = self.supervised = 0
        self.window: list[tuple[float, int]] = [(self.began, 0)]

    def count(self, rows: int, packs: Sequence[Pack]) -> None:
        """`rows` of the whole batch; this worker's `packs`."""
        self.rows += rows
        self.executed += sum(p.ids.numel() for p in packs)
        self.logical += sum(p.logical_tokens for p in packs)
        self.supervised += sum(len(p.labels) for p in packs)
        self.window = [*self.window[-50:], (time.monotonic(), self.rows)]

    def row(self, step: int, epoch: float) -> dict[str, Any]:
        """The part of a log row that the clock knows."""
        spent = time.monotonic() - self.began
        (t0, r0), (t1, r1) = self.window[0], self.window[-1]
        left = spent / max(1, step - self.first) * (self.total - step)
        return {
            "current_steps": step,
            "total_steps": self.total,
            "epoch": round(epoch, 4),
            "percentage": round(100 * step / self.total, 2),
            "samples_per_second": round((r1 - r0) / max(1e-9, t1 - t0), 2),
            "elapsed_time": round(spent, 1),
            "remaining_time": round(left, 1),
        }

    def summary(self, losses: Sequence[float], eval_loss: float | None, rows: int, epoch: float) -> dict[str, Any]:
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
            **({"eval_loss": eval_loss} if eval_loss is not None else {}),
        }
