"""What a run learns of itself as it goes: answers to held-out rows, the best evaluation, what went wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tunery.config import TrainSpec, nearest
from tunery.errors import TrainError
from tunery.tasks import score_rows
from tunery.training.checks import GENERATED, metric_name, tracks_best
from tunery.training.objectives import Objective, Supervised
from tunery.training.packing import build_pack
from tunery.training.plan import Job, template_of
from tunery.training.sampling import Sampling, sample
from tunery.training.sharding import in_step, wants_shards
from tunery.training.units import Unit


class Answers:
    """Greedy answers of the model in training to a sample of the eval rows, the same at each evaluation."""

    def __init__(self, job: Job, rank: int, world: int) -> None:
        assert job.task is not None
        self.task, self.rank, self.world = job.task, rank, world
        self.template = template_of(job.spec)
        rows = [unit[0] for unit in job.eval_units if unit[0].prompt and unit[0].target]
        chosen = random.Random(0).sample(rows, min(job.spec.max_predict_samples, len(rows)))
        self.limit = max((len(row.target) for row in chosen), default=0) + 8
        # Sharded weights are gathered by all workers at once: then each answers all rows, in step with the others.
        self.together = wants_shards(job.spec)
        share = chosen if self.together else chosen[rank::world]
        self.mine = sorted(share, key=lambda row: len(row.prompt))

    def score(self, model: Any) -> dict[str, float]:
        """`eval_` and each of GENERATED over the rows of all workers, and how many rows that were."""
        said = sample(model, [row.prompt for row in self.mine], Sampling(self.template.stop_ids, self.limit))
        decode = self.template.decode
        pairs = [(decode(ids), decode(row.target)) for ids, row in zip(said, self.mine, strict=True)]
        if not self.together:
            pairs = gathered(pairs, self.world)
        if not pairs:
            return {}
        metrics, _ = score_rows(self.task, pairs)
        found = {f"eval_{k}": m.value for k in GENERATED if (m := metrics.get(k)) and m.value is not None}
        return {**found, "eval_predict_samples": len(pairs)}


class Best:
    """Which evaluation was the best so far, and for how many there was no better one: transformers' rules.

    `evaluations` are the log rows of a run that is resumed.
    """

    def __init__(self, spec: TrainSpec, evaluations: Sequence[Mapping[str, Any]] = ()) -> None:
        self.spec = spec
        self.name = metric_name(spec)
        greater = spec.greater_is_better
        self.sign = 1 if (greater if greater is not None else not self.name.endswith("loss")) else -1
        self.value: float | None = None
        self.step: int | None = None
        self.found: Mapping[str, Any] = {}
        self.waited = 0
        for row in evaluations:
            self.heard(row["current_steps"], {k: v for k, v in row.items() if k.startswith("eval_")})

    def heard(self, step: int, found: Mapping[str, Any]) -> bool:
        """Take in an evaluation; whether it is the best so far. Raises TrainError when it lacks the metric."""
        value = found.get(self.name)
        if value is None:
            there = [k.removeprefix("eval_") for k in found]
            near = nearest(self.name.removeprefix("eval_"), there)
            raise TrainError(
                f'the evaluations of this run have no "{self.name}"',
                hint=f"set metric_for_best_model to {near or ' or '.join(there)}",
            )
        gain = math.inf if self.value is None else self.sign * (value - self.value)
        gain = gain if math.isfinite(value) else -math.inf
        self.waited = 0 if gain > self.spec.early_stopping_threshold else self.waited + 1
        if gain > 0:
            self.value, self.step, self.found = value, step, dict(found)
        return gain > 0

    @property
    def exhausted(self) -> bool:
        """Whether it is time for an early stop."""
        patience = self.spec.early_stopping_patience
        return patience is not None and self.waited >= patience

    def row(self) -> dict[str, Any]:
        """For the log, in the words of transformers' trainer_state.json; nothing where nobody asked."""
        return {"best_global_step": self.step, "best_metric": self.value} if tracks_best(self.spec) else {}


def lowest_loss(spec: TrainSpec, step: int, loss: float, lowest: float) -> float:
    """The lowest logged loss so far. Raises TrainError where `loss` has left it by more than `max_loss_ratio`."""
    if spec.max_loss_ratio and loss > spec.max_loss_ratio * lowest:
        raise TrainError(
            f"the loss rose to {loss:.4g} at step {step}, from {lowest:.4g}: more than max_loss_ratio allows",
            hint="lower learning_rate, or add warmup_ratio",
        )
    return min(loss, lowest)


@torch.no_grad()
def row_losses(
    model: nn.Module, objective: Objective, units: Sequence[Unit], spec: TrainSpec, world: int
) -> list[dict[str, Any]]:
    """The rows of a batch, over all workers, each with its unit's own loss: None, and first, where not finite.

    Of GRPO and PPO, whose sampled answers are gone by now, each row has the loss of its written one.
    """
    found: list[dict[str, Any]] = []
    if spec.samples:
        objective = Supervised()
    device = next(model.parameters()).device
    packs = [build_pack([unit], 0, train_on_prompt=spec.train_on_prompt) for unit in units]
    rows = iter(units)
    for pack in in_step(model, packs):
        loss = objective.loss(model, pack.to(device))[0].item() / max(1.0, objective.weight(pack))
        finite = round(loss, 6) if math.isfinite(loss) else None
        found += [{"id": r.id, "loss": finite, "prompt_ids": r.prompt, "target_ids": r.target} for r in next(rows)]
    return sorted(gathered(found, world), key=lambda row: (row["loss"] is not None, -(row["loss"] or 0)))


def gathered(values: list[Any], world: int) -> list[Any]:
    """The lists of all workers as one, the same on each."""
    if world == 1:
        return values
    everyone: list[list[Any]] = [[] for _ in range(world)]
    dist.all_gather_object(everyone, values)
    return [value for one in everyone for value in one]


@contextmanager
def out_of_memory_explained(spec: TrainSpec) -> Iterator[None]:
    """Turn PyTorch's error for a lack of memory into a TrainError that names the setting to change."""
    try:
        yield
    except RuntimeError as exc:  # of which torch.OutOfMemoryError, the GPU's, is one
        if not isinstance(exc, torch.OutOfMemoryError) and "can't allocate memory" not in str(exc):
            raise
        where = "GPU" if isinstance(exc, torch.OutOfMemoryError) else "machine"
        less = [] if spec.gradient_checkpointing else ["gradient_checkpointing: true"]
        if spec.batch_rows > 1 and spec.packing != "none":
            less.append("packing: none (one row at a time)")
        less.append(f"a cutoff_len below {spec.cutoff_len}" if spec.cutoff_len else "a lower cutoff_len")
        raise TrainError(
            f"the {where}'s memory is not enough: {str(exc).splitlines()[0][:200]}",
            hint=f"set {', then '.join(less)}; or take a smaller base",
        ) from None
