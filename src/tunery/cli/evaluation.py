"""`tunery eval` and `tunery eval compare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tunery.cli.options import DEFAULT, HELP, AsJson, DefaultCommand, DefaultGroup, DryRun, ProjectOption, Sets
from tunery.cli.options import open_screen as _screen
from tunery.cli.options import read_project as _project

eval_app = typer.Typer(cls=DefaultGroup, help="Score a version, and compare evaluations.", context_settings=HELP)


@eval_app.command(DEFAULT, cls=DefaultCommand)
def evaluate(
    model: Annotated[str | None, typer.Argument(help='"name", "name@3". Default: the project\'s latest.')] = None,
    gate: Annotated[str | None, typer.Option(help="Conditions to meet, else exit 1.", metavar="CONDITIONS")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The gate's baseline: a version, run or report.json. Default: the untuned base.")
    ] = None,
    calibrate_on: Annotated[str | None, typer.Option(help="A dataset to calibrate confidences on.")] = None,
    constrained: Annotated[bool, typer.Option("--constrained", help="Also answer under the task's grammar.")] = False,
    swap_names: Annotated[
        bool, typer.Option("--swap-names", help="Also answer with copied names replaced by unseen ones.")
    ] = False,
    project: ProjectOption = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Score a version beside its untuned base; `tunery eval compare A B` compares two evaluations.

    Example: [bold]tunery eval shop@2 --gate "slot_f1>=0.9, exact_match>=baseline-0.01" --baseline shop@1[/]
    """
    from tunery.evaluation.gate import parse_gate
    from tunery.ops import verbs

    screen = _screen(as_json)
    spec = _project(project, sets, "eval")
    spec.eval.model = model or spec.eval.model
    spec.eval.gate = gate or spec.eval.gate
    spec.eval.baseline = baseline or spec.eval.baseline
    spec.eval.calibrate_on = calibrate_on or spec.eval.calibrate_on
    spec.eval.constrained = constrained or spec.eval.constrained
    spec.eval.swap_names = swap_names or spec.eval.swap_names
    conditions = parse_gate(spec.eval.gate) if spec.eval.gate else []
    loaded = verbs.load_model(spec, spec.eval.model)
    if dry_run:
        facts = {
            "model": loaded.label,
            "base": loaded.base.name,
            "dataset": spec.eval.dataset or spec.train.eval_dataset,
            "gate": ", ".join(map(str, conditions)) or None,
        }
        screen.table(("what", "value"), list(facts.items()))
        screen.result(facts)
        return
    report = verbs.evaluate(spec, observer=screen).to_dict()
    screen.stop()
    _show_metrics(screen, report, loaded.label)
    for name, details in report["details"].items():
        if swapped := details.get("swapped"):
            before, after = swapped["before"]["exact_match"], swapped["after"]["exact_match"]
            screen.say(
                f"{name}: names swapped for unseen ones in {swapped['n']:,} rows: "
                f"exact match {_interval(before)} before, {_interval(after)} after"
            )
    instruction = loaded.version.instruction if loaded.version else None
    screen.worst(report, loaded.label, worst=spec.eval.worst, instruction=instruction)
    folder = Path(spec.home) / "runs" / report["record"]["run"]
    screen.say(f"[dim]{folder / 'report.html'}[/]")
    verdicts = report["record"].get("gate", [])
    for verdict in verdicts:
        mark = "[green]met[/]" if verdict["passed"] else "[red]not met[/]"
        screen.say(
            f"gate: {verdict['condition']}  {mark}  ({_number(verdict['value'])}, bound {_number(verdict['bound'])})"
        )
    screen.result({k: v for k, v in report.items() if k != "samples"} | {"page": str(folder / "report.html")})
    if not all(v["passed"] for v in verdicts):
        raise typer.Exit(1)


def _show_metrics(screen: Any, report: Mapping[str, Any], label: str) -> None:
    labels = list(report["metrics"])
    rows, shown = [], {}
    for name, meaning in report["definitions"].items():
        found = [report["metrics"][m].get(name) for m in labels]
        if any(m and m["value"] is not None for m in found):
            rows.append((name, *map(_interval, found)))
            shown[name] = meaning
    screen.say(f"{report['n']:,} rows; in brackets the 95 % interval")
    screen.table(("metric", *labels), rows, right=labels)
    _define(screen, shown)


def _define(screen: Any, definitions: Mapping[str, str]) -> None:
    for name, meaning in definitions.items():
        screen.say(f"[dim]{name}: {meaning}[/]")


def _interval(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "unscored"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:.3f}"


@eval_app.command("compare")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A version, run or report.json; A:LABEL for another column.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Say whether B differs from A on the rows both have answered, by more than chance.

    Example: [bold]tunery eval compare shop@1 shop@2[/]
    """
    from tunery.ops import verbs

    screen = _screen(as_json)
    found = verbs.compare(a, b, project=_project(project, None, None)).to_dict()
    screen.say(f"{found['n']:,} rows of both; B - A with its 95 % interval")
    if found["left_out"]:
        screen.say(f"[yellow]note:[/] {found['left_out']:,} rows are in one evaluation only and were left out")
    screen.table(
        ("metric", f"A: {found['a']}", f"B: {found['b']}", "B - A", "95 %", "p"),
        [
            (n, f"{m['a']:.3f}", f"{m['b']:.3f}", f"{m['difference']:+.3f}", f"{m['low']:+.3f} {m['high']:+.3f}",
             "<0.001" if m["p"] < 0.001 else f"{m['p']:.3f}")
            for n, m in found["metrics"].items()
        ],
    )  # fmt: skip
    screen.say("p: McNemar's test for exact_match, the paired bootstrap for the others")
    screen.say(f"exactly right by A alone: {len(found['only_a'])} rows, by B alone: {len(found['only_b'])}")
    _define(screen, found["definitions"])
    screen.result(found)
