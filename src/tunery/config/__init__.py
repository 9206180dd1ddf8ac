"""Specs: what a person writes down. Training keys are LLaMA-Factory's, engine keys vLLM's, resources Ray's.

A spec as written may leave keys out; `resolve` fills them, and the resolved spec is what a run records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator
from rapidfuzz import process as fuzz

from tunery.config.serving import Autoscaling as Autoscaling
from tunery.config.serving import ServedApplication as ServedApplication
from tunery.config.serving import ServedBase as ServedBase
from tunery.config.serving import ServeSpec as ServeSpec
from tunery.config.serving import TelemetrySpec as TelemetrySpec
from tunery.config.spec import EngineSpec as EngineSpec
from tunery.config.spec import Spec as Spec
from tunery.errors import ConfigError

PROJECT_FILE = "tunery.yaml"
BUNDLED_BASE = "tunery-base"

# What LLaMA-Factory uses these keys for is either always so here, or has no meaning here.
INERT_TRAIN_KEYS = frozenset({
    "do_train", "do_eval", "overwrite_cache", "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout",
    "overwrite_output_dir", "save_only_model", "use_cache", "flash_attn",
    "per_device_eval_batch_size", "ray_init_kwargs", "batch_eval_metrics", "include_num_input_tokens_seen",
    "epsilon",  # GRPO's clip: with one update a sample the ratio is 1
})  # fmt: skip


_OWN_START = "answers are compared with the model as it was before training; leave it out"
_ONE_BASE = "a reward model is an adapter on the base that is trained; leave it out"
_INSTEAD = {  # of keys that others know
    "deepspeed": "fsdp: true divides the weights among the workers",
    "max_new_tokens": "max_completion_length is the longest answer that is sampled",
    "top_p": "answers are sampled from all of the model's distribution; leave it out",
    "top_k": "answers are sampled from all of the model's distribution; leave it out",
    "ppo_buffer_size": "a step samples for its whole batch: raise gradient_accumulation_steps",
    "ref_model": _OWN_START, "ref_model_adapters": _OWN_START, "ref_model_quantization_bit": _OWN_START,
    "reward_model_adapters": _ONE_BASE, "reward_model_quantization_bit": _ONE_BASE,
}  # fmt: skip


Stage = Literal["sft", "pt", "rm", "ppo", "dpo", "orpo", "simpo", "kto", "grpo"]
_NOT_OFFERED = {
    ("reward_model_type", "full"): _ONE_BASE,
    ("reward_model_type", "api"): 'rewards of your own are a task: task: "module:Class" with reward: exact_match',
    ("pref_loss", "kto_pair"): "kto_pair is not offered: stage: kto takes the same pairs",
}


class TrainSpec(Spec):
    """One fine-tuning run, in LLaMA-Factory's words. None means: the default that fits the base."""

    # model
    model_name_or_path: str = BUNDLED_BASE
    trust_remote_code: bool = False
    allow_pickle: bool = False  # take a base whose weights are pickled only
    # method
    stage: Stage = "sft"
    finetuning_type: Literal["lora", "freeze", "full"] = "lora"
    lora_rank: int | None = Field(default=None, ge=1, le=512)
    lora_alpha: int | None = Field(default=None, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    lora_target: str | list[str] = "all"
    additional_target: str | list[str] | None = None  # modules tuned whole beside LoRA
    use_rslora: bool = False
    use_dora: bool = False
    pissa_init: bool = False
    pissa_iter: int = Field(default=16, ge=-1)  # of the fast decomposition; -1: the exact one
    pissa_convert: bool = True  # write the adapter for the base as it is
    loraplus_lr_ratio: float | None = Field(default=None, gt=0)
    quantization_bit: Literal[4, 8] | None = None  # of the frozen base, by bitsandbytes on a GPU
    quantization_method: Literal["bnb"] = "bnb"
    freeze_trainable_layers: int = 2  # the last so many; below zero, the first
    freeze_trainable_modules: str | list[str] = "all"  # of these layers
    freeze_extra_modules: str | list[str] | None = None  # beside the layers: embed_tokens, norm, lm_head
    neftune_noise_alpha: float | None = Field(default=None, gt=0)
    # stage: dpo, orpo, simpo, kto
    pref_beta: float = Field(default=0.1, gt=0)
    pref_loss: Literal["sigmoid", "hinge", "ipo", "orpo", "simpo"] = "sigmoid"
    pref_ftx: float = Field(default=0.0, ge=0)
    dpo_label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    simpo_gamma: float = Field(default=0.5, ge=0)
    kto_chosen_weight: float = Field(default=1.0, ge=0)
    kto_rejected_weight: float = Field(default=1.0, ge=0)
    # stage: grpo, ppo, with TRL's names
    reward: Literal["slot_f1", "exact_match", "parse_rate"] | None = None  # the task's score; None: in grpo slot_f1
    num_generations: int = Field(default=8, ge=2)  # grpo; ppo samples one answer a prompt
    max_completion_length: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    beta: float | None = Field(default=None, ge=0)  # of the divergence from the untuned model; None: 0, in ppo 0.2
    # stage: ppo
    reward_model: str | None = None  # in place of `reward`: a version of stage: rm, or its folder
    reward_model_type: Literal["lora"] = "lora"
    ppo_epochs: int = Field(default=4, ge=1)  # updates on the same answers
    ppo_score_norm: bool = False
    ppo_target: float = Field(default=6.0, gt=0)  # divergence of an answer that beta is adapted to, in nats
    ppo_whiten_rewards: bool = False
    # dataset
    dataset: str | None = None
    eval_dataset: str | None = None
    dataset_dir: str = "data"
    template: str | None = None
    cutoff_len: int | None = Field(default=None, ge=16)
    overlong: Literal["error", "drop", "truncate"] = "error"
    max_samples: int | None = Field(default=None, ge=1)
    train_on_prompt: bool = False
    mask_history: bool = False  # learn the last answer of a conversation alone
    entity_swap: float = Field(default=0.0, ge=0, le=1)
    task: str | None = None  # "function", "json", "label", "text" or "module:Class"; None: inferred from the rows
    packing: Literal["auto", "shared_prefix", "sequence", "none"] = "auto"
    # output
    output_dir: str | None = None
    logging_steps: int = Field(default=10, ge=1)
    save_steps: int = Field(default=200, ge=1)
    eval_steps: int | None = Field(default=None, ge=1)
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    save_total_limit: int | None = Field(default=None, ge=1)  # beside the best one, where there is a best
    plot_loss: bool = True
    report_to: str | list[str] = "none"  # tensorboard, mlflow, wandb; all: those installed
    # watching
    predict_with_generate: bool | None = None  # None: on a GPU, and where metric_for_best_model needs it
    max_predict_samples: int = Field(default=64, ge=1)
    metric_for_best_model: str | None = None  # loss, exact_match, slot_f1, parse_rate; None: loss
    greater_is_better: bool | None = None
    load_best_model_at_end: bool = False
    early_stopping_patience: int | None = Field(default=None, ge=1)  # evaluations without a better one
    early_stopping_threshold: float = Field(default=0.0, ge=0)
    max_loss_ratio: float | None = Field(default=None, gt=1)  # to the lowest logged loss; above it the run ends
    # optimisation
    per_device_train_batch_size: int | None = Field(default=None, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    num_train_epochs: float | None = Field(default=None, gt=0)
    max_steps: int | None = None
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = "adamw_torch"
    lr_scheduler_type: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "cosine_with_restarts",
        "cosine_with_min_lr", "inverse_sqrt", "warmup_stable_decay",
    ] = "cosine"  # fmt: skip
    lr_scheduler_kwargs: dict[str, Any] | None = None
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = 0.9
    adam_beta2: float | None = None
    adam_epsilon: float = 1e-8
    max_grad_norm: float = Field(default=1.0, ge=0)
    bf16: bool | None = None  # None: where the hardware has it
    fp16: bool = False
    fp8: bool = False  # the frozen base's products in fp8 (GPUs of compute capability 8.9 and up)
    fsdp: bool = False  # each worker holds a share of the weights (FSDP2)
    gradient_checkpointing: bool | None = None  # None: on a GPU where its memory asks for it, as measured
    torch_compile: bool | None = None  # None: on a GPU, for bases of more than 300 M parameters
    seed: int = 42
    resume_from_checkpoint: str | bool | None = None
    # Ray
    ray_run_name: str | None = None
    ray_num_workers: int | tuple[int, int] = 1  # [fewest, most]: as many of them as the cluster can give
    ray_storage_path: str | None = None  # where checkpoints go besides the output folder: a folder, s3:// or gs://
    max_failures: int = Field(default=3, ge=-1)  # lost workers before the run is given up; -1: any number
    resources_per_worker: dict[str, float] | None = None
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"

    @field_validator("ray_run_name", "dataset", "eval_dataset")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty")
        return value

    @field_validator("eval_strategy", "save_strategy", mode="before")
    @classmethod
    def _no(cls, value: Any) -> Any:
        """YAML reads a bare `no` as false."""
        return "no" if value is False else value

    @field_validator("fsdp", mode="before")
    @classmethod
    def _full_shards(cls, value: Any) -> Any:
        """transformers' older words: `full_shard auto_wrap` is what `true` means today."""
        said = set(value.split()) if isinstance(value, str) else value
        if isinstance(said, set) and said <= {"full_shard", "auto_wrap"}:
            return "full_shard" in said
        return value

    @field_validator("ray_num_workers")
    @classmethod
    def _some_workers(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        fewest, most = value if isinstance(value, tuple) else (value, value)
        if not 1 <= fewest <= most:
            raise ValueError("must be a number from 1 up, or [fewest, most]")
        return value

    @property
    def workers(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        n = self.ray_num_workers
        return n if isinstance(n, tuple) else (n, n)

    @field_validator("stage", "pref_loss", "reward_model_type", mode="before")
    @classmethod
    def _offered(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and (why := _NOT_OFFERED.get((info.field_name or "", value))):
            raise ValueError(why)
        return value

    @property
    def preference(self) -> str:
        """The loss of pairs: stages orpo and simpo are LLaMA-Factory's `stage: dpo` with that pref_loss."""
        return self.stage if self.stage in ("orpo", "simpo") else self.pref_loss

    @property
    def samples(self) -> bool:
        """Whether it learns from answers of the model's own."""
        return self.stage in ("grpo", "ppo")

    @property
    def batch_rows(self) -> int:
        """Rows per optimizer step, over all workers. The same however many of them there are at the moment."""
        return (self.per_device_train_batch_size or 1) * self.gradient_accumulation_steps * self.workers[1]


# For the bundled base (see bench/RESULTS.md). Others get what is usual for large ones.
BUNDLED_DEFAULTS: Mapping[str, Any] = {
    "lora_rank": 64, "learning_rate": 1.5e-3, "per_device_train_batch_size": 8, "num_train_epochs": 5.0,
    "adam_beta2": 0.99, "template": "chatml", "cutoff_len": 2048, "gradient_checkpointing": False,
}  # fmt: skip
GENERAL_DEFAULTS: Mapping[str, Any] = {
    "lora_rank": 8, "learning_rate": 5e-5, "per_device_train_batch_size": 8, "num_train_epochs": 3.0,
    "adam_beta2": 0.999, "template": "auto", "cutoff_len": 2048,
}  # fmt: skip


def resolve_train(spec: TrainSpec) -> TrainSpec:
    """Fill every key that was left out with the default that fits the base model."""
    defaults = BUNDLED_DEFAULTS if spec.model_name_or_path == BUNDLED_BASE else GENERAL_DEFAULTS
    found = {k: v for k, v in defaults.items() if getattr(spec, k) is None}
    if "learning_rate" in found and spec.stage not in ("sft", "pt", "rm") and defaults is GENERAL_DEFAULTS:
        found["learning_rate"] = 5e-6  # LLaMA-Factory's for preferences; the small base needs its own
    if "learning_rate" in found and spec.finetuning_type != "lora":
        # Weights that know something move less: a tenth in LLaMA-Factory's examples. On the small base, one epoch of
        # 400 bikeshop rows in full left an eval loss of 0.275 at 1.5e-4, 0.226 at 5e-4 and 0.389 at 1.5e-3.
        found["learning_rate"] /= 10 if defaults is GENERAL_DEFAULTS else 3
    rank = spec.lora_rank or found["lora_rank"]
    if spec.lora_alpha is None:
        found["lora_alpha"] = 2 * rank
    if spec.reward is None and spec.stage == "grpo":
        found["reward"] = "slot_f1"
    if spec.beta is None:
        found["beta"] = 0.2 if spec.stage == "ppo" else 0.0
    return spec.model_copy(update=found)


class Sampling(Spec):
    """OpenAI's sampling parameters; greedy unless told otherwise."""

    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None


class EvalSpec(Spec):
    """Score one version, and by default its untuned base beside it."""

    model: str | None = None
    dataset: str | None = None
    dataset_dir: str | None = None
    max_samples: int | None = Field(default=None, ge=1)
    compare_base: bool = True
    worst: int = Field(default=5, ge=0)
    task: str | None = None  # None: the version's own
    constrained: bool = False  # answer a second time under the task's grammar
    swap_names: bool = False  # answer once more with copied names that no training row has
    confidence: bool = True
    calibrate_on: str | None = None  # a dataset, other than the one evaluated on, to calibrate confidences with
    slices: list[str] = Field(default_factory=list)  # further columns of the rows to slice by
    gate: str | None = None
    baseline: str | None = None  # a version, run or report.json for the gate; None: the untuned base
    sampling: Sampling = Field(default_factory=Sampling)
    engine: EngineSpec = Field(default_factory=EngineSpec)


class BatchSpec(Spec):
    """Run one version, or a version a row, over files of rows."""

    model: str | None = None  # "base": the untuned base
    input: str | None = None
    output: str | None = None
    column: str | None = None  # of text, or of messages
    id_column: str | None = None
    model_column: str | None = None  # names each row's version; `model` where it is empty
    models: list[str] = Field(default_factory=list)  # those it may name; none: all versions of the same base
    sampling_column: str | None = None  # an object of sampling parameters a row
    gold: str | None = None  # a column of right answers to score by
    instruction: str | None = None
    free: bool = False  # without the task's grammar
    merge: bool = True  # where one adapter answers all rows, load it and its base as one model
    confidence: bool = True
    openai: bool = False  # input and output are OpenAI's batch files
    answer_prefix: str = ""  # of the columns that answers add
    max_error_rate: float = Field(default=0.5, ge=0, le=1)
    price_per_hour: float | None = Field(default=None, ge=0)  # of all machines together, in any currency
    sampling: Sampling = Field(default_factory=Sampling)
    engine: EngineSpec = Field(default_factory=EngineSpec)


class RaySpec(Spec):
    """Where the work runs: None starts a local Ray; "auto" or an address joins a cluster."""

    address: str | None = None


class Project(Spec):
    """`tunery.yaml`: one file for every stage of one extractor."""

    model: str = Field(default="extractor", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    home: str = "."
    train: TrainSpec = Field(default_factory=TrainSpec)
    eval: EvalSpec = Field(default_factory=EvalSpec)
    batch: BatchSpec = Field(default_factory=BatchSpec)
    serve: ServeSpec = Field(default_factory=ServeSpec)
    ray: RaySpec = Field(default_factory=RaySpec)


def in_project(project: Project, path: str) -> str:
    """`path` as seen from the project's folder, where it is local and relative."""
    if "://" in path or Path(path).expanduser().is_absolute():
        return path
    return str(Path(project.home) / path)


def base_in_project(project: Project, name: str) -> str:
    """The base `name`, or its folder as seen from the project's, where there is one."""
    near = in_project(project, name)
    return near if name != BUNDLED_BASE and Path(near).is_dir() else name


def placed_train(project: Project) -> TrainSpec:
    """The train section with its paths made independent of the current folder."""
    spec = project.train
    update: dict[str, Any] = {"dataset_dir": in_project(project, spec.dataset_dir)}
    for key in ("output_dir", "ray_storage_path", "resume_from_checkpoint"):
        if isinstance(path := getattr(spec, key), str):
            update[key] = in_project(project, path)
    update["model_name_or_path"] = base_in_project(project, spec.model_name_or_path)
    if spec.reward_model and Path(near := in_project(project, spec.reward_model)).is_dir():
        update["reward_model"] = near
    return spec.model_copy(update=update)


SpecT = TypeVar("SpecT", bound=Spec)


def parse(kind: type[SpecT], values: Mapping[str, Any], where: str | None = None) -> SpecT:
    """Validate `values`; a fault is a ConfigError that names the key, its place and the nearest right one."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as exc:
        raise _config_error(kind, exc, where) from None


def _config_error(kind: type[Spec], exc: ValidationError, where: str | None) -> ConfigError:
    lines, hints = [], []
    for fault in exc.errors():
        path = [str(p) for p in fault["loc"] if isinstance(p, int) or not str(p).startswith(("literal", "list["))]
        key = ".".join(path)
        if fault["type"] == "extra_forbidden":
            known = _keys_at(kind, path[:-1])
            lines.append(f'unknown key "{key}"')
            near = nearest(path[-1], known)
            instead = f'did you mean "{near}"?' if near else "known keys: " + ", ".join(sorted(known))
            hints.append(_INSTEAD.get(path[-1], instead))
        else:
            lines.append(f'"{key}": {fault["msg"].removeprefix("Value error, ")}, got {fault["input"]!r}')
    return ConfigError("; ".join(lines), hint="; ".join(hints) or None, where=where)


def _keys_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        kind = inner
    return list(kind.model_fields)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to a misspelt one, or None when nothing is close."""
    hit = fuzz.extractOne(word, list(known), score_cutoff=65)
    return hit[0] if hit else None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dict; ConfigError with file:line when it is missing or malformed."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no such file: {path}", hint=f"`tunery init` writes a {PROJECT_FILE} to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read: {exc}", where=str(path)) from None
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {getattr(exc, 'problem', exc)}", where=where) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("must hold keys and values", where=str(path))
    return values


def apply_sets(values: dict[str, Any], sets: Iterable[str], section: str | None = None) -> dict[str, Any]:
    """Apply `--set key=value` pairs (dotted keys, YAML values) to `values`, in place.

    A key that names no section of the project belongs to `section`, the verb's own.
    """
    for item in sets:
        key, eq, raw = item.partition("=")
        if not eq or not key.strip():
            raise ConfigError(f'--set needs key=value, got "{item}"', hint="for example --set learning_rate=1e-3")
        path = key.strip().split(".")
        if section and path[0] not in Project.model_fields:
            path = [section, *path]
        node = values
        for part in path[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(f'--set {key}: "{part}" holds a value, not a section')
            node = child
        try:
            node[path[-1]] = yaml.safe_load(raw)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: not a YAML value: {raw}") from None
    return values


def is_flat_train(values: Mapping[str, Any]) -> bool:
    """Whether `values` is LLaMA-Factory's flat YAML rather than a project with sections."""
    flat = set(TrainSpec.model_fields) | INERT_TRAIN_KEYS
    return bool(values) and not (set(values) & {"train", "eval", "batch", "serve"}) and bool(set(values) & flat)


def load_project(path: Path | None = None, sets: Iterable[str] = (), section: str | None = None) -> Project:
    """The project of `path` (default: ./tunery.yaml when there is one), with `--set` applied.

    A flat LLaMA-Factory training file becomes the `train` section of a project. Relative paths inside the file are
    relative to the current folder for the flat form, as LLaMA-Factory has it, and to the file for a project.
    """
    source = path or Path(PROJECT_FILE)
    values = read_yaml(source) if path or source.exists() else {}
    if is_flat_train(values):
        values = {"train": values}
        run_name = values["train"].get("ray_run_name")
        if run_name:
            values["model"] = run_name
    elif source.exists():
        values.setdefault("home", str(source.parent))
    values = apply_sets(values, sets, section)
    train = values.get("train")
    if isinstance(train, dict):
        values["train"] = {k: v for k, v in train.items() if k not in INERT_TRAIN_KEYS}
    return parse(Project, values, where=str(source) if source.exists() else None)


def inert_keys(path: Path | None) -> list[str]:
    """Keys of a training file that are accepted and change nothing here."""
    source = path or Path(PROJECT_FILE)
    values = read_yaml(source) if source.exists() else {}
    train = values if is_flat_train(values) else values.get("train") or {}
    return sorted(set(train) & INERT_TRAIN_KEYS)
