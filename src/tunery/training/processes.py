"""Ray Train's workers as one process group of PyTorch's.

Ray's own TorchTrainer does the same, and imports PyTorch in the two processes beside the workers that only watch them:
seconds of every start, and its memory twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray.train import collective, get_context
from ray.train.backend import Backend, BackendConfig

from tunery.engine.cluster import free_port


class _Visible(Backend):
    share_cuda_visible_devices = True  # NCCL reaches the GPUs of other workers on the machine only where they are seen


class Processes(BackendConfig):
    """For a trainer whose workers join the group by themselves."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Visible


@contextmanager
def joined(gpu: bool) -> Iterator[None]:
    """This worker in the group of all, and on its own GPU, with the environment that torchrun would give it."""
    import torch
    import torch.distributed as dist

    context = get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    local = {"LOCAL_RANK": context.get_local_rank(), "LOCAL_WORLD_SIZE": context.get_local_world_size()}
    os.environ.update({k: str(v) for k, v in {"RANK": rank, "WORLD_SIZE": world, **local}.items()})
    if gpu:
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    if world == 1:
        yield
        return
    place = collective.broadcast_from_rank_zero(_place() if rank == 0 else None)
    dist.init_process_group("nccl" if gpu else "gloo", init_method=f"tcp://{place}", rank=rank, world_size=world)
    yield  # after an error Ray ends the process, and others may no longer be there to say goodbye to
    dist.destroy_process_group()


def _place() -> str:
    """Where on this machine the workers find each other."""
    from ray.util import get_node_ip_address

    host = get_node_ip_address()
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{free_port(host, 0)}"
