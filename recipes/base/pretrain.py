"""Pretrains the base model on generated extraction tasks.

    python pretrain.py --tokenizer TOK --out OUT --seconds 420            # one GPU
    torchrun --nproc-per-node 2 pretrain.py ...                           # several; --batch is each one's
    python pretrain.py --tokenizer TOK --out OUT --steps 20 --batch 8     # a smoke run on a CPU

Writes OUT/model (a transformers folder), OUT/log.jsonl and, with --checkpoint, a file to resume from.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Queue
from typing import Any

import generate
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from domain import HELD_OUT
from model import SIZES, Base, block_mask, dense_mask, export, to_hf
from packing import ANSWER, INPUT, INSTRUCTION, Packed, Pool, encode_group
from tokenizer import Encoder
from torch import Tensor

CHUNK = 32  # sequences that a worker packs at a time


class Muon:
    """Momentum orthogonalised by Newton-Schulz steps, for the layers' matrices; equal shapes run as one batch."""

    def __init__(self, params: Sequence[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for p in params:
            shapes.setdefault(tuple(p.shape), []).append(p)
        self.groups = list(shapes.values())
        self.buffers = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum

    @staticmethod
    def orthogonal(g: Tensor) -> Tensor:
        """An approximation of U V^T for each matrix of g [n, rows, columns]."""
        x = g.bfloat16()
        flip = x.shape[1] > x.shape[2]
        x = x.mT if flip else x
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            a = x @ x.mT
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.mT if flip else x

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update at learning rate `lr` (scaled so that it matches AdamW's)."""
        for params, buffer in zip(self.groups, self.buffers, strict=True):
            grad = torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in params]).float()
            buffer.mul_(self.momentum).add_(grad)
            update = self.orthogonal(grad + self.momentum * buffer).float()
            scale = 0.2 * max(update.shape[1:]) ** 0.5
            torch._foreach_mul_(params, 1 - lr * self.weight_decay)  # pyright: ignore[reportPrivateImportUsage]
            updates = list((update * (-lr * scale)).unbind())
            torch._foreach_add_(params, updates)  # pyright: ignore[reportPrivateImportUsage]


class Optimizer:
    """AdamW, or Muon on the layers' matrices with AdamW on the rest, under one learning rate."""

    def __init__(self, model: Base, args: argparse.Namespace, fused: bool) -> None:
        named = [(n, p) for n, p in model.named_parameters()]
        inner = [p for n, p in named if p.dim() == 2 and "layers" in n] if args.optimizer == "muon" else []
        taken = {id(p) for p in inner}
        decay = [p for n, p in named if p.dim() == 2 and id(p) not in taken]
        plain = [p for n, p in named if p.dim() != 2]
        self.muon = Muon(inner, args.lr, args.weight_decay) if inner else None
        self.adam = torch.optim.AdamW(
            [{"params": decay, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=args.lr, betas=(0.9, 0.97), eps=1e-10, fused=fused,
        )  # fmt: skip

    def step(self, lr: float) -> None:
        """One update."""
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        if self.muon is not None:
            self.muon.step(lr)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"adam": self.adam.state_dict(), "muon": self.muon.buffers if self.muon else []}

    def load(self, state: dict[str, Any]) -> None:
        """Back from a checkpoint."""
        self.adam.load_state_dict(state["adam"])
        for mine, theirs in zip(self.muon.buffers if self.muon else [], state["muon"], strict=True):
            mine.copy_(theirs)


def schedule(progress: float, step: int, warmup: int, decay: float) -> float:
    """Learning-rate factor: linear warm-up, flat, then 1 - sqrt over the last `decay` part of the run."""
    if step < warmup:
        return (step + 1) / warmup
    if progress < 1 - decay:
        return 1.0
    return max(0.0, 1.0 - math.sqrt((progress - (1 - decay)) / decay))


class Feeder:
    """Joins chunks into batches on a thread and moves them to the device."""

    def __init__(self, pool: Pool, batch: int, device: str) -> None:
        self.pool, self.batch, self.device = pool, batch, device
        self.queue: Queue[tuple[dict[str, Tensor], int]] = Queue(maxsize=6)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            chunks: list[Packed] = []
            last = 0
            while sum(len(c.ids) for c in chunks) < self.batch:
                number, packed = self.pool.get()
                last = max(last, number)
                chunks.append(packed)
            batch: dict[str, Tensor] = {}
            for name in ("ids", "group", "segment", "position", "target"):
                array = torch.from_numpy(np.concatenate([getattr(c, name) for c in chunks])[: self.batch])
                batch[name] = array.pin_memory() if self.device == "cuda" else array
            self.queue.put((batch, last))

    def get(self) -> tuple[dict[str, Tensor], int]:
        """Integer tensors [batch, length] on the device, and the highest chunk number in them."""
        batch, last = self.queue.get()
        return {
            k: t.to(self.device, non_blocking=True).to(torch.int64 if k in ("ids", "position") else torch.int32)
            for k, t in batch.items()
        }, last


def losses(model: Any, batch: dict[str, Tensor], mask: Any, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss, the answer tokens' mean loss and the number of answer tokens."""
    ids, target = batch["ids"], batch["target"]
    logits = model(ids, batch["position"], mask)[:, :-1]
    follows = (batch["group"][:, 1:] == batch["group"][:, :-1]) & (batch["segment"][:, 1:] == batch["segment"][:, :-1])
    kind = torch.where(follows, target[:, 1:], 0)
    each = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weights[kind.flatten().long()]
    answers = (kind.flatten() == ANSWER).float()
    count = answers.sum()
    # The denominator is the answer tokens' number, so that the prompt's share does not dilute the answers.
    return (each * w).sum() / (count + 1), (each.detach() * answers).sum() / (count + 1), count


def average(model: Base, progress: float) -> Tensor:
    """Averages the gradients over the processes, and returns the average of `progress`."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in grads), grads[0].new_full((1,), progress)])
    dist.all_reduce(flat, dist.ReduceOp.AVG)
    *parts, mean = flat.split([*(g.numel() for g in grads), 1])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return mean


def exact_match(
    model: Base, enc: Encoder, device: str, groups: list[generate.Group], batch: int = 1024
) -> tuple[float, list[tuple[str, str, str]]]:
    """Greedy exact match over all rows of the groups, and the misses as (sentence, wanted, got)."""
    hf = to_hf(model, enc.pad, enc.end).to(device).eval()
    rows: list[tuple[list[int], list[int], str]] = []
    for group in groups:
        prefix, encoded = encode_group(enc, group)
        rows += [
            (prefix + ids[:start], ids[start:-1], text)
            for (ids, start), (text, _) in zip(encoded, group.rows, strict=True)
        ]
    rows = sorted((r for r in rows if len(r[0]) < 900), key=lambda r: len(r[0]))
    hits, misses = 0, []
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        width = max(len(p) for p, _, _ in part)
        ids = torch.tensor([[enc.pad] * (width - len(p)) + p for p, _, _ in part], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _, _ in part], device=device)
        longest = max(len(a) for _, a, _ in part)
        with torch.no_grad():
            out = hf.generate(ids, attention_mask=mask, max_new_tokens=longest + 8, do_sample=False)
        for row, (_, answer, text) in zip(out[:, width:].tolist(), part, strict=True):
            got = row[: row.index(enc.end) + 1] if enc.end in row else row
            hits += got == answer
            if got != answer:
                misses.append((text, enc.tok.decode(answer), enc.tok.decode(got)))
    return hits / max(1, len(rows)), misses


def evaluate(model: Base, enc: Encoder, device: str, rows: int, log: Any) -> None:
    """Exact match on fresh schemas of the training domains and of the held-out ones."""
    for name, held_out in (("seen domains", False), ("held-out domains", True)):
        rng = random.Random(987_654_321)
        groups = [generate.make_group(rng, held_out, HELD_OUT, 4) for _ in range(rows // 4)]
        score, misses = exact_match(model, enc, device, groups)
        log({"eval": name, "rows": rows, "exact_match": round(score, 4)})
        for text, want, got in random.Random(0).sample(misses, min(4, len(misses))):
            print(f"  {text}\n    want {want}\n    got  {got}")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Atomic write."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="7m")
    parser.add_argument("--init", type=Path, help="transformers folder to start from")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0,
        help="length of the run from after the imports (about 10 s), evaluation included",
    )
    parser.add_argument(
        "--eval-seconds", type=float, default=45, help="part of --seconds kept for export and evaluation"
    )
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="sequences a step")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--input-weight", type=float, default=0.12)
    parser.add_argument("--instruction-weight", type=float, default=0.03)
    parser.add_argument("--corpora", type=Path, help="folder of human-written pairs to mix in")
    parser.add_argument("--corpora-share", type=float, default=0.15)
    parser.add_argument("--workers", type=int, default=0, help="default: cores - 2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--eval-rows", type=int, default=1024)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--checkpoint-seconds", type=float, default=300)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    if not args.seconds and not args.steps:
        parser.error("give --seconds or --steps")
    return args


def main() -> None:
    """Train, export, evaluate."""
    began = time.perf_counter()
    args = arguments()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    args.out.mkdir(parents=True, exist_ok=True)
    resume = (
        torch.load(args.checkpoint, map_location="cpu", weights_only=True)
        if args.checkpoint and args.checkpoint.exists()
        else None
    )
    first = resume["chunk"] + 1 if resume else 0
    options = {
        "tokenizer": args.tokenizer, "corpora": args.corpora, "share": args.corpora_share,
        "seed": args.seed + 1000 * rank,
        "sequences": min(CHUNK, args.batch), "length": args.length,
    }  # fmt: skip
    workers = args.workers or max(1, ((os.cpu_count() or 2) - 2 * world) // world)
    pool = Pool(workers, first, options)  # forks: before any CUDA call
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if world > 1:
        torch.cuda.set_device(rank)
        dist.init_process_group("nccl")
    feeder = Feeder(pool, args.batch, device)
    log_file = (args.out / "log.jsonl").open("a", encoding="utf-8")

    def log(entry: dict[str, Any]) -> None:
        if rank:
            return
        line = json.dumps(entry)
        print(line, flush=True)
        log_file.write(line + "\n")
        log_file.flush()

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    model = Base(SIZES[args.size]).to(device)
    if args.init:
        from safetensors.torch import load_file

        model.load_state_dict(
            {k: t.float() for k, t in load_file(args.init / "model.safetensors").items()}, strict=False
        )
    optimizer = Optimizer(model, args, device == "cuda")
    step, spent, tokens = 0, 0.0, 0
    if resume:
        model.load_state_dict(resume["model"])
        optimizer.load(resume["optimizer"])
        step, spent, tokens = resume["step"], resume["spent"], resume["tokens"]
    run = torch.compile(model) if device == "cuda" and not args.no_compile else model
    make_mask: Any = torch.compile(block_mask) if device == "cuda" else dense_mask
    weights = torch.zeros(4, device=device)
    weights[INSTRUCTION], weights[INPUT], weights[ANSWER] = args.instruction_weight, args.input_weight, 1.0
    log(
        {
            "size": args.size,
            "parameters": sum(p.numel() for p in model.parameters()),
            "device": device,
            "processes": world,
            "step": step,
        }
    )

    budget = args.seconds - args.eval_seconds
    started = mark = saved = time.perf_counter()
    mark_tokens, chunk, waited = tokens, first, 0.0
    warm = step
    progress, agreed = 0.0, torch.zeros(1)
    while True:
        now = time.perf_counter()
        if step == warm + 3:  # compiled by now: the clock of the schedule starts here
            started = mark = now
            mark_tokens = tokens
        # Two bounds may be given; the nearer one drives the schedule.
        if args.seconds:
            left = max(1.0, budget - (started - began))
            progress = (now - started + spent) / (left + spent)
        if args.steps:
            progress = max(progress if args.seconds else 0.0, step / args.steps)
        if world == 1 and progress >= 1:
            break
        before = time.perf_counter()
        batch, last = feeder.get()
        waited += time.perf_counter() - before
        chunk = max(chunk, last)
        try:
            mask = make_mask(batch["group"], batch["segment"])
        except Exception as error:
            if make_mask is block_mask or step > warm:
                raise
            log({"mask": "not compiled", "why": str(error)[:200]})
            make_mask = block_mask
            mask = make_mask(batch["group"], batch["segment"])
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, answer_loss, _ = losses(run, batch, mask, weights)
        loss.backward()
        if world > 1:
            # One schedule for all: the clocks' average, as of the step before, which is there without waiting.
            mine, progress = progress, agreed.item()
            agreed = average(model, mine)
            if progress >= 1:
                break
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(args.lr * schedule(progress, step, args.warmup, args.decay))
        model.zero_grad(set_to_none=True)
        step += 1
        tokens += batch["ids"].numel() * world
        if step % args.log_every == 0:
            value, answer = loss.item(), answer_loss.item()
            now = time.perf_counter()
            log({
                "step": step, "loss": round(value, 4), "answer_loss": round(answer, 4), "tokens": tokens,
                "tokens_per_s": round((tokens - mark_tokens) / (now - mark)), "waited": round(waited / (now - mark), 2),
                "progress": round(progress, 3), "seconds": round(now - began, 1),
            })  # fmt: skip
            mark, mark_tokens, waited = now, tokens, 0.0
        if args.checkpoint and rank == 0 and now - saved > args.checkpoint_seconds:
            saved = now
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state(),
                "step": step,
                "chunk": chunk,
                "tokens": tokens,
            }
            save_checkpoint(args.checkpoint, {**state, "spent": spent + now - started})
    pool.close()
    if rank:
        return
    export(model, args.tokenizer, args.out / "model")
    log(
        {
            "exported": str(args.out / "model"),
            "step": step,
            "tokens": tokens,
            "seconds": round(time.perf_counter() - began, 1),
        }
    )
    if args.checkpoint:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state(),
            "step": step,
            "chunk": chunk,
            "tokens": tokens,
        }
        save_checkpoint(args.checkpoint, {**state, "spent": spent + time.perf_counter() - started})
    if args.eval_rows:
        evaluate(model, Encoder(args.tokenizer), device, args.eval_rows, log)
    log({"finished": True, "seconds": round(time.perf_counter() - began, 1)})


if __name__ == "__main__":
    main()
