"""The folder of one training, kept by its driver: the log, the checkpoints as they come, the results at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import storage
from tunery.errors import TrainError
from tunery.training.artifacts import write_results
from tunery.training.checkpoint import Checkpoints
from tunery.training.plan import Plan

if TYPE_CHECKING:
    from tunery.training.batches import Job

Event = dict[str, Any]
LOG = "trainer_log.jsonl"
# Keys that change where, how fast or how visibly a training runs and not what it learns, or that stand in `origin`
# in another form: names and folders as digests, rows a device as rows a batch.
INDIFFERENT = frozenset({
    "model_name_or_path", "dataset", "dataset_dir", "eval_dataset", "output_dir", "logging_steps", "save_steps",
    "eval_steps", "eval_strategy", "save_strategy", "plot_loss", "resume_from_checkpoint", "packing", "template",
    "gradient_checkpointing", "torch_compile", "per_device_train_batch_size", "gradient_accumulation_steps",
    "ray_run_name", "ray_num_workers", "ray_storage_path", "resources_per_worker", "placement_strategy",
    "max_failures", "task", "trust_remote_code", "allow_pickle",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trained:
    """`adapter` is a complete PEFT folder; `results` is LLaMA-Factory's all_results.json."""

    adapter: Path
    results: dict[str, Any]


def origin_of(plan: Plan) -> dict[str, Any]:
    """What a training is made of, as flat JSON: its checkpoints fit no other."""
    settings = plan.spec.model_dump(mode="json", exclude=set(INDIFFERENT))
    made_of = {"base": plan.base.digest, "template": plan.template.digest, "dataset": plan.train.fingerprint}
    return made_of | {"rows": len(plan.rows), "batch_rows": plan.spec.batch_rows} | settings


def job_of(plan: Plan) -> Job:
    """What the loop needs of a plan."""
    from tunery.training.batches import Job, single

    return Job(
        spec=plan.spec,
        units=single(plan.rows),
        groups=plan.groups,
        eval_units=single(plan.eval_rows),
        eval_groups=plan.eval_groups,
        examples=plan.examples if plan.spec.entity_swap else (),
    )


class Output:
    """Writes what the loop tells (`hear`) into `folder`, so that a crash at any byte leaves it fit to go on from.

    `name` is the training's own folder below `ray_storage_path`, where its checkpoints are kept a second time.
    """

    def __init__(self, plan: Plan, folder: Path, name: str, on_event: Callable[[Event], None]) -> None:
        self.plan, self.folder, self.on_event = plan, folder, on_event
        place = plan.spec.ray_storage_path
        mirror = storage.join(place, *filter(None, (plan.spec.ray_run_name, name))) if place else None
        self.checkpoints = Checkpoints(folder, mirror, origin_of(plan))
        self.final: Path | None = None
        self.summary: dict[str, Any] = {}

    def open(self, resume: bool = False) -> Path | None:
        """Check that all can be written; returns the checkpoint to go on from, if there is one and it is wanted.

        Raises TrainError when the folder is another training's, StorageError when a place cannot be written.
        """
        wanted = self.plan.spec.resume_from_checkpoint
        if (self.folder / "adapter_model.safetensors").exists():
            raise TrainError(f"{self.folder} already holds a trained adapter", hint="choose another output_dir")
        self.checkpoints.check_writable()
        found = self.checkpoints.last() if resume or wanted is True else None
        if found is None and isinstance(wanted, str):
            return self.checkpoints.fetch(wanted)
        if found is None and wanted is True:
            raise TrainError(
                f"resume_from_checkpoint: no complete checkpoint in {self.folder}",
                hint="set output_dir to the folder of the training that was interrupted",
            )
        if found is None and not resume and (place := self.checkpoints.taken()):
            raise TrainError(
                f"{storage.shown(place)} holds checkpoints of a training that did not end here",
                hint="resume_from_checkpoint=true goes on with it; or choose another output_dir, ray_run_name",
            )
        return found

    def hear(self, event: Event) -> None:
        """One event of the loop: a log row, a checkpoint, a start, the parity certificate or the summary."""
        if "checkpoint" in event:
            self.final = self.checkpoints.write(event["checkpoint"], event["files"])
        elif "began" in event:
            self._forget_after(event["began"])
        elif "summary" in event:
            self.summary = event["summary"]
        else:
            if "parity" in event:
                storage.write_json_atomic(self.folder / "parity.json", event["parity"])
            elif "restarted" not in event:
                storage.append_jsonl(self.folder / LOG, event)
            self.on_event(event)

    def _forget_after(self, step: int) -> None:
        """Leave out of the log what will be done again."""
        rows = storage.read_jsonl_tolerant(self.folder / LOG)
        kept = [row for row in rows if row["current_steps"] <= step]
        storage.write_atomic(self.folder / LOG, "".join(storage.to_json(row) + "\n" for row in kept))

    def finish(self) -> Trained:
        """Write the results. Raises TrainError when the training has not come to its end."""
        if self.final is None or not self.summary:
            raise TrainError("the workers ended without a checkpoint")
        return Trained(self.folder, write_results(self.plan, self.folder, self.final, self.summary))
