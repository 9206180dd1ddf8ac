"""Many rows checked, divided and tokenised through Ray Data: rows/s, and the driver's peak memory.

    python bench/data_scale.py [--rows 1000000] [--cpus 2] [--keep FOLDER]

The rows are generated: bike shop messages with a shared instruction, 1 in 1,000 of them damaged on purpose, so that the
counts can be checked: read = kept + dropped. The driver's peak must stay under 1 GB, else the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

INSTRUCTION = "Turn the bicycle shop message into one function call: " + "request_info, book_repair, order_part. " * 8
WORDS = "Sorrel Kestrel Bramble Thistle Corvid Alder Juniper Marten Pico Linnet".split()


def generate(path: Path, rows: int, seed: int = 0) -> int:
    """Write `rows` lines; returns how many of them are damaged."""
    rng = random.Random(seed)
    head = json.dumps({"instruction": INSTRUCTION})[:-1]
    damaged = 0
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            model, size = f"{rng.choice(WORDS)} {rng.choice('ABC')}{rng.randrange(1000)}", rng.randrange(48, 64)
            text = f"Is the {model} in {size} cm in stock, and what does № {i} cost in €? 🚲"
            line = f'{head}, "input": {json.dumps(text)}, "output": "request_info(model[{model}], size[{size}])"}}'
            if rng.random() < 0.001:
                damaged += 1
                line = rng.choice([line[: len(line) // 2], '{"input": "x"}', "[1]", line.replace(f"{i}", "\\ud83d")])
            file.write(line + "\n")
    return damaged


def main() -> None:
    """Generate, prepare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="keep the generated and prepared files in this folder")
    args = parser.parse_args()

    from tunery.bases import find_base
    from tunery.config import BUNDLED_BASE
    from tunery.engine.cluster import connect
    from tunery.preparing import plan, prepare

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        damaged = generate(folder / "rows.jsonl", args.rows)
        size = (folder / "rows.jsonl").stat().st_size
        print(f"generated {args.rows:,} rows, {size / 1e6:,.0f} MB, in {time.monotonic() - began:.0f} s")
        with connect(num_cpus=args.cpus):
            job = plan(folder / "rows.jsonl", folder / "prepared", base=find_base(BUNDLED_BASE), template="chatml")
            done = prepare(job, on_progress=lambda n: print(f"\r{n:,}", end="", flush=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kept = sum(done.rows.values())
    print(f"\r| rows | rows/s | tokens/s | seconds | driver's peak | split |\n| --- | --- | --- | --- | --- | --- |\n"
          f"| {done.read:,} | {done.read / done.seconds:,.0f} | {done.tokens / done.seconds:,.0f} | {done.seconds:.0f} "
          f"| {peak / 1e9:.2f} GB | {', '.join(f'{k} {n:,}' for k, n in done.rows.items() if n)} |")  # fmt: skip
    print(f"read {done.read:,} = {kept:,} kept + {sum(done.dropped.values()):,} dropped: {dict(done.dropped)}")
    print(
        f"{done.duplicates:,} duplicates, {done.contradictions:,} contradictions, {done.leakage:,} inputs in two splits"
    )
    fine = done.read == args.rows == kept + damaged and sum(done.dropped.values()) == damaged and peak < 1e9
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
