"""The files a finished training leaves, with LLaMA-Factory's names and contents."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunery.storage import write_json_atomic
from tunery.training.plan import Plan


def write_results(plan: Plan, output: Path, checkpoint: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Put adapter, tokenizer, results and plots into `output`; the adapter's weights come last.

    Returns the content of all_results.json.
    """
    rows = read_log(output / "trainer_log.jsonl")
    results = {k: v for k, v in summary.items() if not k.startswith("eval_")}
    evaluation = {k: v for k, v in summary.items() if k.startswith("eval_") or k == "epoch"}
    write_json_atomic(output / "train_results.json", results)
    if len(evaluation) > 1:
        write_json_atomic(output / "eval_results.json", evaluation)
    write_json_atomic(output / "all_results.json", results | evaluation)
    state = {
        "global_step": rows[-1]["current_steps"] if rows else 0,
        "epoch": summary["epoch"],
        "log_history": rows,
    }
    write_json_atomic(output / "trainer_state.json", state)
    plan.template.tokenizer.save_pretrained(output)
    if plan.spec.plot_loss:
        plot_loss(rows, output / "training_loss.png", "loss")
        if any("eval_loss" in r for r in rows):
            plot_loss(rows, output / "training_eval_loss.png", "eval_loss")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(checkpoint / name, output / f"{name}.part")
        (output / f"{name}.part").rename(output / name)
    return results | evaluation


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a trainer_log.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def plot_loss(rows: Sequence[dict[str, Any]], path: Path, key: str) -> None:
    """Draw `key` over steps, with the other loss beside it when there is one, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = [(r["current_steps"], r[key]) for r in rows if key in r]
    axes.plot(*zip(*points, strict=True), color="#9bb7d4", linewidth=1, label=key)
    if key == "loss" and len(points) > 8:
        axes.plot([s for s, _ in points], _smooth([v for _, v in points]), color="#1f5fa8", label="smoothed")
    other = [(r["current_steps"], r["eval_loss"]) for r in rows if "eval_loss" in r]
    if key == "loss" and other:
        axes.plot(*zip(*other, strict=True), "o-", color="#c8553d", markersize=4, label="eval_loss")
    axes.set(xlabel="step", ylabel="loss per token", title=f"Training {key.replace('_', ' ')}")
    axes.set_yscale("log")
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    figure.savefig(path)


def _smooth(values: Sequence[float], keep: float = 0.85) -> list[float]:
    """Exponential moving average, corrected for its start as Adam's is."""
    out, mean = [], 0.0
    for i, value in enumerate(values, 1):
        mean = keep * mean + (1 - keep) * value
        out.append(mean / (1 - keep**i))
    return out
