"""The service beside vLLM's own OpenAI server and plain `ray.serve.llm`: same model, same engine settings, one run.

    python bench/serve.py [--base FOLDER] [--only ours vllm ray] [--requests 3] [--rounds 5] [--tokens 32]

The servers are processes of their own, started in turn; then a client in another process keeps 1, 8 and 32 requests
under way at one server after the other, round after round, since the machine's speed may drift. Every request has a
prompt of its own and an answer of fixed length, decoded greedily. "stream" reads server-sent events, "whole" one JSON
object. Prints a Markdown table: medians over the rounds, with the medians of each round's ratio to vLLM's server.
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
from statistics import median
from typing import Any

LEVELS = ("stream 1", "stream 8", "stream 32", "whole 32")
UNITS = {"tokens": "tokens/s", "requests": "requests/s", "p50": "first byte p50, ms", "p99": "p99, ms"}
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

    init(address="local", num_cpus=4)  # what it asks for: its ingress and its engine do not fit on two

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
    numbers = iter(range(args.round << 16, (args.round << 16) + args.requests * (2 + at_once)))  # none twice
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


async def measure(args: argparse.Namespace) -> dict[str, float]:
    """One level."""
    how, at_once = args.level.split()
    return await load(args, int(at_once), how == "stream")


class Server:
    """A server that answers, until it is ended."""

    def __init__(self, name: str, args: argparse.Namespace, scratch: str) -> None:
        from tunery.engine.cluster import free_port

        self.name, self._log = name, Path(scratch, "log")
        port = str(free_port("127.0.0.1", 0))
        self._command = [sys.executable, __file__, "--base", args.base, "--port", port, "--scratch", scratch]
        self._command += ["--requests", str(args.requests), "--tokens", str(args.tokens)]
        began = time.time()
        with self._log.open("w") as log:
            command = [*self._command, "--part", name]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while not answers(args, port):
            if self._process.poll() is not None or time.time() - began > 400:
                self.end()
                raise RuntimeError(f"it did not start:\n{self._log.read_text()[-1500:]}")
            time.sleep(0.2)
        self.ready = time.time() - began

    def measure(self, level: str, number: int) -> dict[str, float]:
        """What a client finds."""
        command = [*self._command, "--part", "client", "--level", level, "--round", str(number)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-1500:])
        return json.loads(done.stdout.splitlines()[-1])

    def end(self) -> None:
        """SIGTERM, and wait."""
        self._process.terminate()
        self._process.wait(60)


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
    parser.add_argument("--requests", type=int, default=3, help="of each client and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    for hidden in ("--part", "--scratch", "--level"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--port", "--round"):
        parser.add_argument(hidden, type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "client":
        print(json.dumps(asyncio.run(measure(args))))
    elif args.part:
        {
            "ours": ours,
            "fork": lambda a: (os.environ.update(TUNERY_ENGINE_FORK="1"), ours(a)),
            "vllm": vllm,
            "ray": ray,
        }[args.part](args)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            compare(args, Path(scratch))


def compare(args: argparse.Namespace, scratch: Path) -> None:
    """Start the servers, measure them by turns, print the table."""
    servers: list[Server] = []
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    try:
        for name in args.only:
            (scratch / name).mkdir()
            servers.append(Server(name, args, str(scratch / name)))
            servers[-1].measure("stream 1", 0)
            print(f"{name}: ready in {servers[-1].ready:.1f} s", file=sys.stderr, flush=True)
        for number in range(1, 1 + args.rounds):
            for i, level in enumerate(LEVELS):
                for server in servers:
                    result = server.measure(level, number * len(LEVELS) + i)
                    found.setdefault(level, {}).setdefault(server.name, []).append(result)
                    print(
                        f"{number} {level} {server.name}: {result['tokens']:.0f} tokens/s", file=sys.stderr, flush=True
                    )
    finally:
        for server in servers:
            server.end()
    names = [server.name for server in servers]
    print(f"| | {' | '.join(names)} | {' | '.join(f'{n} / {names[0]}' for n in names[1:])} |")
    print("| --- |" + " --- |" * (2 * len(names) - 1))
    print(row("ready, s", [[server.ready] for server in servers]))
    for level, by_name in found.items():
        for part, unit in UNITS.items():
            print(row(f"{level}: {unit}", [[result[part] for result in by_name[n]] for n in names]))


def row(name: str, values: list[list[float]]) -> str:
    """A line of the table, of each server's values by round."""
    cells = [f"{median(v):,.1f}" for v in values]
    cells += [f"{median(a / b for a, b in zip(v, values[0], strict=True)):.2f} x" for v in values[1:]]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
