"""The engine on this machine: time to ready, to the first answer, and output tokens/s, beside vLLM's own defaults.

    python bench/engine.py [--base FOLDER] [--in-flight 32] [--requests 256] [--tokens 48]

Each measurement is a fresh process: vLLM's `AsyncLLM` as it comes, then with the arguments and environment that Tunery
gives it; each without an adapter (a merged model costs the same) and with one of rank 64. Prompts are the embedded
test rows, answers have a fixed length, decoding is greedy. Prints a Markdown table with ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK = 64


async def measure(args: argparse.Namespace, began: float) -> dict[str, float]:
    """Ready and first answer in seconds since `began` (time.time()), then output tokens/s."""
    from vllm import AsyncEngineArgs, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(args.base), **json.loads(args.kwargs)))
    ready = time.time() - began
    prompts: list[list[int]] = json.loads(Path(args.prompts).read_text())
    lora = LoRARequest("bench", 1, args.adapter) if args.adapter else None
    params = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)

    async def answer(number: int) -> int:
        prompt: Any = TokensPrompt(prompt_token_ids=prompts[number % len(prompts)])
        count = 0
        async for output in engine.generate(prompt, params, str(number), lora_request=lora):
            count = len(output.outputs[0].token_ids)
        return count

    await answer(0)
    first = time.time() - began
    numbers = iter(range(1, args.requests + 1))

    async def client() -> int:
        return sum([await answer(n) for n in numbers])

    async def load() -> float:
        start = time.perf_counter()
        total = sum(await asyncio.gather(*(client() for _ in range(args.in_flight))))
        return total / (time.perf_counter() - start)

    speed = await load()
    engine.shutdown()
    return {"ready": ready, "first": first, "speed": speed}


def run(args: argparse.Namespace, kwargs: dict[str, Any], env: dict[str, str], adapter: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--child", "--base", str(args.base), "--kwargs", json.dumps(kwargs)]
    command += ["--prompts", args.prompts, "--adapter", adapter, "--began", str(time.time())]
    for name in ("in_flight", "requests", "tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def make_adapter(base: Path, folder: str) -> str:
    """A random adapter of rank 64 on all linear layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def main() -> None:
    """Print the table."""
    from tunery.bases import bundled_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=bundled_path())
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=48)
    for hidden in ("--kwargs", "--prompts", "--adapter"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(asyncio.run(measure(args, args.began))))
        return

    from tunery.bases import find_base, load_tokenizer
    from tunery.data import load, materialise_bikeshop
    from tunery.data.template import Template
    from tunery.engine.vllm import Adapter, engine_env, engine_kwargs, on_cpu

    with tempfile.TemporaryDirectory() as scratch:
        materialise_bikeshop(Path(scratch) / "data")
        template = Template("auto", load_tokenizer(find_base(str(args.base))))
        args.prompts = str(Path(scratch) / "prompts.json")
        rows = load("bikeshop-test", Path(scratch) / "data").examples
        Path(args.prompts).write_text(json.dumps(template.prompts(rows)))
        adapter = Adapter("bench", Path(make_adapter(args.base, f"{scratch}/adapter")), RANK)
        length = {"max_model_len": 2048}
        cpu = {"VLLM_CPU_KVCACHE_SPACE": "2"} if on_cpu() else {}
        theirs_lora = {"enable_lora": True, "max_lora_rank": RANK}
        print(f"| {args.base.name}, {args.in_flight} in flight | vLLM's defaults | Tunery's | ratio |")
        print("| --- | --- | --- | --- |")
        for adapters in ([], [adapter]):
            path, what = (str(adapter.path), "rank 64") if adapters else ("", "no adapter")
            kwargs = engine_kwargs(args.base, adapters, {"disable_log_stats": True}, max_model_len=2048)
            ours = run(args, kwargs, engine_env(kwargs), path)
            theirs = run(args, length | (theirs_lora if adapters else {}), {"HF_HUB_OFFLINE": "1"} | cpu, path)
            for name, label in (("ready", "s to ready"), ("first", "s to the first answer")):
                ratio = theirs[name] / ours[name]
                print(f"| {what}: {label} | {theirs[name]:.1f} | {ours[name]:.1f} | {ratio:.1f} x |", flush=True)
            ratio = ours["speed"] / theirs["speed"]
            print(
                f"| {what}: output tokens/s | {theirs['speed']:.0f} | {ours['speed']:.0f} | {ratio:.2f} x |", flush=True
            )


if __name__ == "__main__":
    main()
