"""The quickstart: every verb once, in order, on data at hand. What is done already is not done again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import versions
from tunery.config import PROJECT_FILE, Project, apply_sets, load_project, parse, read_yaml, resolve_train
from tunery.data import check, load
from tunery.errors import DataError, EngineError, RunError
from tunery.ops import runs, services, verbs
from tunery.ops.scaffold import init
from tunery.ops.verbs import Observer, silent
from tunery.storage import read_json
from tunery.types import Dataset, Example, ModelVersion

if TYPE_CHECKING:
    from tunery.serving import Service

STEPS = ("Data", "Train", "Evaluate", "Serve", "Ask")


@contextmanager
def quickstart(
    folder: Path = Path("quickstart"),
    *,
    data: Path | None = None,
    sets: tuple[str, ...] = (),
    restart: bool = False,
    observer: Observer = silent,
) -> Iterator[Service]:
    """Data, training, evaluation, service, one question. Yields the running service; it ends with the block.

    A second call goes on where an earlier one stopped, unless `restart`. Everything lies in `folder`.
    """
    project = _project(folder, data, sets, restart)
    home = Path(project.home)

    def step(number: int, **details: Any) -> None:
        observer({"event": "step", "number": number, "of": len(STEPS), "title": STEPS[number - 1], **details})

    step(1)
    test = _look_at_data(project, observer)

    step(2)
    version = _trained(project)
    if version:
        observer({"event": "kept", "text": f"{version.ref} is trained already", "version": version.ref})
    else:
        unfinished = [r for r in runs.list_runs(home) if r.kind == "train" and r.state in ("interrupted", "failed")]
        try:
            run = verbs.train(project, observer=observer, resume="last" if unfinished else None)
        except RunError:  # the unfinished run had other settings
            run = verbs.train(project, observer=observer)
        observer({"event": "trained", **run.result, "path": str(run.path)})
        version = versions.get(home, run.result["version"])

    step(3)
    report = _report(home, version, project)
    if report:
        observer({"event": "kept", "text": f"{version.ref} is evaluated already", "version": version.ref})
    else:
        verbs.evaluate(project, observer=observer)
        report = _report(home, version, project)
    observer({"event": "report", "label": version.ref, "report": report, "instruction": version.instruction})

    step(4)
    began = time.monotonic()
    with services.serve(project, observer=observer) as service:
        observer(
            {
                "event": "serving",
                "url": service.url,
                "models": service.models,
                "seconds": time.monotonic() - began,
            }
        )
        step(5)
        _ask(service, version, _question(test, report, version.ref), observer)
        observer({"event": "done", "folder": str(folder), "version": version.ref, "adapter": str(version.adapter)})
        yield service


def _project(folder: Path, data: Path | None, sets: tuple[str, ...], restart: bool) -> Project:
    if restart and (folder / PROJECT_FILE).exists():
        for name in ("runs", "models", "data"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / PROJECT_FILE).unlink()
    if not (folder / PROJECT_FILE).exists():
        init(folder, data)
    elif data is not None:
        named = load_project(folder / PROJECT_FILE)
        if Path(verbs.in_project(named, named.train.dataset_dir)).resolve() != data.resolve():
            raise RunError(
                f"{folder} holds a quickstart on other data",
                hint=f"start it anew with --restart, or use another folder: tunery quickstart --data {data} OTHER",
            )
    values = apply_sets(read_yaml(folder / PROJECT_FILE), sets, "train")
    values.setdefault("home", str(folder))
    return parse(Project, values, where=str(folder / PROJECT_FILE))


def _look_at_data(project: Project, observer: Observer) -> Dataset:
    folder = verbs.in_project(project, project.train.dataset_dir)
    names = dict.fromkeys(n for n in (project.train.dataset, project.train.eval_dataset, project.eval.dataset) if n)
    sets = {name: load(name, folder) for name in names}
    result = check(list(sets.values()))
    errors = [f for f in result.findings if f.severity == "error"]
    if errors:
        raise DataError(errors[0].message, where=errors[0].where, hint="`tunery data check` shows all of them")
    first = next(iter(sets.values())).examples
    observer(
        {
            "event": "data",
            "rows": {name: len(d) for name, d in sets.items()},
            "warnings": [f.message for f in result.findings if f.severity == "warning"],
            "example": {"input": _input(first[len(first) // 2]), "output": first[len(first) // 2].target},
        }
    )
    return list(sets.values())[-1]


def _trained(project: Project) -> ModelVersion | None:
    """The latest version, if it was trained with exactly these settings on exactly this data."""
    home = Path(project.home)
    try:
        version = versions.get(home, project.model)
        run = runs.get(home, version.run_id)
    except RunError:
        return None
    wanted = resolve_train(verbs.placed_train(project)).model_dump(mode="json")
    data = load(project.train.dataset or "", verbs.in_project(project, project.train.dataset_dir))
    same = run.spec.get("train") == wanted and version.dataset_fingerprint == data.fingerprint
    return version if same else None


def _report(home: Path, version: ModelVersion, project: Project) -> Mapping[str, Any] | None:
    for run in runs.list_runs(home):
        asked = run.spec.get("eval") == project.eval.model_dump(mode="json")
        if run.kind == "eval" and run.state == "succeeded" and run.result.get("model") == version.ref and asked:
            return read_json(run.path / "report.json") | {"path": str(run.path)}
    return None


def _question(test: Dataset, report: Mapping[str, Any] | None, label: str) -> Example:
    """A row the model gets right, so that a newcomer sees it work; its faults are in the table above."""
    right = {s["id"] for s in (report or {}).get("samples", []) if s["answers"][label]["exact"]}
    return next((e for e in test.examples if e.id in right), test.examples[0])


def _input(example: Example) -> str:
    """The part of an example's text that is its own: the last line, for rows that begin with an instruction."""
    return example.text.rsplit("\n", 1)[-1]


def _ask(service: Service, version: ModelVersion, example: Example, observer: Observer) -> None:
    """One streamed question through the openai client, as any application would ask it."""
    import openai

    messages: list[Any] = [{"role": m.role, "content": m.content} for m in example.messages]
    observer({"event": "question", "input": _input(example), "model": version.name})
    client = openai.OpenAI(base_url=service.url, api_key="unused", max_retries=0, timeout=120)
    began = time.monotonic()
    text, first = "", None
    try:
        stream = client.chat.completions.create(
            model=version.name, messages=messages, stream=True, temperature=0, max_tokens=256
        )
        for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                first = first or time.monotonic() - began
                text += piece
                observer({"event": "token", "text": piece})
    except openai.OpenAIError as exc:
        raise EngineError(f"the service did not answer: {exc}", hint="its log: `tunery runs logs`") from None
    seconds = time.monotonic() - began
    observer(
        {
            "event": "answer",
            "text": text,
            "gold": example.target,
            "seconds": seconds,
            "first_token": first or seconds,
        }
    )
