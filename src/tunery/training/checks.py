"""Settings that contradict each other, or ask for what cannot be: told from the settings alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from tunery.config import TrainSpec
from tunery.engine.vllm import lora_ranks, unservable
from tunery.errors import ConfigError, EngineError

_LORA_KEYS = (
    "lora_dropout", "use_rslora", "use_dora", "pissa_init", "loraplus_lr_ratio", "additional_target",
    "quantization_bit", "fp8",
)  # fmt: skip
_FREEZE_KEYS = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
_EXCLUSIVE = (  # pairs that do not go together, and why
    ("fp8", "quantization_bit", "both would hold the base in fewer bits"),
    ("fp8", "lora_dropout", "fp8 is for LoRA layers without dropout"),
    ("fp8", "use_dora", "DoRA needs the norms of the base's own weights"),
    ("fp8", "reward_model", "the reward model computes with the base's own weights"),
    ("fsdp", "fp8", "fp8 weights are not divided among workers"),
    ("fsdp", "quantization_bit", "quantised weights are not divided among workers"),
    ("fsdp", "pissa_init", "PiSSA changes the base, which is divided before a checkpoint is read"),
    ("pissa_init", "fp8", "PiSSA starts from the base's own weights"),
    ("pissa_init", "quantization_bit", "PiSSA starts from the base's own weights"),
    ("pissa_init", "use_dora", "what they learn together is no plain LoRA, and fits no base but its own"),
)
_UNDIVIDED = {  # stages that do not go together with fsdp, and why
    "grpo": "workers answer prompts of their own, out of step",
    "ppo": "workers answer prompts of their own, out of step",
    "rm": "the value head is not divided among workers",
}
GENERATED = ("exact_match", "slot_f1", "parse_rate")


def words(value: str | Iterable[str] | None) -> list[str]:
    """Names from a list, or from a string with commas between them."""
    names = value.split(",") if isinstance(value, str) else value or ()
    return [name.strip() for name in names if name.strip()]


def check_stage(spec: TrainSpec) -> None:
    """Raise ConfigError for settings that have no meaning in the spec's stage."""
    if spec.stage != "sft":
        for key in ("entity_swap", "train_on_prompt"):
            if getattr(spec, key):
                raise ConfigError(
                    f"{key} has no meaning in stage: {spec.stage}", hint=f"it is for stage: sft; drop {key}"
                )
    if spec.dpo_label_smoothing and spec.preference != "sigmoid":
        raise ConfigError("dpo_label_smoothing is for pref_loss: sigmoid alone", hint="drop one of the two")
    if spec.samples and spec.max_loss_ratio:
        raise ConfigError(
            f"max_loss_ratio has no meaning in stage: {spec.stage}, whose loss may be 0 or less", hint="drop it"
        )
    plain = spec.finetuning_type == "lora" and not spec.pissa_init
    if spec.samples and spec.beta and not plain:
        raise ConfigError(
            "beta compares with the untuned model, which is at hand only beneath plain LoRA",
            hint="use finetuning_type: lora without pissa_init, or beta: 0",
        )
    if spec.reward_model and not plain:
        raise ConfigError(
            "reward_model shares its base with what is trained, so that has to stay as it is",
            hint="use finetuning_type: lora without pissa_init, or reward: slot_f1, exact_match or parse_rate",
        )
    if spec.stage != "ppo" and spec.reward_model:
        raise ConfigError(f"reward_model has no meaning in stage: {spec.stage}", hint="it is for stage: ppo; drop it")
    if spec.stage == "ppo" and bool(spec.reward) == bool(spec.reward_model):
        raise ConfigError(
            "stage: ppo has two rewards" if spec.reward else "stage: ppo has no reward",
            hint="name reward_model, a version of stage: rm; or a score of the task, reward: slot_f1, exact_match or "
            "parse_rate",
        )
    if spec.stage == "kto" and not (spec.kto_chosen_weight or spec.kto_rejected_weight):
        raise ConfigError("kto_chosen_weight and kto_rejected_weight are both 0", hint="raise one of them")


def _highest_rank() -> int | None:
    """What vLLM serves, or None on a machine that only trains."""
    try:
        return lora_ranks()[-1]
    except EngineError:
        return None


def check_tuning(spec: TrainSpec) -> list[str]:
    """What is worth saying about the tuning that `spec` asks for. Raises ConfigError for keys that do not fit."""
    kind = spec.finetuning_type
    alien = [key for key in _LORA_KEYS if kind != "lora" and getattr(spec, key)]
    alien += [k for k in _FREEZE_KEYS if kind != "freeze" and getattr(spec, k) != TrainSpec.model_fields[k].default]
    if alien:
        fitting = "lora" if alien[0] in _LORA_KEYS else "freeze"
        raise ConfigError(
            f"finetuning_type: {kind} has no {', '.join(alien)}",
            hint=f"leave it out, or use finetuning_type: {fitting}",
        )
    for one, other, why in _EXCLUSIVE:
        if getattr(spec, one) and getattr(spec, other):
            raise ConfigError(f"{one} and {other} do not go together: {why}", hint="choose one")
    if spec.fsdp and (why := _UNDIVIDED.get(spec.stage)):
        raise ConfigError(f"stage: {spec.stage} and fsdp do not go together: {why}", hint="leave fsdp out")
    if spec.pissa_init and not spec.pissa_convert:
        raise ConfigError(
            "pissa_convert: false would leave an adapter that fits only a base changed by PiSSA",
            hint="leave it out: the adapter is converted, and works on the base as it is",
        )
    if spec.quantization_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantization_bit: {spec.quantization_bit} needs the package bitsandbytes, which is not installed",
            hint="pip install bitsandbytes on the GPU machines, or leave quantization_bit out",
        )
    return _notes(spec)


def check_device(spec: TrainSpec, gpu: bool) -> None:
    """Raises ConfigError for what a worker without a GPU cannot do."""
    if spec.quantization_bit and not gpu:
        raise ConfigError(
            f"quantization_bit: {spec.quantization_bit} needs a GPU, and the workers have none",
            hint="leave quantization_bit out",
        )


def _notes(spec: TrainSpec) -> list[str]:
    notes = []
    if spec.lr_scheduler_type == "constant" and (spec.warmup_steps or spec.warmup_ratio):
        notes.append("lr_scheduler_type: constant has no warmup; constant_with_warmup has")
    if spec.fsdp and spec.workers[1] == 1:
        notes.append("fsdp: with one worker there is nobody to share the weights with")
    if spec.finetuning_type != "lora":
        return notes
    why = unservable({"use_dora": spec.use_dora, "modules_to_save": words(spec.additional_target)})
    rank = (spec.lora_rank or 8) * (2 if spec.pissa_init else 1)
    if spec.pissa_init:
        notes.append(f"pissa_init: the adapter is written as plain LoRA of rank {rank}, for the base as it is")
    if why is None and (most := _highest_rank()) and rank > most:
        why = f"vLLM takes ranks up to {most}"
    if why:
        notes.append(
            f"{why}: eval, batch and serve will not take this adapter; `tunery models export --format merged` "
            "makes a model of it"
        )
    if spec.quantization_bit:
        notes.append(f"quantization_bit: trained on a {spec.quantization_bit}-bit base, served on the base as it is")
    return notes


def check_schedule(spec: TrainSpec) -> None:
    """Raises ConfigError for `lr_scheduler_kwargs` that the scheduler does not take."""
    if spec.lr_scheduler_kwargs:  # without them all types are known to be good, and PyTorch is not needed to see it
        from tunery.training.optimizer import lr_factor

        lr_factor(spec, 1)


def check_watching(spec: TrainSpec, eval_rows: int) -> None:
    """Raises ConfigError for settings that would be seen to contradict each other only once the run evaluates."""
    if not tracks_best(spec):
        return
    if spec.eval_strategy == "no" or not eval_rows:
        raise ConfigError(
            "load_best_model_at_end, metric_for_best_model and early_stopping_patience need evaluations",
            hint="set eval_dataset, and eval_strategy: epoch or steps",
        )
    name = metric_name(spec).removeprefix("eval_")
    if spec.predict_with_generate is False and name in GENERATED:
        raise ConfigError(f'"{name}" is known only with predict_with_generate', hint="set predict_with_generate: true")
    known = ("loss", *GENERATED)
    if spec.stage == "sft" and name not in known:
        raise ConfigError(f'no metric "{name}" to choose the best model by', hint=f"one of: {', '.join(known)}")


def metric_name(spec: TrainSpec) -> str:
    """`metric_for_best_model` with its "eval_"; the loss by default."""
    return "eval_" + (spec.metric_for_best_model or "loss").removeprefix("eval_")


def tracks_best(spec: TrainSpec) -> bool:
    """Whether the best evaluation has a meaning for this run."""
    return spec.load_best_model_at_end or spec.early_stopping_patience is not None or bool(spec.metric_for_best_model)


def generates(spec: TrainSpec, gpu: bool) -> bool:
    """Whether evaluations answer rows: as asked for, else on a GPU and where the best is chosen by it."""
    if spec.stage in ("pt", "rm"):  # texts have no answers, and a reward model writes none
        return False
    needed = metric_name(spec).removeprefix("eval_") in GENERATED
    return spec.predict_with_generate if spec.predict_with_generate is not None else gpu or needed
