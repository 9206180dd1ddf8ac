"""How many outputs a second are parsed and scored on one core: `python bench/score_speed.py [rows.jsonl]`.

Outputs are the rows' own gold outputs, a quarter of them damaged, none equal to another: no cache can help. Scoring
is everything but the bootstrap and the grounding, which are timed apart. Seconds are of processor time, so that other
work on the machine counts less. The same outputs as JSON objects follow.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from tunery.tasks import learn, task_by_name
from tunery.tasks.score import score, score_row, values_of

EMBEDDED = Path(__file__).parents[1] / "src" / "tunery" / "data" / "bikeshop" / "train.jsonl"


def main() -> None:
    """Print one line a stage."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else EMBEDDED
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    task = task_by_name("function")
    rng = random.Random(0)
    pairs = []
    for i, row in enumerate(rows):
        gold = row["output"].replace("[", f"[{i} ", 1)
        answer = gold
        if rng.random() < 0.25:
            at = rng.randrange(len(gold))
            answer = gold[:at] + gold[at + 1 :]
        pairs.append((answer, gold))
    began = time.process_time()
    for text, _ in pairs:
        task.parse(text)
    report("parse", len(pairs), began)
    began = time.process_time()
    scored = [score_row(task, text, gold) for text, gold in pairs]
    report("parse and score", len(pairs), began)
    texts = [row["input"] for row in rows]
    began = time.process_time()
    profile = learn(task, [(row["input"], row["output"]) for row in rows])
    report("learn a profile", len(pairs), began)
    began = time.process_time()
    for row, text in zip(scored, texts, strict=True):
        values_of(task, row.said, text, profile)
    report("ground and judge", len(pairs), began)
    began = time.process_time()
    score(task, pairs, texts=texts, profile=profile)
    report("all, with 1,000 resamples", len(pairs), began)
    objects = [(as_json(text), as_json(gold)) for text, gold in pairs]
    began = time.process_time()
    for text, gold in objects:
        score_row(task_by_name("json"), text, gold)
    report("JSON: parse and score", len(pairs), began)


def as_json(text: str) -> str:
    """The slots of an output as a JSON object; the text itself where it does not parse."""
    structure = task_by_name("function").parse(text)
    if structure is None:
        return text
    found: dict[str, list[str]] = {}
    for path, value in structure.slots:
        found.setdefault(path, []).append(value)
    return json.dumps(found)


def report(what: str, n: int, began: float) -> None:
    """One line: the stage, and outputs a second."""
    print(f"{what:28}{n / (time.process_time() - began):10,.0f} outputs/s")


if __name__ == "__main__":
    main()
