"""The same training without Ray: `torchrun --nproc-per-node 2 -m tunery.training FILE.yaml [KEY=VALUE ...]`.

Each process is a worker, whatever `ray_num_workers` says; alone, `python -m tunery.training FILE.yaml` is one. The
adapter stays in `output_dir`: `tunery train` is what registers versions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tunery.config import load_project, placed_train
from tunery.errors import ConfigError, TuneryError
from tunery.storage import FolderLock
from tunery.training.loop import work
from tunery.training.output import Event, Trained, job_of, opened
from tunery.training.plan import Plan, prepare


def main(arguments: list[str], on_event: Callable[[Event], None] | None = None) -> int:
    """The exit status; `on_event` hears log rows as they come.

    Rank 0 reads, checks and writes; the others get its job, or nothing when it cannot start.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        if rank == 0:
            trained = _lead(arguments, world, on_event or _say)
            print(trained.adapter)
        else:
            _follow(rank, world)
    except TuneryError as exc:
        if rank == 0:
            print(f"error: {exc}" + (f"\nhint:  {exc.hint}" if exc.hint else ""), file=sys.stderr)
        return exc.exit_status
    finally:
        if world > 1:
            dist.destroy_process_group()
    return 0


def _lead(arguments: list[str], world: int, on_event: Callable[[Event], None]) -> Trained:
    shared = False
    try:
        plan = _plan(arguments, world)
        assert plan.spec.output_dir
        output = Path(plan.spec.output_dir)
        run = plan.spec.ray_run_name or output.name
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        with FolderLock(output), opened(plan, output, run, on_event, resume=again) as folder:
            job, files = job_of(plan, folder.evaluations, gpu=torch.cuda.is_available()), folder.files
            _share((job, files), world)
            shared = True
            work(job, files, folder.hear, 0, world, _device())
            return folder.finish()
    finally:
        if not shared:
            _share(None, world)


def _plan(arguments: list[str], world: int) -> Plan:
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("no training file", hint="torchrun -m tunery.training FILE.yaml [KEY=VALUE ...]")
    project = load_project(Path(arguments[0]), arguments[1:], "train")
    spec = placed_train(project)
    if not spec.output_dir:
        raise ConfigError("no output_dir", hint="say where the adapter goes: output_dir=FOLDER")
    return prepare(spec.model_copy(update={"ray_num_workers": world}), Path(project.home))


def _follow(rank: int, world: int) -> None:
    if shared := _share(None, world):
        job, files = shared
        work(job, files, lambda event: None, rank, world, _device())


def _share(value: Any, world: int) -> Any:
    """Rank 0's value, on all ranks."""
    box = [value]
    if world > 1:
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def _device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _say(event: Event) -> None:
    if "loss" in event:
        print(f"step {event['current_steps']}/{event['total_steps']}  loss {event['loss']:.4f}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
