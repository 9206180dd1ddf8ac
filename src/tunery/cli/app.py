"""The verbs. Each reads its options, calls one function of the Python API, and shows what came back."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunery.errors import ConfigError, TuneryError

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="tunery",
    help="Labelled examples in, a fine-tuned, evaluated and served extraction model out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings=HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(
    help="Import, export, check, divide and look at labelled rows.", no_args_is_help=True, context_settings=HELP
)
models_app = typer.Typer(help="Look at registered model versions.", no_args_is_help=True, context_settings=HELP)
runs_app = typer.Typer(help="Look at what has run.", no_args_is_help=True, context_settings=HELP)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(runs_app, name="runs")

ProjectFile = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="tunery.yaml, or LLaMA-Factory's YAML. Default: ./tunery.yaml"),
]
ProjectOption = Annotated[Path | None, typer.Option("--project", "-p", help="The project file. Default: ./tunery.yaml")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for machines.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would happen, start nothing.")]


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
    }.get(verb)
    screen = _screen(as_json)
    if as_json:
        screen.result({"error": {"code": "interrupted", "message": "interrupted", "hint": again, "where": None}})
    else:
        screen.errors.print("\nstopped." + (f" {again}." if again else ""))


def _screen(as_json: bool) -> Any:
    from tunery.cli.screen import Screen

    return Screen(as_json=as_json)


def _project(path: Path | None, sets: list[str] | None, section: str | None) -> Any:
    from tunery.config import load_project

    return load_project(path, sets or (), section)


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
            _serve_until_stopped(screen, service.url)
    if last.get("report"):
        last["report"]["report"].pop("samples", None)
    screen.result(last)


@data_app.command("import")
def data_import(
    name: Annotated[str, typer.Argument(help='"viggo", "bikeshop" (the embedded rows), or a file, folder or URL.')],
    into: Annotated[Path, typer.Option(help="The folder to fill.")] = Path("data"),
    source: Annotated[
        Path | None, typer.Option("--from", help="Take a known dataset's files from this folder.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format", help="conll | label-studio | prodigy | doccano | docbin. Default: told from the file."
        ),
    ] = None,
    form: Annotated[
        str | None, typer.Option("--as", help="Spans become function or json. Default: function where all values fit.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What the model is told. Default: names the labels.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring rows in: a known dataset, a file of rows, or annotated text, whose spans become outputs.

    An interrupted download goes on where it stopped. Example: [bold]tunery data import ner.conll --into data[/]
    """
    from tunery.data import How, import_dataset

    screen = _screen(as_json)

    def progress(file: str, done: int, total: int | None) -> None:
        screen({"event": "progress", "done": done, "total": total or done, "what": f"bytes of {file}"})

    how = How(kind, form, instruction)  # pyright: ignore[reportArgumentType]  (it checks)
    result = import_dataset(name, into, from_folder=source, how=how, progress=progress)
    screen.stop()
    screen.say(f"{into}: " + ", ".join(f"{f} {n:,} rows" for f, n in result.files.items()))
    if result.missing:
        screen.say(f"[yellow]note:[/] not there: {', '.join(result.missing)}")
    if result.dropped:
        kept = sum(result.files.values())
        _say_counts(screen, kept + sum(result.dropped.values()), kept, result.dropped)
        screen.say(f"[dim]each with its line: {into}/*.dropped.log[/]")
    if result.unchanged:
        screen.say("[dim]all of it was here already[/]")
    screen.result(dataclasses.asdict(result))


def _say_counts(screen: Any, read: int, kept: int, dropped: Any, left: int = 0) -> None:
    """read = kept + left + dropped, with the reasons."""
    from rich.markup import escape

    parts = [f"{kept:,} kept", *([f"{left:,} left"] if left else []), f"{sum(dropped.values()):,} dropped"]
    screen.say(f"read {read:,} = {' + '.join(parts)}")
    for reason, n in dropped.items():
        screen.say(f"  [yellow]{n:,}[/] {escape(reason)}")


@data_app.command("export")
def data_export(
    name: Annotated[str, typer.Argument(help="A dataset name, a data file, or the answers of a batch.")],
    path: Annotated[Path, typer.Argument(help=".jsonl .json .csv .tsv .parquet; no ending: a Hugging Face folder.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="alpaca | sharegpt | openai | ranking | kto, or as spans: "
            "conll | label-studio | prodigy | doccano | docbin. Default: alpaca, openai for more turns.",
        ),
    ] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="The folder with dataset_info.json.")] = None,
    task: Annotated[str | None, typer.Option(help="What outputs are. Default: told from them.")] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Write rows in another format; targets and predictions become spans of their text.

    Example: [bold]tunery data export answers.jsonl review.jsonl --to prodigy[/]
    """
    from tunery.ops.datasets import export_data

    screen = _screen(as_json)
    folder, _ = _datasets(project, [name], dataset_dir)
    done = export_data(name, path, to, folder, task=task)
    screen.say(f"wrote {done.path} ({done.format})")
    _say_counts(screen, done.read, done.kept, done.dropped)
    if done.placed or done.unplaced:
        missing = ", ".join(f"{label} {n:,}" for label, n in list(done.unplaced.items())[:8])
        lost = f"; {sum(done.unplaced.values()):,} values do not stand in their text: {missing}" if missing else ""
        screen.say(f"{done.placed:,} spans{lost}")
    screen.result(dataclasses.asdict(done))


@data_app.command("check")
def data_check(
    names: Annotated[list[str] | None, typer.Argument(help="Dataset names or files. Default: the project's.")] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="The folder with dataset_info.json.")] = None,
    base: Annotated[str | None, typer.Option(help="Count tokens as this base does. Default: the project's.")] = None,
    template: Annotated[str | None, typer.Option(help="... written with this template.")] = None,
    cutoff_len: Annotated[int | None, typer.Option(min=1, help="Longest row in tokens. Default: the base's.")] = None,
    task: Annotated[str | None, typer.Option(help="What outputs are. Default: told from the first dataset.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the result as one page, too.")] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Find faults in labelled rows before they cost a training. The first dataset is the one to learn from.

    Example: [bold]tunery data check viggo-train viggo-val --dataset-dir data/viggo --html check.html[/]
    """
    from tunery.storage import write_atomic

    screen = _screen(as_json)
    result = _checked(screen, project, names, dataset_dir, base, template, cutoff_len, task)
    screen.check(result)
    if html:
        from tunery.cli.page import page

        write_atomic(html, page(result, f"Data check: {', '.join(s.name for s in result.splits)}"))
        screen.say(f"[dim]wrote {html}[/]")
    screen.result(result.to_dict())
    if not result.ok:
        raise typer.Exit(1)


def _checked(
    screen: Any, project: Path | None, names: list[str] | None, dataset_dir: Path | None, base: str | None,
    template: str | None, cutoff_len: int | None, task: str | None,
) -> Any:  # fmt: skip
    from tunery.config import BUNDLED_BASE
    from tunery.ops.datasets import check_data
    from tunery.ops.verbs import as_project, placed_train

    folder, chosen = _datasets(project, names, dataset_dir)
    given = {"model_name_or_path": base, "template": template, "cutoff_len": cutoff_len}
    spec = placed_train(as_project(_project(project, None, None)))
    spec = spec.model_copy(update={k: v for k, v in given.items() if v is not None})
    here = spec.model_name_or_path == BUNDLED_BASE or Path(spec.model_name_or_path).expanduser().is_dir()
    if not here and not base:
        screen.say(f"[yellow]note:[/] {spec.model_name_or_path} is not on this machine: lengths are in characters")
    return check_data(chosen, folder, train=spec if here or base else None, task=task)


@data_app.command("stats")
def data_stats(
    names: Annotated[list[str] | None, typer.Argument(help="Dataset names or files. Default: the project's.")] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="The folder with dataset_info.json.")] = None,
    base: Annotated[str | None, typer.Option(help="Count tokens as this base does. Default: the project's.")] = None,
    template: Annotated[str | None, typer.Option(help="... written with this template.")] = None,
    task: Annotated[str | None, typer.Option(help="What outputs are. Default: told from the first dataset.")] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Count: rows, lengths, functions, labels and attributes with their values.

    Example: [bold]tunery data stats viggo-train --dataset-dir data/viggo[/]
    """
    screen = _screen(as_json)
    result = _checked(screen, project, names, dataset_dir, base, template, None, task)
    for stats in result.splits:
        screen.split_stats(stats, result.cutoff_len)
    screen.result({"splits": result.to_dict()["splits"], "cutoff_len": result.cutoff_len})


@data_app.command("split")
def data_split(
    name: Annotated[str, typer.Argument(help="A dataset name or a data file.")],
    into: Annotated[Path, typer.Option(help="The folder for the parts.")] = Path("data"),
    val: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows for validation.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows for the test.")] = 0.1,
    by: Annotated[
        str | None, typer.Option(help="Keep together rows with the same output | input | COLUMN. Default: output.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other parts.")] = 42,
    dataset_dir: Annotated[Path | None, typer.Option(help="The folder with dataset_info.json.")] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Divide rows into train, val and test, so that no row of one has its like in another.

    Example: [bold]tunery data split rows.jsonl --into data --val 0.1 --test 0[/]
    """
    from tunery.ops.datasets import split_data

    folder, _ = _datasets(project, [name], dataset_dir)
    _say_divided(as_json, split_data(name, into, folder, val=val, test=test, by=by, seed=seed))


@data_app.command("sample")
def data_sample(
    name: Annotated[str, typer.Argument(help="A dataset name or a data file.")],
    path: Annotated[Path, typer.Argument(help="The file to write.")],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows.")] = 100,
    by: Annotated[
        str | None, typer.Option(help="Take as many different output | input | COLUMN as can be. Default: output.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other rows.")] = 42,
    dataset_dir: Annotated[Path | None, typer.Option(help="The folder with dataset_info.json.")] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Choose rows that differ: one of each distinct output, then a second, since neighbours repeat.

    Example: [bold]tunery data sample viggo-train few.jsonl -n 500 --dataset-dir data/viggo[/]
    """
    from tunery.ops.datasets import sample_data

    folder, _ = _datasets(project, [name], dataset_dir)
    _say_divided(as_json, sample_data(name, path, rows, folder, by=by, seed=seed))


def _say_divided(as_json: bool, done: Any) -> None:
    screen = _screen(as_json)
    screen.table(("file", "rows", "distinct outputs"), [
        (path, f"{n:,}", f"{done.groups[path]:,}") for path, n in done.files.items()
    ], right=("rows", "distinct outputs"))  # fmt: skip
    screen.say(f"[dim]grouped by {done.by}[/]")
    _say_counts(screen, done.read, sum(done.files.values()), done.dropped, done.left)
    screen.result(dataclasses.asdict(done))


@data_app.command("show")
def data_show(
    name: Annotated[str | None, typer.Argument(help="A dataset name or file. Default: the training set.")] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="The folder with dataset_info.json.")] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows.")] = 5,
    start: Annotated[int, typer.Option(min=0, help="The first row, from 0.")] = 0,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Show rows as examples: the turns, and the answer.

    Example: [bold]tunery data show viggo-train -n 3 --dataset-dir data/viggo[/]
    """
    from rich.markup import escape

    from tunery.data import load
    from tunery.data.template import common_turns

    screen = _screen(as_json)
    folder, chosen = _datasets(project, [name] if name else None, dataset_dir)
    faults: list[TuneryError] = []
    data = load(chosen[0], folder, labelled=False, quarantine=faults)  # pyright: ignore[reportArgumentType]
    picked = data.examples[start : start + rows]
    _, instruction = common_turns(data.examples)
    if instruction:
        screen.say(f"[dim]shared by all {len(data):,} rows:[/] {escape(instruction)}\n")
    for example in picked:
        text = example.text.removeprefix(f"{instruction}\n") if instruction else example.text
        screen.say(f"[dim]{escape(example.id)}[/]  {escape(text)}\n  → {escape(example.target or '(unlabelled)')}")
    if faults:
        screen.say(f"[yellow]note:[/] {len(faults):,} rows are no examples; `tunery data check` says why")
    screen.result(
        {
            "name": data.name,
            "rows": len(data),
            "dropped": len(faults),
            "examples": [dataclasses.asdict(e) for e in picked],
        }
    )


def _datasets(project: Path | None, names: list[str] | None, dataset_dir: Path | None) -> tuple[str, list[str]]:
    """The folder and names to look at: as given, else as the project has them."""
    from tunery.data import list_datasets
    from tunery.ops.verbs import in_project

    spec = _project(project, None, None)
    folder = str(dataset_dir) if dataset_dir else in_project(spec, spec.train.dataset_dir)
    if names:
        return folder, names
    mine = [n for n in (spec.train.dataset, spec.train.eval_dataset, spec.eval.dataset) if n]
    return folder, list(dict.fromkeys(mine)) if mine and not dataset_dir else list_datasets(folder)


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

        plan = prepare(verbs.placed_train(project))
        facts = plan.describe() | {"notes": plan.notes, "train": plan.spec.model_dump(mode="json")}
        screen.table(("what", "value"), [(k, v) for k, v in facts.items() if k != "train"])
        screen.result(facts)
        return
    run = verbs.train(project, observer=screen, resume="last" if resume else None)
    screen.stop()
    screen._on_trained(run.result)
    screen.say(f"[dim]{run.result['output']}[/]")
    screen.result({"run": run.id, **run.result})


@app.command("eval")
def evaluate(
    model: Annotated[str | None, typer.Argument(help='"name", "name@3". Default: the project\'s latest.')] = None,
    project: ProjectOption = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Score a version beside its untuned base, and show its worst rows.

    Example: [bold]tunery eval bikeshop@2 --set dataset=bikeshop-val --set worst=10[/]
    """
    from tunery.ops import verbs

    screen = _screen(as_json)
    spec = _project(project, sets, "eval")
    if model:
        spec.eval.model = model
    loaded = verbs.load_model(spec, spec.eval.model)
    if dry_run:
        facts = {
            "model": loaded.label,
            "base": loaded.base.name,
            "dataset": spec.eval.dataset or spec.train.eval_dataset,
        }
        screen.table(("what", "value"), list(facts.items()))
        screen.result(facts)
        return
    report = verbs.evaluate(spec, observer=screen).to_dict()
    screen.stop()
    instruction = loaded.version.instruction if loaded.version else None
    screen.report(report, loaded.label, worst=spec.eval.worst, instruction=instruction)
    for name, meaning in report["definitions"].items():
        screen.say(f"[dim]{name.replace('_', ' ')}: {meaning}[/]")
    screen.result({k: v for k, v in report.items() if k != "samples"})


@app.command()
def batch(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="JSONL, JSON, CSV or Parquet rows.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Ends in .jsonl or .parquet.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help='"name", "name@3". Default: the latest.')] = None,
    column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    project: ProjectOption = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Answer every row of a file.

    Example: [bold]tunery batch messages.csv answers.jsonl --column body[/]
    """
    from tunery.ops import verbs

    screen = _screen(as_json)
    spec = _project(project, sets, "batch")
    spec.batch.input, spec.batch.output = source, output
    spec.batch.model = model or spec.batch.model
    spec.batch.column = column or spec.batch.column
    if dry_run:
        from tunery.data import load_rows

        facts = {
            "model": verbs.load_model(spec, spec.batch.model).label,
            "rows": len(load_rows(source)),
            "output": output,
        }
        screen.table(("what", "value"), list(facts.items()))
        screen.result(facts)
        return
    result = verbs.batch(spec, observer=screen)
    screen.stop()
    screen.say(
        f"{result.output}: {result.rows:,} rows, {result.answered:,} answered ({result.parsed:,} of the task's form), "
        f"{result.failed:,} failed; {result.prompt_tokens:,} tokens in, {result.completion_tokens:,} out"
    )
    screen.result(dataclasses.asdict(result))
    if result.failed:
        raise typer.Exit(1)


@app.command()
def serve(
    file: ProjectFile = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Serve the base and every registered version behind an OpenAI-compatible API, until Ctrl-C.

    Example: [bold]tunery serve --set port=8080 --set 'models=[bikeshop@2]'[/]
    """
    from tunery.ops import verbs

    screen = _screen(as_json)
    spec = _project(file, sets, "serve")
    if dry_run:
        from tunery.ops.registry import list_versions

        refs = [v.ref for v in list_versions(Path(spec.home))] if spec.serve.models == "all" else spec.serve.models
        facts = {"url": f"http://{spec.serve.host}:{spec.serve.port}/v1", "models": refs}
        screen.table(("what", "value"), list(facts.items()))
        screen.result(facts)
        return
    with verbs.serve(spec, observer=screen) as service:
        screen.stop()
        screen.result({"url": service.url, "models": service.models})
        screen.say(f"{service.url}  models: {', '.join(service.models)}")
        _serve_until_stopped(screen, service.url)


def _serve_until_stopped(screen: Any, url: str) -> None:
    screen.say(f"serving at {url} until Ctrl-C")
    from contextlib import suppress
    from threading import Event

    with suppress(KeyboardInterrupt):
        Event().wait()
    screen.say("shutting down")


@models_app.command("list")
def models_list(project: ProjectOption = None, as_json: AsJson = False) -> None:
    """List registered versions.

    Example: [bold]tunery models list --json[/]
    """
    from tunery.ops.registry import list_versions

    screen = _screen(as_json)
    versions = list_versions(Path(_project(project, None, None).home))
    if not versions:
        screen.say("no models yet; `tunery train` makes one")
    else:
        screen.table(("model", "base", "rank", "task", "loss", "created", "run"), [
            (v.ref, v.base, v.rank, v.task, f"{v.metrics.get('train_loss', float('nan')):.4f}", v.created, v.run_id)
            for v in versions
        ])  # fmt: skip
    screen.result({"models": [dataclasses.asdict(v) | {"ref": v.ref} for v in versions]})


@models_app.command("show")
def models_show(
    ref: Annotated[str, typer.Argument(help='"name" or "name@3".')],
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Show everything known of one version.

    Example: [bold]tunery models show bikeshop@2[/]
    """
    from tunery.ops.registry import get

    screen = _screen(as_json)
    version = dataclasses.asdict(get(Path(_project(project, None, None).home), ref))
    screen.table(("what", "value"), list(version.items()))
    screen.result(version)


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
    screen = _screen(as_json)
    files = [found[0].path / "metrics.jsonl", *sorted((found[0].path / "logs").rglob("*"))]
    tails: dict[str, list[str]] = {}
    for path in files:
        if path.is_file() and path.stat().st_size:
            tails[str(path)] = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    for name, tail in tails.items():
        screen.say(f"[bold]{name}[/]")
        if not as_json:
            sys.stdout.write("\n".join(tail) + "\n")
            sys.stdout.flush()
    screen.result({"run": found[0].id, "logs": tails})
