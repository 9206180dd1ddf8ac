"""How well a base fine-tunes: the product's own loop, then greedy answers scored by the Task, over seeds.

    python bench/base_quality.py BASE DATA --train viggo-train --test viggo-val --rows 1000 --seeds 3

Runs without Ray and vLLM, on a GPU if there is one. `--set` takes training keys. Prints a row a run, and the mean.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from tunery.bases import find_base, load_tokenizer
from tunery.config import BUNDLED_DEFAULTS, TrainSpec, apply_sets, parse
from tunery.data import load
from tunery.data.template import Template
from tunery.tasks import infer_task, score_rows
from tunery.training.loop import Hooks, Job, fit
from tunery.training.packing import common_prefix

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
    parser.add_argument("--test", default="viggo-val")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--untuned", action="store_true")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    base = find_base(args.base)
    template = Template("chatml", load_tokenizer(base))
    train, test = load(args.train, args.data).examples, load(args.test, args.data).examples
    golds = [e.target or "" for e in test]
    task = infer_task(golds)
    prompts = template.prompts(test)
    limit = max(map(len, (r.target for r in template.rows(test)))) + 8
    values = apply_sets(dict(BUNDLED_DEFAULTS), args.sets)
    scores = []
    for seed in range(args.seeds):
        chosen = list(train)
        if args.rows:
            chosen = random.Random(seed).sample(chosen, args.rows)
        spec = parse(TrainSpec, values | {"model_name_or_path": args.base, "seed": seed, "dataset": args.train})
        spec = spec.model_copy(
            update={"lora_alpha": spec.lora_alpha or 2 * (spec.lora_rank or 8), "eval_strategy": "no"}
        )
        rows = template.rows(chosen)
        job = Job(spec, chosen, rows, (), common_prefix([r.prompt for r in rows]))
        began = time.time()
        with tempfile.TemporaryDirectory() as scratch:
            last: list[Path] = []
            hooks = Hooks(save=lambda folder, step, last=last: last.append(folder), scratch=Path(scratch))
            summary = fit(job, hooks, device=DEVICE)
            trained = time.time() - began
            model = load_for_answers(spec, base.path, last[-1])
        texts = [template.decode(ids) for ids in answer(model, prompts, template.stop_ids[0], limit)]
        metrics, _ = score_rows(task, list(zip(texts, golds, strict=True)))
        shown = {k: round(m.value or 0, 4) for k, m in metrics.items()}
        scores.append(metrics["exact_match"].value or 0)
        answered = time.time() - began - trained
        print(f"seed {seed} rows {len(rows)} {' '.join(args.sets)} loss {summary['train_loss']:.3f}", end=" ")
        print(f"trained in {trained:.0f} s, answered in {answered:.0f} s {shown}", flush=True)
    mean = sum(scores) / len(scores)
    print(f"MEAN {mean:.4f} over {len(scores)} {args.base} {args.train} {args.rows} {args.sets}", flush=True)
    if args.untuned:
        model = load_for_answers(spec, base.path, None)
        texts = [template.decode(ids) for ids in answer(model, prompts, template.stop_ids[0], limit)]
        metrics, _ = score_rows(task, list(zip(texts, golds, strict=True)))
        print("UNTUNED", {k: round(m.value or 0, 4) for k, m in metrics.items()}, flush=True)


def load_for_answers(spec: TrainSpec, path: Path, adapter: Path | None) -> torch.nn.Module:
    """The base with its adapter merged, in transformers' own attention."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.to(DEVICE).eval()


if __name__ == "__main__":
    main()
