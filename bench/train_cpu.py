"""Fine-tuning a small model on this machine's CPU: the product's own loop beside TRL's SFTTrainer, in one run.

    pip install trl datasets        # the peer; nothing else here needs them
    python bench/train_cpu.py [--data FOLDER --dataset NAME] [--base FOLDER] [--steps 24] [--batch 8]

The same base, rows in the same order, optimizer batch, LoRA (rank 64, all linears) and learning rate for all. TRL runs
unpacked, and packed into sequences of 2,048 tokens (its packing needs another attention kernel to keep rows apart,
which a CPU lacks, so its loss is another one). Prints rows/s after the first third of the steps, and each loss.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from tunery.bases import find_base, load_tokenizer
from tunery.config import BUNDLED_DEFAULTS, TrainSpec
from tunery.data import load, materialise_bikeshop
from tunery.data.template import Row, Template
from tunery.training.batches import single
from tunery.training.loop import Hooks, fit
from tunery.training.model import compute_dtype
from tunery.training.plan import Job
from tunery.training.prefixes import prefix_groups

RATE = 1e-3


def spec_of(args: argparse.Namespace) -> TrainSpec:
    """The bundled defaults at a constant learning rate."""
    values = dict(BUNDLED_DEFAULTS) | {
        "model_name_or_path": args.base, "lora_alpha": 128, "learning_rate": RATE, "lr_scheduler_type": "constant",
        "per_device_train_batch_size": args.batch, "max_steps": args.steps, "logging_steps": 1,
        "packing": "shared_prefix", "save_strategy": "no", "eval_strategy": "no", "weight_decay": 0.0,
    }  # fmt: skip
    return TrainSpec.model_validate(values)


def encoded(args: argparse.Namespace) -> list[Row]:
    """The rows of all steps, in the order in which our loop takes them."""
    template = Template("chatml", load_tokenizer(find_base(args.base)))
    rows = template.rows(load(args.dataset, args.data).examples)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()
    return [rows[i] for i in order[: args.steps * args.batch]]


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """`tunery.training.loop.fit`, as a training worker runs it. Its order is undone by giving the rows reordered."""
    rows = encoded(args)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()
    placed: list[Row] = list(rows)
    for row, place in zip(rows, order, strict=True):
        placed[place] = row
    clock = Clock(args.batch)
    job = Job(spec_of(args), single(placed), prefix_groups([r.prompt for r in placed], args.batch))
    with tempfile.TemporaryDirectory() as scratch:
        fit(job, Hooks(log=lambda row: clock.step(row["loss"]), scratch=Path(scratch)))
    return clock.result()


def trl(args: argparse.Namespace, packing: bool) -> dict[str, Any]:
    """TRL's SFTTrainer over the same token ids and labels, its data loader in the given order."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.trainer.sft_config import SFTConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.sft_trainer import SFTTrainer  # pyright: ignore[reportMissingImports]

    base, rows = find_base(args.base), encoded(args)
    dtype = compute_dtype(spec_of(args), "cpu")
    content = [{"input_ids": r.prompt + r.target, "labels": [-100] * len(r.prompt) + r.target} for r in rows]
    mean = sum(len(r) for r in rows) / len(rows)
    clock = Clock(2048 / mean if packing else args.batch)

    class Ordered(SFTTrainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    class Heard(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                clock.step(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch, per_device_train_batch_size=1 if packing else args.batch, learning_rate=RATE,
            max_steps=args.steps, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
            use_cpu=True, bf16=dtype == torch.bfloat16, packing=packing, max_length=2048, weight_decay=0.0,
            adam_beta2=0.99, gradient_checkpointing=False, disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        lora = LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = Ordered(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(content),
            processing_class=load_tokenizer(base),
            peft_config=lora,
            callbacks=[Heard()],
        )
        trainer.train()
    return clock.result()


class Clock:
    """Rows a second after the first third of the steps, and the mean loss of the last third."""

    def __init__(self, rows: float) -> None:
        self.rows, self.times, self.losses = rows, [time.perf_counter()], []

    def step(self, loss: float) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(loss)

    def result(self) -> dict[str, Any]:
        """As JSON for the parent."""
        skip, last = len(self.losses) // 3, self.losses[-(len(self.losses) // 3) :]
        speed = self.rows * (len(self.losses) - skip) / (self.times[-1] - self.times[skip])
        return {"rows/s": speed, "loss": sum(last) / len(last), "first": self.losses[0]}


VARIANTS = {"ours": ours, "trl": lambda args: trl(args, False), "trl, packed": lambda args: trl(args, True)}


def main(argv: Sequence[str] | None = None) -> None:
    """Each variant in a process of its own, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tunery-base")
    parser.add_argument("--data")
    parser.add_argument("--dataset", default="bikeshop-train")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.variant:
        print(json.dumps(VARIANTS[args.variant](args)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        if args.data is None:
            materialise_bikeshop(Path(scratch))
            args.data = scratch
        mean = sum(map(len, encoded(args))) / (args.steps * args.batch)
        print(f"{args.dataset}: rows of {mean:.0f} tokens, {args.batch} a step; {torch.get_num_threads()} threads")
        found: dict[str, dict[str, float]] = {}
        for name in VARIANTS:
            command = [sys.executable, __file__, "--variant", name]
            for key in ("base", "data", "dataset", "steps", "batch"):
                command += [f"--{key}", str(getattr(args, key))]
            env = os.environ | {"OMP_WAIT_POLICY": "passive"}
            done = subprocess.run(command, capture_output=True, text=True, env=env)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found[name] = json.loads(done.stdout.splitlines()[-1])
    best = max(v["rows/s"] for k, v in found.items() if k != "ours")
    print("| | rows/s | x the best of TRL | first loss | loss of the last third |\n| --- | --- | --- | --- | --- |")
    for name, r in found.items():
        print(f"| {name} | {r['rows/s']:.2f} | {r['rows/s'] / best:.2f} | {r['first']:.3f} | {r['loss']:.3f} |")


if __name__ == "__main__":
    main()
