"""Adapters and versions to test with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunery import versions
from tunery.bases import find_base
from tunery.types import ModelVersion


def make_adapter(base: Path, folder: Path, *, rank: int = 8, seed: int = 0) -> Path:
    """A random LoRA adapter for `base` that changes its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def make_version(home: Path, base: Path, ref: str, **known: Any) -> ModelVersion:
    """A version in `home`'s registry with a random adapter for `base`; `known` are further fields of it."""
    name, _, number = ref.partition("@")
    folder = home / "models" / name / number
    rank = known.get("rank", 8)
    make_adapter(base, folder, rank=rank, seed=known.pop("seed", rank))
    entry = {
        "name": name, "version": int(number), "base": str(base), "base_digest": find_base(str(base)).digest,
        "rank": rank, "template": "chatml", "template_digest": "", "dataset_fingerprint": "", "task": "function",
        "run_id": "", "created": f"2026-01-01T00:00:{int(number):02d}+00:00", **known,
    }  # fmt: skip
    (folder / "version.json").write_text(json.dumps(entry))
    return versions.get(home, ref)
