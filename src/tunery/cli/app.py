"""The verbs. Each reads its options, calls one function of the Python API, and shows what came back."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunery.cli.data import data_app
from tunery.cli.options import HELP, AsJson, DryRun, ProjectFile, ProjectOption, Sets
from tunery.cli.options import open_screen as _screen
from tunery.cli.options import read_project as _project
from tunery.cli.runs import runs_app
from tunery.cli.serving import models_alias, serve_until_stopped, shares
from tunery.errors import TuneryError

app = typer.Typer(
    name="tunery",
    help="Labelled examples in, a fine-tuned, evaluated and served extraction model out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings=HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Look at registered model versions.", no_args_is_help=True, context_settings=HELP)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(runs_app, name="runs")


def main() -> None:
    """Entry point of the `tunery` command. Exit 0 fine, 1 failed, 2 usage, 130 interrupted."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    signal.signal(signal.SIGTERM, _terminated)
    as_json = "--json" in sys.argv
    try:
        # typer hands an Exit's status back instead of raising it, and turns Ctrl-C into an Exit of 130.
        status = app(standalone_mode=False)
        if status == 130:
            raise KeyboardInterrupt
        if isinstance(status, int) and status:
            raise SystemExit(status)
    except TuneryError as exc:
        if debug:
            raise
        _screen(as_json).fail(exc.to_dict())
        raise SystemExit(exc.exit_status) from None
    except (KeyboardInterrupt, typer.Abort):
        _say_stopped(as_json)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as exc:
        if debug:
            raise
        usage = _usage_error(exc)
        if usage:
            _screen(as_json).fail({"code": "usage", "message": usage[0], "hint": usage[1], "where": None})
            raise SystemExit(2) from None
        message = f"{type(exc).__name__}: {exc}"
        _screen(as_json).fail({"code": "bug", "message": message, "hint": "run again with --debug", "where": None})
        raise SystemExit(1) from None


def _terminated(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _usage_error(exc: Exception) -> tuple[str, str] | None:
    """Message and hint of a command line that typer could not read."""
    shown = getattr(exc, "format_message", None)
    if not callable(shown):
        return None
    context = getattr(exc, "ctx", None)
    return str(shown()), f"see `{context.command_path if context else 'tunery'} --help`"


def _say_stopped(as_json: bool) -> None:
    words = [a for a in sys.argv[1:] if not a.startswith("-")]
    verb = words[0] if words else ""
    again = {
        "quickstart": "`tunery quickstart` goes on where it stopped",
        "train": "`tunery train --resume` goes on from the last checkpoint",
        "batch": "the same command goes on from there",
    }.get(verb)
    screen = _screen(as_json)
    if as_json:
        screen.result({"error": {"code": "interrupted", "message": "interrupted", "hint": again, "where": None}})
    else:
        screen.errors.print("\nstopped." + (f" {again}." if again else ""))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Labelled examples in, a fine-tuned, evaluated and served extraction model out.

    Start with [bold]tunery quickstart[/]: five minutes on a laptop, from labelled rows to a served model.
    """
    if version:
        from tunery import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the project shall lie.")] = Path("."),
    data: Annotated[Path | None, typer.Option(help="A folder with dataset_info.json. Default: embedded rows.")] = None,
    model: Annotated[str | None, typer.Option(help="The name to register versions under.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented tunery.yaml to start from.

    Example: [bold]tunery init shop --data ../rows[/]
    """
    from tunery.ops.scaffold import init as scaffold

    path = scaffold(folder, data, model)
    screen = _screen(as_json)
    screen.say(f"wrote {path}; next: {'' if folder == Path('.') else f'cd {folder}; '}tunery train")
    screen.result({"project": str(path)})


@app.command()
def doctor(
    address: Annotated[str | None, typer.Option(help="A Ray address to try.")] = None,
    port: Annotated[int, typer.Option(help="The port the service shall have.")] = 8000,
    as_json: AsJson = False,
) -> None:
    """Check this machine: Python, packages, CPU, GPU, memory, disk, ports, Ray.

    Example: [bold]tunery doctor --address auto[/]
    """
    from tunery.doctor import examine

    findings = examine(address=address, port=port)
    screen = _screen(as_json)
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
    for finding in findings:
        from rich.markup import escape

        screen.say(f"{marks[finding.state]:>4}  [bold]{finding.check}[/]  {escape(finding.detail)}")
        if finding.mend and finding.state != "ok":
            screen.say(f"      [dim]mend:[/] {escape(finding.mend)}")
    screen.result({"findings": [dataclasses.asdict(f) for f in findings]})
    if any(f.state == "fail" for f in findings):
        raise typer.Exit(1)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Argument(help="Everything it makes goes here.")] = Path("quickstart"),
    data: Annotated[Path | None, typer.Option(help="Your own folder with dataset_info.json.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew instead of going on.")] = False,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Leave the service up until Ctrl-C.")] = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Labelled rows to a fine-tuned, evaluated and served model, in five steps.

    Example: [bold]tunery quickstart --data ../rows rows-demo[/]
    """
    from tunery.ops.quickstart import quickstart as run

    screen = _screen(as_json)
    last: dict[str, Any] = {}

    def observe(event: Any) -> None:
        screen(event)
        if event["event"] in ("trained", "report", "serving", "answer"):
            last[event["event"]] = dict(event)

    with run(folder, data=data, sets=tuple(sets or ()), restart=restart, observer=observe) as service:
        if keep_serving:
            serve_until_stopped(screen, service)
    if last.get("report"):
        last["report"]["report"].pop("samples", None)
    screen.result(last)


@app.command()
def train(
    file: ProjectFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last interrupted training.")] = False,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on labelled rows and register the result.

    Example: [bold]tunery train --set num_train_epochs=3 --set lora_rank=16[/]
    """
    from tunery.config import inert_keys
    from tunery.ops import verbs

    screen = _screen(as_json)
    project = _project(file, sets, "train")
    if unused := inert_keys(file):
        screen.say(f"[dim]accepted, and without effect here: {', '.join(unused)}[/]")
    if dry_run:
        from tunery.training import prepare

        plan = prepare(verbs.placed_train(project), Path(project.home))
        facts = plan.describe() | {"notes": plan.notes, "train": plan.spec.model_dump(mode="json")}
        screen.table(("what", "value"), [(k, v) for k, v in facts.items() if k != "train"])
        screen.result(facts)
        return
    run = verbs.train(project, observer=screen, resume="last" if resume else None)
    screen.stop()
    screen._on_trained(run.result)
    screen.say(f"[dim]{run.result['output']}[/]")
    screen.result({"run": run.id, **run.result})


@models_app.command("list")
def models_list(project: ProjectOption = None, as_json: AsJson = False) -> None:
    """List registered versions, and the aliases that stand for some of them.

    Example: [bold]tunery models list --json[/]
    """
    from tunery.ops.access import list_aliases
    from tunery.versions import list_versions

    screen = _screen(as_json)
    spec = _project(project, None, None)
    versions, aliases = list_versions(Path(spec.home)), list_aliases(spec)
    if not versions:
        screen.say("no models yet; `tunery train` makes one")
    else:
        screen.table(("model", "base", "rank", "task", "loss", "created", "run"), [
            (v.ref, v.base, v.rank or "whole", "reward model" if v.judges else v.task,
             f"{v.metrics.get('train_loss', float('nan')):.4f}", v.created, v.run_id)
            for v in versions
        ])  # fmt: skip
    if aliases:
        screen.say()
        screen.table(("alias", "stands for"), [(name, shares(alias)) for name, alias in aliases.items()])
    screen.result({
        "models": [dataclasses.asdict(v) | {"ref": v.ref} for v in versions],
        "aliases": {name: dataclasses.asdict(alias) for name, alias in aliases.items()},
    })  # fmt: skip


@models_app.command("show")
def models_show(
    ref: Annotated[str, typer.Argument(help='"name" or "name@3".')],
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Show everything known of one version.

    Example: [bold]tunery models show bikeshop@2[/]
    """
    from tunery.versions import get

    screen = _screen(as_json)
    version = dataclasses.asdict(get(Path(_project(project, None, None).home), ref))
    screen.table(("what", "value"), list(version.items()))
    screen.result(version)


models_app.command("alias")(models_alias)


@models_app.command("export")
def models_export(
    ref: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help='"name" or "name@3".')],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    format: Annotated[str, typer.Option(help="merged (a Hugging Face folder), gguf, or adapter.")] = "merged",
    dtype: Annotated[
        str | None, typer.Option(help="Of merged weights: float32, bfloat16, float16. Default: the base's.")
    ] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Take a version elsewhere, checked: what is written answers as base and adapter do, token for token.

    Example: [bold]tunery models export bikeshop@2 bikeshop-gguf --format gguf[/]
    """
    from tunery.ops.exports import export

    screen = _screen(as_json)
    done = export(ref, out, format=format, dtype=dtype, project=_project(project, None, None), observer=screen)
    screen.stop()
    screen.say(
        f"{done.path}: {done.format}, {done.dtype}, {done.bytes / 1e6:,.1f} MB; "
        f"the same {done.tokens:,} tokens for {done.prompts} prompts"
    )
    screen.result(dataclasses.asdict(done))


@models_app.command("base")
def models_base(as_json: AsJson = False) -> None:
    """Print where the bundled base model lies.

    Example: [bold]ls $(tunery models base)[/]
    """
    from tunery.bases import find_base
    from tunery.config import BUNDLED_BASE

    base = find_base(BUNDLED_BASE)
    screen = _screen(as_json)
    if not as_json:
        typer.echo(base.path)
    screen.result({"path": str(base.path), "digest": base.digest, "context": base.context})
