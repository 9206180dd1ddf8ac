"""Rows to token ids and labels: ours beside transformers' tokenizer asked row by row, as TRL's trainers do.

    python bench/preprocess.py TRAIN.jsonl [--rounds 5]

The bundled base, its ChatML layout, in one process. Each round has fresh tokenizers (theirs loaded outside the clock,
ours inside of it, since it learns words as they come). Both must give the same ids.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

from tunery.bases import QuickTokenizer, find_base, load_tokenizer
from tunery.config import BUNDLED_BASE
from tunery.data.template import Template
from tunery.types import Example, Message


def main() -> None:
    """Print the rows/s of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    base = find_base(BUNDLED_BASE)
    examples = [
        Example(str(i), (Message("user", f"{row['instruction']}\n{row['input']}"),), row["output"])
        for i, row in enumerate(rows)
    ]
    chats = [
        [{"role": "user", "content": e.messages[0].content}, {"role": "assistant", "content": e.target}]
        for e in examples
    ]
    speeds: list[tuple[float, float]] = []
    for _ in range(args.rounds):
        tokenizer = load_tokenizer(base)
        began = time.perf_counter()
        theirs = []
        for chat in chats:
            prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
            whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
            theirs.append((prompt, whole[len(prompt) :]))
        between = time.perf_counter()
        ours = Template("chatml", QuickTokenizer(base)).rows(examples)
        ended = time.perf_counter()
        if [(row.prompt, row.target) for row in ours] != theirs:
            raise SystemExit("the ids differ")
        speeds.append((len(rows) / (ended - between), len(rows) / (between - began)))
        print(f"ours {speeds[-1][0]:,.0f} rows/s, transformers {speeds[-1][1]:,.0f}", flush=True)
    ours_median, theirs_median = (median(side) for side in zip(*speeds, strict=True))
    print(f"{ours_median / theirs_median:.1f} x ({ours_median:,.0f} and {theirs_median:,.0f} rows/s)")


if __name__ == "__main__":
    main()
