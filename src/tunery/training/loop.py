"""The training loop: one process a device, plain PyTorch. It knows nothing of Ray.

The optimizer batch is `batch_rows` rows whatever the number of workers or packs: each worker takes its share of the
rows, sums the loss over its supervised tokens, and divides by the number of such tokens in the whole batch.
"""

from __future__ import annotations

import math
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunery.config import TrainSpec
from tunery.errors import TrainError
from tunery.training.batches import Batches, Packer, epoch_order
from tunery.training.certificate import Certificate, certify
from tunery.training.checkpoint import Files, files_of, read_checkpoint, unpack, write_checkpoint
from tunery.training.model import (
    MemoryPerToken,
    build_model,
    checkpoint_activations,
    compile_layers,
    compute_dtype,
    uncompiled,
)
from tunery.training.objectives import Objective, objective_of, reference_units
from tunery.training.optimizer import build_optimizer, lr_factor
from tunery.training.packing import Pack
from tunery.training.plan import Job, base_of, total_steps
from tunery.training.prefixes import Group
from tunery.training.progress import Clock, Machine
from tunery.training.sharding import in_step, least, share_of, whole
from tunery.training.tuning import transformers_model
from tunery.training.units import Unit
from tunery.training.watching import Answers, Best, lowest_loss, out_of_memory_explained, row_losses

CPU_PACK_TOKENS = 2048  # the padded batch of attention grows with it
GPU_PACK_TOKENS = 1024, 16384  # kernels want it large; how large is measured
CERTIFIED_ROWS = 8


@dataclass
class Hooks:
    """What the loop tells the outside. `log` gets one flat dict a line; `save` a finished checkpoint folder;
    `parity` the certificate, when there is one; `offending` the rows of a batch whose loss is not finite."""

    log: Callable[[dict[str, Any]], None] = lambda row: None
    save: Callable[[Path, int], None] = lambda folder, step: None
    parity: Callable[[Certificate], None] = lambda certificate: None
    offending: Callable[[list[dict[str, Any]]], None] = lambda rows: None
    stopping: Callable[[], bool] = lambda: False
    scratch: Path = field(default_factory=lambda: Path("."))


def fit(
    job: Job, hooks: Hooks, *, rank: int = 0, world: int = 1, device: str = "cpu", model: Any = None
) -> dict[str, Any]:
    """Train; returns the summary that becomes `train_results.json`. The last save is the result.

    `model` is the adapted model (`training.model.adapt`) where the caller has it already.
    """
    spec = job.spec
    torch.manual_seed(spec.seed)
    random.seed(spec.seed)
    if model is None:
        model = build_model(spec, base_of(spec).path, device)
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(model, spec)
    total = total_steps(spec, len(job.units))
    factor = lr_factor(spec, total)
    with out_of_memory_explained(spec):
        packer = _certified(job, model, hooks, device, world)
    objective = objective_of(spec, packer)
    if objective.needs_reference:
        job = _with_reference(job, model, packer, total, (device, rank, world))
    step = read_checkpoint(job.resume_from, model, optimizer, objective.state) if job.resume_from else 0
    batches = Batches(job, packer, rank, world)
    clock, machine = Clock(step, total), Machine(model, device)
    best = Best(spec, job.evaluations)
    answered = Answers(job, rank, world) if job.task and job.eval_units else None
    losses: list[float] = []
    lowest = math.inf
    found: Mapping[str, Any] = {}
    saved = -1

    def save(step: int) -> None:
        hooks.save(write_checkpoint(model, optimizer, objective.state, step, hooks.scratch, rank), step)

    while step < total:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor(step)
        torch.manual_seed(hash((spec.seed, step, rank)))  # so dropout follows from seed and step too
        batch = batches.at(step)
        with out_of_memory_explained(spec), torch.no_grad(), _autocast(spec, device):
            packs = objective.begin(model, batch.packs)
        loss = norm = 0.0
        further: dict[str, float] = {}
        for _ in range(objective.updates):
            with out_of_memory_explained(spec):
                loss, further = _forward_backward(model, objective, packs, device, world, spec)
            norm = _finish_gradients(tuned, spec.max_grad_norm, world)
            if not math.isfinite(loss) or not math.isfinite(norm):
                # The step is not taken, so these weights are good.
                save(step)
                with _autocast(spec, device):
                    rows = row_losses(model, objective, batch.members, spec, world)
                hooks.offending(rows)
                raise TrainError(
                    f"the loss is not finite at step {step + 1} (loss {loss}, gradient norm {norm})",
                    hint="lower learning_rate, or look at these rows: " + ", ".join(row["id"] for row in rows[:8]),
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss)
        clock.count(batch.units, packs)

        epoch = step / batches.per_epoch
        ends_epoch = step % batches.per_epoch == 0 or step == total
        if step % spec.logging_steps == 0 or step == total:
            recent = losses[-spec.logging_steps :]
            mean = {"loss": sum(recent) / len(recent), "lr": optimizer.param_groups[0]["lr"], "grad_norm": norm}
            hooks.log(clock.place(step, epoch) | mean | further | _speed(clock, machine, device, world))
            lowest = lowest_loss(spec, step, mean["loss"], lowest)
        due = spec.eval_strategy == "epoch" and ends_epoch
        due |= spec.eval_strategy == "steps" and step % (spec.eval_steps or spec.logging_steps) == 0
        due = bool(job.eval_units) and (due or (step == total and spec.eval_strategy != "no"))
        improved = False
        if due:
            found = evaluate_loss(model, objective, job, packer, device, rank, world)
            if answered:
                with _autocast(spec, device):
                    found |= answered.score(model)
            improved = best.heard(step, found) and spec.load_best_model_at_end
            hooks.log(clock.place(step, epoch) | found | best.row())
            clock.rest()
        due = improved or (spec.save_strategy == "steps" and step % spec.save_steps == 0)
        due |= spec.save_strategy == "epoch" and ends_epoch
        if due or step == total or best.exhausted or hooks.stopping():
            save(step)
            saved = step
            clock.rest()
        if best.exhausted or (hooks.stopping() and saved == step < total):
            break
    batches.close()
    clock.executed, clock.logical, clock.supervised = map(
        int, _summed([clock.executed, clock.logical, clock.supervised], device, world)
    )
    if spec.load_best_model_at_end:
        found = best.found
    return clock.summary(losses, len(job.units), step / batches.per_epoch) | dict(found) | best.row()


def _speed(clock: Clock, machine: Machine, device: str, world: int) -> dict[str, float]:
    """Rates of all workers together, and what this one's machine says."""
    rows, *own = clock.rates()
    logical, executed = _summed(own, device, world)
    rates = {"samples_per_second": rows, "logical_tokens_per_second": logical, "executed_tokens_per_second": executed}
    return {name: round(value, 2) for name, value in rates.items()} | dict(machine.row(own[1]))


def _certified(job: Job, model: Any, hooks: Hooks, device: str, world: int) -> Packer:
    """The packer of this run: as asked for where the model is shown to be exact with it, else one row at a time.

    On a GPU the same passes show what a token costs in memory, from which the size of packs and, where it was left
    open, gradient checkpointing follow.
    """
    spec = job.spec
    packer = Packer(spec, device, CPU_PACK_TOKENS)
    if spec.packing == "none":
        transformers_model(model).set_attn_implementation("sdpa")
        compile_layers(model, False)  # rows of every length
        return packer
    group = max(job.groups, key=lambda g: len(g.members))
    units = [job.units[i] for i in group.members[:CERTIFIED_ROWS]]
    packer.expect(job.units, job.groups, math.ceil(spec.batch_rows / world))
    packs = [p.to(device) for p in packer.packs(units, [replace(group, members=list(range(len(units))))])]
    model.train(not (spec.lora_dropout or spec.neftune_noise_alpha))  # with chance in them, two passes never agree
    with _autocast(spec, device), MemoryPerToken(device) as memory:
        certificate = certify(model, packs, units, train_on_prompt=spec.train_on_prompt)
    model.train()
    hooks.parity(certificate)
    if not certificate.holds:
        return _certified(replace(job, spec=spec.model_copy(update={"packing": "none"})), model, hooks, device, world)
    if device.startswith("cuda"):
        tuned = sum(p.numel() for p in model.parameters() if p.requires_grad)
        fit = least(memory.tokens_that_fit(sum(p.ids.numel() for p in packs), tuned // share_of(model)), model)
        longest = max(sum(map(len, unit)) for unit in (*job.units, *job.eval_units))
        if spec.gradient_checkpointing is None and fit < max(longest, GPU_PACK_TOKENS[0]):
            checkpoint_activations(model)
            job = replace(job, spec=spec.model_copy(update={"gradient_checkpointing": True}))
            return _certified(job, model, hooks, device, world)
        packer.max_tokens = min(max(fit, GPU_PACK_TOKENS[0]), GPU_PACK_TOKENS[1])
    return packer


@torch.no_grad()
def _with_reference(job: Job, model: nn.Module, packer: Packer, steps: int, where: tuple[str, int, int]) -> Job:
    """The job with its answers' log-probabilities under the model as it is before the first step."""
    device, rank, world = where
    used = set(epoch_order(len(job.units), job.spec.seed)[: steps * job.spec.batch_rows])

    def share(units: Sequence[Unit], groups: Sequence[Group], wanted: set[int]) -> list[Pack]:
        mine = [replace(g, members=[i for i in g.members if i in wanted and i % world == rank]) for g in groups]
        return packer.packs(units, [g for g in mine if g.members])

    model.eval()
    with _autocast(job.spec, device):
        found = [
            reference_units(model, units, share(units, groups, wanted))
            for units, groups, wanted in (
                (job.units, job.groups, used),
                (job.eval_units, job.eval_groups, set(range(len(job.eval_units)))),
            )
        ]
    model.train()
    return replace(job, units=found[0], eval_units=found[1])


@torch.no_grad()
def evaluate_loss(
    model: nn.Module, objective: Objective, job: Job, packer: Packer, device: str, rank: int, world: int
) -> dict[str, float]:
    """`eval_loss` over all of the job's eval units and all workers, and what else the objective reports."""
    model.eval()
    mine = set(range(rank, len(job.eval_units), world))
    groups = [replace(g, members=[i for i in g.members if i in mine]) for g in job.eval_groups]
    sums = dict.fromkeys([f"eval_{name}" for name in ("loss", *objective.reports)], 0.0)
    weight = 0.0
    with _autocast(job.spec, device), uncompiled(model):
        packs = packer.packs(job.eval_units, [g for g in groups if g.members], packer.eval_tokens)
        packs = objective.begin(model, packs)
        for pack in in_step(model, packs):
            loss, further = objective.loss(model, pack.to(device))
            weight += objective.weight(pack)
            for name, value in {"loss": loss.item(), **further}.items():
                sums[f"eval_{name}"] += value
    model.train()
    total, *values = _summed([weight, *(sums[k] for k in sorted(sums))], device, world)
    return {name: value / max(total, 1e-12) for name, value in zip(sorted(sums), values, strict=True)}


def _autocast(spec: TrainSpec, device: str) -> Any:
    dtype = compute_dtype(spec, device)
    return torch.autocast(device.split(":")[0], dtype=dtype, enabled=dtype != torch.float32)


def _summed(values: Sequence[float], device: str, world: int) -> list[float]:
    """Each value summed over all workers."""
    if world == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def _forward_backward(
    model: nn.Module, objective: Objective, packs: Sequence[Pack], device: str, world: int, spec: TrainSpec
) -> tuple[float, dict[str, float]]:
    """Accumulate the gradient of one batch; the batch's loss, and what else the objective reports."""
    (total,) = _summed([sum(objective.weight(p) for p in packs)], device, world)
    summed: Tensor | float = 0.0
    further = dict.fromkeys(objective.reports, 0.0)
    for pack in in_step(model, packs, _autocast(spec, device)):
        with _autocast(spec, device):
            loss, more = objective.loss(model, pack.to(device))
        (loss / max(1.0, total)).backward()
        summed = summed + loss.detach().double()
        further = {name: further[name] + value for name, value in more.items()}
    names = sorted(further)
    sums = _summed([float(summed), *(further[k] for k in names)], device, world)
    loss, *values = (value / max(1.0, total) for value in sums)
    return loss, dict(zip(names, values, strict=True))


def _finish_gradients(tuned: Sequence[nn.Parameter], max_norm: float, world: int) -> float:
    """Sum gradients over workers (the loss is already divided by the global token count) and clip them."""
    for p in tuned:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if world > 1 and not any(isinstance(p, DTensor) for p in tuned):  # FSDP2 has summed them
        flat = torch.cat([p.grad.flatten() for p in tuned if p.grad is not None])
        dist.all_reduce(flat)
        at = 0
        for p in tuned:
            assert p.grad is not None
            p.grad.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()
    return whole(nn.utils.clip_grad_norm_(tuned, max_norm or math.inf)).item()


def work(
    job: Job, files: Files | None, tell: Callable[[dict[str, Any]], None], rank: int, world: int, device: str
) -> None:
    """`fit` as one of `world` workers, from the checkpoint `files` if there is one. Rank 0 `tell`s all that happens:
    log rows, {"parity"}, {"offending": rows}, {"checkpoint": step, "files"} and at last {"summary"}."""

    def leading(event: dict[str, Any]) -> None:
        if rank == 0:
            tell(event)

    def save(folder: Path, step: int) -> None:
        leading({"checkpoint": step, "files": files_of(folder)})
        shutil.rmtree(folder, ignore_errors=True)

    with tempfile.TemporaryDirectory(prefix="tunery-") as scratch:
        if files:
            job = replace(job, resume_from=str(unpack(files, Path(scratch) / "start")))
        if job.reward_model:
            here = str(unpack(job.reward_model, Path(scratch) / "reward"))
            job = replace(job, spec=job.spec.model_copy(update={"reward_model": here}))
        hooks = Hooks(
            log=leading,
            save=save,
            parity=lambda found: leading({"parity": found.as_dict()}),
            offending=lambda rows: leading({"offending": rows}),
            scratch=Path(scratch),
        )
        leading({"summary": fit(job, hooks, rank=rank, world=world, device=device)})
