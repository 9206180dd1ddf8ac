"""The folder of one training, kept by its driver: the log, the checkpoints as they come, the results at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery import storage
from tunery.errors import TrainError
from tunery.training.artifacts import Rows, write_offending, write_results
from tunery.training.checkpoint import Checkpoints, Files, files_of, step_of
from tunery.training.checks import generates
from tunery.training.plan import Job, Plan
from tunery.training.trackers import reporting
from tunery.versions import ADAPTER_FILES, VALUE_HEAD

Event = dict[str, Any]
LOG = "trainer_log.jsonl"
# Keys that change where, how fast or how visibly a training runs and not what it learns, or that stand in `origin`
# in another form: names and folders as digests, rows a device as rows a batch.
INDIFFERENT = frozenset({
    "model_name_or_path", "dataset", "dataset_dir", "eval_dataset", "output_dir", "logging_steps", "save_steps",
    "eval_steps", "eval_strategy", "save_strategy", "plot_loss", "resume_from_checkpoint", "packing", "template",
    "gradient_checkpointing", "torch_compile", "per_device_train_batch_size", "gradient_accumulation_steps",
    "ray_run_name", "ray_num_workers", "ray_storage_path", "resources_per_worker", "placement_strategy",
    "max_failures", "task", "trust_remote_code", "allow_pickle", "save_total_limit", "report_to",
    "predict_with_generate", "max_predict_samples", "metric_for_best_model", "greater_is_better",
    "load_best_model_at_end", "fsdp", "early_stopping_patience", "early_stopping_threshold", "max_loss_ratio",
    "reward_model",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trained:
    """`adapter` is a complete folder, PEFT's or a whole model's; `results` is LLaMA-Factory's all_results.json."""

    adapter: Path
    results: dict[str, Any]


def origin_of(plan: Plan) -> dict[str, Any]:
    """What a training is made of, as flat JSON: its checkpoints fit no other."""
    settings = plan.spec.model_dump(mode="json", exclude=set(INDIFFERENT))
    made_of = {"base": plan.base.digest, "template": plan.template.digest, "dataset": plan.train.fingerprint}
    if judge := _reward_model(plan):
        made_of["reward_model"] = hashlib.sha256(b"".join(judge.values())).hexdigest()[:16]
    return made_of | {"rows": len(plan.units), "batch_rows": plan.spec.batch_rows} | settings


def _reward_model(plan: Plan) -> Files | None:
    """As it travels to workers, who need no disk in common."""
    if not (folder := plan.spec.reward_model):
        return None
    return {name: (Path(folder) / name).read_bytes() for name in (*ADAPTER_FILES, VALUE_HEAD)}


def job_of(plan: Plan, evaluations: Rows, *, gpu: bool) -> Job:
    """What the loop needs of a plan, on workers with a GPU or without; `evaluations` are those done already."""
    return Job(
        spec=plan.spec,
        units=plan.units,
        groups=plan.groups,
        eval_units=plan.eval_units,
        eval_groups=plan.eval_groups,
        examples=plan.examples if plan.spec.entity_swap else (),
        evaluations=evaluations,
        task=plan.task if generates(plan.spec, gpu) else None,
        reward_model=_reward_model(plan),
    )


@contextmanager
def opened(
    plan: Plan, folder: Path, run: str, on_event: Callable[[Event], None], *, resume: bool = False
) -> Iterator[Output]:
    """The output of the training named `run`, once all can be written and it is known where to start.

    Its log rows and notes go to `on_event` and the rows to the trackers of `report_to`. Raises what `Output.open` does,
    and ConfigError for a tracker that does not start.
    """
    output = Output(plan, folder, run)
    output.open(resume)
    with reporting(plan.spec, folder, run) as report:

        def tell(event: Event) -> None:
            on_event(event)
            for fault in report(event):
                on_event({"note": fault})

        output.tell = tell
        yield output


class Output:
    """Writes what the loop tells (`hear`) into `folder`, so that a crash at any byte leaves it fit to go on from.

    Checkpoints are kept a second time in `ray_storage_path`, in a folder named for the run.
    """

    def __init__(self, plan: Plan, folder: Path, run: str) -> None:
        self.plan, self.folder = plan, folder
        self.tell: Callable[[Event], None] = lambda event: None
        place = plan.spec.ray_storage_path
        mirror = storage.join(place, *dict.fromkeys(filter(None, (plan.spec.ray_run_name, run)))) if place else None
        self.checkpoints = Checkpoints(folder, mirror, origin_of(plan))
        self.final: Path | None = None  # the newest checkpoint
        self.best: int | None = None
        self.summary: dict[str, Any] = {}
        self.start = 0
        self.evaluations: list[Event] = []  # until there

    @property
    def files(self) -> Files | None:
        """The newest checkpoint."""
        return files_of(self.final) if self.final else None

    def open(self, resume: bool = False) -> None:
        """Check that all can be written, and find the checkpoint to go on from, if there is one and it is wanted.

        Raises TrainError when the folder is another training's, StorageError when a place cannot be written.
        """
        if any(p.name != VALUE_HEAD for p in self.folder.glob("*.safetensors")):  # that one comes before them
            raise TrainError(f"{self.folder} already holds a trained model", hint="choose another output_dir")
        self.checkpoints.check_writable()
        wanted = self.plan.spec.resume_from_checkpoint
        self.final = self.checkpoints.last() if resume or wanted is True else None
        if self.final is None and isinstance(wanted, str):
            self.final = self.checkpoints.fetch(wanted)
        if self.final is None and wanted is True:
            raise TrainError(
                f"resume_from_checkpoint: no complete checkpoint in {self.folder}",
                hint="set output_dir to the folder of the training that was interrupted",
            )
        if self.final is None and not resume and (place := self.checkpoints.taken()):
            raise TrainError(
                f"{storage.shown(place)} holds checkpoints of a training that did not end here",
                hint="resume_from_checkpoint=true goes on with it; or choose another output_dir, ray_run_name",
            )
        self._begin(step_of(self.final) if self.final else 0)

    def hear(self, event: Event) -> None:
        """One event of the loop: see `loop.work`; {"began": step} when workers have started, {"note": text}."""
        if "checkpoint" in event:
            self.final = self.checkpoints.write(event["checkpoint"], event["files"])
            if limit := self.plan.spec.save_total_limit:
                self.checkpoints.keep(limit, self.best)
        elif "began" in event:
            self._begin(event["began"])
        elif "offending" in event:
            write_offending(self.plan, self.folder / "offending_rows.jsonl", event["offending"])
        elif "summary" in event:
            self.summary = event["summary"]
        else:
            if "parity" in event:
                storage.write_json_atomic(self.folder / "parity.json", event["parity"])
            elif "current_steps" in event:
                storage.append_jsonl(self.folder / LOG, event)
                self.best = event.get("best_global_step", self.best)
            self.tell(event)

    def _begin(self, step: int) -> None:
        """What the log has after `step` is going to be done again."""
        log = self.folder / LOG
        rows = [row for row in storage.read_jsonl_tolerant(log) if row["current_steps"] <= step]
        storage.write_atomic(log, "".join(storage.to_json(row) + "\n" for row in rows))
        self.start, self.evaluations = step, [row for row in rows if "eval_loss" in row]
        self.best = self.evaluations[-1].get("best_global_step") if self.evaluations else None

    def finish(self) -> Trained:
        """Write the results. Raises TrainError when the training has not come to its end."""
        final = self.final
        if self.plan.spec.load_best_model_at_end and self.best is not None:
            final = self.folder / f"checkpoint-{self.best}"
        if final is None or not self.summary:
            raise TrainError("the workers ended without a checkpoint")
        return Trained(self.folder, write_results(self.plan, self.folder, final, self.summary))
