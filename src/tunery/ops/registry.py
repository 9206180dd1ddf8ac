"""The registry: immutable, numbered model versions in `models/<name>/<version>/`.

A version is built beside its place and renamed into it, with version.json written last: what can be listed is
complete. Serving never has to trust a folder that somebody is still writing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunery import versions
from tunery.data.template import common_turns, prompt_samples
from tunery.storage import write_json_atomic
from tunery.tasks import Profile, learn
from tunery.training import Plan, Trained, model_files
from tunery.types import ModelVersion, Report


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
        digest = _digest(part)
        rank = versions.adapter_config(part)["r"] if plan.spec.finetuning_type == "lora" else 0
        while True:
            number = max((v for v in versions.numbers(shelf)), default=0) + 1
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
                digest=digest,
                stage=plan.spec.stage,
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


def keep_calibration(version: ModelVersion, report: Report) -> None:
    """Leave what an evaluation has learnt of a version's confidences with it, for batches and services to use."""
    try:
        found = report.details[version.ref]["confidence"]
        learnt = {part: found[part]["calibrator"] for part in ("row", "slot")}
    except (KeyError, TypeError):
        return
    if any(learnt.values()):
        write_json_atomic(version.adapter / versions.CALIBRATION, learnt)


def _digest(folder: Path) -> str:
    """Of the weights in a folder and of how they are applied."""
    sums = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name == "adapter_config.json"):
        with path.open("rb") as file:
            sums.update(hashlib.file_digest(file, "sha256").digest())
    return sums.hexdigest()[:12]


def _uncut_prompts(plan: Plan) -> list[dict[str, Any]]:
    """Samples of what was trained on, without rows that `overlong: truncate` may have cut, or texts without prompt."""
    if plan.spec.stage == "pt":
        return []
    limit = min(plan.spec.cutoff_len or plan.base.context, plan.base.context)
    rows = {row.id: row for row in plan.rows}
    whole = [(e, rows[e.id]) for e in plan.examples if len(rows[e.id]) < limit]
    return prompt_samples([e for e, _ in whole], [r for _, r in whole])
