"""One adapter merged into its base, for an engine that answers with nothing else and so needs no LoRA at each step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_BESIDE = frozenset({".json", ".jinja", ".txt", ".model", ".py"})  # what an engine reads but weights
_UNUSED_DAYS = 7  # after which a merged model leaves the cache
# What an adapter_config.json may have beyond plain LoRA, each of which changes what is added to a weight, or to which.
_BEYOND = (
    "use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
    "trainable_token_indices", "target_parameters", "lora_bias",
)  # fmt: skip


def obstacle(base: Path, adapter: Path) -> str | None:
    """Why `adapter` is not merged into `base`; None when it can be. Reads no weights."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        return "it is not plain LoRA"
    if beyond := [name for name in _BEYOND if config.get(name)]:
        return f"it is not plain LoRA: {', '.join(beyond)}"
    if "quantization_config" in json.loads((base / "config.json").read_text()):
        return "the base is quantised"
    missing = set(_pairs(_names(adapter / "adapter_model.safetensors"))) - {n for f in _files(base) for n in _names(f)}
    return f"the base has no {min(missing)}" if missing else None


def merged(base: Path, adapter: Path, dtype: str) -> Path:
    """A folder with the weights of both, kept in this machine's cache; `dtype` is what the engine computes in.

    Weights are added up in fp32. They stay in fp32 for an engine of that, else are rounded once to the base's own type.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunery" / "merged"
    wide = dtype in ("float32", "float")
    folder = home / _key(base, adapter, wide)
    _forget(home)
    if folder.is_dir():
        os.utime(folder)
        return folder
    part = home / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(base, adapter, part, wide)
        part.rename(folder)
    except OSError:
        if not folder.is_dir():  # another engine was quicker
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write(base: Path, adapter: Path, out: Path, wide: bool) -> None:
    """One file of weights is in memory at a time."""
    from safetensors.torch import load_file, save_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    lora = load_file(adapter / "adapter_model.safetensors")
    pairs = _pairs(lora)
    for file in _files(base):
        tensors: dict[str, torch.Tensor] = load_file(file)
        for name in pairs.keys() & tensors.keys():
            a, b = (lora[key].float() for key in pairs[name])
            weight = tensors[name]
            total = weight.float() + scale * (b @ a)
            tensors[name] = total if wide else total.to(weight.dtype)
        save_file(tensors, out / file.name, metadata={"format": "pt"})
    for file in base.iterdir():
        if file.suffix in _BESIDE:
            shutil.copyfile(file, out / file.name)


def _pairs(names: Any) -> Mapping[str, tuple[str, str]]:
    """The base's weight -> its A and B in the adapter."""
    found = {}
    for name in names:
        module, mark, _ = name.removeprefix("base_model.model.").partition(".lora_")
        if mark:
            stem = f"base_model.model.{module}"
            found[f"{module}.weight"] = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        else:
            found[name] = name, name  # a tensor that is none of LoRA's: no base has it under this name
    return found


def _files(base: Path) -> list[Path]:
    index = base / _INDEX
    if index.exists():
        return sorted({base / name for name in json.loads(index.read_text())["weight_map"].values()})
    return sorted(base.glob("*.safetensors"))


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    if not file.exists():
        return []
    with safe_open(file, framework="np") as weights:
        return list(weights.keys())


def _key(base: Path, adapter: Path, wide: bool) -> str:
    digest = hashlib.sha256(f"1:{wide}:{base.absolute()}".encode())
    for file in sorted(base.iterdir()):
        found = file.stat()
        digest.update(f"{file.name}:{found.st_size}:{found.st_mtime_ns}:".encode())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((adapter / name).read_bytes())
    return digest.hexdigest()[:24]


def _forget(home: Path) -> None:
    """Remove what no engine has asked for in days, and what one that was killed left behind."""
    for folder in home.iterdir() if home.is_dir() else ():
        try:
            if time.time() - folder.stat().st_mtime > _UNUSED_DAYS * 86400:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue
