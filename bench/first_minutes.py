"""The first minutes of a newcomer, timed: help, data check, and a whole quickstart with its peak memory.

    python bench/first_minutes.py [--data FOLDER] [--set KEY=VALUE ...]

`--data` also times `data check` on that folder (ViGGO's 5,103 rows, say) and runs the quickstart on it.
"""

from __future__ import annotations

import argparse
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

TUNERY = str(Path(sys.executable).with_name("tunery"))


def best_of(command: list[str], times: int = 5) -> float:
    """Seconds of the fastest of `times` runs."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return min(once() for _ in range(times))


def watch_memory(pid: int, peak: list[int], stop: threading.Event) -> None:
    """Peak of the summed proportional set size (bytes) of a process and its descendants, every 5 s (it costs)."""
    while not stop.wait(5):
        total = 0
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return
        for process in family:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total)


def quickstart(folder: Path, extra: list[str]) -> tuple[float, float, list[str]]:
    """Seconds, peak GB and the lines of a quickstart as a terminal of 80 columns shows them."""
    command = [TUNERY, "quickstart", str(folder), *extra]
    leader, follower = pty.openpty()
    env = os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=follower, stderr=follower, stdin=follower, env=env, close_fds=True)
    os.close(follower)
    peak, stop = [0], threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(process.pid, peak, stop), daemon=True)
    watcher.start()
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    code = process.wait()
    seconds = time.perf_counter() - began
    stop.set()
    lines = replay(seen.decode(errors="replace"))
    if code:
        print("\n".join(lines))
        raise SystemExit(f"quickstart failed with {code}")
    return seconds, peak[0] / 1e9, lines


def replay(text: str) -> list[str]:
    """What stays on the screen: control sequences obeyed as far as progress bars use them."""
    import re

    lines: list[str] = [""]
    row = 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif token == "\r":
            continue
        elif token.startswith("\x1b["):
            count = int(re.sub(r"\D", "", token) or 1)
            if token.endswith("A"):
                row = max(0, row - count)
            elif token.endswith("K"):
                lines[row] = ""
        else:
            lines[row] += token
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def main() -> None:
    """Print a Markdown table and the quickstart's output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    print(
        f"| what | measured |\n| --- | --- |\n| tunery --help | {best_of([TUNERY, '--help']):.2f} s |",
        flush=True,
    )
    if args.data:
        seconds = best_of([TUNERY, "data", "check", "--dataset-dir", str(args.data)], 3)
        print(f"| data check of {args.data.name} | {seconds:.2f} s |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        extra = ["--data", str(args.data.resolve())] if args.data else []
        extra += [word for pair in args.set for word in ("--set", pair)]
        folder = Path(scratch) / "quickstart"
        seconds, peak, lines = quickstart(folder, extra)
        print(f"| quickstart, first time | {seconds:.0f} s |\n| its peak memory | {peak:.1f} GB |")
        print(f"| lines on an 80-column terminal | {len(lines)} |")
        again, _, _ = quickstart(folder, extra)
        print(f"| quickstart again (nothing trained anew) | {again:.0f} s |\n")
        print("\n".join(lines))
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
