"""The loop on Ray Train: one to many workers, progress to the caller, the adapter back on the caller's disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.config import TrainSpec
from tunery.errors import ResourceError, TrainError, TuneryError
from tunery.storage import write_json_atomic
from tunery.training.artifacts import write_results
from tunery.training.plan import Plan

if TYPE_CHECKING:
    from tunery.training.batches import Job

Event = dict[str, Any]
# Threads that spin at barriers gain little on an idle machine and lose most of the time on a busy one.
CPU_ENV = {"OMP_WAIT_POLICY": "passive"}


@dataclass(frozen=True, slots=True)
class Trained:
    """`adapter` is a complete PEFT folder; `results` is LLaMA-Factory's all_results.json."""

    adapter: Path
    results: dict[str, Any]


def train(
    plan: Plan, output: Path, *, resume: bool = False, on_event: Callable[[Event], None] = lambda event: None
) -> Trained:
    """Fine-tune as planned and leave LLaMA-Factory's files in `output`. Ray must be initialised.

    `on_event` gets every log row of the loop as it comes. Raises TrainError, or the worker's own TuneryError.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.queue import Queue

    from tunery.training.batches import Job

    if (output / "adapter_model.safetensors").exists():
        raise TrainError(f"{output} already holds a trained adapter", hint="choose another output_dir")
    output.mkdir(parents=True, exist_ok=True)
    _check_resources(plan)
    job = Job(
        spec=plan.spec,
        units=plan.units,
        groups=plan.groups,
        eval_units=plan.eval_units,
        eval_groups=plan.eval_groups,
        examples=plan.examples if plan.spec.entity_swap else (),
        resume_from=str(_last_checkpoint(output)) if resume and _last_checkpoint(output) else None,
    )
    queue: Any = Queue(actor_options={"num_cpus": 0})
    summary: dict[str, Any] = {}
    # In a process of its own: `fit` blocks, and a thread inside Ray cannot be left when the user presses Ctrl-C.
    running = ray.remote(num_cpus=0, max_retries=0)(_run_ray_train).remote(
        plan.spec, _use_gpu(plan), str((output / "ray").resolve()), [ray.put(job)], queue
    )
    log_path = output / "trainer_log.jsonl"
    mode = "a" if job.resume_from else "w"
    with log_path.open(mode, encoding="utf-8") as log:
        for event in _drain(queue, running):
            if "checkpoint" in event:
                _unpack(output / event["checkpoint"], event["files"])
            elif "summary" in event:
                summary = event["summary"]
            elif "parity" in event:
                write_json_atomic(output / "parity.json", event["parity"])
                on_event(event)
            else:
                log.write(json.dumps(event) + "\n")
                log.flush()
                on_event(event)
    queue.shutdown(force=True)
    try:
        ray.get(running)
    except RayError as exc:
        raise _translate(exc) from None
    shutil.rmtree(output / "ray", ignore_errors=True)
    final = _last_checkpoint(output)
    if final is None or not summary:
        raise TrainError("the workers ended without a checkpoint")
    results = write_results(plan, output, final, summary)
    return Trained(output, results)


def _run_ray_train(spec: TrainSpec, gpu: bool, storage: str, job: list[Any], queue: Any) -> None:
    """One `TorchTrainer.fit`. `job` holds the Job's reference, in a list so that Ray passes it on unresolved."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job[0], "queue": queue},
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

    def log(row: Event) -> None:
        if rank == 0:
            queue.put(row)

    def parity(certificate: Any) -> None:
        log({"parity": certificate.as_dict()})

    def save(folder: Path, step: int) -> None:
        if rank == 0:
            files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
            queue.put({"checkpoint": folder.name, "step": step, "files": files})
            shutil.rmtree(folder, ignore_errors=True)

    job: Job = ray.get(config["job"])
    with tempfile.TemporaryDirectory(prefix="tunery-") as scratch:
        hooks = Hooks(log=log, save=save, parity=parity, scratch=Path(scratch))
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
    return max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)


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
