"""The registry: immutable, numbered model versions in `models/<name>/<version>/`.

A version is built beside its place and renamed into it, with version.json written last: what can be listed is
complete. Serving never has to trust a folder that somebody is still writing.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunery.bases import Base
from tunery.config import nearest
from tunery.data.template import Template, check_prompts, common_turns, prompt_samples
from tunery.errors import ModelError, RunError, TuneryError
from tunery.storage import read_json, write_json_atomic
from tunery.tasks import Profile, learn
from tunery.training import Plan, Trained, model_files
from tunery.types import ModelVersion

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def learn_profile(plan: Plan) -> Profile:
    """What the training rows of `plan` teach, their common instruction left out."""
    _, instruction = common_turns(plan.train.examples)
    before = f"{instruction}\n" if instruction else ""
    return learn(plan.task, [(e.text.removeprefix(before), e.target or "") for e in plan.examples])


def register(home: Path, name: str, plan: Plan, trained: Trained, *, profile: Profile, run_id: str) -> ModelVersion:
    """Add a trained adapter or model, and the `profile` of its training rows, as the next version of `name`."""
    shelf = home / "models" / name
    system, instruction = common_turns(plan.train.examples)
    part = shelf / f".part-{secrets.token_hex(4)}"
    part.mkdir(parents=True)
    try:
        for file, path in model_files(plan, trained.adapter).items():
            shutil.copyfile(path, part / file)
        rank = adapter_config(part)["r"] if plan.spec.finetuning_type == "lora" else 0
        while True:
            number = max((v for v in _numbers(shelf)), default=0) + 1
            entry = ModelVersion(
                name=name,
                version=number,
                base=plan.spec.model_name_or_path,
                base_digest=plan.base.digest,
                adapter=shelf / str(number),
                rank=rank,
                template=plan.template.name,
                template_digest=plan.template.digest,
                dataset_fingerprint=plan.train.fingerprint,
                task=plan.task.name,
                run_id=run_id,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                system=system,
                instruction=instruction,
                metrics={k: v for k, v in trained.results.items() if isinstance(v, int | float)},
            )
            values = dataclasses.asdict(entry)
            del values["adapter"]
            write_json_atomic(part / "profile.json", profile.to_dict())
            write_json_atomic(part / "prompts.json", _uncut_prompts(plan))
            write_json_atomic(part / "version.json", values)
            try:
                part.rename(shelf / str(number))
            except OSError:  # another run took this number in the meantime
                if (shelf / str(number)).exists():
                    continue
                raise
            return entry
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _uncut_prompts(plan: Plan) -> list[dict[str, Any]]:
    """Samples of what was trained on, without rows that `overlong: truncate` may have cut, or texts without prompt."""
    if plan.spec.stage == "pt":
        return []
    limit = min(plan.spec.cutoff_len or plan.base.context, plan.base.context)
    rows = {row.id: row for row in plan.rows}
    whole = [(e, rows[e.id]) for e in plan.examples if len(rows[e.id]) < limit]
    return prompt_samples([e for e, _ in whole], [r for _, r in whole])


def get(home: Path, ref: str) -> ModelVersion:
    """A version by "name" (its latest), "name@latest" or "name@3". Raises RunError when there is none."""
    name, _, wanted = ref.partition("@")
    shelf = home / "models" / name
    numbers = sorted(_numbers(shelf))
    if not numbers:
        known = sorted({v.name for v in list_versions(home)})
        near = nearest(name, known)
        raise RunError(
            f'no model "{name}" in {home / "models"}',
            hint=f"did you mean {near}?" if near else "`tunery models list` shows them; `tunery train` makes one",
        )
    if wanted in ("", "latest"):
        return _read(shelf / str(numbers[-1]))
    if not wanted.isdigit() or int(wanted) not in numbers:
        raise RunError(f'model "{name}" has no version "{wanted}"', hint=f"it has {', '.join(map(str, numbers))}")
    return _read(shelf / wanted)


def list_versions(home: Path) -> list[ModelVersion]:
    """All complete versions, by name and number."""
    shelves = sorted(p for p in (home / "models").iterdir() if p.is_dir()) if (home / "models").is_dir() else []
    found = []
    for shelf in shelves:
        for number in sorted(_numbers(shelf)):
            try:
                found.append(_read(shelf / str(number)))
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


def adapter_config(folder: Path) -> Mapping[str, Any]:
    """The adapter's PEFT configuration. Raises ModelError when the folder is not a usable LoRA adapter."""
    for file in _ADAPTER_FILES:
        if not (folder / file).exists():
            raise ModelError(f'"{folder}" is not a PEFT adapter: it has no {file}')
    try:
        return json.loads((folder / "adapter_config.json").read_text())
    except ValueError as exc:
        raise ModelError(f"adapter_config.json is damaged: {exc}", where=str(folder)) from None


def _numbers(shelf: Path) -> list[int]:
    if not shelf.is_dir():
        return []
    return [int(p.name) for p in shelf.iterdir() if p.name.isdigit() and (p / "version.json").exists()]


def _read(folder: Path) -> ModelVersion:
    values = read_json(folder / "version.json")
    try:
        return ModelVersion(adapter=folder, **values)
    except TypeError as exc:
        raise RunError(f"version.json was written by another Tunery: {exc}", where=str(folder)) from None
