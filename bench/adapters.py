"""What an adapter that is not resident adds to its first request, ours beside vLLM's own server.

    python bench/adapters.py [--adapters 30] [--base FOLDER]

Ours finds the version in the registry and loads it with the request. vLLM's server is told of each adapter by
/v1/load_lora_adapter before, which is counted. Every adapter is asked for one token, twice; the difference of the two
is what loading adds. Prints a Markdown table in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import serve

RANK = {"max_lora_rank": 8, "max_loras": 4, "max_cpu_loras": 64}


def ours(args: argparse.Namespace) -> None:
    """`tunery.serve` until SIGTERM; nothing is loaded beforehand."""
    import tunery

    engine = {"engine_kwargs": {**serve.kwargs(), **RANK}}
    settings = {"port": args.port, "engine": engine, "preload": "none"}
    spec = {"home": args.scratch, "train": {"model_name_or_path": args.base}, "serve": settings}
    with tunery.serve(spec):
        signal.sigwait({signal.SIGTERM})


def vllm(args: argparse.Namespace) -> None:
    """vLLM's own server, which may be told of adapters."""
    os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    serve.vllm(args, {"enable_lora": True, **RANK})


def make(home: Path, base: Path, n: int) -> None:
    """Versions load@1, load@2, ... in `home`, random LoRA of rank 8."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tunery.bases import find_base

    digest = find_base(str(base)).digest
    for i in range(1, n + 1):
        torch.manual_seed(i)
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
        folder = home / "models" / "load" / str(i)
        get_peft_model(model, config).save_pretrained(str(folder))
        entry = {
            "name": "load", "version": i, "base": str(base), "base_digest": digest, "rank": 8, "template": "auto",
            "template_digest": "", "dataset_fingerprint": "", "task": "text", "run_id": str(i),
            "created": f"2026-01-01T00:00:{i:02d}+00:00",
        }  # fmt: skip
        (folder / "version.json").write_text(json.dumps(entry))


def measure(name: str, args: argparse.Namespace) -> list[float]:
    """What loading adds to each adapter's first request, in ms."""
    from tunery.engine.cluster import free_port

    with tempfile.TemporaryDirectory() as scratch, open(f"{scratch}/log", "w") as log:
        make(Path(scratch), Path(args.base), args.adapters)
        port = str(free_port("127.0.0.1", 0))
        command = [sys.executable, __file__, "--base", args.base, "--port", port, "--scratch", scratch]
        server = subprocess.Popen([*command, "--part", name], stdout=log, stderr=log)
        try:
            while not serve.answers(args, port):
                if server.poll() is not None:
                    raise RuntimeError(Path(f"{scratch}/log").read_text()[-1500:])
                time.sleep(0.5)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60, trust_env=False) as client:
                return [added(client, name, f"load@{i + 1}", scratch) for i in range(args.adapters)]
        finally:
            server.terminate()
            server.wait(60)


def added(client: httpx.Client, name: str, ref: str, home: str) -> float:
    """The first request's time less the second's, in ms."""

    def ask(prompt: str) -> float:
        began = time.perf_counter()
        if name == "vllm" and prompt == "first":
            path = f"{home}/models/{ref.replace('@', '/')}"
            client.post("/load_lora_adapter", json={"lora_name": ref, "lora_path": path}).raise_for_status()
        client.post("/completions", json={"model": ref, "prompt": prompt, "max_tokens": 1}).raise_for_status()
        return 1000 * (time.perf_counter() - began)

    return ask("first") - ask("second")


def main() -> None:
    """Print the table."""
    from tunery.bases import bundled_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(bundled_path()))
    parser.add_argument("--adapters", type=int, default=30)
    for hidden in ("--part", "--scratch"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        {"ours": ours, "vllm": vllm}[args.part](args)
        return
    found = {name: measure(name, args) for name in ("vllm", "ours")}
    print("| loading an adapter adds, ms | vllm | ours | ours / vllm |\n| --- | --- | --- | --- |")
    for label, of in (("median", statistics.median), ("largest", max)):
        theirs, mine = of(found["vllm"]), of(found["ours"])
        print(f"| {label} of {args.adapters} | {theirs:,.0f} | {mine:,.0f} | {mine / theirs:.2f} x |")


if __name__ == "__main__":
    main()
