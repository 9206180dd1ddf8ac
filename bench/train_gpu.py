"""Fine-tuning a 7B on one GPU: the product's own loop beside Hugging Face's Trainer, in one run, samples/s and ratios.

    python bench/train_gpu.py [--lengths FILE] [--model qwen2.5-7b|small] [--minutes 8] [--only NAME ...]

Weights and tokens are random, lengths are real: `--lengths` is JSON with P (tokens every row begins with), I and O
(each row's further prompt and answer tokens); by default, lengths drawn like ViGGO's. LoRA of rank 8 on all linears,
bf16. Runs without Ray, on torch, transformers and peft alone; optimizer batches have about as many rows everywhere.

Under `torchrun --nproc-per-node N` it measures ours on N GPUs, each with all weights or with a share of them (`fsdp`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from tunery.config import TrainSpec, resolve_train
from tunery.data.template import Row
from tunery.training.attention import register_attention
from tunery.training.batches import single
from tunery.training.loop import Hooks, fit
from tunery.training.model import adapt
from tunery.training.plan import Job
from tunery.training.prefixes import prefix_groups
from tunery.training.sharding import shard, wants_shards

MODELS: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
    "qwen2.5-3b": {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "small": {
        "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
WARM = 4  # optimizer steps before the clock starts: kernels are compiled in them


def rows_of(lengths: dict[str, Any], vocabulary: int, seed: int = 0) -> list[Row]:
    """Rows of random tokens with the given lengths."""
    rng = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [rng.randrange(10, vocabulary - 100) for _ in range(n)]

    prefix = ids(lengths["P"])
    sizes = list(zip(lengths["I"], lengths["O"], strict=True))
    rng.shuffle(sizes)
    return [Row(str(i), prefix + ids(a), ids(b)) for i, (a, b) in enumerate(sizes)]


def drawn_lengths(n: int = 5103, seed: int = 0) -> dict[str, Any]:
    """Like ViGGO's under Qwen's tokenizer: 148 shared tokens, 31 of input and 34 of output on average."""
    rng = random.Random(seed)
    return {
        "P": 148,
        "I": [max(6, round(rng.gauss(31, 10))) for _ in range(n)],
        "O": [max(8, round(rng.gauss(34, 12))) for _ in range(n)],
    }


def build(config: dict[str, Any], attention: str) -> Any:
    """A random Qwen2 in bf16 on the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    shape = Qwen2Config(**config)
    shape._attn_implementation = attention
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(shape)
    torch.set_default_dtype(torch.float32)
    return model


class Watch:
    """Rows a second after the first `WARM` optimizer steps, and the most memory used."""

    def __init__(self, seconds: float, on_warm: Callable[[], object] = lambda: None) -> None:
        self.seconds, self.began, self.on_warm = seconds, time.time(), on_warm
        self.steps: list[tuple[float, int]] = []

    def step(self, rows: int) -> bool:
        """Note an optimizer step; whether it is time to stop."""
        torch.cuda.synchronize()
        self.steps.append((time.time(), rows))
        if len(self.steps) == WARM:
            self.on_warm()
        return len(self.steps) > WARM + 4 and time.time() - self.steps[WARM][0] > self.seconds

    def result(self) -> dict[str, float]:
        after = self.steps[WARM:]
        return {
            "samples/s": sum(rows for _, rows in after[1:]) / (after[-1][0] - after[0][0]),
            "rows a step": statistics.mean(rows for _, rows in after),
            "GB": torch.cuda.max_memory_allocated() / 1e9,
            "s to first step": self.steps[0][0] - self.began,
        }


def ours(
    config: dict[str, Any],
    rows: list[Row],
    batch: int,
    seconds: float,
    on_warm: Callable[[], object] = lambda: None,
    **keys: Any,
) -> dict[str, float]:
    """`tunery.training.loop.fit`, as `tunery train` runs it in every worker. `batch` is of all workers together."""
    spec = resolve_train(
        TrainSpec(
            model_name_or_path="random", lora_rank=8, per_device_train_batch_size=batch // WORLD,
            ray_num_workers=WORLD, learning_rate=1e-4,
            num_train_epochs=50, logging_steps=1, save_strategy="no", eval_strategy="no", **keys,
        )
    ).model_copy(update={"packing": "shared_prefix"})  # fmt: skip
    watch = Watch(seconds, on_warm)
    stop = False

    def log(row: dict[str, Any]) -> None:
        nonlocal stop
        stop = watch.step(batch)

    hooks = Hooks(
        log=log,
        parity=lambda c: say("  parity", json.dumps(c.as_dict())),
        stopping=lambda: stop,
        scratch=Path("/tmp/train_gpu"),
    )
    model = adapt(build(config, register_attention()), spec)
    device = f"cuda:{torch.cuda.current_device()}"
    if wants_shards(spec):
        shard(model, device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    job = Job(spec, single(rows), prefix_groups([r.prompt for r in rows], batch))
    summary = fit(job, hooks, rank=RANK, world=WORLD, device=device, model=model)
    found = watch.result()
    return found | {"tokens/s": found["samples/s"] * summary["executed_tokens"] / (len(watch.steps) * batch)}


def say(*words: object) -> None:
    """Print, as the first of the workers."""
    if RANK == 0:
        print(*words, flush=True)


def padded(rows: list[Row], size: int) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Batches of `size` rows, padded on the right."""
    for at in range(0, len(rows) - size, size):
        some = rows[at : at + size]
        width = max(map(len, some))
        ids, labels, mask = (torch.full((size, width), fill) for fill in (0, -100, 0))
        for i, row in enumerate(some):
            ids[i, : len(row)] = torch.tensor(row.prompt + row.target)
            labels[i, len(row.prompt) : len(row)] = torch.tensor(row.target)
            mask[i, : len(row)] = 1
        yield {"input_ids": ids, "labels": labels, "attention_mask": mask}, size


def packed(rows: list[Row], room: int) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Rows one behind the other, positions restarting, as TRL and transformers' flattening collator do."""
    some: list[Row] = []
    for row in rows:
        if sum(map(len, some)) + len(row) > room:
            yield (
                {
                    "input_ids": torch.tensor([[t for r in some for t in r.prompt + r.target]]),
                    "labels": torch.tensor([[t for r in some for t in [-100] * len(r.prompt) + r.target]]),
                    "position_ids": torch.tensor([[t for r in some for t in range(len(r))]]),
                },
                len(some),
            )
            some = []
        some.append(row)


def trainer(
    config: dict[str, Any],
    batches: list[tuple[dict[str, Tensor], int]],
    accumulate: int,
    seconds: float,
    *,
    attention: str = "sdpa",
    checkpointing: bool = False,
) -> dict[str, float]:
    """transformers' Trainer over ready-made batches."""
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(
        build(config, attention), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.config.use_cache = False
    watch = Watch(seconds)
    arguments = TrainingArguments(
        output_dir="/tmp/train_gpu_peer",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulate,
        learning_rate=1e-4,
        max_steps=10_000,
        bf16=True,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        remove_unused_columns=False,
    )
    mean = statistics.mean(n for _, n in batches)

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = watch.step(round(mean * accumulate))

    dataset: Any = [inputs for inputs, _ in batches]
    Trainer(
        model=model, args=arguments, train_dataset=dataset, data_collator=lambda some: some[0], callbacks=[Clock()]
    ).train()
    return watch.result()


def main() -> None:
    """Every variant, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--model", choices=MODELS, default="qwen2.5-7b")
    parser.add_argument("--batch", type=int, default=64, help="rows of an optimizer batch")
    parser.add_argument("--seconds", type=float, default=12, help="measured time of a variant")
    parser.add_argument("--minutes", type=float, default=9, help="start no variant after")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--profile", action="store_true", help="print the costliest kernels of ours")
    args = parser.parse_args()
    config = MODELS[args.model]
    lengths = json.loads(args.lengths.read_text()) if args.lengths else drawn_lengths()
    rows = rows_of(lengths, config["vocab_size"])
    mean = statistics.mean(map(len, rows))
    if WORLD > 1:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl")
    say(f"{WORLD} x {torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}")
    say(f"{args.model}, {len(rows):,} rows of {mean:.0f} tokens, {lengths['P']} of them in every row")
    room = 4096
    per_pack = room / mean
    seconds, batch = args.seconds, args.batch
    variants: dict[str, Callable[[], dict[str, float]]] = {
        "ours": lambda: ours(config, rows, batch, seconds),
        "ours, full": lambda: ours(config, rows, batch, seconds, finetuning_type="full"),
        "ours, fsdp": lambda: ours(config, rows, batch, seconds, fsdp=True),
        "ours, fsdp, full": lambda: ours(config, rows, batch, seconds, fsdp=True, finetuning_type="full"),
        "Trainer, packed, sdpa": lambda: trainer(
            config, list(packed(rows, room)), max(1, round(batch / per_pack)), seconds
        ),
        "Trainer, packed, flex": lambda: trainer(
            config, list(packed(rows, room)), max(1, round(batch / per_pack)), seconds, attention="flex_attention"
        ),
        "ours, fp8": lambda: ours(config, rows, batch, seconds, fp8=True),
        "ours, batch 32": lambda: ours(config, rows, 32, seconds),
        "ours, fp8, batch 128": lambda: ours(config, rows, 128, seconds, fp8=True),
        "ours, batch 128": lambda: ours(config, rows, 128, seconds),
        "Trainer, padded 16": lambda: trainer(config, list(padded(rows, 16)), max(1, batch // 16), seconds),
        "Trainer, 1 x 8, checkpointing": lambda: trainer(config, list(padded(rows, 1)), 8, seconds, checkpointing=True),
        "ours, not compiled": lambda: ours(config, rows, batch, seconds, torch_compile=False),
    }
    began = time.time()
    found: dict[str, dict[str, float]] = {}
    if args.profile:
        profiled(lambda on_warm: ours(config, rows, batch, 3, on_warm))
        return
    for name, run in variants.items():
        wanted = name in args.only if args.only else name.startswith("ours") if WORLD > 1 else "fsdp" not in name
        if not wanted or time.time() - began > 60 * args.minutes:
            continue
        try:
            found[name] = run()
            say(f"{name:32}", {k: round(v, 1) for k, v in found[name].items()})
        except Exception as exc:  # one variant's failure must not cost the others
            print(f"{name:32} failed: {type(exc).__name__}: {str(exc)[:500]}", flush=True)
        torch._dynamo.reset()
        gc.collect()
    if RANK:
        return
    peers = {k: v["samples/s"] for k, v in found.items() if k.startswith("Trainer")}
    best = max(peers.values(), default=float("nan"))
    print(f"\n| what | samples/s | x best peer | peak GB | s to first step | 1,000 x 5 in s |\n|{' --- |' * 6}")
    for name, r in found.items():
        speed = r["samples/s"]
        print(
            f"| {name} | {speed:.1f} | {speed / best:.2f} | {r['GB']:.0f} | {r['s to first step']:.0f} | "
            f"{5000 / speed:.0f} |"
        )


def profiled(run: Callable[[Callable[[], object]], dict[str, float]]) -> None:
    """Print where the GPU's time goes once all is compiled."""
    from torch.profiler import ProfilerActivity, profile

    seen = profile(activities=[ProfilerActivity.CUDA])
    found = run(seen.start)
    seen.stop()
    print(found)
    print(seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=70))


if __name__ == "__main__":
    main()
