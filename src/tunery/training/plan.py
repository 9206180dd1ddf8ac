"""Everything that can be checked before a worker starts is checked here, on the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunery.bases import Base, QuickTokenizer, check_base, find_base, load_tokenizer, remote_code
from tunery.config import TrainSpec, resolve_train
from tunery.data import load
from tunery.data.template import Row, Template
from tunery.errors import ConfigError, DataError
from tunery.tasks import Task, infer_task, task_by_name
from tunery.types import Dataset, Example

if TYPE_CHECKING:
    from tunery.training.packing import Group


@dataclass(frozen=True)
class Plan:
    """A training run that can start: resolved spec, encoded rows, and what was noticed on the way."""

    spec: TrainSpec
    base: Base
    template: Template
    task: Task
    train: Dataset
    examples: list[Example]
    rows: list[Row]
    eval_rows: list[Row]
    groups: list[Group]  # of `rows`, those that share a prefix
    eval_groups: list[Group]
    notes: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, object]:
        """What `--dry-run` prints: sizes, and the cost that sharing the prefix saves."""
        from tunery.training.loop import total_steps

        logical = sum(map(len, self.rows))
        mean = logical / len(self.rows)
        return {
            "base": self.base.name,
            "architecture": self.base.architecture,
            "template": self.template.name,
            "task": self.task.name,
            "train_rows": len(self.rows),
            "eval_rows": len(self.eval_rows),
            "tokens_per_row": round(mean, 1),
            "longest_row": max(map(len, self.rows)),
            "packing": self.spec.packing,
            "shared_prefix_tokens": round(sum(g.prefix * len(g.members) for g in self.groups) / len(self.rows)),
            "steps": total_steps(self.spec, len(self.rows)),
            "batch_rows": self.spec.batch_rows,
        }


def prepare(spec: TrainSpec) -> Plan:
    """Load, encode and check. Raises ConfigError, DataError or ModelError; nothing heavy has started then."""
    from tunery.training.optimizer import lr_factor
    from tunery.training.packing import prefix_groups
    from tunery.training.trackers import trackers_of
    from tunery.training.tuning import check_tuning
    from tunery.training.watching import check

    spec = resolve_train(spec)
    if not spec.dataset:
        raise ConfigError("no training dataset", hint="name one of dataset_info.json with train.dataset")
    if spec.fp16 and spec.bf16:
        raise ConfigError("fp16 and bf16 are both on", hint="choose one")
    if spec.mask_history and spec.train_on_prompt:
        raise ConfigError("mask_history and train_on_prompt are both on", hint="choose one")
    trackers_of(spec.report_to)
    notes = check_tuning(spec)
    lr_factor(spec, 1)
    base, tokenizer = _base(spec, notes)
    train = load(spec.dataset, spec.dataset_dir, max_samples=spec.max_samples)
    held_out = load(spec.eval_dataset, spec.dataset_dir, max_samples=spec.max_samples) if spec.eval_dataset else None
    check(spec, len(held_out or ()))
    template = Template(spec.template or "auto", tokenizer)
    writer = _writer(template, base)
    examples, rows = _encode(train, writer, spec, base, notes)
    eval_rows = _encode(held_out, writer, spec, base, notes)[1] if held_out else []
    _check_batches(spec, len(rows), notes)
    spec = spec.model_copy(update={"packing": _packing(spec, base, max(map(len, rows + eval_rows)), notes)})
    shared = spec.packing == "shared_prefix"
    groups = prefix_groups([r.prompt for r in rows], spec.batch_rows if shared else 0)
    eval_groups = prefix_groups([r.prompt for r in eval_rows], len(eval_rows) if shared else 0)
    task = task_by_name(spec.task) if spec.task else infer_task([e.target or "" for e in examples])
    return Plan(spec, base, template, task, train, examples, rows, eval_rows, groups, eval_groups, notes)


def _base(spec: TrainSpec, notes: list[str]) -> tuple[Base, Any]:
    """The base and its tokenizer, what of them can run code being said."""
    base = find_base(spec.model_name_or_path, allow_pickle=spec.allow_pickle)
    tokenizer = load_tokenizer(base, trust_remote_code=spec.trust_remote_code)
    check_base(base, tokenizer, trust_remote_code=spec.trust_remote_code)
    if spec.trust_remote_code and (files := remote_code(base)):
        notes.append(f"trust_remote_code: Python code that came with the base runs: {', '.join(files)}")
    if spec.allow_pickle and not list(base.path.glob("*.safetensors")):
        notes.append("allow_pickle: the base's weights are loaded from pickles")
    return base, tokenizer


def _writer(template: Template, base: Base) -> Template:
    """The same template on the quicker tokenizer, where that gives the same ids."""
    if template.name == "auto" or not (base.path / "tokenizer.json").exists():
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


def _encode(
    data: Dataset, template: Template, spec: TrainSpec, base: Base, notes: list[str]
) -> tuple[list[Example], list[Row]]:
    limit = min(spec.cutoff_len or base.context, base.context)
    examples = list(data.examples)
    if bad := sum(e.meta.get("kto_tag") is False for e in examples):
        hint = "leave them out: tunery data export NAME good.jsonl --to alpaca"
        raise DataError(f"{bad:,} answers of {data.name} are tagged as ones to avoid; this would learn them", hint=hint)
    rows = template.rows(examples, mask_history=spec.mask_history)
    over = [r for r in rows if len(r) > limit]
    if not over:
        return examples, rows
    longest = max(map(len, over))
    if spec.overlong == "error":
        named = ", ".join(r.id for r in over[:5]) + (", ..." if len(over) > 5 else "")
        raise DataError(
            f"{len(over)} of {len(rows)} rows of {data.name} are longer than {limit} tokens "
            f"(longest {longest}): {named}",
            hint=f"raise cutoff_len (this base reads {base.context}), or choose overlong: drop or truncate",
        )
    if spec.overlong == "truncate":
        notes.append(f"{data.name}: {len(over)} rows cut to {limit} tokens (longest {longest})")
        return examples, [r.cut(limit) for r in rows]
    kept = [i for i, r in enumerate(rows) if len(r) <= limit]
    notes.append(f"{data.name}: {len(over)} rows over {limit} tokens dropped, {len(kept)} kept")
    if not kept:
        raise DataError(f"every row of {data.name} is longer than {limit} tokens", hint="raise cutoff_len")
    return [examples[i] for i in kept], [rows[i] for i in kept]
