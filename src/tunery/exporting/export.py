"""Export with proof: what is written is read again and must answer as base and adapter did, token for token."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunery import storage
from tunery.bases import Base, load_tokenizer
from tunery.config import nearest
from tunery.data.template import Template
from tunery.errors import ConfigError, ModelError, ResourceError, StorageError
from tunery.exporting import gguf
from tunery.exporting.greedy import Step, differences, greedy

FORMATS = ("merged", "gguf", "adapter")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes a parameter
RECORD = "export.json"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Source:
    """A tuned model, and what its export is checked with.

    `prompts` are token ids; `about` goes into the export's record as it is.
    """

    name: str
    base: Base
    adapter: Path | None  # None: `base` is the tuned model itself
    template: Template
    prompts: Sequence[Sequence[int]]
    trust_remote_code: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: `tokens` were generated alike before and after, in answer to `prompts` prompts."""

    path: Path
    format: str
    dtype: str
    bytes: int
    prompts: int
    tokens: int


def export(
    source: Source,
    out: Path,
    *,
    format: str = "merged",
    dtype: str | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write `source` to the new folder `out`, which appears complete and checked or not at all.

    Merging is done in fp32 and rounded once, to `dtype` (default: the base's own). Raises ConfigError for an unknown
    format or dtype, StorageError for an `out` that holds something, ResourceError for want of memory or disk,
    ModelError for a base that the format cannot hold and when an answer differs.
    """
    dtype = _checked(source, format, dtype)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f'"{out}" is there already', hint="choose a new folder; nothing is overwritten")
    parameters = _parameters(source.base)
    _check_room(source, out, format, parameters, DTYPES[dtype])
    part = out.absolute().with_name(f".{out.absolute().name}.part")
    with storage.translating(part, "write"), storage.FolderLock(part):
        try:
            for left in part.iterdir():  # by an export that was killed; all of them write plain files
                if left.name != ".lock":
                    left.unlink()
            on_stage("loading the base")
            model = _load(source.base.path, parameters, trust_remote_code=source.trust_remote_code)
            on_stage("answering with base and adapter")
            tuned = _with_adapter(model, source.adapter) if source.adapter else model
            before = [greedy(tuned, prompt, source.template.stop_ids) for prompt in source.prompts]
            on_stage("writing")
            again = _WRITERS[format](source, tuned, part, dtype)
            del model, tuned
            on_stage("answering with what was written")
            written = again(parameters)
            after = [greedy(written, prompt, source.template.stop_ids) for prompt in source.prompts]
            _compare(source, before, after, dtype)
            size = sum(file.stat().st_size for file in part.iterdir())
            done = Exported(out, format, dtype, size, len(before), sum(map(len, before)))
            same = {"prompts": done.prompts, "tokens": done.tokens, "same": True}
            about = {**source.about, "format": format, "dtype": dtype, "check": same}
            storage.write_json_atomic(part / RECORD, about)
            (part / ".lock").unlink()
            storage.sync_folder(part)
            part.rename(out)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return done


def _checked(source: Source, format: str, dtype: str | None) -> str:
    base = source.base
    for what, value, known in (("format", format, FORMATS), ("dtype", dtype, DTYPES)):
        if value is not None and value not in known:
            near = nearest(value, known)
            raise ConfigError(
                f'unknown {what} "{value}"', hint=f'did you mean "{near}"?' if near else f"one of: {', '.join(known)}"
            )
    if format == "adapter" and source.adapter is None:
        raise ConfigError(f"{source.name} is a whole model and has no adapter", hint="--format merged or gguf")
    if format == "gguf":
        gguf.check(base)
    if format != "adapter" and base.config.get("quantization_config"):
        raise ModelError(
            f'"{base.name}" is quantised: an adapter cannot be merged into it exactly',
            hint="export the adapter alone: --format adapter",
        )
    own = str(base.config.get("dtype") or base.config.get("torch_dtype") or "float32")
    return dtype or (own if own in DTYPES else "float32")


def _parameters(base: Base) -> int:
    from math import prod

    from safetensors import safe_open

    files = sorted(base.path.glob("*.safetensors"))
    if not files:
        return sum(file.stat().st_size for file in base.path.glob("pytorch_model*.bin")) // 2
    count = 0
    for file in files:
        with safe_open(file, framework="pt") as weights:
            count += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count


def _check_room(source: Source, out: Path, format: str, parameters: int, width: int) -> None:
    import psutil

    if source.adapter and format == "adapter":
        need = sum((source.adapter / file).stat().st_size for file in _ADAPTER_FILES)
    else:
        need = parameters * width
    need += 64 << 20  # tokenizer, record
    free = storage.free_bytes(out)
    if free is not None and free < need:
        raise ResourceError(
            f'the export needs {_gib(need)} where "{out}" lies, {_gib(free)} are free', hint="choose another disk"
        )
    # In fp32; for GGUF the file's content is held beside it.
    memory = parameters * (8 if format == "gguf" else 4)
    there = psutil.virtual_memory().available
    if there < memory:
        raise ResourceError(
            f"the export needs {_gib(memory)} of memory, {_gib(there)} are free",
            hint="export on a larger machine, or the adapter alone: it is small, and vLLM and PEFT load it as it is",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _load(path: Path, parameters: int, **options: Any) -> Any:
    """A model in fp32, so that only what was written can make a difference; on a GPU where it has room."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    except (OSError, ValueError, RuntimeError) as exc:
        raise ModelError(f'the model in "{path}" does not load: {str(exc).splitlines()[0]}') from None
    roomy = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 5 * parameters
    return model.to("cuda" if roomy else "cpu").eval()


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as exc:
        raise ModelError(f'the adapter in "{adapter}" does not load: {str(exc).splitlines()[0]}') from None


# Each writer puts files into a folder and returns how to load them again: parameters -> model in fp32.
Reload = Callable[[int], Any]


def _write_merged(source: Source, tuned: Any, part: Path, dtype: str) -> Reload:
    import torch

    merged = _merged(source, tuned)
    stop = set(source.template.stop_ids)
    eos = merged.generation_config.eos_token_id
    ends = sorted(stop | set(eos if isinstance(eos, list) else [] if eos is None else [eos]))
    merged.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    merged.to(getattr(torch, dtype)).save_pretrained(part)
    _tokenizer(source).save_pretrained(part)
    _check_template(source, part)
    return lambda parameters: _load(part, parameters, trust_remote_code=source.trust_remote_code)


def _merged(source: Source, tuned: Any) -> Any:
    return tuned.merge_and_unload(safe_merge=True) if source.adapter else tuned


def _write_gguf(source: Source, tuned: Any, part: Path, dtype: str) -> Reload:
    name = f"{source.name.replace('@', '-')}-{dtype}.gguf"
    merged = _merged(source, tuned)
    stop = source.template.stop_ids[0]
    gguf.write_gguf(merged, _tokenizer(source), part / name, dtype=dtype, name=source.name, stop_id=stop)
    head = {"head_dim": merged.config.head_dim} if "head_dim" in source.base.config else {}  # transformers reads none
    return lambda parameters: _load(part, parameters, gguf_file=name, **head)


def _write_adapter(source: Source, tuned: Any, part: Path, dtype: str) -> Reload:
    assert source.adapter is not None
    config = storage.read_json(source.adapter / _ADAPTER_FILES[0])
    local = source.base.path if source.base.name.count("/") != 1 or Path(source.base.name).is_dir() else None
    config["base_model_name_or_path"] = str(local.absolute()) if local else source.base.name
    shutil.copyfile(source.adapter / _ADAPTER_FILES[1], part / _ADAPTER_FILES[1])
    storage.write_json_atomic(part / _ADAPTER_FILES[0], config)
    base = tuned.unload()
    return lambda parameters: _with_adapter(base, part)


_WRITERS: Mapping[str, Callable[[Source, Any, Path, str], Reload]] = {
    "merged": _write_merged,
    "gguf": _write_gguf,
    "adapter": _write_adapter,
}


def _tokenizer(source: Source) -> Any:
    """The base's tokenizer, with the version's template as its chat template and what ends an answer as its end."""
    tokenizer = load_tokenizer(source.base, trust_remote_code=source.trust_remote_code)
    tokenizer.chat_template = source.template.chat_template
    (stop, *_) = source.template.stop_ids
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop)
    return tokenizer


def _check_template(source: Source, folder: Path) -> None:
    from transformers import AutoTokenizer

    options = {"trust_remote_code": source.trust_remote_code}
    if Template("auto", AutoTokenizer.from_pretrained(folder, **options)).digest != source.template.digest:
        raise ModelError(f'the exported chat template does not write what template "{source.template.name}" writes')


def _compare(source: Source, before: Sequence[Sequence[Step]], after: Sequence[Sequence[Step]], dtype: str) -> None:
    found = differences(before, after)
    if not found:
        return
    first = found[0]
    said = [
        repr(source.template.tokenizer.decode([token])) if token is not None else "the end"
        for token in (first.step.token, first.other)
    ]
    hint = "please report it"
    if dtype != "float32":
        hint = f"rounding to {dtype} turns near ties; float32 keeps every bit: --dtype float32"
    raise ModelError(
        f"{len(found)} of {len(before)} answers are not what base and adapter say: in the first, token {first.at + 1} "
        f"was {said[0]}, ahead by {first.step.lead:.3g} in its logit, and became {said[1]}; nothing was exported",
        hint=hint,
    )
