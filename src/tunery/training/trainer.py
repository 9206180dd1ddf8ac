"""The loop on Ray Train: one to many workers on one to many machines, everything of worth on the driver's disk.

Checkpoints do not go through Ray Train's storage, which needs a disk that all machines share: they travel to the
driver, which keeps them and knows when they are complete. Ray Train restarts and resizes the workers; they ask the
mailbox on the driver's machine where to go on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tunery.config import TrainSpec
from tunery.errors import ResourceError, TrainError, TuneryError
from tunery.training.checkpoint import Files
from tunery.training.checks import check_device
from tunery.training.output import Event, Trained, job_of, opened
from tunery.training.plan import Job, Plan
from tunery.training.trackers import ray_gauges

# Threads that spin at barriers gain little on an idle machine and lose most of the time on a busy one.
CPU_ENV = {"OMP_WAIT_POLICY": "passive"}
POLL_SECONDS = 0.3
END_SECONDS = 10.0  # for Ray Train to end its workers, which takes it half a second
LOST_NODE_SECONDS = 120.0  # for a cluster to replace what a dead node had


def train(
    plan: Plan,
    output: Path,
    *,
    run: str = "train",
    resume: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Trained:
    """Fine-tune as planned and leave LLaMA-Factory's files in `output`. Ray must be initialised.

    `resume` goes on from the last checkpoint there, if any. `run` is its name for trackers and metrics, and its folder
    in `ray_storage_path`. `on_event` gets every log row as it comes, and {"note": text}, as when lost workers were
    replaced. Raises ResourceError, StorageError or TrainError before anything starts; later those, or the worker's own
    TuneryError.
    """
    import ray
    from ray.exceptions import RayError

    resources = _worker_resources(plan.spec)
    check_device(plan.spec, bool(resources.get("GPU")))
    _check_resources(plan.spec, resources)
    with opened(plan, output, run, on_event, resume=resume) as folder:
        job = job_of(plan, folder.evaluations, gpu=bool(resources.get("GPU")))
        here: Any = {"num_cpus": 0, "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
        mailbox: Any = ray.remote(**here)(Mailbox).remote(folder.start, folder.files, folder.evaluations)
        # In a process of its own: `fit` blocks, and a thread inside Ray cannot be left when the user presses Ctrl-C.
        config = {"job": [ray.put(job)], "mailbox": mailbox, "run": run, "resources": resources}
        running = ray.remote(max_retries=0, **here)(_run_ray_train).remote(plan.spec, config)
        try:
            for event in _events(mailbox, running, plan.spec, resources):
                if "error" in event:
                    raise event["error"]
                folder.hear(event)
                if "checkpoint" in event:
                    mailbox.written.remote()
            ray.get(running)
        except RayError as exc:
            raise _translate(exc) from None
        finally:
            _end(running)
            ray.kill(mailbox)
        return folder.finish()


class Mailbox:
    """What the workers tell the driver, and the checkpoint that workers go on from. An actor with the driver."""

    def __init__(self, step: int, checkpoint: Files | None, evaluations: list[Event]) -> None:
        import asyncio

        self._step, self._checkpoint, self._evaluations = step, checkpoint, evaluations
        self._events: list[Event] = []
        self._start = 0  # counts the starts of workers; what is left over from an earlier one is dropped
        self._room = asyncio.Event()
        self._room.set()

    async def begin(self) -> int:
        """Rank 0 has started; from here until it saves, all ranks get the same checkpoint. The number of this start."""
        self._start += 1
        self._events.append({"began": self._step})
        if self._start > 1:
            self._events.append({"note": f"the workers were lost; new ones go on from step {self._step}"})
        return self._start

    async def checkpoint(self) -> tuple[Files | None, list[Event]]:
        """The checkpoint to go on from, and the evaluations until then."""
        return self._checkpoint, [row for row in self._evaluations if row["current_steps"] <= self._step]

    async def put(self, start: int, event: Event) -> None:
        """Take an event; a checkpoint waits until the one before is written, so that they do not pile up."""
        if "checkpoint" in event:
            await self._room.wait()
        if start != self._start:
            return
        if "checkpoint" in event:
            self._room.clear()
            self._step, self._checkpoint = event["checkpoint"], event["files"]
        if "eval_loss" in event:
            self._evaluations.append(event)
        self._events.append(event)

    async def written(self) -> None:
        self._room.set()

    async def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _run_ray_train(spec: TrainSpec, config: dict[str, Any]) -> None:
    """One `fit` of Ray Train. The Job's reference is in a list, so that Ray passes it on unresolved."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from tunery.training.processes import Processes

    gpu = bool(config["resources"].get("GPU"))
    with tempfile.TemporaryDirectory(prefix="tunery-ray-train-") as storage:  # for Ray Train's own notes
        DataParallelTrainer(
            _worker,
            train_loop_config=config,
            backend_config=Processes(),
            scaling_config=ScalingConfig(
                num_workers=spec.ray_num_workers,
                use_gpu=gpu,
                resources_per_worker=config["resources"],
                placement_strategy=spec.placement_strategy,
            ),
            run_config=RunConfig(
                name=spec.ray_run_name or "train",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=spec.max_failures),
                logging_config=LoggingConfig(log_level="WARNING"),
                worker_runtime_env={} if gpu else {"env_vars": CPU_ENV},
            ),
        ).fit()


def _end(running: Any) -> None:
    """Stop `_run_ray_train` where it still runs, first by asking: killed, it would leave its placement group behind."""
    import ray

    ray.cancel(running)
    if not ray.wait([running], timeout=END_SECONDS)[0]:
        ray.cancel(running, force=True)


def _worker(config: dict[str, Any]) -> None:
    import ray
    from ray.train import collective, get_context

    from tunery.training.loop import work
    from tunery.training.processes import joined

    context = get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    mailbox: Any = config["mailbox"]
    (reference,) = config["job"]
    job: Job = ray.get(reference)
    gpu = bool(config["resources"].get("GPU"))
    if not gpu:
        _share_cores(job.spec, context.get_local_world_size())
    start: Any = collective.broadcast_from_rank_zero(ray.get(mailbox.begin.remote()) if rank == 0 else None)
    files, evaluations = cast(Any, ray.get(mailbox.checkpoint.remote()))
    show = ray_gauges(config["run"])

    def tell(event: Event) -> None:
        ray.get(mailbox.put.remote(start, event))
        if "current_steps" in event:
            show(event)

    try:
        with joined(gpu):
            work(replace(job, evaluations=evaluations), files, tell, rank, world, "cuda" if gpu else "cpu")
    except TuneryError as exc:  # would come again; anything else may be the loss of another worker
        tell({"error": exc})
        raise


def _share_cores(spec: TrainSpec, here: int) -> None:
    """As many threads as the worker was given cores, or its part of the machine's where nothing was said."""
    import torch

    given = (spec.resources_per_worker or {}).get("CPU")
    torch.set_num_threads(max(1, int(given) if given else (os.cpu_count() or 1) // max(1, here)))


def _events(mailbox: Any, running: Any, spec: TrainSpec, resources: dict[str, float]) -> Iterator[Event]:
    """What comes in until the task `running` has ended. Raises ResourceError when it can never go on."""
    import ray

    short_since: float | None = None
    while True:
        done = bool(ray.wait([running], timeout=POLL_SECONDS)[0])
        events = ray.get(mailbox.take.remote())
        yield from events
        if done:
            return
        if events:
            short_since = None
            continue
        try:
            _check_resources(spec, resources)
            short_since = None
        except ResourceError as exc:  # Ray itself would wait for ever
            short_since = short_since or time.monotonic()
            if time.monotonic() - short_since > LOST_NODE_SECONDS:
                raise ResourceError(
                    f"a machine was lost and none has come in its place: {exc.message}",
                    hint=f"all up to the last checkpoint is kept: `tunery train --resume` goes on; {exc.hint}",
                ) from None


def _worker_resources(spec: TrainSpec) -> dict[str, float]:
    """What one worker asks of Ray: as told, and a GPU where the cluster has some and nothing else was said."""
    import ray

    told = {name: amount for name, amount in (spec.resources_per_worker or {}).items() if amount}
    if "GPU" not in (spec.resources_per_worker or {}) and ray.cluster_resources().get("GPU", 0) >= 1:
        return told | {"GPU": 1}
    return told or {"CPU": 1}


def _check_resources(spec: TrainSpec, resources: dict[str, float]) -> None:
    """Raises ResourceError with the settings that help, where the cluster cannot give what the workers need."""
    from tunery.engine.cluster import require, room

    try:
        require(resources, spec.workers[0], spec.placement_strategy)
    except ResourceError as exc:
        fits = room(resources, spec.placement_strategy)
        if fits:
            less = f"--set 'ray_num_workers=[{fits}, {spec.workers[1]}]' (the same batches on fewer workers)"
        elif spec.resources_per_worker:
            less = "--set resources_per_worker=null"
        else:
            less = "--set 'resources_per_worker={CPU: 1}'"
        raise ResourceError(
            exc.message, hint=f"ask for less: {less}; or join a larger cluster: --set ray.address=auto"
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
