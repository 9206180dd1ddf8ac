"""`tunery data ...`: rows in and out, looked over, divided."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from tunery.cli.options import HELP, AsJson, DryRun, ProjectOption, open_screen, read_project
from tunery.errors import DataError

data_app = typer.Typer(
    help="Import, export, check, divide and look at labelled rows.", no_args_is_help=True, context_settings=HELP
)


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

    screen = open_screen(as_json)

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

    screen = open_screen(as_json)
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

    screen = open_screen(as_json)
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

    folder, chosen = _datasets(project, names, dataset_dir)
    spec = _train(project, base, template, cutoff_len)
    here = spec.model_name_or_path == BUNDLED_BASE or Path(spec.model_name_or_path).expanduser().is_dir()
    if not here and not base:
        screen.say(f"[yellow]note:[/] {spec.model_name_or_path} is not on this machine: lengths are in characters")
    return check_data(chosen, folder, train=spec if here or base else None, task=task)


def _train(project: Path | None, base: str | None, template: str | None, cutoff_len: int | None) -> Any:
    """The project's train section with what was given on the command line."""
    from tunery.ops.verbs import as_project, placed_train

    given = {"model_name_or_path": base, "template": template, "cutoff_len": cutoff_len}
    spec = placed_train(as_project(read_project(project, None, None)))
    return spec.model_copy(update={k: v for k, v in given.items() if v is not None})


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
    screen = open_screen(as_json)
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
    screen = open_screen(as_json)
    screen.table(("file", "rows", "distinct outputs"), [
        (path, f"{n:,}", f"{done.groups[path]:,}") for path, n in done.files.items()
    ], right=("rows", "distinct outputs"))  # fmt: skip
    screen.say(f"[dim]grouped by {done.by}[/]")
    _say_counts(screen, done.read, sum(done.files.values()), done.dropped, done.left)
    screen.result(dataclasses.asdict(done))


@data_app.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="JSONL, CSV or Parquet: a file, folder, glob or URL.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A new folder, here or remote (s3://, gs://).")],
    val: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows for validation.")] = 0.05,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows for the test.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed gives other parts.")] = 42,
    base: Annotated[str | None, typer.Option(help="Tokenise as this base does. Default: the project's.")] = None,
    template: Annotated[str | None, typer.Option(help="... written with this template.")] = None,
    cutoff_len: Annotated[int | None, typer.Option(min=1, help="Longest row in tokens. Default: the base's.")] = None,
    project: ProjectOption = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Check, divide and tokenise more rows than fit into memory, on all cores or a Ray cluster.

    Writes OUTPUT/train, val, test (Parquet: id, prompt and target token ids) and dropped, then prepared.json: without
    it the folder is not whole, and the same command goes on with it.

    Example: [bold]tunery data prepare 's3://bucket/rows/*.jsonl' prepared --val 0.01[/]
    """
    from tunery.ops.datasets import plan_preparing, prepare_data
    from tunery.storage import shown

    screen = open_screen(as_json)
    job = plan_preparing(
        source, output, _train(project, base, template, cutoff_len), val=val, test=test, seed=seed
    )  # fmt: skip
    facts = job.settings() | {"files": len(job.files), "bytes": sum(job.files.values()), "goes_on": job.begun}
    if dry_run:
        screen.table(("what", "value"), list(facts.items()))
        screen.result(facts)
        return
    if job.begun:
        screen.say("[dim]going on where it stopped[/]")

    def progress(rows: int) -> None:
        screen({"event": "stage", "text": f"{rows:,} rows"})

    screen({"event": "stage", "text": "starting Ray"})
    address = read_project(project, None, None).ray.address
    done = prepare_data(job, address=address, on_progress=progress)
    screen.stop()
    _say_counts(screen, done.read, sum(done.rows.values()), done.dropped)
    splits = ", ".join(f"{name} {n:,}" for name, n in done.rows.items() if n)
    screen.say(f"{shown(output)}: {splits} rows, {done.tokens:,} tokens, in {done.seconds:,.0f} s")
    found = {"repeats": done.duplicates, "inputs with more than one output": done.contradictions,
             "inputs in more than one split": done.leakage}  # fmt: skip
    for what, n in found.items():
        if n:
            screen.say(f"[yellow]note:[/] {n:,} {what}")
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

    screen = open_screen(as_json)
    folder, chosen = _datasets(project, [name] if name else None, dataset_dir)
    faults: list[DataError] = []
    data = load(chosen[0], folder, labelled=False, quarantine=faults)
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

    spec = read_project(project, None, None)
    folder = str(dataset_dir) if dataset_dir else in_project(spec, spec.train.dataset_dir)
    if names:
        return folder, names
    mine = [n for n in (spec.train.dataset, spec.train.eval_dataset, spec.eval.dataset) if n]
    return folder, list(dict.fromkeys(mine)) if mine and not dataset_dir else list_datasets(folder)
