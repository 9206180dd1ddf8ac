"""What is changed in vLLM itself, where an engine runs on a CPU.

`AsyncLLM`, on which the service stands (batches: `stepping`), spawns a process for its engine core, and on a CPU
that one a second for the model. Each imports vLLM anew, which for a small model costs several times what loading it
does. Here the core is forked off instead, model and all: nothing is imported twice, and the API's Python does not
wait for the model's, as it would in threads of one process.

vLLM loads `register` through its plugin entry point `vllm.general_plugins`; it does nothing unless the environment
says `TUNERY_VLLM_PLUGIN=1`, as it does for engines on a CPU unless the user's says otherwise. An engine over several
devices or data-parallel ranks keeps vLLM's processes, as does any where there is no Linux.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

ENV = "TUNERY_VLLM_PLUGIN"
_PR_SET_PDEATHSIG = 1  # prctl(2)


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

    make = EngineCoreClient.make_async_mp_client
    if getattr(make, "tunery", False):
        return

    def make_client(vllm_config: Any, executor_class: Any, log_stats: bool, *args: Any, **kwargs: Any) -> Any:
        parallel = vllm_config.parallel_config
        external = args or kwargs.get("client_addresses") or kwargs.get("client_count", 1) > 1
        many = parallel.world_size > 1 or parallel.data_parallel_size > 1
        if external or many or sys.platform != "linux":
            return make(vllm_config, executor_class, log_stats, *args, **kwargs)

        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        parallel.distributed_executor_backend = "uni"
        with _forking():
            return make(vllm_config, UniProcExecutor, log_stats)

    make_client.tunery = True  # type: ignore[attr-defined]
    EngineCoreClient.make_async_mp_client = staticmethod(make_client)  # type: ignore[method-assign]


@contextmanager
def _forking() -> Iterator[None]:
    """vLLM starts its engine core by a fork.

    Nothing may have been computed in this process before: a child lacks the threads that OpenMP would wait for.
    """
    from vllm.v1.engine.core import EngineCoreProc

    utils: Any = importlib.import_module("vllm.v1.engine.utils")

    context, run, parent = utils.get_mp_context, EngineCoreProc.run_engine_core, os.getpid()

    def run_alone(*args: Any, **kwargs: Any) -> None:
        _leave(parent)
        run(*args, **kwargs)

    utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    EngineCoreProc.run_engine_core = staticmethod(run_alone)  # type: ignore[method-assign]
    try:
        yield
    finally:
        utils.get_mp_context = context
        EngineCoreProc.run_engine_core = staticmethod(run)  # type: ignore[method-assign]


def _leave(parent: int) -> None:
    """In a forked child: end with the parent, and hold none of its connections open, by which Ray knows that it lives.

    Their numbers stay taken, since objects of the parent may still close them.
    """
    gc.enable()  # the replica has it off while it starts
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the listing's own
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(nothing, number)
    os.close(nothing)
    if raylet := sys.modules.get("ray._raylet"):  # vLLM names it too, in vain where Ray has named the parent
        raylet.setproctitle("VLLM::EngineCore")
