"""Everything that can be checked before a worker starts is checked here, on the driver."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunery import versions
from tunery.bases import Base, QuickTokenizer, bundled_path, check_base, find_base, load_tokenizer, remote_code
from tunery.config import TrainSpec, resolve_train
from tunery.data import load
from tunery.data.template import Row, Template, quick_template
from tunery.errors import ConfigError, ModelError
from tunery.tasks import Task, check_fit, infer_task, task_by_name
from tunery.training.checks import check_schedule, check_stage, check_tuning, check_watching
from tunery.training.prefixes import Group, prefix_groups
from tunery.training.trackers import trackers_of
from tunery.training.units import Unit, encode
from tunery.types import Dataset, Example


@dataclass(frozen=True)
class Plan:
    """A training run that can start: resolved spec, encoded rows, and what was noticed on the way."""

    spec: TrainSpec
    base: Base
    template: Template
    task: Task
    train: Dataset
    examples: list[Example]
    units: list[Unit]
    eval_units: list[Unit]
    groups: list[Group]  # of `units`, those that share a prefix
    eval_groups: list[Group]
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """The rows of all training units."""
        return [row for unit in self.units for row in unit]

    def describe(self) -> dict[str, object]:
        """What `--dry-run` prints: sizes, and the cost that sharing the prefix saves."""
        lengths = [len(row) for row in self.rows]
        return {
            "stage": self.spec.stage,
            "base": self.base.name,
            "architecture": self.base.architecture,
            "template": self.template.name,
            "task": self.task.name,
            "train_rows": len(self.units),
            "eval_rows": len(self.eval_units),
            "tokens_per_row": round(sum(lengths) / len(lengths), 1),
            "longest_row": max(lengths),
            "packing": self.spec.packing,
            "shared_prefix_tokens": round(sum(g.prefix * len(g.members) for g in self.groups) / len(self.units)),
            "steps": total_steps(self.spec, len(self.units)),
            "batch_rows": self.spec.batch_rows,
        }


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; picklable."""

    spec: TrainSpec  # resolved
    units: Sequence[Unit]  # one row each, or the answers to one prompt
    groups: Sequence[Group]  # which units share a prefix
    eval_units: Sequence[Unit] = ()
    eval_groups: Sequence[Group] = ()
    examples: Sequence[Example] = ()  # those of `units`, where augmentation works on their text
    resume_from: str | None = None
    evaluations: Sequence[Mapping[str, Any]] = ()  # log rows of those before that checkpoint
    task: Task | None = None  # where evaluations shall score answers
    reward_model: Mapping[str, bytes] | None = None  # its files, where `spec` names it by another machine's folder


def total_steps(spec: TrainSpec, rows: int) -> int:
    """Optimizer steps of a resolved spec over `rows` rows."""
    if spec.max_steps and spec.max_steps > 0:
        return spec.max_steps
    return math.ceil(math.ceil(rows / spec.batch_rows) * (spec.num_train_epochs or 1))


def prepare(spec: TrainSpec, home: Path = Path(".")) -> Plan:
    """Load, encode and check. Raises ConfigError, DataError, ModelError or, for a `reward_model` that the registry in
    `home` does not have, RunError; nothing heavy has started then."""
    spec = resolve_train(spec)
    if not spec.dataset:
        raise ConfigError("no training dataset", hint="name one of dataset_info.json with train.dataset")
    if spec.fp16 and spec.bf16:
        raise ConfigError("fp16 and bf16 are both on", hint="choose one")
    if spec.mask_history and spec.train_on_prompt:
        raise ConfigError("mask_history and train_on_prompt are both on", hint="choose one")
    check_stage(spec)
    trackers_of(spec.report_to)
    notes = check_tuning(spec)
    check_schedule(spec)
    base, template = _base(spec, notes)
    judge = _reward_model(spec.reward_model, home, base, template) if spec.reward_model else None
    writer = _writer(template, base)

    def encoded(name: str) -> tuple[Dataset, list[Example], list[Unit]]:
        data = load(name, spec.dataset_dir, max_samples=spec.max_samples, labelled=spec.stage != "pt")
        return data, *encode(data, template if spec.stage == "pt" else writer, spec, base, notes)

    train, examples, units = encoded(spec.dataset)
    eval_units = encoded(spec.eval_dataset)[2] if spec.eval_dataset else []
    check_watching(spec, len(eval_units))
    _check_batches(spec, len(units), notes)
    longest = max(len(row) for unit in (*units, *eval_units) for row in unit)
    if spec.samples:  # sampled answers may be longer than the written ones
        longest = max(len(u[0].prompt) for u in (*units, *eval_units)) + spec.max_completion_length
    outputs = [e.target or "" for e in examples]
    task = task_by_name(spec.task) if spec.task else infer_task(outputs)
    if spec.stage != "pt":
        check_fit(task, outputs)
    found = {"packing": _packing(spec, base, longest, notes), "reward_model": judge}
    if spec.samples:
        found["task"] = task.name  # the workers score with it
    spec = spec.model_copy(update=found)
    shared = spec.packing == "shared_prefix"
    groups = prefix_groups([u[0].prompt for u in units], spec.batch_rows if shared else 0)
    eval_groups = prefix_groups([u[0].prompt for u in eval_units], len(eval_units) if shared else 0)
    return Plan(spec, base, template, task, train, examples, units, eval_units, groups, eval_groups, notes)


def base_of(spec: TrainSpec) -> Base:
    """The base that `spec` trains. Raises ModelError."""
    return find_base(spec.model_name_or_path, allow_pickle=spec.allow_pickle)


def template_of(spec: TrainSpec) -> Template:
    """The template of `spec` on its base's own tokenizer. Raises ConfigError or ModelError."""
    return Template(spec.template or "auto", load_tokenizer(base_of(spec), trust_remote_code=spec.trust_remote_code))


def _base(spec: TrainSpec, notes: list[str]) -> tuple[Base, Template]:
    """The base and the template on its tokenizer, what of them can run code being said."""
    base = base_of(spec)
    if base.path == bundled_path() and spec.stage != "pt":  # it is sound, and seconds of imports need not show it
        return base, quick_template(base, spec.template or "auto")
    template = template_of(spec)
    check_base(base, template.tokenizer, trust_remote_code=spec.trust_remote_code)
    if spec.trust_remote_code and (files := remote_code(base)):
        notes.append(f"trust_remote_code: Python code that came with the base runs: {', '.join(files)}")
    if spec.allow_pickle and not list(base.path.glob("*.safetensors")):
        notes.append("allow_pickle: the base's weights are loaded from pickles")
    return base, template


def _reward_model(name: str, home: Path, base: Base, template: Template) -> str:
    """The folder of a reward model that can judge what is trained on `base`. Raises ModelError or RunError."""
    folder = Path(name).expanduser().resolve()
    if not folder.is_dir():
        folder = versions.get(home, name, judge=True).adapter.resolve()
    hint = "name one that stage: rm has trained"
    if not (folder / versions.VALUE_HEAD).exists():
        raise ModelError(f'"{name}" is no reward model: it has no {versions.VALUE_HEAD}', hint=hint)
    if not (folder / versions.ADAPTER_FILES[0]).exists():
        raise ModelError(f'the reward model "{name}" is a whole model', hint=f"{hint} with finetuning_type: lora")
    config = versions.adapter_config(folder)
    if (folder / "version.json").exists():
        version = versions.at(folder)
        versions.check_base(version, base)
        versions.check_template(version, template)
        return str(folder)
    try:
        theirs = find_base(config.get("base_model_name_or_path") or "")
    except ModelError:  # not on this machine
        return str(folder)
    if theirs.digest != base.digest:
        raise ModelError(
            f'the reward model "{name}" was trained on another base than "{base.name}"',
            hint=f"it was trained on {theirs.name}",
        )
    return str(folder)


def _writer(template: Template, base: Base) -> Template:
    """The same template on the quicker tokenizer, where that gives the same ids."""
    known = template.name == "auto" or isinstance(template.tokenizer, QuickTokenizer)
    if known or not (base.path / "tokenizer.json").exists():
        return template
    quick = Template(template.name, QuickTokenizer(base))
    return quick if quick.digest == template.digest else template


def _packing(spec: TrainSpec, base: Base, longest: int, notes: list[str]) -> str:
    """What `packing` comes to: packing never changes what is learnt, so where it would, less is done, and said."""
    config = base.config
    kinds = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if kinds or any("mamba" in str(a).lower() or "rwkv" in str(a).lower() for a in config.get("architectures") or ()):
        found, why = "none", f"its layers carry a state along the sequence ({', '.join(sorted(kinds)) or 'recurrent'})"
    elif window and window < longest:
        found, why = "none", f"its attention slides over {window} tokens, the longest row has {longest}"
    elif spec.lora_dropout or spec.neftune_noise_alpha:
        key = "lora_dropout" if spec.lora_dropout else "neftune_noise_alpha"
        found, why = "sequence", f"with {key} the rows of a pack would share what chance does to the prefix"
    else:
        return "shared_prefix" if spec.packing == "auto" else spec.packing
    ranks = ("none", "sequence", "shared_prefix", "auto")
    if ranks.index(spec.packing) <= ranks.index(found):
        return spec.packing
    if spec.packing != "auto":
        notes.append(f"packing: {spec.packing} would not be exact: {why}; packing: {found} is used")
    else:
        notes.append(f"packing: {found}, since {why}")
    return found


def _check_batches(spec: TrainSpec, rows: int, notes: list[str]) -> None:
    # A batch is per_device_train_batch_size x gradient_accumulation_steps x ray_num_workers rows: it always divides.
    if rows < spec.workers[1]:
        raise ConfigError(f"{spec.workers[1]} workers for {rows:,} rows", hint="lower ray_num_workers")
    if rows < spec.batch_rows:
        notes.append(f"a batch of {spec.batch_rows:,} rows holds all {rows:,}: each epoch is one step")
