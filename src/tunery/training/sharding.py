"""FSDP2: each worker keeps a share of every weight and gathers a layer's when its turn comes (`fsdp: true`).

Gathering takes all workers, so they have to make their passes in step: `in_step`. Checkpoints hold whole weights, and
are the same with any number of workers, sharded or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from tunery.config import TrainSpec
from tunery.training.packing import Pack
from tunery.training.tuning import decoder_layers, transformers_model


def wants_shards(spec: TrainSpec) -> bool:
    """Whether the weights are to be divided: `spec` says so, and there is somebody to share them with."""
    return spec.fsdp and dist.is_initialized() and dist.get_world_size() > 1


def is_sharded(model: Any) -> bool:
    """Whether `shard` has divided its weights."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def shard(model: Any, device: str) -> None:
    """Divide the weights of `model`, in place, among the workers; theirs move to `device`, a layer at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    inner = transformers_model(model)
    mesh = init_device_mesh(device.split(":")[0], (dist.get_world_size(),))
    for module in [*decoder_layers(inner), inner]:
        # The outermost too: what a pass without gradient leaves gathered is no share, and differs between workers.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in inner.modules():
        if isinstance(module, FSDPModule):  # gradients are summed: the loss is divided already
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def in_step(model: Any, packs: Sequence[Pack], learning: AbstractContextManager[Any] | None = None) -> Iterator[Pack]:
    """`packs`, and then idle passes until this worker has made as many as the others.

    Where each pack's gradient is taken before the next, `learning` is the autocast that its passes run in.
    """
    if not is_sharded(model):
        yield from packs
        return
    device = next(model.parameters()).device
    forwards = max((len(p.members) if p.apart else 1 for p in packs), default=1)
    most = torch.tensor([len(packs), forwards], device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    yield from packs
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    for _ in range(int(most[0]) - len(packs)):
        with learning or torch.no_grad(), torch.compiler.set_stance("force_eager"):
            passes = [model(input_ids=token, use_cache=False).logits.sum() for _ in range(int(most[1]))]
        if learning:
            (0.0 * torch.stack(passes).sum()).backward()


def share_of(model: Any) -> int:
    """Among how many workers its weights are divided."""
    return dist.get_world_size() if is_sharded(model) else 1


def least(value: int, model: Any) -> int:
    """The least of what the workers of a sharded model found: they have to decide alike. Else `value` itself."""
    if not is_sharded(model):
        return value
    found = torch.tensor([value], device=next(model.parameters()).device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found.item())


def whole(value: Tensor) -> Tensor:
    """A weight, gradient or norm with all workers' shares in it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, other: Tensor) -> Tensor:
    """`value`, whole and the same on all workers, laid out as `other` is."""
    value = value.to(other.device)
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


def collected(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sharded `values` whole, in main memory and on rank 0 alone; a weight with two names stays one tensor."""
    once: dict[int, Tensor] = {}
    for value in values.values():
        if id(value) not in once:
            full = whole(value.detach())
            once[id(value)] = _kept(full) if dist.get_rank() == 0 else full.new_empty(0)
    return {name: once[id(value)] for name, value in values.items()}


def _kept(full: Tensor) -> Tensor:
    """A copy in main memory; on a CPU too, where the gathered one lies in a buffer that cannot be saved."""
    return full.to("cpu", copy=True).contiguous()


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors."""
    state = optimizer.state_dict()
    moments = {(at, name): v for at, own in state["state"].items() for name, v in own.items()}
    if not any(isinstance(v, DTensor) for v in moments.values()):
        return state
    found: dict[int, dict[str, Any]] = {}
    for (at, name), value in moments.items():
        found.setdefault(at, {})[name] = _kept(whole(value)) if isinstance(value, DTensor) else value
    return {**state, "state": found}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The opposite of `optimizer_state`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for at, own in state["state"].items():
        for name, value in own.items():
            if value.shape == parameters[at].shape:
                own[name] = like(value, parameters[at])
    optimizer.load_state_dict(state)
