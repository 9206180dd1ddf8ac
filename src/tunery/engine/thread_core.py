"""The client and the core that meet inside one process; see `tunery.engine.inprocess` for why.

event loop                                   core thread
AsyncLLM -> ThreadCoreClient -> input_queue -> ThreadCore (EngineCoreProc's own busy loop)
AsyncLLM <- outputs_queue <- call_soon_threadsafe <- Outbox
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.engine.core_client import AsyncMPClient, _process_utility_output
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor import Executor

logger = init_logger(__name__)


class Outbox:
    """Stands where the core expects its output queue, and hands each output on at once."""

    def __init__(self, deliver: Callable[[EngineCoreOutputs], None]) -> None:
        self._deliver = deliver

    def put_nowait(self, item: tuple[int, EngineCoreOutputs]) -> None:
        self._deliver(item[1])


class ThreadCore(EngineCoreProc):
    """`EngineCoreProc` without sockets: its queues are the transport."""

    def __init__(
        self,
        deliver: Callable[[EngineCoreOutputs], None],
        vllm_config: VllmConfig,
        executor_class: type[Executor],
        log_stats: bool,
    ) -> None:
        super().__init__(vllm_config, True, "", executor_class, log_stats)
        self.output_queue = Outbox(deliver)  # type: ignore[assignment]

    @contextmanager
    def _perform_handshakes(self, *args: Any, **kwargs: Any) -> Iterator[EngineZmqAddresses]:  # type: ignore[override]
        yield EngineZmqAddresses(inputs=[], outputs=[])

    def process_input_sockets(self, *args: Any) -> None:
        ready: threading.Event = args[-1]
        ready.set()

    def process_output_sockets(self, *args: Any) -> None:
        pass

    def _handle_client_request(self, request_type: EngineCoreRequestType, request: Any) -> None:
        if request_type == EngineCoreRequestType.ADD:
            try:
                request_and_wave = self.preprocess_add_request(request)
            except Exception:
                return self._handle_request_preproc_error(request)
            return super()._handle_client_request(request_type, request_and_wave)
        return super()._handle_client_request(request_type, request)


class ThreadCoreClient(AsyncMPClient):
    """`AsyncMPClient`'s interface over a core that is a thread of this process.

    Raises what the core's construction raises. Once the core is dead every call raises EngineDeadError.
    """

    def __init__(self, vllm_config: VllmConfig, executor_class: type[Executor], log_stats: bool) -> None:
        # AsyncMPClient's own constructor opens sockets and spawns processes: its state is set here instead.
        self.vllm_config = vllm_config
        self.client_count, self.client_index = 1, 0
        self.engine_ranks_managed = [0]
        self.core_engines = [(0).to_bytes(2, "little")]
        self.core_engine = self.core_engines[0]
        self.engines_running = False
        self.utility_results = {}
        self.outputs_queue = asyncio.Queue()
        self.resources: Any = SimpleNamespace(engine_dead=False)
        self._engine_status = {}
        self._call_ids = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None

        # The thread must not keep the client alive: dropping the last engine reference has to stop it.
        client = weakref.ref(self)

        def deliver(outputs: EngineCoreOutputs | None) -> None:
            if (this := client()) is not None:
                this._deliver(outputs)

        started: Future[ThreadCore] = Future()
        args = (started, deliver, vllm_config, executor_class, log_stats)
        self._thread = threading.Thread(target=_run_core, args=args, name="EngineCore", daemon=True)
        self._thread.start()
        self._core = started.result()
        self._finalizer = weakref.finalize(self, _stop_core, self._core, self._thread)

    def shutdown(self, timeout: float | None = None) -> None:
        if self._finalizer.detach() is not None:
            self.resources.engine_dead = True
            _stop_core(self._core, self._thread)

    def _ensure_output_queue_task(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()

    async def get_output_async(self) -> EngineCoreOutputs:
        self._ensure_output_queue_task()
        if self.outputs_queue.empty():
            self.ensure_alive()
        return await super().get_output_async()

    def _send_input(
        self, request_type: EngineCoreRequestType, request: Any, engine: bytes | None = None
    ) -> Awaitable[Any]:
        self.ensure_alive()
        self._ensure_output_queue_task()
        if request_type == EngineCoreRequestType.ABORT:
            # As in vLLM's input thread: this queue is looked at within a step, the other one keeps the order.
            self._core.aborts_queue.put_nowait(request)
        self._core.input_queue.put_nowait((request_type, request))
        return _done()

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        call_id = next(self._call_ids)
        future = asyncio.get_running_loop().create_future()
        self.utility_results[call_id] = future
        await self._send_input(EngineCoreRequestType.UTILITY, (self.client_index, call_id, method, args))
        return await future

    def _deliver(self, outputs: EngineCoreOutputs | None) -> None:
        """Called in the core thread; None says that the core has died."""
        if outputs is None:
            self.resources.engine_dead = True
        if self._loop is None:
            return  # nothing was asked yet, so nobody waits; a dead core shows at the first call
        try:
            if outputs is None:
                self._loop.call_soon_threadsafe(self._fail_waiting)
            else:
                self._loop.call_soon_threadsafe(self._receive, outputs)
        except RuntimeError:
            logger.debug("The event loop is closed; an engine output is dropped.")

    def _receive(self, outputs: EngineCoreOutputs) -> None:
        if outputs.utility_output:
            _process_utility_output(outputs.utility_output, self.utility_results)
        elif outputs.outputs or outputs.scheduler_stats:
            self.outputs_queue.put_nowait(outputs)

    def _fail_waiting(self) -> None:
        self.outputs_queue.put_nowait(EngineDeadError())
        for future in self.utility_results.values():
            if not future.done():
                future.set_exception(EngineDeadError())
        self.utility_results.clear()


async def _done() -> None:
    return None


def _run_core(started: Future[ThreadCore], deliver: Callable[[EngineCoreOutputs | None], None], *args: Any) -> None:
    try:
        core = ThreadCore(deliver, *args)
    except BaseException as error:
        started.set_exception(error)
        return
    started.set_result(core)
    del started
    try:
        core.run_busy_loop()
    except SystemExit:
        pass  # how the busy loop ends when it is asked to
    except BaseException:
        logger.exception("The engine core has died.")
        deliver(None)
    finally:
        core.shutdown()


def _stop_core(core: ThreadCore, thread: threading.Thread) -> None:
    core.shutdown_state = EngineShutdownState.REQUESTED
    core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))
    if thread is not threading.current_thread():
        thread.join(timeout=10)
