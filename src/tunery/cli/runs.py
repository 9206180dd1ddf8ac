"""`tunery runs`: what has run, how it went, and how two runs differ."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunery.cli.options import HELP, AsJson, ProjectOption
from tunery.cli.options import open_screen as _screen
from tunery.cli.options import read_project as _project
from tunery.errors import ConfigError, RunError

if TYPE_CHECKING:
    from tunery.types import Run

runs_app = typer.Typer(help="Look at what has run, and compare.", no_args_is_help=True, context_settings=HELP)


@runs_app.command("list")
def runs_list(project: ProjectOption = None, as_json: AsJson = False) -> None:
    """List runs, newest first.

    Example: [bold]tunery runs list[/]
    """
    from tunery.ops.runs import list_runs

    screen = _screen(as_json)
    found = list_runs(Path(_project(project, None, None).home))
    screen.table(("run", "state", "started", "ended"), [(r.id, r.state, r.started, r.ended or "") for r in found])
    screen.result({"runs": [dataclasses.asdict(r) for r in found]})


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="Its id, or a unique beginning.")],
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Show one run: how it ended, what it found, its settings.

    Example: [bold]tunery runs show train-2026[/]
    """
    from tunery.ops.runs import get

    screen = _screen(as_json)
    found = dataclasses.asdict(get(Path(_project(project, None, None).home), run))
    flat = {k: v for k, v in found.items() if k not in ("spec", "result")}
    flat |= {f"result.{k}": v for k, v in found["result"].items()}
    screen.table(("what", "value"), [(k, v) for k, v in flat.items() if v is not None])
    screen.say(f"[dim]settings: {found['path']}/spec.json[/]")
    screen.result(found)


@runs_app.command("logs")
def runs_logs(
    run: Annotated[str | None, typer.Argument(help="Its id. Default: the newest.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines of each file.")] = 40,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Print the end of a run's logs: its own events, and what Ray and vLLM had to say.

    Example: [bold]tunery runs logs -n 100[/]
    """
    from tunery.ops.runs import get, list_runs

    home = Path(_project(project, None, None).home)
    found = list_runs(home) if run is None else [get(home, run)]
    if not found:
        raise ConfigError("no runs yet", hint="`tunery train` makes one")
    print_logs(found[0], lines, as_json)


def print_logs(run: Run, lines: int, as_json: bool) -> None:
    """The last `lines` of each of a run's logs."""
    screen = _screen(as_json)
    tails: dict[str, list[str]] = {}
    for path in [run.path / "metrics.jsonl", *sorted((run.path / "logs").rglob("*"))]:
        if path.is_file() and path.stat().st_size:
            tails[str(path)] = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    for name, tail in tails.items():
        screen.say(f"[bold]{name}[/]")
        if not as_json:
            sys.stdout.write("\n".join(tail) + "\n")
            sys.stdout.flush()
    screen.result({"run": run.id, "logs": tails})


@runs_app.command("plot")
def runs_plot(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids, or unique beginnings.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PNG. Default: plot.png in the first run's folder.")
    ] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw losses and scores of one or more trainings over each other, as a PNG and in the terminal.

    Example: [bold]tunery runs plot train-20261125-1 train-20261125-2 -o both.png[/]
    """
    from tunery.cli.screen import sparkline
    from tunery.ops.runs import get
    from tunery.training.artifacts import plot_runs

    home = Path(_project(project, None, None).home)
    found = {run.id: _curves(run) for run in (get(home, name) for name in names)}
    path = output or home / "runs" / next(iter(found)) / "plot.png"
    try:
        plot_runs(found, path)
    except (OSError, ValueError) as exc:  # a folder that is not there, an ending that is no image format
        raise RunError(f"cannot draw {path}: {exc}", hint="name a .png in a folder that exists") from None
    screen = _screen(as_json)
    for name, rows in found.items():
        screen.say(f"[bold]{name}[/]")
        for key in ("loss", "eval_loss", "eval_exact_match", "eval_slot_f1"):
            if values := [row[key] for row in rows if key in row]:
                screen.say(f"  {key:<17}{sparkline(values, log='loss' in key)}  {values[0]:.4g} → {values[-1]:.4g}")
    screen.say(str(path))
    screen.result({"plot": str(path), "runs": found})


def _curves(run: Run) -> list[dict[str, Any]]:
    from tunery.ops.runs import metrics
    from tunery.training.artifacts import history

    rows = history(metrics(run))
    if not any("loss" in row for row in rows):
        raise RunError(f"run {run.id} has no losses to draw", hint="name a training that has logged a step")
    return rows


@runs_app.command("compare")
def runs_compare(
    a: Annotated[str, typer.Argument(help="Its id, or a unique beginning.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Show the settings in which two runs differ, and their results side by side.

    Example: [bold]tunery runs compare train-20261125-1 train-20261125-2[/]
    """
    from tunery.ops.runs import compare, get

    home = Path(_project(project, None, None).home)
    first, second = get(home, a), get(home, b)
    found = compare(first, second)
    screen = _screen(as_json)
    for part, rows in found.items():
        if rows:
            screen.table((part, first.id, second.id), [(key, *map(_cell, values)) for key, values in rows.items()])
        else:
            screen.say(f"[dim]no {part} differ[/]" if part == "settings" else f"[dim]no {part}[/]")
        screen.say()
    screen.result({"a": first.id, "b": second.id, **found})


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
