"""How well a base fine-tunes: the product's own loop, then greedy answers scored by the Task, over seeds.

    python bench/base_quality.py BASE DATA --train viggo-train --test viggo-val --rows 1000 --seeds 3

Runs without Ray and vLLM, on a GPU if there is one. `--set` takes training keys. Prints a row a run, and the mean.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from tunery.bases import find_base, load_tokenizer
from tunery.config import BUNDLED_DEFAULTS, TrainSpec, apply_sets, parse
from tunery.data import load
from tunery.data.template import Template
from tunery.tasks import infer_task, score_rows
from tunery.training.batches import single
from tunery.training.loop import Hooks, fit
from tunery.training.plan import Job
from tunery.training.prefixes import prefix_groups
from tunery.types import Example

DEVICE: str = "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def answer(
    model: torch.nn.Module, prompts: list[list[int]], stop: int, limit: int, batch: int = 256
) -> list[list[int]]:
    """Greedy answers (token ids without the stop token), prompts padded on the left, `batch` at a time."""
    out: list[list[int]] = []
    for at in range(0, len(prompts), batch):
        some = prompts[at : at + batch]
        width = max(map(len, some))
        ids = torch.tensor([[stop] * (width - len(p)) + p for p in some], device=DEVICE)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some], device=DEVICE)
        said = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=stop,
        )[:, width:].tolist()
        out += [row[: row.index(stop)] if stop in row else row for row in said]
    return out


def main() -> None:
    """One training and evaluation a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("data")
    parser.add_argument("--train", default="viggo-train")
    parser.add_argument("--test", nargs="+", default=["viggo-val"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--train-on", default=DEVICE, help="cpu: train there, and answer on the GPU if there is one")
    parser.add_argument("--untuned", action="store_true")
    parser.add_argument("--misses", type=int, default=0, help="print so many wrong answers")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    base = find_base(args.base)
    template = Template("chatml", load_tokenizer(base))
    train = load(args.train, args.data).examples
    tests = {name: Test(template, load(name, args.data).examples) for name in args.test}
    values = apply_sets(dict(BUNDLED_DEFAULTS), args.sets)
    scores: dict[str, list[float]] = {name: [] for name in tests}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        chosen = list(train)
        if args.rows:
            chosen = random.Random(seed).sample(chosen, args.rows)
        spec = parse(TrainSpec, values | {"model_name_or_path": args.base, "seed": seed, "dataset": args.train})
        spec = spec.model_copy(
            update={
                "lora_alpha": spec.lora_alpha or 2 * (spec.lora_rank or 8),
                "eval_strategy": "no",
                "packing": "shared_prefix",
            }
        )
        rows = template.rows(chosen)
        groups = prefix_groups([r.prompt for r in rows], spec.batch_rows)
        job = Job(spec, single(rows), groups, examples=chosen)
        began = time.time()
        with tempfile.TemporaryDirectory() as scratch:
            last: list[Path] = []
            hooks = Hooks(save=lambda folder, step, last=last: last.append(folder), scratch=Path(scratch))
            summary = fit(job, hooks, device=args.train_on)
            trained = time.time() - began
            model = load_for_answers(spec, base.path, last[-1])
        print(f"seed {seed} rows {len(rows)} {' '.join(args.sets)} loss {summary['train_loss']:.3f}", end=" ")
        print(f"trained in {trained:.0f} s", flush=True)
        for name, test in tests.items():
            metrics = test.score(model, args.misses)
            scores[name].append(metrics["exact_match"])
            print(f"  {name} {metrics}", flush=True)
    for name, found in scores.items():
        spread = f" ({', '.join(f'{x:.3f}' for x in found)})"
        print(f"MEAN {statistics.mean(found):.4f}{spread} {args.base} {name} {args.rows} {args.sets}", flush=True)
    if args.untuned:
        model = load_for_answers(spec, base.path, None)
        for name, test in tests.items():
            print(f"UNTUNED {name} {test.score(model)}", flush=True)


class Test:
    """A labelled set, encoded once."""

    def __init__(self, template: Template, examples: Sequence[Example]) -> None:
        self.template, self.examples = template, examples
        self.golds = [e.target or "" for e in examples]
        self.prompts = template.prompts(examples)
        self.limit = max(len(r.target) for r in template.rows(examples)) + 8

    def score(self, model: torch.nn.Module, misses: int = 0) -> dict[str, float]:
        """The metrics of greedy answers by name; prints some of the wrong ones."""
        answers = answer(model, self.prompts, self.template.stop_ids[0], self.limit)
        pairs = list(zip(map(self.template.decode, answers), self.golds, strict=True))
        for example, (said, gold) in zip(self.examples, pairs, strict=True):
            if said != gold and misses > 0:
                misses -= 1
                print(f"  MISS {example.messages[-1].content[-160:]!r}\n    want {gold}\n    got  {said}")
        metrics, _ = score_rows(infer_task(self.golds), pairs)
        return {k: round(m.value or 0, 4) for k, m in metrics.items()}


def load_for_answers(spec: TrainSpec, path: Path, adapter: Path | None) -> torch.nn.Module:
    """The base with its adapter merged, in transformers' own attention."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.eval().to(torch.device(DEVICE))  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
