"""The data verbs as functions: what `tunery data ...` does, for notebooks and scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.bases import Base, QuickTokenizer, find_base, load_tokenizer
from tunery.config import TrainSpec, resolve_train
from tunery.data import CheckResult, Exported, check, export_dataset, load, sampling
from tunery.data.exporter import plain_rows, write_rows
from tunery.data.files import reasons
from tunery.data.registry import REGISTRY
from tunery.data.template import Template, inputs
from tunery.errors import ConfigError, DataError, StorageError
from tunery.storage import AnyPath, exists, join, read_json, write_json_atomic
from tunery.tasks import infer_task, task_by_name
from tunery.tasks.profile import Profile, learn
from tunery.types import Dataset

if TYPE_CHECKING:
    from tunery.preparing import Job, Prepared

_LEARNT_FROM = 600  # rows: enough to tell closed sets from copied text; which values there are is counted in all rows


def check_data(
    names: Sequence[str],
    dataset_dir: AnyPath = ".",
    *,
    train: TrainSpec | None = None,
    task: str | None = None,
) -> CheckResult:
    """Check datasets that are used together; the first is the one to learn from. Rows with faults are findings.

    With a `train` spec lengths are tokens of its base and template, compared with its cutoff_len (default: what the
    base reads). `task` is inferred from the first dataset's outputs when not named. Raises DataError for a dataset
    without a single readable row, ModelError for a base without a tokenizer.
    """
    if not names:
        raise ConfigError("no dataset to check", hint="name one, or a data file")
    quarantined: list[list[DataError]] = [[] for _ in names]
    datasets = [load(name, dataset_dir, quarantine=q) for name, q in zip(names, quarantined, strict=True)]
    called = Counter(dataset.name for dataset in datasets)
    # Files of one name, such as a/rows.jsonl and b/rows.jsonl, are told apart by where they lie.
    datasets = [replace(d, name=d.uri) if called[d.name] > 1 else d for d in datasets]
    learnt_from = datasets[0].examples
    meaning = task_by_name(task) if task else infer_task([e.target for e in learnt_from if e.target])
    template, cutoff = _template(train) if train else (None, None)
    return check(
        datasets,
        template=template,
        cutoff_len=cutoff,
        task=meaning,
        profile=_profile(meaning, datasets[0]),
        quarantined=quarantined,
    )


def plan_preparing(
    source: AnyPath, into: AnyPath, train: TrainSpec, *, val: float = 0.05, test: float = 0.0, seed: int = 42
) -> Job:
    """Check that `source` can be prepared into `into` as `train`'s base and template read it: see tunery.preparing."""
    from tunery.preparing import plan

    spec = resolve_train(train)
    base = find_base(spec.model_name_or_path)
    options = {"cutoff_len": spec.cutoff_len, "val": val, "test": test, "seed": seed}
    return plan(source, into, base=base, template=spec.template or "auto", **options)


def prepare_data(job: Job, *, address: str | None = None, on_progress: Callable[[int], None]) -> Prepared:
    """Prepare what `plan_preparing` looked at, on a Ray started here or the one at `address`."""
    from tempfile import TemporaryDirectory

    from tunery.engine.cluster import connect, quiet
    from tunery.preparing import prepare

    with TemporaryDirectory(prefix="tunery-") as logs, quiet(Path(logs) / "driver.log"), connect(address):
        return prepare(job, on_progress=on_progress)


def _profile(task: Any, dataset: Dataset) -> Profile:
    texts = inputs(dataset.examples)
    step = max(1, len(texts) // _LEARNT_FROM)
    return learn(task, [(t, e.target or "") for t, e in zip(texts, dataset.examples, strict=True)][::step])


def _template(train: TrainSpec) -> tuple[Template, int]:
    spec = resolve_train(train)
    base: Base = find_base(spec.model_name_or_path, allow_pickle=spec.allow_pickle)
    name = spec.template or "auto"
    quick = name != "auto" and (base.path / "tokenizer.json").exists() and not spec.trust_remote_code
    tokenizer = QuickTokenizer(base) if quick else load_tokenizer(base, trust_remote_code=spec.trust_remote_code)
    return Template(name, tokenizer), min(spec.cutoff_len or base.context, base.context)


def export_data(
    name: str, path: AnyPath, to: str | None = None, dataset_dir: AnyPath = ".", *, task: str | None = None
) -> Exported:
    """Write a dataset, or a batch's answers, in another format: see tunery.data.export_dataset.

    `task` reads values out of targets for annotation formats; it is inferred when not named.
    """
    faults: list[DataError] = []
    dataset = load(name, dataset_dir, quarantine=faults)
    meaning = task_by_name(task) if task else infer_task([e.target or "" for e in dataset.examples])

    def slots(target: str) -> Sequence[tuple[str, str]] | None:
        found = meaning.parse(target)
        return found and found.slots

    return export_dataset(dataset, path, to, slots=None if meaning.name == "text" else slots, faults=faults)


@dataclass(frozen=True, slots=True)
class Divided:
    """Files that a split or a sample wrote: read = the sum of their rows, of what was left and of dropped."""

    by: str
    read: int
    files: Mapping[str, int]  # path -> rows
    groups: Mapping[str, int]  # path -> distinct outputs
    left: int = 0  # readable rows that were not chosen
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows


def split_data(
    name: str,
    into: AnyPath,
    dataset_dir: AnyPath = ".",
    *,
    val: float = 0.1,
    test: float = 0.1,
    by: str | None = None,
    seed: int = 42,
) -> Divided:
    """Divide a dataset into NAME-train, NAME-val and NAME-test in the folder `into`, registered there.

    Rows with the same output (or `by`: "input", or a column) or the same input are never in two of them. A share of 0
    leaves that part out. Raises StorageError when a file is there already, DataError for too few groups.
    """
    faults: list[DataError] = []
    dataset = load(name, dataset_dir, quarantine=faults)
    by, _ = sampling.group_key(dataset.examples, by)
    shares = {part: share for part, share in (("val", val), ("test", test)) if share}
    parts = sampling.split(dataset.examples, shares, by=by, seed=seed)
    folder = Path(into)
    paths = {part: folder / f"{dataset.name}-{part}.jsonl" for part in parts}
    if there := next((p for p in paths.values() if p.exists()), None):
        raise StorageError(f"{there} exists already", hint="name another folder with --into, or remove it first")
    registry_path = join(into, REGISTRY)
    registry = read_json(registry_path) if exists(registry_path) else {}
    for part, path in paths.items():
        rows = plain_rows(parts[part], dataset.name)
        write_rows(path, rows)
        registry[path.stem] = _entry(path, rows[0])
    write_json_atomic(registry_path, registry)
    return Divided(
        by,
        len(dataset) + len(faults),
        {str(paths[part]): len(rows) for part, rows in parts.items()},
        {str(paths[part]): len({e.target for e in rows}) for part, rows in parts.items()},
        dropped=reasons(faults),
    )


def _entry(path: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    from tunery.data.layouts import guess

    entry = guess(path.stem, dict(row), path.name, labelled=True)
    raw: dict[str, Any] = {"file_name": path.name, "formatting": entry.formatting, "columns": dict(entry.columns)}
    return raw | ({"ranking": True} if entry.ranking else {})


def sample_data(
    name: str, path: AnyPath, n: int, dataset_dir: AnyPath = ".", *, by: str | None = None, seed: int = 42
) -> Divided:
    """Write `n` rows of a dataset that differ as much as they can: one of each distinct output first.

    The ending of `path` names its format. Raises ConfigError for more rows than there are, StorageError when the path
    is taken.
    """
    faults: list[DataError] = []
    dataset = load(name, dataset_dir, quarantine=faults)
    by, _ = sampling.group_key(dataset.examples, by)
    chosen = sampling.sample(dataset.examples, n, by=by, seed=seed)
    part = Dataset(dataset.name, dataset.uri, tuple(chosen), "")
    layout = "ranking" if all("rejected" in e.meta for e in chosen) else None
    layout = "kto" if all("kto_tag" in e.meta for e in chosen) else layout
    done = export_dataset(part, path, layout)
    return Divided(
        by,
        len(dataset) + len(faults),
        {str(done.path): done.kept},
        {str(done.path): len({e.target for e in chosen})},
        left=len(dataset) - done.kept,
        dropped=reasons(faults),
    )
