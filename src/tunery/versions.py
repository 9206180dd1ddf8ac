"""Model versions as they lie on disk, `models/<name>/<version>/`: listing, reading and checking them.

Immutable and numbered. `ops.registry` writes them; evaluation, batches and services read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunery.bases import Base
from tunery.config import nearest
from tunery.data.template import Template, check_prompts
from tunery.errors import ModelError, RunError, TuneryError
from tunery.storage import read_json
from tunery.tasks import Profile
from tunery.tasks.confidence import Calibrator
from tunery.types import ModelVersion

CALIBRATION = "calibration.json"  # what the last evaluation with calibration has left with a version
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
VALUE_HEAD = "value_head.safetensors"  # what makes an adapter or model a reward model


def get(home: Path, ref: str, *, judge: bool = False) -> ModelVersion:
    """A version by "name@3", or by "name" or "name@latest": the latest that answers or, as `judge`, the latest reward
    model. Raises RunError when there is none."""
    name, _, wanted = ref.partition("@")
    shelf = home / "models" / name
    known_numbers = sorted(numbers(shelf))
    if not known_numbers:
        known = sorted({v.name for v in list_versions(home)})
        near = nearest(name, known)
        raise RunError(
            f'no model "{name}" in {home / "models"}',
            hint=f"did you mean {near}?" if near else "`tunery models list` shows them; `tunery train` makes one",
        )
    if wanted in ("", "latest"):
        found = (v for n in reversed(known_numbers) if (v := at(shelf / str(n))).judges == judge)
        if version := next(found, None):
            return version
        if judge:
            raise RunError(f'no version of "{name}" is a reward model', hint="training with stage: rm makes one")
        hint = f"it scores answers, and writes none; to look at it: {name}@{known_numbers[-1]}"
        raise RunError(f'model "{name}" is a reward model', hint=hint)
    if not wanted.isdigit() or int(wanted) not in known_numbers:
        raise RunError(f'model "{name}" has no version "{wanted}"', hint=f"it has {', '.join(map(str, known_numbers))}")
    return at(shelf / wanted)


def list_versions(home: Path) -> list[ModelVersion]:
    """All complete versions, by name and number."""
    shelves = sorted(p for p in (home / "models").iterdir() if p.is_dir()) if (home / "models").is_dir() else []
    found = []
    for shelf in shelves:
        for number in sorted(numbers(shelf)):
            try:
                found.append(at(shelf / str(number)))
            except TuneryError:
                continue
    return found


def profile_of(version: ModelVersion) -> Profile | None:
    """What the training rows of `version` taught; None for one that was trained before it was kept."""
    file = version.adapter / "profile.json"
    if not file.exists():
        return None
    try:
        return Profile.from_dict(read_json(file))
    except (KeyError, TypeError, AttributeError) as exc:
        raise RunError(f"profile.json was written by another Tunery: {exc!r}", where=str(file.parent)) from None


def calibration_of(version: ModelVersion) -> tuple[Calibrator | None, Calibrator | None]:
    """What an evaluation of `version` has learnt of its confidences: of whole answers, and of single values."""
    file = version.adapter / CALIBRATION
    if not file.exists():
        return None, None
    try:
        found = read_json(file)
        row, slot = (found[k] and Calibrator.from_dict(found[k]) for k in ("row", "slot"))
    except (KeyError, TypeError, AttributeError) as exc:
        raise RunError(f"{CALIBRATION} was written by another Tunery: {exc!r}", where=str(file.parent)) from None
    return row, slot


def check_base(version: ModelVersion, base: Base) -> None:
    """Raises ModelError when `version` was not trained on this very base."""
    if version.base_digest != base.digest:
        raise ModelError(
            f'{version.ref} was trained on another base than "{base.name}" '
            f"(digest {version.base_digest}, here {base.digest})",
            hint=f"use the base it was trained on: {version.base}",
        )


def check_template(version: ModelVersion, template: Template) -> None:
    """Raises ModelError when `template` would not write the prompts that `version` was trained on.

    A version from before these were kept passes.
    """
    file = version.adapter / "prompts.json"
    if not file.exists():
        return
    try:
        check_prompts(read_json(file), template, version.ref)
    except (KeyError, TypeError) as exc:
        raise RunError(f"prompts.json was written by another Tunery: {exc!r}", where=str(file.parent)) from None


def served_id(version: ModelVersion) -> str:
    """What a service calls `version`: "name@digest", which stands for these weights for good."""
    digest = version.digest or hashlib.sha256((version.adapter / "version.json").read_bytes()).hexdigest()[:12]
    return f"{version.name}@{digest}"


def adapter_config(folder: Path, *, weights: bool = True) -> Mapping[str, Any]:
    """The adapter's PEFT configuration. Raises ModelError when the folder is not a usable LoRA adapter.

    Without `weights` these may lie elsewhere.
    """
    for file in ADAPTER_FILES if weights else ("adapter_config.json",):
        if not (folder / file).exists():
            raise ModelError(f'"{folder}" is not a PEFT adapter: it has no {file}')
    try:
        return json.loads((folder / "adapter_config.json").read_text())
    except ValueError as exc:
        raise ModelError(f"adapter_config.json is damaged: {exc}", where=str(folder)) from None


def numbers(shelf: Path) -> list[int]:
    """The numbers of the complete versions in a folder `models/<name>`."""
    if not shelf.is_dir():
        return []
    return [int(p.name) for p in shelf.iterdir() if p.name.isdigit() and (p / "version.json").exists()]


def at(folder: Path) -> ModelVersion:
    """The version in a folder of the registry."""
    values = read_json(folder / "version.json")
    try:
        return ModelVersion(adapter=folder, **values)
    except TypeError as exc:
        raise RunError(f"version.json was written by another Tunery: {exc}", where=str(folder)) from None
