"""`tunery batch` and `tunery batch retry`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from tunery.cli.options import DEFAULT, HELP, DefaultCommand, DefaultGroup, DryRun, ProjectOption, Sets
from tunery.cli.options import open_screen as _screen
from tunery.cli.options import read_project as _project

batch_app = typer.Typer(cls=DefaultGroup, help="Answer files of rows, each row exactly once.", context_settings=HELP)
AsEvents = Annotated[
    bool, typer.Option("--json", help="JSON lines on stdout: events as they come, the result at the end.")
]


@batch_app.command(DEFAULT, cls=DefaultCommand)
def batch(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file, folder or glob of rows, also s3:// and gs://.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help=".jsonl, .parquet, .csv, or a folder of Parquet.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help='"name", "name@3", "base". Default: the latest.')
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column that holds the text, or the messages.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The column of ids. Default: ids are made.")] = None,
    model_column: Annotated[str | None, typer.Option(help="The column that names each row's version.")] = None,
    gold: Annotated[str | None, typer.Option(help="A column of right answers to score by.")] = None,
    free: Annotated[bool, typer.Option("--free", help="Answer without the task's grammar.")] = False,
    openai: Annotated[bool, typer.Option("--openai", help="Input and output are OpenAI's batch files.")] = False,
    max_error_rate: Annotated[
        float | None, typer.Option(help="Stop when more than this share of the rows fails. Default: 0.5.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of all machines: tells the cost of 1,000 rows.")] = None,
    project: ProjectOption = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsEvents = False,
) -> None:
    """Answer every row exactly once; the same command goes on after whatever has stopped it.

    Failed rows are kept apart, and `tunery batch retry OUTPUT` asks them again. Exit 1 when some have failed.

    Example: [bold]tunery batch messages.csv answers.jsonl --column body --id-column id[/]
    """
    from tunery.ops import verbs

    spec = _project(project, sets, "batch")
    given = {
        "input": source, "output": output, "model": model, "column": column, "id_column": id_column,
        "model_column": model_column, "gold": gold, "free": free or None, "openai": openai or None,
        "max_error_rate": max_error_rate, "price_per_hour": price_per_hour,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None:
            setattr(spec.batch, name, value)
    screen = _screen(as_json)
    if dry_run:
        facts = verbs.plan_batch(spec).describe()
        screen.table(("what", "value"), list(facts.items()))
        screen.result(facts)
        return
    _show(screen, verbs.batch(spec, observer=_observer(screen)))


@batch_app.command("retry")
def retry(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="As it was given to `tunery batch`.")],
    project: ProjectOption = None,
    sets: Sets = None,
    as_json: AsEvents = False,
) -> None:
    """Ask the failed rows of a batch once more, and move those that are answered now into its output.

    Example: [bold]tunery batch retry answers.jsonl[/]
    """
    from tunery.ops import verbs

    screen = _screen(as_json)
    spec = _project(project, sets, "batch")
    _show(screen, verbs.retry_batch(output, spec, observer=_observer(screen)))


def _observer(screen: Any) -> Any:
    """For machines the events of the batch itself; for people all of them, as the screen shows them."""
    told = ("run", "note", "resumed", "batch")
    return (lambda event: screen.result(event) if event["event"] in told else None) if screen.as_json else screen


def _show(screen: Any, result: Any) -> None:
    screen.stop()
    summary = result.summary
    screen.say(
        f"{result.output}: {result.rows:,} rows, {result.answered:,} answered ({result.parsed:,} of the task's form), "
        f"{result.failed:,} failed; {result.prompt_tokens:,} tokens in, {result.completion_tokens:,} out"
    )
    spent = summary["seconds"]
    screen.say(
        f"[dim]start {spent['start']:.0f} s, compute {spent['compute']:.0f} s, write {spent['write']:.0f} s; "
        f"{summary['rows_per_second']:.1f} rows/s"
        + "".join(f"; {k.replace('_', ' ')} {v:.3f}" for k, v in summary["quality"].items() if v is not None)
        + "".join(
            f"; {k.replace('_', ' ')} {v if k == 'n' else format(v, '.3f')}"
            for k, v in summary.get("gold", {}).items()
            if v is not None
        )
        + (f"; {summary['cost_per_1000_rows']:.4f} a thousand rows" if summary.get("cost_per_1000_rows") else "")
        + "[/]"
    )
    if result.errors:
        screen.say(f"failed rows: {result.errors}; ask them again: tunery batch retry {result.output}")
    screen.result(dataclasses.asdict(result))
    if result.failed:
        raise typer.Exit(1)
