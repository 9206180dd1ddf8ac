"""The verbs as functions: each runs one capability and records what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import versions
from tunery.bases import Base, find_base, load_tokenizer
from tunery.config import BatchSpec, Project, TrainSpec, base_in_project, in_project, load_project, parse, placed_train
from tunery.errors import ConfigError, ModelError, RunError
from tunery.ops import registry, runs
from tunery.storage import FolderLock, read_json
from tunery.types import Dataset, ModelVersion, Report, Run

if TYPE_CHECKING:
    from tunery.batching import Batch, BatchResult
    from tunery.data.template import Template
    from tunery.engine.vllm import Adapter
    from tunery.evaluation import Comparison
    from tunery.extraction import Model
    from tunery.tasks import Profile

Observer = Callable[[Mapping[str, Any]], None]
AnyProject = Project | TrainSpec | Mapping[str, Any] | str | Path | None


def silent(event: Mapping[str, Any]) -> None:
    """The default observer: hears and says nothing."""


def as_project(project: AnyProject) -> Project:
    """A Project from whatever a person has at hand: a path, a dict, a TrainSpec, or None for ./tunery.yaml."""
    if isinstance(project, Project):
        return project
    if isinstance(project, TrainSpec):
        return Project(train=project)
    if isinstance(project, Mapping):
        return parse(Project, project)
    return load_project(Path(project) if project is not None else None)


@contextmanager
def in_ray(project: Project, log_dir: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Ray as the project wants it, for the length of the block; what vendors print goes to `log_dir`.

    The block gets what makes a block inside it that may print.
    """
    from tunery.engine.cluster import connect, quiet

    with quiet(log_dir / "driver.log") as aloud, connect(project.ray.address, log_dir=log_dir):
        yield aloud


def train(project: AnyProject = None, *, observer: Observer = silent, resume: str | None = None) -> Run:
    """Fine-tune, and register the adapter as the next version of `project.model`.

    `resume` goes on with an interrupted run, by its id or "last". Returns the finished Run; its `result` holds the
    version's ref and the training results. Raises TuneryError; the run folder then says why.
    """
    from tunery.engine.cluster import dashboard_url
    from tunery.training import prepare
    from tunery.training import train as run_training

    project = as_project(project)
    home = Path(project.home)
    observer({"event": "stage", "text": "reading the data"})
    plan = prepare(placed_train(project), home)
    resolved = project.model_copy(update={"train": plan.spec})
    observer({"event": "plan", **plan.describe(), "notes": plan.notes})
    profile = registry.learn_profile(plan)  # before the training: a task of the user's own may fail here
    earlier = _resumable(home, resume, resolved) if resume else None
    context = runs.resume(home, earlier.id, resolved) if earlier else runs.start(home, "train", resolved)
    with context as run:
        observer({"event": "run", "id": run.id, "path": str(run.path)})
        output = Path(plan.spec.output_dir) if plan.spec.output_dir else run.path / "output"

        def heard(event: Mapping[str, Any]) -> None:
            if "parity" not in event:  # that is parity.json
                run.log(event)
            observer({"event": "train", **event})

        with FolderLock(output), in_ray(project, run.logs):
            if url := dashboard_url():
                observer({"event": "dashboard", "url": url})
            observer({"event": "stage", "text": "starting the workers"})
            trained = run_training(plan, output, run=run.id, resume=earlier is not None, on_event=heard)
        version = registry.register(home, project.model, plan, trained, profile=profile, run_id=run.id)
        run.result(
            version=version.ref, adapter=str(version.adapter), output=str(output), notes=plan.notes, **trained.results
        )
    return runs.get(home, run.id)


def _resumable(home: Path, wanted: str, project: Project) -> Run:
    from tunery.training.output import INDIFFERENT

    candidates = [r for r in runs.list_runs(home) if r.kind == "train" and r.state in ("interrupted", "failed")]
    if wanted != "last":
        run = runs.get(home, wanted)
    elif candidates:
        run = candidates[0]
    else:
        raise RunError("no interrupted training to resume", hint="`tunery train` starts a new one")
    if run.state == "succeeded":
        raise RunError(f"run {run.id} has succeeded already")
    before, now = run.spec.get("train", {}), project.model_dump(mode="json")["train"]
    free = INDIFFERENT - {"output_dir"}  # rows, base and batch are compared with the checkpoint
    changed = sorted(k for k in now if k not in free and before.get(k) != now[k])
    if changed:
        raise RunError(
            f"run {run.id} was started with other settings: {', '.join(changed)}",
            hint="resume with the settings it had, or start a new run",
        )
    return run


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked: what the engine loads, its adapter and its way of writing prompts.

    `base` is the base of an adapter, or a whole model that was tuned; `adapter` is then None.
    """

    label: str
    base: Base
    adapter: Adapter | None
    template: Template
    version: ModelVersion | None


def load_model(project: Project, ref: str | None, *, quick: bool = False) -> Loaded:
    """Resolve `ref` (default: the project's latest version) and check that everything fits together.

    `quick` takes the tokenizer that starts without transformers, where that is enough.

    Raises ModelError for a reward model, another base, another way of writing prompts or a rank that lies; RunError for
    an unknown ref.
    """
    from tunery.data.template import Template, quick_template
    from tunery.engine.vllm import Adapter

    version = versions.get(Path(project.home), ref or project.model)
    if version.judges:
        raise ModelError(f"{version.ref} is a reward model: it scores answers, and writes none", hint="name another")
    base = replace(find_base(str(version.adapter)), name=version.ref) if version.whole else untuned(project, version)
    trusted = project.train.trust_remote_code
    if quick:
        template = quick_template(base, version.template, trusted)
    else:
        template = Template(version.template, load_tokenizer(base, trust_remote_code=trusted))
    if template.digest != version.template_digest:
        raise ModelError(
            f"{version.ref} was trained with another prompt layout than this Tunery writes "
            f"(digest {version.template_digest}, here {template.digest})",
            hint="its prompts would differ from its training rows; train it again",
        )
    versions.check_template(version, template)
    if version.whole:
        return Loaded(version.ref, base, None, template, version)
    rank = versions.adapter_config(version.adapter).get("r")
    if rank != version.rank:
        raise ModelError(f"{version.ref}: the adapter has rank {rank}, the registry says {version.rank}")
    adapter = Adapter(name=version.ref, path=version.adapter, rank=version.rank)
    return Loaded(version.ref, base, adapter, template, version)


def untuned(project: Project, version: ModelVersion) -> Base:
    """The base that `version` was trained on. Raises ModelError when what lies there is another."""
    base = find_base(base_in_project(project, version.base), allow_pickle=project.train.allow_pickle)
    versions.check_base(version, base)
    return base


def _fault(loaded: Loaded) -> str | None:
    """Why vLLM cannot answer with `loaded`; None when it can."""
    from tunery.engine.vllm import unservable

    return unservable(versions.adapter_config(loaded.adapter.path)) if loaded.adapter else None


def _for_engine(project: Project, ref: str | None, *, quick: bool = False) -> Loaded:
    """`load_model`, which raises ModelError also for an adapter that vLLM cannot apply."""
    loaded = load_model(project, ref, quick=quick)
    if why := _fault(loaded):
        raise ModelError(
            f"{loaded.label} cannot be asked as an adapter: {why}",
            hint=f"make a model of it: `tunery models export {loaded.label} FOLDER --format merged`",
        )
    return loaded


def evaluate(project: AnyProject = None, *, observer: Observer = silent) -> Report:
    """Score the project's model, and its untuned base beside it, on `eval.dataset` (default: train.eval_dataset).

    Writes report.json, report.md and report.html into the run folder, whose id and path the observer hears. With
    `eval.gate`, the report's record holds "gate", a verdict a condition; it is the caller's to act on.
    """
    from tunery.evaluation import BASE, Model, check_gate, parse_gate, write_report
    from tunery.evaluation import evaluate as run_evaluation
    from tunery.tasks import check_fit, task_by_name

    project = as_project(project)
    spec = project.eval
    conditions = parse_gate(spec.gate) if spec.gate else []
    loaded = _for_engine(project, spec.model)
    assert loaded.version is not None
    version = loaded.version
    task = task_by_name(spec.task or version.task)
    data, calibration = _rows_of(project, version, observer)
    check_fit(task, [e.target for e in data.examples if e.target])
    baseline = _baseline(project, data) if any(c.baseline for c in conditions) else None
    profile = versions.profile_of(version)
    if profile and profile.task != task.name:
        profile = None
    models = {}
    if spec.compare_base:
        models[BASE] = Model((untuned(project, version) if version.whole else loaded.base).path)
    models[loaded.label] = Model(loaded.base.path, loaded.adapter)
    with runs.start(Path(project.home), "eval", project, parents=[version.run_id]) as run:
        observer({"event": "run", "id": run.id, "path": str(run.path)})
        with in_ray(project, run.logs):
            observer({"event": "stage", "text": "starting the engine"})
            report = run_evaluation(
                spec,
                models=models,
                data=data,
                template=loaded.template,
                task=task,
                profile=profile,
                instruction=version.instruction,
                calibration=calibration,
                log_dir=run.logs,
                on_progress=lambda done, total: observer({"event": "progress", "done": done, "total": total}),
            )
        record = _record(run, project, loaded, data, calibration, profile)
        if conditions:
            verdicts = check_gate(conditions, report.metrics[loaded.label], baseline or report.metrics.get(BASE))
            record["gate"] = [asdict(v) for v in verdicts]
        report = replace(report, record=record)
        registry.keep_calibration(version, report)
        paths = write_report(report, run.path)
        scores = {label: {k: m.value for k, m in found.items()} for label, found in report.metrics.items()}
        run.result(
            model=loaded.label, dataset=data.name, n=report.n, scores=scores,
            report=str(paths["json"]), page=str(paths["html"]),
        )  # fmt: skip
    return report


def _record(
    run: runs.Recorder,
    project: Project,
    loaded: Loaded,
    data: Dataset,
    calibration: Dataset | None,
    profile: Profile | None,
) -> dict[str, Any]:
    """What was evaluated, with what: enough to do it again."""
    from tunery.tasks.score import RESAMPLES

    def named(dataset: Dataset) -> dict[str, Any]:
        return {"name": dataset.name, "uri": dataset.uri, "fingerprint": dataset.fingerprint, "rows": len(dataset)}

    assert loaded.version is not None
    kinds = {
        p: {"kind": a.kind, "expected": a.expected, "n": a.n}
        for p, a in (profile.attributes if profile else {}).items()
    }
    return {
        "format": 1,
        "run": run.id,
        **run.provenance,
        "model": asdict(loaded.version) | {"ref": loaded.version.ref},
        "base": {"name": loaded.version.base, "digest": loaded.version.base_digest},
        "template": {"name": loaded.template.name, "digest": loaded.template.digest},
        "dataset": named(data),
        "calibration": named(calibration) if calibration else None,
        "profile": {"rows": profile.rows, "unparsed": profile.unparsed, "attributes": kinds} if profile else None,
        "settings": project.eval.model_dump(mode="json"),
        "seeds": {"sampling": project.eval.sampling.seed, "bootstrap": 0, "resamples": RESAMPLES},
    }


def _rows_of(project: Project, version: ModelVersion, observer: Observer) -> tuple[Dataset, Dataset | None]:
    """The rows to evaluate on, and those to calibrate confidences on."""
    from tunery.data import load

    spec = project.eval
    name = spec.dataset or project.train.eval_dataset
    if not name:
        raise ConfigError("no dataset to evaluate on", hint="name one with eval.dataset")
    folder = in_project(project, spec.dataset_dir or project.train.dataset_dir)
    data = load(name, folder, max_samples=spec.max_samples)
    if not spec.calibrate_on:
        return data, None
    calibration = load(spec.calibrate_on, folder, max_samples=spec.max_samples)
    if calibration.fingerprint == data.fingerprint:
        raise ConfigError(
            f'eval.calibrate_on: "{spec.calibrate_on}" holds the rows that are evaluated on: '
            "every confidence would look right",
            hint="calibrate on another split, usually validation",
        )
    if calibration.fingerprint == version.dataset_fingerprint:
        text = f"{calibration.name} is what the model was trained on: confidences calibrated on it are too high"
        observer({"event": "note", "text": text})
    return data, calibration


def _baseline(project: Project, data: Dataset) -> Mapping[str, Any] | None:
    """The metrics of `eval.baseline`; None when it is not set, and the untuned base is the baseline.

    Raises ConfigError when there is neither, or when the baseline was evaluated on other rows.
    """
    wanted = project.eval.baseline
    if not wanted:
        if not project.eval.compare_base:
            raise ConfigError("the gate has no baseline", hint="name an earlier evaluation or version with --baseline")
        return None
    report, label = find_report(project, wanted)
    theirs = report["record"].get("dataset") or {}
    if theirs.get("fingerprint") != data.fingerprint:
        raise ConfigError(
            f'the baseline "{wanted}" was evaluated on {theirs.get("name", "other rows")}, '
            f"not on these rows of {data.name}",
            hint=f"evaluate it first: tunery eval {label} --set dataset={data.name}",
        )
    return report["metrics"][label]


def find_report(project: AnyProject, wanted: str) -> tuple[Mapping[str, Any], str]:
    """A report and the label of its model, by a run's id, a version ("name@3": its last evaluation), or a file.

    Any of them may end in ":LABEL" to choose another column, such as "base". Raises RunError when there is none.
    """
    home = Path(as_project(project).home)
    where, _, column = wanted.partition(":")
    path = None
    if Path(where).is_file():
        path = Path(where)
    elif (Path(where) / "report.json").is_file():
        path = Path(where) / "report.json"
    else:
        evals = [r for r in runs.list_runs(home) if r.kind == "eval" and r.state == "succeeded"]
        named = [r for r in evals if where in (r.id, r.result.get("model"))]
        if not named and not where.startswith("eval-"):
            ref = versions.get(home, where).ref
            named = [r for r in evals if r.result.get("model") == ref]
        if not named:
            raise RunError(f'no evaluation of "{where}"', hint="`tunery eval` makes one; `tunery runs list` shows them")
        path = named[0].path / "report.json"
    report = read_json(path)
    try:
        labels = list(report["metrics"])
        label = column or (report["record"].get("model") or {}).get("ref") or labels[-1]
        if label not in labels:
            raise RunError(f'{path} has no column "{label}"', hint=f"it has {', '.join(labels)}")
    except (KeyError, TypeError, AttributeError):
        raise RunError("not a report, or one of an older Tunery", where=str(path)) from None
    return report, label


def compare(a: str, b: str, *, project: AnyProject = None) -> Comparison:
    """Compare two evaluations on the rows they share; `a` and `b` as `find_report` takes them."""
    from tunery.evaluation import compare as run_comparison
    from tunery.tasks import task_by_name

    project = as_project(project)
    (one, label_a), (two, label_b) = find_report(project, a), find_report(project, b)
    if one["task"] != two["task"]:
        raise ConfigError(f'{a} was scored as "{one["task"]}", {b} as "{two["task"]}"')
    try:
        profile = versions.profile_of(versions.get(Path(project.home), two["record"]["model"]["ref"]))
    except (RunError, KeyError, TypeError):  # a report from elsewhere: values are judged by the text alone
        profile = None
    if profile and profile.task != two["task"]:
        profile = None
    task = task_by_name(two["task"])
    return run_comparison(task, one, two, label_a=label_a, label_b=label_b, profile=profile)


def batch(project: AnyProject = None, *, observer: Observer = silent) -> BatchResult:
    """Answer every row of `batch.input` into `batch.output`, each exactly once; goes on with what was begun there.

    A batch that is done is left as it is. Failed rows are in the result's `errors`. Raises TuneryError; what was done
    by then stays.
    """
    return _batch(as_project(project), observer, retry=False)


def retry_batch(output: str, project: AnyProject = None, *, observer: Observer = silent) -> BatchResult:
    """Ask the failed rows of a batch once more, with its own settings, and move those now answered into its output.

    Raises RunError where no batch was begun, and what `batch` raises.
    """
    from tunery.batching.output import Output

    project = as_project(project)
    before = Output.at(output).manifest()
    if before is None:
        raise RunError(f"no batch was written to {output}", hint="name the OUTPUT that `tunery batch` was given")
    spec = parse(BatchSpec, before["spec"])
    spec.output, spec.engine.concurrency = output, project.batch.engine.concurrency
    return _batch(project.model_copy(update={"batch": spec}), observer, retry=True)


def _batch(project: Project, observer: Observer, *, retry: bool) -> BatchResult:
    from tunery.batching import perform

    home = Path(project.home)
    observer({"event": "stage", "text": "reading the input"})
    plan = plan_batch(project)
    done = plan.finished()
    if done and not (retry and done.failed):
        observer({"event": "note", "text": f"{done.output} is done already: nothing was asked"})
        return done
    with runs.start(home, "batch", project) as run:
        observer({"event": "run", "id": run.id, "path": str(run.path)})

        def heard(event: Mapping[str, Any]) -> None:
            run.log(event)
            observer(event)

        with in_ray(project, run.logs):
            observer({"event": "stage", "text": "starting the engine"})
            plan = replace(plan, setup=replace(plan.setup, log_dir=run.logs))
            result = perform(plan, heard, retry=retry)
        run.result(**asdict(result))
    return result


def plan_batch(project: Project) -> Batch:
    """The batch that `project` describes, checked. Nothing is started or written."""
    from tunery.batching import prepare

    spec = project.batch
    names = [spec.model or project.model]
    if spec.model_column:
        names += spec.models or [v.ref for v in versions.list_versions(Path(project.home)) if not v.judges]
    loaded = [_for_batch(project, name) for name in names]
    same = [m for m in loaded if m.base.digest == loaded[0].base.digest and not _fault(m)]
    if spec.models and (others := [m.label for m in loaded if m not in same]):
        raise ModelError(f"not of the same base as {loaded[0].label}: {', '.join(others)}")
    models = {m.label: _model(project, m) for m in same}
    latest = {m.version.name: m.label for m in same if m.version}
    by_name = {**models, **{name: models[label] for name, label in latest.items()}}
    adapters = [m.adapter for m in {m.label: m for m in same}.values() if m.adapter]
    return prepare(spec, models=by_name, default=loaded[0].label, adapters=adapters, log_dir=None)


def _for_batch(project: Project, name: str) -> Loaded:
    """A version, or the untuned base by the name "base"; with the tokenizer that workers use."""
    from tunery.data.template import quick_template

    if name != "base":
        return _for_engine(project, name, quick=True)
    base = find_base(placed_train(project).model_name_or_path, allow_pickle=project.train.allow_pickle)
    trusted = project.train.trust_remote_code
    return Loaded("base", base, None, quick_template(base, project.train.template or "auto", trusted), None)


def _model(project: Project, loaded: Loaded) -> Model:
    from tunery.extraction import Model, model_of

    version = loaded.version
    instruction, trusted = project.batch.instruction, project.train.trust_remote_code
    if version is not None:
        return model_of(version, loaded.base, instruction=instruction, trust_remote_code=trusted)
    name = loaded.template.name
    return Model(loaded.label, loaded.base, name, "text", instruction=instruction, trust_remote_code=trusted)
