"""The files a training leaves, with LLaMA-Factory's names and contents, and its curves drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunery.storage import read_jsonl_tolerant, write_json_atomic
from tunery.training.plan import Plan
from tunery.versions import ADAPTER_FILES, VALUE_HEAD

Rows = Sequence[Mapping[str, Any]]
_COLOURS = ("#1f5fa8", "#c8553d", "#3f8f5b", "#8a5fb0", "#b8892b", "#4d4d4d")
_DASHES = ("-", "--", ":", "-.")


def write_results(plan: Plan, output: Path, checkpoint: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Put adapter or model, tokenizer, results and plots into `output`; the weights come last.

    Returns the content of all_results.json.
    """
    rows = history(read_jsonl_tolerant(output / "trainer_log.jsonl"))
    results = {k: v for k, v in summary.items() if not k.startswith(("eval_", "best_"))}
    evaluation = {k: v for k, v in summary.items() if k.startswith(("eval_", "best_")) or k == "epoch"}
    write_json_atomic(output / "train_results.json", results)
    if len(evaluation) > 1:
        write_json_atomic(output / "eval_results.json", evaluation)
    write_json_atomic(output / "all_results.json", results | evaluation)
    state = {
        "global_step": rows[-1]["current_steps"] if rows else 0,
        "epoch": summary["epoch"],
        **{k: v for k, v in summary.items() if k.startswith("best_")},
        "log_history": rows,
    }
    write_json_atomic(output / "trainer_state.json", state)
    plan.template.tokenizer.save_pretrained(output)
    if plan.spec.plot_loss:
        plot_loss(rows, output / "training_loss.png", "loss")
        if any("eval_loss" in r for r in rows):
            plot_loss(rows, output / "training_eval_loss.png", "eval_loss")
    for name, path in model_files(plan, checkpoint).items():
        shutil.copyfile(path, output / f"{name}.part")
        (output / f"{name}.part").rename(output / name)
    return results | evaluation


def model_files(plan: Plan, folder: Path) -> dict[str, Path]:
    """What makes up the adapter or model that lies in `folder`, by name, weights last.

    A whole model has all files of its base, its weights and their index apart; a reward model its value head too.
    """
    head = [VALUE_HEAD] if plan.spec.stage == "rm" else []
    if plan.spec.finetuning_type == "lora":
        return {name: folder / name for name in (*head, *ADAPTER_FILES)}
    base = [p for p in sorted(plan.base.path.iterdir()) if p.is_file() and not p.name.startswith(".")]
    weights = sorted(folder.glob("model*.safetensors*"), reverse=True)  # the index before its parts
    return {p.name: p for p in [*(p for p in base if not _is_weights(p)), *(folder / name for name in head), *weights]}


def _is_weights(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx") or path.name.endswith(".index.json")


def write_offending(plan: Plan, path: Path, rows: Rows) -> None:
    """The rows of a batch that could not be learnt, as text and token ids, a line each."""
    decode = plan.template.tokenizer.decode
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            text = {"prompt": decode(row["prompt_ids"]), "target": decode(row["target_ids"])}
            file.write(json.dumps({"id": row["id"], "loss": row["loss"], **text, **row}, ensure_ascii=False) + "\n")


def history(rows: Rows) -> list[dict[str, Any]]:
    """Log rows in order of their steps, each step once: a resumed run has done some twice, and the last counts."""
    found = {(r["current_steps"], "eval_loss" in r): dict(r) for r in rows if "current_steps" in r}
    return [found[key] for key in sorted(found)]


def plot_loss(rows: Rows, path: Path, key: str) -> None:
    """Draw `key` over steps, with the other loss beside it when there is one, as a PNG."""
    figure = _figure(1)
    axes = figure.axes[0]
    points = _points(rows, key)
    axes.plot(*zip(*points, strict=True), color="#9bb7d4", linewidth=1, label=key)
    if key == "loss" and len(points) > 8:
        axes.plot([s for s, _ in points], _smooth([v for _, v in points]), color=_COLOURS[0], label="smoothed")
    other = _points(rows, "eval_loss")
    if key == "loss" and other:
        axes.plot(*zip(*other, strict=True), "o-", color=_COLOURS[1], markersize=4, label="eval_loss")
    axes.set(title=f"Training {key.replace('_', ' ')}")
    _losses(axes)
    figure.savefig(path)


def plot_runs(runs: Mapping[str, Rows], path: Path) -> None:
    """Draw the log rows of several runs over each other as a PNG: losses, and below them the scores, if any."""
    known = {name for rows in runs.values() for row in rows for name in row}
    scores = [name for name in ("exact_match", "slot_f1", "parse_rate") if f"eval_{name}" in known]
    figure = _figure(2 if scores else 1)
    for (name, rows), colour in zip(runs.items(), _COLOURS * len(runs), strict=False):
        points = _points(rows, "loss")
        if len(points) > 8:
            figure.axes[0].plot(*zip(*points, strict=True), color=colour, linewidth=1, alpha=0.3)
            points = [(s, v) for (s, _), v in zip(points, _smooth([v for _, v in points]), strict=True)]
        figure.axes[0].plot(*zip(*points, strict=True), color=colour, label=f"{name} loss")
        if held_out := _points(rows, "eval_loss"):
            style = {"color": colour, "markersize": 4, "label": f"{name} eval_loss"}
            figure.axes[0].plot(*zip(*held_out, strict=True), "o--", **style)
        for metric, dashes in zip(scores, _DASHES, strict=False):
            if found := _points(rows, f"eval_{metric}"):
                style = {"color": colour, "linestyle": dashes, "markersize": 4, "label": f"{name} {metric}"}
                figure.axes[1].plot(*zip(*found, strict=True), marker="o", **style)
    _losses(figure.axes[0])
    if scores:
        figure.axes[0].label_outer()
        axes = figure.axes[1]
        axes.set(xlabel="step", ylabel="share of held-out rows", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)


def _figure(panels: int) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 * panels), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(panels, sharex=True)
    return figure


def _losses(axes: Any) -> None:
    axes.set(xlabel="step", ylabel="loss per token")
    if all(value > 0 for line in axes.lines for value in line.get_ydata()):  # sampled answers have others too
        axes.set_yscale("log")
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, fontsize="small")


def _points(rows: Rows, key: str) -> list[tuple[int, float]]:
    return [(r["current_steps"], r[key]) for r in rows if key in r]


def _smooth(values: Sequence[float], keep: float = 0.85) -> list[float]:
    """Exponential moving average, corrected for its start as Adam's is."""
    out, mean = [], 0.0
    for i, value in enumerate(values, 1):
        mean = keep * mean + (1 - keep) * value
        out.append(mean / (1 - keep**i))
    return out
