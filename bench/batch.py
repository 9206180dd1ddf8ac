"""Batch inference beside vLLM's own `LLM.generate` on prompts held in memory and plain `ray.data.llm`, in one run.

    python bench/batch.py VAL.jsonl TRAIN.jsonl [--rows 1000] [--rounds 3] [--only NAME ...]     peers and levers
    python bench/batch.py --echo 1000000                                            the pipeline alone, killed, resumed

The bundled base answers the rows of VAL (repeated up to --rows), greedy, at most 64 tokens each; TRAIN teaches the
grammar. Every measurement is a process of its own; the table has medians over the rounds. "steady" is rows/s while the
engine answers, "whole" the seconds of the process. With --echo the engine is replaced by one that repeats a fixed
answer: what is left is reading, rendering, parsing and writing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

TOKENS = 64
SHOWN = ("steady", "first", "whole")
INSTRUCTION_COLUMN = "instruction"
# name -> (what it is, settings of the part)
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("LLM.generate, vLLM's defaults", {"part": "raw", "own": True}),
    "defaults-lora": ("LLM.generate, vLLM's defaults, an adapter", {"part": "raw", "own": True, "tuned": True}),
    "raw": ("LLM.generate, our engine settings", {"part": "raw"}),
    "raw-grammar": ("LLM.generate, our settings, grammar, log-probabilities", {"part": "raw", "full": True}),
    "ray": ("plain ray.data.llm, our engine settings", {"part": "ray"}),
    "ours-bare": ("ours, without grammar and confidence", {"part": "ours", "free": True, "confidence": False}),
    "ours-free": ("ours, without grammar", {"part": "ours", "free": True}),
    "ours": ("ours, as it comes", {"part": "ours"}),
    "ours-compiled": ("ours, the model compiled", {"part": "ours", "compiled": True}),
    "ours-ngram": ("ours, n-gram speculation", {"part": "ours", "ngram": True}),
    "lora": ("ours with an adapter, not merged", {"part": "ours", "tuned": True, "merge": False}),
    "merged": ("ours with an adapter", {"part": "ours", "tuned": True}),
    "merged-free": ("ours with an adapter, without grammar", {"part": "ours", "tuned": True, "free": True}),
    "merged-bare": (
        "ours with an adapter, without grammar and confidence",
        {"part": "ours", "tuned": True, "free": True, "confidence": False},
    ),
    "merged-grammar": (
        "ours with an adapter, without confidence",
        {"part": "ours", "tuned": True, "confidence": False},
    ),
}


# -- the parts, each in a process of its own ---------------------------------------------------------------


def batch(args: Any, **settings: Any) -> Any:
    """Our batch over the rows."""
    from tunery.bases import find_base
    from tunery.batching import Model, prepare
    from tunery.config import BUNDLED_BASE, BatchSpec, EngineSpec, Sampling
    from tunery.engine.vllm import Adapter
    from tunery.tasks import learn, task_by_name

    base = find_base(BUNDLED_BASE)
    lines = [json.loads(line) for line in Path(args.train).read_text().splitlines()] if args.train else []
    profile = learn(task_by_name("function"), [(r["input"], r["output"]) for r in lines]) if lines else None
    name = "tuned" if args.tuned else "base"
    model = Model(name, base, "chatml", "function", name if args.tuned else None, profile=profile)
    engine_kwargs: dict[str, Any] = {"max_model_len": 1024}
    if args.compiled:
        engine_kwargs["enforce_eager"] = False
    if args.ngram:
        engine_kwargs["speculative_config"] = {
            "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2,
        }  # fmt: skip
    spec = BatchSpec(
        input=args.rows_file, output=str(Path(args.folder) / "answers.jsonl"), column="input", id_column="id",
        free=args.free, confidence=args.confidence, merge=args.merge, engine=EngineSpec(engine_kwargs=engine_kwargs),
        sampling=Sampling(max_tokens=TOKENS),
        answer_prefix="our_", **settings,
    )  # fmt: skip
    adapters = []
    if args.tuned:
        path = Path(args.adapter) if args.adapter else make_adapter(base.path, Path(args.folder) / "adapter")
        adapters = [Adapter(name, path, json.loads((path / "adapter_config.json").read_text())["r"])]
    return prepare(spec, models={name: model}, default=name, adapters=adapters, log_dir=Path(args.folder))


def make_adapter(base: Path, folder: Path, rank: int = 32) -> Path:
    """An adapter that changes nothing and costs what any of its rank does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear")).save_pretrained(str(folder))
    return folder


def part_ours(args: Any) -> dict[str, Any]:
    """Through Ray Data, from file to file."""
    from tunery.batching import perform
    from tunery.engine.cluster import connect, quiet

    planned = batch(args)
    began = time.time()
    first: list[float] = []
    with quiet(Path(args.folder) / "driver.log"), connect(log_dir=None):
        result = perform(planned, lambda e: first.append(time.time()) if e["event"] == "batch" else None)
    seconds = result.summary["seconds"]
    return {
        "steady": result.rows / seconds["compute"], "start": seconds["start"], "first": first[0] - began,
        "tokens": result.completion_tokens, "failed": result.failed, "parsed": result.parsed / result.rows,
        "cache": result.summary["cache_hits"],
    }  # fmt: skip


def prompts_of(planned: Any) -> list[list[int]]:
    """The token ids that ours sends, of all rows."""
    rows = [e.row for chunk in planned.source.chunks for e in planned.source.read(chunk)]
    return [ask.prompt for ask in planned.shape.ask(rows)]


def part_raw(args: Any) -> dict[str, Any]:
    """All prompts in memory, one call."""
    planned = batch(args)
    kwargs = planned.setup.engine_kwargs()
    if not args.own:
        os.environ.update(
            {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "OMP_WAIT_POLICY": "passive"}
        )
    os.environ.update({"VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})
    prompts: Any = [{"prompt_token_ids": ids} for ids in prompts_of(planned)]
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    sampling: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": TOKENS,
        "stop_token_ids": planned.setup.sampling["stop_token_ids"],
    }
    if args.full:
        (grammar,) = planned.setup.grammars.values()
        sampling |= {"logprobs": 0, "structured_outputs": StructuredOutputsParams(**grammar)}
    own: dict[str, Any] = {"max_model_len": 1024, "gpu_memory_utilization": 0.3}
    lora = None
    if args.tuned:
        from vllm.lora.request import LoRARequest

        (adapter,) = planned.setup.adapters
        own |= {"enable_lora": True, "max_lora_rank": adapter.rank}
        lora = LoRARequest(adapter.name, 1, str(adapter.path))
    llm = LLM(model=str(planned.setup.base), **(own if args.own else kwargs))
    began = time.time()
    outputs = llm.generate(prompts, SamplingParams(**sampling), use_tqdm=False, lora_request=lora)
    spent = time.time() - began
    return {"steady": len(outputs) / spent, "tokens": sum(len(o.outputs[0].token_ids) for o in outputs)}


def part_ray(args: Any) -> dict[str, Any]:
    """Ray's own processor, tokens in, from file to file."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    planned = batch(args)
    kwargs = planned.setup.engine_kwargs()
    from tunery.engine.vllm import engine_env

    stop = planned.setup.sampling["stop_token_ids"]
    lines = [json.loads(line) for line in Path(args.rows_file).read_text().splitlines()]
    rows = [{"id": r["id"], "ids": ids} for r, ids in zip(lines, prompts_of(planned), strict=True)]
    tokens = Path(args.folder) / "tokens.jsonl"
    tokens.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = {
        k: v for k, v in engine_env(kwargs).items() if k not in ("TUNERY_VLLM_PLUGIN", "VLLM_ENABLE_V1_MULTIPROCESSING")
    }
    config = vLLMEngineProcessorConfig(
        model_source=str(planned.setup.base), engine_kwargs=kwargs, batch_size=64, concurrency=1,
        chat_template_stage=False, tokenize_stage=False, detokenize_stage=False,
        placement_group_config={"bundles": [{"CPU": 1}]}, runtime_env={"env_vars": env},
    )  # fmt: skip
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "id": row["id"], "tokenized_prompt": row["ids"],
            "sampling_params": {"temperature": 0, "max_tokens": TOKENS, "stop_token_ids": stop},
        },
        postprocess=lambda row: {"id": row["id"], "text": row["generated_text"], "tokens": row["num_generated_tokens"]},
    )  # fmt: skip
    ray.init(log_to_driver=False, ignore_reinit_error=True)
    began = time.time()
    processor(ray.data.read_json(str(tokens))).write_json(str(Path(args.folder) / "ray"))
    spent = time.time() - began
    files = (Path(args.folder) / "ray").glob("*.json")
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {"through": len(found) / spent, "tokens": sum(row["tokens"] for row in found)}


def part_echo(args: Any) -> dict[str, Any]:
    """The pipeline without an engine."""
    import functools

    import psutil

    from tunery.batching import perform
    from tunery.engine.cluster import connect, quiet

    planned = batch(args)
    memory: list[tuple[int, int]] = []
    process = psutil.Process()

    def hear(event: Any) -> None:
        if event["event"] == "batch":
            memory.append((event["done"], process.memory_info().rss))

    def answer(dataset: Any) -> Any:
        return dataset.map_batches(functools.partial(_echoed), batch_size=None, batch_format="pyarrow", num_cpus=0.25)

    with quiet(Path(args.folder) / "driver.log"), connect(log_dir=None):
        began = time.time()
        result = perform(planned, hear, answer=answer)
    at = {int(share * 10): rss for share in (0.1, 0.5, 1) for done, rss in memory if done <= share * result.rows}
    return {
        "through": result.rows / (time.time() - began), "failed": result.failed,
        "memory": {f"{k}0 %": round(v / 2**20) for k, v in at.items()},
    }  # fmt: skip


def _echoed(table: Any) -> Any:
    import pyarrow as pa

    from tunery.engine.rows import OUTPUT, completion_type

    lengths = [len(prompt) for prompt in table["prompt_token_ids"].to_pylist()]
    answers = [
        {
            "text": "inform(name[FIFA 12], genres[sport])",
            "finish_reason": "stop",
            "prompt_tokens": n,
            "completion_tokens": 20,
        }
        for n in lengths
    ]
    return table.drop_columns(["prompt_token_ids"]).append_column(OUTPUT, pa.array(answers, type=completion_type()))


# -- all of them -------------------------------------------------------------------------------------------


def start(folder: Path, rows: Path, train: str | None, **settings: Any) -> subprocess.Popen[str]:
    """One part in a process of its own."""
    folder.mkdir(exist_ok=True)
    values = {"folder": str(folder), "rows_file": str(rows), "train": train, **settings}
    command = [sys.executable, __file__, "--settings", json.dumps(values)]
    log = (folder / "log.txt").open("w")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)


def ended(process: subprocess.Popen[str], began: float) -> dict[str, Any]:
    """What the part has measured, once it is over."""
    out, _ = process.communicate()
    if process.returncode:
        folder = json.loads(process.args[-1])["folder"]  # type: ignore[index]
        print((Path(folder) / "log.txt").read_text()[-1500:], file=sys.stderr)
        return {"failed": "the process ended with an error"}
    # Ray may have said something after it.
    last = next(line for line in reversed(out.splitlines()) if line.startswith("{"))
    return json.loads(last) | {"whole": time.time() - began}


def peers(args: argparse.Namespace, folder: Path) -> None:
    """The table of peers and levers."""
    lines = [json.loads(line) for line in Path(args.val).read_text().splitlines()]
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for i in range(args.rows):
            row = lines[i % len(lines)]
            file.write(json.dumps({"id": i, "instruction": row[INSTRUCTION_COLUMN], "input": row["input"]}) + "\n")
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(args.rounds):
        for name in args.only or PARTS:
            what, settings = PARTS[name]
            began = time.time()
            part = start(folder / f"{name}-{number}", rows, args.train, adapter=args.adapter, **settings)
            found.setdefault(name, []).append(ended(part, began))
            print(f"{what}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(f"{args.rows} rows, {args.rounds} rounds\n")
    print("| what | rows/s steady | first answer, s | whole, s | output tokens |")
    print("| --- | --- | --- | --- | --- |")
    for name, rounds in found.items():
        cells = [f"{median(m[k] for m in rounds):.1f}" if all(k in m for m in rounds) else "" for k in SHOWN]
        print(f"| {PARTS[name][0]} | {' | '.join(cells)} | {rounds[0].get('tokens', rounds[0].get('failed'))} |")
    for a, b, key in (
        ("ours-bare", "raw", "steady"), ("ours", "raw-grammar", "steady"), ("ours", "defaults", "steady"),
        ("ours-compiled", "defaults", "steady"), ("merged", "defaults-lora", "steady"), ("ours", "ours-free", "steady"),
        ("ray", "ours-bare", "whole"), ("ray", "ours", "whole"), ("ours-ngram", "ours", "steady"),
        ("merged", "lora", "steady"), ("merged", "merged-free", "steady"), ("merged", "merged-bare", "steady"),
        ("merged-grammar", "merged-bare", "steady"),
    ):  # fmt: skip
        pairs = list(zip(found.get(a, []), found.get(b, []), strict=False))
        if pairs and all(key in m for pair in pairs for m in pair):
            ratios = [one[key] / other[key] for one, other in pairs]
            each = ", ".join(f"{r:.2f}" for r in ratios)
            print(f"{PARTS[a][0]} / {PARTS[b][0]}, {key}: {median(ratios):.2f} ({each})")


def echo(args: argparse.Namespace, folder: Path) -> None:
    """A run of its own, and the same one killed in its middle and run again."""
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for i in range(args.echo):
            text = f"FIFA 12 is a sport game, the {i}th of its kind, and rated E (for Everyone) by those who know."
            file.write(json.dumps({"id": i, "instruction": "Write the function.", "input": text}) + "\n")
    began = time.time()
    straight = ended(start(folder / "straight", rows, args.train, part="echo", free=True), began)
    print(f"undisturbed: {straight}", file=sys.stderr, flush=True)
    began = time.time()
    process = start(folder / "killed", rows, args.train, part="echo", free=True)
    marks = folder / "killed" / "answers.jsonl.parts" / "_tunery" / "done"
    chunks = -(-args.echo // 256)
    while process.poll() is None and (not marks.exists() or len(os.listdir(marks)) < chunks // 2):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut = time.time() - began
    again = ended(start(folder / "killed", rows, args.train, part="echo", free=True), began)
    same = (folder / "killed" / "answers.jsonl").read_bytes() == (folder / "straight" / "answers.jsonl").read_bytes()
    print(
        f"{args.echo:,} rows through the pipeline: {straight['through']:,.0f} rows/s, {straight['whole']:.0f} s in all"
    )
    print(f"driver's memory, MiB: {straight['memory']}")
    ratio = again["whole"] / straight["whole"]
    print(f"killed after {cut:.0f} s, run again: {again['whole']:.0f} s in all, {ratio:.3f} x; the same bytes: {same}")


def main() -> None:
    """Run one part, or all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("val", nargs="?")
    parser.add_argument("train", nargs="?")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="of all parts, by turns: the machine's speed may drift")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--adapter", help="a version's folder for the parts with an adapter; else one is made up")
    parser.add_argument("--echo", type=int)
    parser.add_argument("--settings")
    args = parser.parse_args()
    if args.settings:
        defaults = {"free": False, "confidence": True, "ngram": False, "compiled": False, "adapter": None}
        defaults |= {"tuned": False, "own": False, "full": False, "merge": True}
        settings = argparse.Namespace(**defaults | json.loads(args.settings))
        print(json.dumps(globals()[f"part_{settings.part}"](settings)))
        return
    with tempfile.TemporaryDirectory() as folder:
        (echo if args.echo else peers)(args, Path(folder))


if __name__ == "__main__":
    main()
