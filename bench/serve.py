"""The service beside vLLM's own OpenAI server and plain `ray.serve.llm`: same model, same engine settings, one run.

    python bench/serve.py [--base FOLDER] [--only ours vllm ray] [--requests 8] [--tokens 32]

Each server is a process of its own, started, measured and ended in turn; a client in another process keeps 1, 8 and 32
requests under way. Every request has a prompt of its own and an answer of fixed length, decoded greedily. "stream"
reads server-sent events, "whole" one JSON object. Prints a Markdown table with ratios to vLLM's server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LEVELS = (1, 8, 32)
KWARGS = {"max_model_len": 1024, "max_num_seqs": 64, "enforce_eager": True}


# -- the servers, each in a process of its own -------------------------------------------------------------


def ours(args: argparse.Namespace) -> None:
    """`tunery.serve` until SIGTERM."""
    import tunery

    spec = {
        "home": args.scratch,
        "train": {"model_name_or_path": args.base},
        "serve": {"port": args.port, "engine": {"engine_kwargs": kwargs()}},
    }
    with tunery.serve(spec):
        signal.sigwait({signal.SIGTERM})


def vllm(args: argparse.Namespace, more: Mapping[str, Any] | None = None) -> None:
    """vLLM's own server; `more` are further engine arguments."""
    chosen = {**kwargs(), **(more or {})}
    settings = [f"--{k.replace('_', '-')}={v}" for k, v in chosen.items() if v is not True]
    flags = [f"--{k.replace('_', '-')}" for k, v in chosen.items() if v is True]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", args.base, *settings, *flags]
    name = ["--served-model-name", Path(args.base).name, "--host", "127.0.0.1", "--port", str(args.port)]
    os.execv(command[0], [*command, *name, "--disable-uvicorn-access-log"])


def ray(args: argparse.Namespace) -> None:
    """`ray.serve.llm` as its documentation starts it."""
    from ray import init, serve
    from ray.serve.llm import LLMConfig, build_openai_app

    init(num_cpus=4)  # what it asks for: its ingress and its engine do not fit on two

    config = LLMConfig(
        model_loading_config={"model_id": Path(args.base).name, "model_source": args.base},
        engine_kwargs=kwargs(),
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    serve.run(build_openai_app({"llm_configs": [config]}), blocking=False)
    signal.sigwait({signal.SIGTERM})


def kwargs() -> dict[str, Any]:
    """The engine settings of all three."""
    from tunery.engine.vllm import cpu_dtype, on_cpu

    return {**KWARGS, "dtype": cpu_dtype(), "kv_cache_memory_bytes": 1 << 29} if on_cpu() else dict(KWARGS)


# -- the client --------------------------------------------------------------------------------------------


async def load(args: argparse.Namespace, at_once: int, stream: bool) -> dict[str, float]:
    """Output tokens/s, requests/s, and the time to the first byte in ms, with `at_once` requests under way."""
    import aiohttp

    url = f"http://127.0.0.1:{args.port}/v1/chat/completions"
    numbers = iter(range(args.requests * (2 + at_once)))
    waits: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for n in numbers:
            text = f"Message {n}: is there a red bike in {50 + n % 9} cm for {n} euros?"
            asked = {"max_tokens": args.tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
            body = {"model": Path(args.base).name, "messages": [{"role": "user", "content": text}], **asked}
            began = time.perf_counter()
            async with session.post(url, json=body) as answer:
                assert answer.status == 200, await answer.text()
                first = await answer.content.readany()
                assert first
                waits.append(time.perf_counter() - began)
                async for _ in answer.content.iter_any():
                    pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(at_once)))
        seconds = time.perf_counter() - began
    waits.sort()
    return {
        "tokens": len(waits) * args.tokens / seconds,
        "requests": len(waits) / seconds,
        "p50": 1000 * waits[len(waits) // 2],
        "p99": 1000 * waits[int(0.99 * len(waits))],
    }


async def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All levels, after a warm-up."""
    await load(args, 1, True)
    found = {f"stream {n}": await load(args, n, True) for n in LEVELS}
    return found | {f"whole {LEVELS[-1]}": await load(args, LEVELS[-1], False)}


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Start a server, measure it, end it."""
    from tunery.engine.cluster import free_port

    with tempfile.TemporaryDirectory() as scratch, open(f"{scratch}/log", "w") as log:
        port = str(free_port("127.0.0.1", 0))
        command = [sys.executable, __file__, "--base", args.base, "--port", port, "--scratch", scratch]
        command += ["--requests", str(args.requests), "--tokens", str(args.tokens)]
        began = time.time()
        server = subprocess.Popen([*command, "--part", name], stdout=log, stderr=log, start_new_session=True)
        try:
            while not answers(args, port):
                if server.poll() is not None or time.time() - began > 400:
                    raise RuntimeError(f"it did not start:\n{Path(f'{scratch}/log').read_text()[-1500:]}")
                time.sleep(0.2)
            ready = time.time() - began
            done = subprocess.run([*command, "--part", "client"], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-1500:])
            return {"ready": ready, **json.loads(done.stdout.splitlines()[-1])}
        finally:
            server.terminate()
            server.wait(60)
            time.sleep(3)


def answers(args: argparse.Namespace, port: str) -> bool:
    """Whether the server gives a token."""
    import httpx

    body = {"model": Path(args.base).name, "prompt": ".", "max_tokens": 1}
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=30, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def main() -> None:
    """Print the table."""
    from tunery.bases import bundled_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(bundled_path()))
    parser.add_argument("--only", nargs="+", default=["vllm", "ours", "ray"])
    parser.add_argument("--requests", type=int, default=8, help="of each client")
    parser.add_argument("--tokens", type=int, default=32)
    for hidden in ("--part", "--scratch"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "client":
        print(json.dumps(asyncio.run(measure(args))))
        return
    if args.part:
        {"ours": ours, "vllm": vllm, "ray": ray}[args.part](args)
        return
    found: dict[str, Any] = {}
    for name in args.only:
        try:
            found[name] = run(name, args)
        except RuntimeError as error:  # the others' figures are worth having
            print(f"{name}: {error}", file=sys.stderr)
    if not found:
        raise SystemExit(1)
    names = list(found)
    first = found[names[0]]
    print(f"| | {' | '.join(names)} | {' | '.join(f'{n} / {names[0]}' for n in names[1:])} |")
    print("| --- |" + " --- |" * (2 * len(found) - 1))
    print(row("ready, s", [f["ready"] for f in found.values()], first["ready"]))
    for level in first:
        if level != "ready":
            for part, unit in (
                ("tokens", "tokens/s"),
                ("requests", "requests/s"),
                ("p50", "first byte p50, ms"),
                ("p99", "p99, ms"),
            ):
                print(row(f"{level}: {unit}", [f[level][part] for f in found.values()], first[level][part]))


def row(name: str, values: list[float], first: float) -> str:
    """A line of the table."""
    cells = [f"{v:,.1f}" for v in values] + [f"{v / first:.2f} x" for v in values[1:]]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
