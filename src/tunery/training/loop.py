"""The training loop: LoRA on packs, one process a device, plain PyTorch. It knows nothing of Ray.

The optimizer batch is `batch_rows` rows whatever the number of workers or packs: each worker takes its share of the
rows, sums the loss over its supervised tokens, and divides by the number of such tokens in the whole batch.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tunery.bases import find_base
from tunery.config import TrainSpec
from tunery.data.augment import Swapper
from tunery.data.template import Row, Template
from tunery.errors import ModelError, TrainError
from tunery.training.lora import fuse
from tunery.training.packing import Pack, make_packs, register_attention
from tunery.types import Example

STATE_FILE = "trainer_state.pt"
# Tokens a pack: on CPU the padded attention batch grows with it, on GPU kernels want it large.
PACK_TOKENS = {"cpu": 2048, "cuda": 4096}


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; picklable. `train` are examples because augmentation works on text."""

    spec: TrainSpec  # resolved
    train: Sequence[Example]
    rows: Sequence[Row]  # `train`, encoded
    eval_rows: Sequence[Row]
    prefix: int  # length of the common beginning of all prompts
    resume_from: str | None = None


@dataclass
class Hooks:
    """What the loop tells the outside. `log` gets one flat dict a line; `save` a finished checkpoint folder."""

    log: Callable[[dict[str, Any]], None] = lambda row: None
    save: Callable[[Path, int], None] = lambda folder, step: None
    stopping: Callable[[], bool] = lambda: False
    scratch: Path = field(default_factory=lambda: Path("."))


def total_steps(spec: TrainSpec, rows: int) -> int:
    """Optimizer steps of a resolved spec over `rows` rows."""
    if spec.max_steps and spec.max_steps > 0:
        return spec.max_steps
    return math.ceil(math.ceil(rows / spec.batch_rows) * (spec.num_train_epochs or 1))


def lr_factor(spec: TrainSpec, step: int, total: int) -> float:
    """Share of the peak learning rate at `step` (0-based), as transformers' schedulers have it."""
    warmup = spec.warmup_steps or math.ceil(spec.warmup_ratio * total)
    if step < warmup:
        return step / max(1, warmup)
    done = (step - warmup) / max(1, total - warmup)
    if spec.lr_scheduler_type == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if spec.lr_scheduler_type == "linear" else 1.0


def fit(job: Job, hooks: Hooks, *, rank: int = 0, world: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Train; returns the summary that becomes `train_results.json`. The last save is the final adapter."""
    spec = job.spec
    torch.manual_seed(spec.seed)
    random.seed(spec.seed)
    base = find_base(spec.model_name_or_path)
    model = build_model(spec, base.path, device)
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        tuned,
        lr=spec.learning_rate or 1e-4,
        betas=(spec.adam_beta1, spec.adam_beta2 or 0.999),
        eps=spec.adam_epsilon,
        weight_decay=spec.weight_decay,
        fused=True,
    )
    total = total_steps(spec, len(job.rows))
    step = _resume(job.resume_from, model, optimizer) if job.resume_from else 0
    batches = Batches(job, rank, world)
    clock = _Clock(step, total)
    per_epoch = math.ceil(len(job.rows) / spec.batch_rows)
    losses: list[float] = []
    eval_loss: float | None = None
    saved = -1

    while step < total:
        for group in optimizer.param_groups:
            group["lr"] = (spec.learning_rate or 1e-4) * lr_factor(spec, step, total)
        packs, rows = batches.at(step)
        loss, tokens = _forward_backward(model, packs, device, world)
        norm = _finish_gradients(tuned, spec.max_grad_norm, world)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainError(
                f"the loss is not finite at step {step + 1} (loss {loss}, gradient norm {norm})",
                hint="lower learning_rate, or look at these rows: " + ", ".join(rows[:8]),
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss)
        clock.count(batches.global_rows(step - 1), sum(p.ids.numel() for p in packs), tokens)

        ends_epoch = step % per_epoch == 0 or step == total
        if step % spec.logging_steps == 0 or step == total:
            recent = losses[-spec.logging_steps :]
            hooks.log(
                clock.row(step, step / per_epoch)
                | {
                    "loss": sum(recent) / len(recent),
                    "lr": optimizer.param_groups[0]["lr"],
                    "grad_norm": norm,
                }
            )
        due = spec.eval_strategy == "epoch" and ends_epoch
        due |= spec.eval_strategy == "steps" and step % (spec.eval_steps or spec.logging_steps) == 0
        if job.eval_rows and (due or (step == total and spec.eval_strategy != "no")):
            eval_loss = evaluate_loss(model, job.eval_rows, job.prefix, device, rank, world)
            hooks.log(
                {
                    "current_steps": step,
                    "total_steps": total,
                    "eval_loss": eval_loss,
                    "epoch": step / per_epoch,
                }
            )
        due = spec.save_strategy == "steps" and step % spec.save_steps == 0
        due |= spec.save_strategy == "epoch" and ends_epoch
        if due or step == total or hooks.stopping():
            hooks.save(_checkpoint(model, optimizer, step, hooks.scratch, rank), step)
            saved = step
        if hooks.stopping() and saved == step < total:
            break
    return clock.summary(losses, eval_loss, len(job.rows), step / per_epoch)


def build_model(spec: TrainSpec, path: Path, device: str) -> nn.Module:
    """The base in its compute dtype with fp32 LoRA weights on it. Raises ModelError for impossible targets."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    low = compute_dtype(spec, device)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=low, attn_implementation=register_attention(), trust_remote_code=spec.trust_remote_code
    )
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
    fuse(model)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.to(device).train()


def compute_dtype(spec: TrainSpec, device: str) -> torch.dtype:
    """What the frozen base computes in. A CPU without bf16 instructions emulates bf16, slower than fp32."""
    if spec.fp16:
        return torch.float16
    if spec.bf16 is not None:
        return torch.bfloat16 if spec.bf16 else torch.float32
    native = not device.startswith("cpu") or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def supervised_loss(model: nn.Module, pack: Pack) -> Tensor:
    """Summed cross-entropy over the supervised tokens of one pack (a scalar, fp32)."""
    logits = model(
        input_ids=pack.ids,
        position_ids=pack.positions,
        shape=pack.shape,
        logits_to_keep=pack.keep,
        use_cache=False,
    ).logits  # (1, K, V)
    return F.cross_entropy(logits[0].float(), pack.labels, reduction="sum")


@torch.no_grad()
def evaluate_loss(model: nn.Module, rows: Sequence[Row], prefix: int, device: str, rank: int, world: int) -> float:
    """Mean loss over the supervised tokens of all `rows`, over all workers."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with _autocast(model, device):
        for pack in make_packs(rows[rank::world], prefix, PACK_TOKENS[device.split(":")[0]]):
            sums += torch.tensor([supervised_loss(model, pack.to(device)).item(), len(pack.labels)])
    model.train()
    if world > 1:
        sums = sums.to(device)
        dist.all_reduce(sums)
    return (sums[0] / sums[1].clamp(min=1)).item()


class Batches:
    """The rows of every step, a pure function of (seed, step): nothing to save, and any worker can skip ahead."""

    def __init__(self, job: Job, rank: int, world: int) -> None:
        self.job, self.rank, self.world = job, rank, world
        self.size = job.spec.batch_rows
        self.per_epoch = math.ceil(len(job.rows) / self.size)
        self._epoch: tuple[int, list[int]] | None = None
        self._swap: tuple[Swapper, Template] | None = None
        if job.spec.entity_swap:
            from tunery.bases import load_tokenizer

            tokenizer = load_tokenizer(find_base(job.spec.model_name_or_path))
            self._swap = Swapper(job.train), Template(job.spec.template or "auto", tokenizer)

    def _indices(self, step: int) -> list[int]:
        epoch, at = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.job.spec.seed + epoch)
            self._epoch = epoch, torch.randperm(len(self.job.rows), generator=generator).tolist()
        return self._epoch[1][at * self.size : (at + 1) * self.size]

    def global_rows(self, step: int) -> int:
        return len(self._indices(step))

    def at(self, step: int) -> tuple[list[Pack], list[str]]:
        """This worker's packs of `step`, and the ids of their rows."""
        mine = self._indices(step)[self.rank :: self.world]
        rows = [self.job.rows[i] for i in mine]
        if self._swap:
            swapper, template = self._swap
            rng = random.Random(f"{self.job.spec.seed}/{step}/{self.rank}")
            rows = template.rows([swapper.swap(self.job.train[i], rng, self.job.spec.entity_swap) for i in mine])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        spec = self.job.spec
        if spec.packing == "none":
            packs = [p for row in rows for p in make_packs([row], 0, 0, train_on_prompt=spec.train_on_prompt)]
        else:
            rows.sort(key=len)
            packs = list(make_packs(rows, self.job.prefix, PACK_TOKENS[device], train_on_prompt=spec.train_on_prompt))
        return packs, [r.id for r in rows]


def _autocast(model: nn.Module, device: str) -> Any:
    dtype = next(p.dtype for p in model.parameters() if not p.requires_grad)
    return torch.autocast(device.split(":")[0], dtype=dtype, enabled=dtype != torch.float32)


def _forward_backward(model: nn.Module, packs: Sequence[Pack], device: str, world: int) -> tuple[float, int]:
    count = torch.tensor([sum(len(p.labels) for p in packs)], dtype=torch.float64)
    if world > 1:
        count = count.to(device)
        dist.all_reduce(count)
    total = max(1.0, count.item())
    summed = torch.zeros(1, dtype=torch.float64, device=device)
    for pack in packs:
        with _autocast(model, device):
            loss = supervised_loss(model, pack.to(device)) / total
        loss.backward()
        summed += loss.detach()
    if world > 1:
        dist.all_reduce(summed)
    return summed.item(), int(total)


def _finish_gradients(tuned: Sequence[nn.Parameter], max_norm: float, world: int) -> float:
    """Sum gradients over workers (the loss is already divided by the global token count) and clip them."""
    for p in tuned:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if world > 1:
        flat = torch.cat([p.grad.flatten() for p in tuned if p.grad is not None])
        dist.all_reduce(flat)
        at = 0
        for p in tuned:
            assert p.grad is not None
            p.grad.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()
    return nn.utils.clip_grad_norm_(tuned, max_norm or math.inf).item()


def _checkpoint(model: Any, optimizer: torch.optim.Optimizer, step: int, scratch: Path, rank: int) -> Path:
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        model.save_pretrained(folder)
        state = {"step": step, "optimizer": optimizer.state_dict(), "torch_rng": torch.get_rng_state()}
        torch.save(state, folder / STATE_FILE)
    return folder


def _resume(folder: str, model: Any, optimizer: torch.optim.Optimizer) -> int:
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        state = torch.load(Path(folder) / STATE_FILE, weights_only=True)
        set_peft_model_state_dict(model, load_peft_weights(folder, device="cpu"))
        optimizer.load_state_dict(state["optimizer"])
    except (OSError, KeyError, ValueError, RuntimeError) as exc:
        raise TrainError(f'cannot resume from "{folder}": {exc}', hint="start anew with --restart") from None
    torch.set_rng_state(state["torch_rng"])
    return state["step"]


class _Clock:
    def __init__(self, step: int, total: int) -> None:
        self.first, self.total = step, total
        self.began = time.monotonic()
        self.rows = self.executed = self.supervised = 0
        self.window: list[tuple[float, int]] = [(self.began, 0)]

    def count(self, rows: int, executed: int, supervised: int) -> None:
        self.rows += rows
        self.executed += executed
        self.supervised += supervised
        self.window = [*self.window[-50:], (time.monotonic(), self.rows)]

    def row(self, step: int, epoch: float) -> dict[str, Any]:
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
        spent = time.monotonic() - self.began
        return {
            "epoch": round(epoch, 4),
            "train_loss": sum(losses) / max(1, len(losses)),
            "train_runtime": round(spent, 2),
            "train_samples_per_second": round(self.rows / max(1e-9, spent), 3),
            "train_steps_per_second": round(len(losses) / max(1e-9, spent), 3),
            "executed_tokens": self.executed,
            "supervised_tokens": self.supervised,
            "train_rows": rows,
            **({"eval_loss": eval_loss} if eval_loss is not None else {}),
        }
