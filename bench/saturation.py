"""The service under more load than it can take, for minutes: does memory stay flat, and is every error a 429?

    python bench/saturation.py [--minutes 10] [--clients 160] [--adapters 10] [--base FOLDER] [--only ours vllm]

Clients ask without a pause, whole answers and streams, over ten adapters and the base; ours refuses what is more than
its queue takes, and the client comes again as Retry-After says. vLLM's own server, which has no limit, is loaded alike
but with the base alone. Prints a line every half minute and a Markdown table: memory (unique set size, MB) after one
minute and at the end, and what was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import adapters
import psutil
import serve


def ours(args: argparse.Namespace) -> None:
    """`tunery.serve` with a short queue and ten adapters until SIGTERM."""
    import tunery

    adapters.make(Path(args.scratch), Path(args.base), args.adapters)
    engine = {"engine_kwargs": serve.kwargs()}
    settings = {"port": args.port, "engine": engine, "max_queued_requests": 16}
    spec = {"home": args.scratch, "train": {"model_name_or_path": args.base}, "serve": settings}
    with tunery.serve(spec):
        signal.sigwait({signal.SIGTERM})


async def load(args: argparse.Namespace) -> dict[str, Any]:
    """What became of the requests of `args.minutes`."""
    import aiohttp

    names = [Path(args.base).name, *(f"load@{i + 1}" for i in range(args.adapters) if args.part == "ours")]
    url, until = f"http://127.0.0.1:{args.port}/v1/chat/completions", time.monotonic() + 60 * args.minutes
    statuses: collections.Counter[str] = collections.Counter()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        turn = number
        while time.monotonic() < until:
            turn += 1
            text = f"Message {turn}: is there a red bike in {50 + turn % 9} cm?"
            body = {"model": names[turn % len(names)], "messages": [{"role": "user", "content": text}],
                    "max_tokens": 32, "stream": bool(turn % 2)}  # fmt: skip
            wait = 0.0
            try:
                async with session.post(url, json=body) as answer:
                    said = await answer.read()
                    broken = answer.status == 200 and body["stream"] and b"[DONE]" not in said
                    statuses["broken stream" if broken else str(answer.status)] += 1
                    wait = float(answer.headers.get("retry-after", 0))
            except aiohttp.ClientError as error:
                statuses[type(error).__name__] += 1
            await asyncio.sleep(wait)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        await asyncio.gather(*(client(session, 1000 * i) for i in range(args.clients)))
    return dict(statuses)


def memory(pid: int) -> dict[str, float]:
    """Unique set sizes in MB of the server's processes, by what they are."""
    found: dict[str, float] = collections.defaultdict(float)
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            title, size = " ".join(process.cmdline()), process.memory_full_info().uss / 1e6
        except psutil.Error:
            continue
        kinds = {"ray::ServeReplica:gateway": "gateway", "ray::ServeReplica": "engine", "EngineCore": "engine",
                 "vllm.entrypoints": "engine"}  # fmt: skip
        found[next((kind for part, kind in kinds.items() if part in title), "rest")] += size
    return dict(found)


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Start a server, load it, and look at its memory meanwhile."""
    from tunery.engine.cluster import free_port

    with tempfile.TemporaryDirectory() as scratch, open(f"{scratch}/log", "w") as log:
        port = str(free_port("127.0.0.1", 0))
        command = [sys.executable, __file__, "--base", args.base, "--port", port, "--scratch", scratch]
        command += ["--minutes", str(args.minutes), "--clients", str(args.clients)]
        command += ["--adapters", str(args.adapters), "--part", name]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not serve.answers(args, port):
                if server.poll() is not None:
                    raise RuntimeError(Path(f"{scratch}/log").read_text()[-1500:])
                time.sleep(0.5)
            began = time.monotonic()
            client = subprocess.Popen([*command, "--client"], stdout=subprocess.PIPE, text=True)
            seen: list[tuple[float, dict[str, float]]] = []
            while client.poll() is None:
                seen.append((time.monotonic() - began, memory(server.pid)))
                shown = ", ".join(f"{k} {v:,.0f} MB" for k, v in sorted(seen[-1][1].items()))
                print(f"  {name} {seen[-1][0]:4.0f} s: {shown}", file=sys.stderr, flush=True)
                time.sleep(30)
            assert client.stdout
            early = next((m for at, m in seen if at >= min(60, 30 * args.minutes)), seen[-1][1])
            return {"early": early, "late": seen[-1][1], "answers": json.loads(client.stdout.read())}
        finally:
            server.terminate()
            server.wait(60)


def main() -> None:
    """Print the table."""
    from tunery.bases import bundled_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(bundled_path()))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=160)
    parser.add_argument("--adapters", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=["ours", "vllm"])
    for hidden in ("--part", "--scratch"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        print(json.dumps(asyncio.run(load(args))))
        return
    if args.part:
        {"ours": ours, "vllm": serve.vllm}[args.part](args)
        return
    print("| | memory after a minute, MB | at the end | answers |\n| --- | --- | --- | --- |")
    for name in args.only:
        found = run(name, args)
        for kind in sorted(found["late"]):
            late, early = found["late"][kind], found["early"].get(kind, 0.0)
            print(f"| {name}: {kind} | {early:,.0f} | {late:,.0f} ({late / max(early, 1):.2f} x) | |")
        counts = ", ".join(f"{k}: {v:,}" for k, v in sorted(found["answers"].items()))
        print(f"| {name} | | | {counts} |", flush=True)


if __name__ == "__main__":
    main()
