"""vLLM's engine core as a thread of the calling process.

`AsyncLLM`, on which the service stands (batches: `stepping`), always spawns a process for its engine core, and on
CPU a second one for the model. Each imports vLLM anew, which for a small model costs several times what loading
it does. Where one device serves one engine those processes buy nothing, so here the very same core loop
(`EngineCoreProc`) runs in a thread; requests and outputs pass as Python objects instead of through sockets.

vLLM loads `register` through its plugin entry point `vllm.general_plugins`; it does nothing unless the
environment says `TUNERY_ENGINE_IN_PROCESS=1`, as it does for engines on a CPU unless the user's says otherwise. An
engine over several devices or data-parallel ranks keeps vLLM's processes.
"""

from __future__ import annotations

import os
from typing import Any

ENV = "TUNERY_ENGINE_IN_PROCESS"


def register() -> None:
    """vLLM's plugin hook: called once or more in every process that makes an engine."""
    if os.environ.get(ENV) != "1":
        return
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform
    from vllm.v1.engine.core_client import EngineCoreClient

    if current_platform.is_cpu():
        import torch

        torch.cpu._init_amx()  # Linux has to be asked before; vLLM's attention takes it as granted, and dies of SIGILL
        platform: Any = type(current_platform)
        platform.get_punica_wrapper = classmethod(lambda cls: "tunery.engine.lora.GroupedLora")

    # vLLM inspects a model class in a process of its own, lest CUDA start here; but the engine itself does.
    registry._run_in_subprocess = lambda fn: fn()

    spawn = EngineCoreClient.make_async_mp_client
    if getattr(spawn, "tunery", False):
        return

    def make_client(vllm_config: Any, executor_class: Any, log_stats: bool, *args: Any, **kwargs: Any) -> Any:
        parallel = vllm_config.parallel_config
        external = args or kwargs.get("client_addresses") or kwargs.get("client_count", 1) > 1
        if external or parallel.world_size > 1 or parallel.data_parallel_size > 1:
            return spawn(vllm_config, executor_class, log_stats, *args, **kwargs)

        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        from tunery.engine.thread_core import ThreadCoreClient

        parallel.distributed_executor_backend = "uni"
        return ThreadCoreClient(vllm_config, UniProcExecutor, log_stats)

    make_client.tunery = True  # type: ignore[attr-defined]
    EngineCoreClient.make_async_mp_client = staticmethod(make_client)  # type: ignore[method-assign]
