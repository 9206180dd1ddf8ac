"""Constrained against free decoding: one version, one set of rows, quality and speed.

    python bench/constrained.py [--project tunery.yaml] [--model NAME] [--dataset NAME] [--rounds 2] [--repeat 1]

Each round answers the rows freely and under the task's grammar, each in an engine of its own, in turn. The speed is
taken between the first and the last tenth of the answers, so that start and end do not count. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tunery import versions
from tunery.config import Project, in_project, load_project
from tunery.data import load
from tunery.engine.cluster import connect, quiet
from tunery.engine.vllm import Setup, generate
from tunery.evaluation.run import answer_budget
from tunery.ops.verbs import Loaded, load_model
from tunery.tasks import score_rows, task_by_name

SHOWN = ("exact_match", "slot_f1", "parse_rate")


def answer(
    project: Project, loaded: Loaded, grammar: Any, prompts: list[list[int]], limit: int
) -> tuple[list[str], float]:
    """The answers in order, and output tokens/s."""
    adapters = [loaded.adapter] if loaded.adapter else []
    sampling = {"temperature": 0.0, "stop_token_ids": loaded.template.stop_ids}
    setup = Setup(loaded.base.path, adapters, project.eval.engine, sampling, {"task": grammar} if grammar else {})
    asked = {
        "model": loaded.adapter and loaded.adapter.name,
        "max_tokens": limit,
        "grammar": "task" if grammar else None,
    }
    requests = [{"id": str(i), "prompt_token_ids": ids, **asked} for i, ids in enumerate(prompts)]
    texts, times, tokens = [""] * len(prompts), [], []
    for done in generate(requests, setup):
        texts[int(done.example_id)] = done.text.strip()
        times.append(time.perf_counter())
        tokens.append(done.completion_tokens)
    first, last = len(times) // 10, len(times) - len(times) // 10 - 1
    return texts, sum(tokens[first + 1 : last + 1]) / (times[last] - times[first])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--dataset")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1, help="how often the rows are asked in a round")
    args = parser.parse_args()
    project = load_project(args.project)
    loaded = load_model(project, args.model)
    version = loaded.version
    assert version is not None
    profile, task = versions.profile_of(version), task_by_name(version.task)
    grammar = task.grammar(profile) if profile else None
    if grammar is None:
        raise SystemExit(f"{version.ref} has no grammar")
    name = args.dataset or project.train.eval_dataset
    if not name:
        raise SystemExit("no dataset: name one with --dataset")
    rows = load(name, in_project(project, project.train.dataset_dir)).examples * args.repeat
    golds = [row.target or "" for row in rows]
    prompts, limit = loaded.template.prompts(rows), answer_budget(golds, loaded.template)
    speeds: dict[str, list[float]] = {"free": [], "under the grammar": []}
    scores: dict[str, list[float | None]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with quiet(log), connect(project.ray.address):
            for _ in range(args.rounds):
                for how, constraint in zip(speeds, (None, grammar), strict=True):
                    texts, speed = answer(project, loaded, constraint, prompts, limit)
                    speeds[how].append(speed)
                    metrics, _ = score_rows(task, list(zip(texts, golds, strict=True)))
                    scores[how] = [metrics[metric].value for metric in SHOWN]
    print(f"| {version.ref}, {name}, {len(rows)} answers, median of {args.rounds} | tokens/s | {' | '.join(SHOWN)} |")
    print("| --- | --- | --- | --- | --- |")
    for how, found in speeds.items():
        shown = " | ".join("-" if value is None else f"{value:.3f}" for value in scores[how])
        print(f"| {how} | {statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f}) | {shown} |")
    free, bound = (statistics.median(found) for found in speeds.values())
    print(f"\nconstrained / free: {bound / free:.2f}")


if __name__ == "__main__":
    main()
