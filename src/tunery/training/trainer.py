"""The loop on Ray Train: one to many workers, progress to the caller, the adapter back on the caller's disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.config import TrainSpec
from tunery.errors import ResourceError, TrainError, TuneryError
from tunery.storage import write_json_atomic
from tunery.training.artifacts import evaluations_until, write_offending, write_results
from tunery.training.plan import Plan
from tunery.training.trackers import ray_gauges, reporting

if TYPE_CHECKING:
    from tunery.training.batches import Job

Event = dict[str, Any]
# Threads that spin at barriers gain little on an idle machine and lose most of the time on a busy one.
CPU_ENV = {"OMP_WAIT_POLICY": "passive"}


@dataclass(frozen=True, slots=True)
class Trained:
    """`adapter` is a complete folder, PEFT's or a whole model's; `results` is LLaMA-Factory's all_results.json."""

    adapter: Path
    results: dict[str, Any]


def train(
    plan: Plan,
    output: Path,
    *,
    run: str = "train",
    resume: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Trained:
    """Fine-tune as planned and leave LLaMA-Factory's files in `output`. Ray must be initialised.

    `run` is its name for trackers and metrics. `on_event` gets every log row of the loop as it comes. Raises
    TrainError, or the worker's own TuneryError.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.queue import Queue

    from tunery.training.batches import Job, single
    from tunery.training.watching import generates

    if any(output.glob("*.safetensors")):
        raise TrainError(f"{output} already holds a trained model", hint="choose another output_dir")
    output.mkdir(parents=True, exist_ok=True)
    _check_resources(plan)
    checkpoint = _last_checkpoint(output) if resume else None
    log_path = output / "trainer_log.jsonl"
    job = Job(
        spec=plan.spec,
        units=single(plan.rows),
        groups=plan.groups,
        eval_units=single(plan.eval_rows),
        eval_groups=plan.eval_groups,
        examples=plan.examples if plan.spec.entity_swap else (),
        resume_from=str(checkpoint) if checkpoint else None,
        evaluations=evaluations_until(log_path, _step_of(checkpoint)) if checkpoint else (),
        task=plan.task if generates(plan.spec, _use_gpu(plan)) else None,
    )
    queue: Any = Queue(actor_options={"num_cpus": 0})
    kept = _Kept(plan, output, job.evaluations)
    mode = "a" if job.resume_from else "w"
    with log_path.open(mode, encoding="utf-8") as log, reporting(plan.spec, output, run) as report:
        # In a process of its own: `fit` blocks, and a thread inside Ray cannot be left when the user presses Ctrl-C.
        config = {"job": [ray.put(job)], "queue": queue, "run": run}
        running = ray.remote(num_cpus=0, max_retries=0)(_run_ray_train).remote(
            plan.spec, _use_gpu(plan), str((output / "ray").resolve()), config
        )
        for event in _drain(queue, running):
            if kept.take(event):
                continue
            if "parity" not in event:
                log.write(json.dumps(event) + "\n")
                log.flush()
            on_event(event)
            for fault in report(event):
                on_event({"note": fault})
        queue.shutdown(force=True)
        try:
            ray.get(running)
        except RayError as exc:
            raise _translate(exc) from None
    shutil.rmtree(output / "ray", ignore_errors=True)
    final = _last_checkpoint(output)
    if plan.spec.load_best_model_at_end and kept.best is not None:
        final = output / f"checkpoint-{kept.best}"
    if final is None or not kept.summary:
        raise TrainError("the workers ended without a checkpoint")
    results = write_results(plan, output, final, kept.summary)
    return Trained(output, results)


class _Kept:
    """What the workers send that is kept in files: checkpoints, the certificate, rows that could not be learnt."""

    def __init__(self, plan: Plan, output: Path, evaluations: Sequence[Mapping[str, Any]]) -> None:
        self.plan, self.output = plan, output
        self.summary: Event = {}
        self.best: int | None = evaluations[-1].get("best_global_step") if evaluations else None

    def take(self, event: Event) -> bool:
        """Keep what `event` brings; whether that was all of it, and nobody else needs to hear."""
        if "checkpoint" in event:
            _unpack(self.output / event["checkpoint"], event["files"])
            _delete_old_checkpoints(self.output, self.plan.spec.save_total_limit, self.best)
        elif "offending" in event:
            write_offending(self.plan, self.output / "offending_rows.jsonl", event["offending"])
        elif "summary" in event:
            self.summary = event["summary"]
        else:
            if "parity" in event:
                write_json_atomic(self.output / "parity.json", event["parity"])
            self.best = event.get("best_global_step", self.best)
            return False
        return True


def _run_ray_train(spec: TrainSpec, gpu: bool, storage: str, config: dict[str, Any]) -> None:
    """One `TorchTrainer.fit`. The Job's reference is in a list, so that Ray passes it on unresolved."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.ray_num_workers,
            use_gpu=gpu,
            resources_per_worker=spec.resources_per_worker,
            placement_strategy=spec.placement_strategy,
        ),
        run_config=RunConfig(
            name=spec.ray_run_name or "train",
            storage_path=storage,
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={} if gpu else {"env_vars": CPU_ENV},
        ),
    )
    result = trainer.fit()
    if result.error:
        raise result.error


def _worker(config: dict[str, Any]) -> None:
    import ray
    import ray.train as rt
    import torch

    from tunery.training.loop import Hooks, fit

    context = rt.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    queue = config["queue"]
    gpu = torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, context.get_local_world_size())))

    show = ray_gauges(config["run"])

    def put(event: Event) -> None:
        if rank == 0:
            queue.put(event)

    def log(row: Event) -> None:
        if rank == 0:
            show(row)
        put(row)

    def parity(certificate: Any) -> None:
        put({"parity": certificate.as_dict()})

    def offending(rows: list[Event]) -> None:
        put({"offending": rows})

    def save(folder: Path, step: int) -> None:
        if rank == 0:
            files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
            queue.put({"checkpoint": folder.name, "step": step, "files": files})
            shutil.rmtree(folder, ignore_errors=True)

    (reference,) = config["job"]
    job: Job = ray.get(reference)
    with tempfile.TemporaryDirectory(prefix="tunery-") as scratch:
        hooks = Hooks(log=log, save=save, parity=parity, offending=offending, scratch=Path(scratch))
        summary = fit(job, hooks, rank=rank, world=world, device="cuda" if gpu else "cpu")
    if rank == 0:
        queue.put({"summary": summary})


def _drain(queue: Any, running: Any) -> Iterator[Event]:
    """Events until the task `running` has ended and the queue is empty."""
    from queue import Empty

    import ray

    while True:
        done = bool(ray.wait([running], timeout=0)[0])
        try:
            yield queue.get(timeout=0.01 if done else 0.5)
        except Empty:
            if done:
                return


def _unpack(folder: Path, files: dict[str, bytes]) -> None:
    """Write a checkpoint beside its final place and rename it: a folder of that name is always complete."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, content in files.items():
        (part / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _last_checkpoint(output: Path) -> Path | None:
    found = [p for p in output.glob("checkpoint-*") if p.suffix != ".part"]
    return max(found, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _delete_old_checkpoints(output: Path, limit: int | None, best: int | None) -> None:
    """Keep the `limit` newest and the best, as transformers does."""
    found = sorted((p for p in output.glob("checkpoint-*") if p.suffix != ".part"), key=_step_of)
    for checkpoint in found[: -limit if limit else 0]:
        if _step_of(checkpoint) != best:
            shutil.rmtree(checkpoint, ignore_errors=True)


def _use_gpu(plan: Plan) -> bool:
    import ray

    wanted = (plan.spec.resources_per_worker or {}).get("GPU")
    return bool(wanted) if wanted is not None else ray.cluster_resources().get("GPU", 0) >= 1


def _check_resources(plan: Plan) -> None:
    from tunery.engine.cluster import require

    try:
        require(
            plan.spec.resources_per_worker or ({"GPU": 1} if _use_gpu(plan) else {"CPU": 1}), plan.spec.ray_num_workers
        )
    except ResourceError as exc:
        raise ResourceError(
            exc.message,
            hint="ask for less: --set ray_num_workers=1 --set 'resources_per_worker={CPU: 1}'; or join a larger "
            "cluster: --set ray.address=auto",
        ) from None


def _translate(exc: BaseException) -> BaseException:
    """The worker's own TuneryError out of Ray's wrappers, or a TrainError that names the cause."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, TuneryError):
            return seen
        failures = getattr(seen, "worker_failures", None)
        inner = next(iter(failures.values()), None) if failures else getattr(seen, "cause", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    lines = [line for line in str(exc).strip().splitlines() if line.strip()] or [type(exc).__name__]
    return TrainError(f"training failed: {lines[-1].strip()}", hint="the full log: `tunery runs logs`, or --debug")
