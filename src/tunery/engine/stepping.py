"""vLLM's synchronous engine, stepped in a thread, for whoever asks many things at once and waits for whole answers.

`AsyncLLM` hands every token of every request from the thread or process of its core to an event loop. A batch wants
none of them before the last: here the thread that computes also puts answers together, and wakes who waits for one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any


class SteppedEngine:
    """Raises what the engine's construction raises. An engine that dies ends the process: it is good for nothing."""

    def __init__(self, base: Path, engine_kwargs: dict[str, Any]) -> None:
        self._asked: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._ids = itertools.count()
        started: Future[None] = Future()
        threading.Thread(target=self._run, args=(base, engine_kwargs, started), name="engine", daemon=True).start()
        started.result()

    async def generate(self, prompt: Any, params: Any, lora: Any = None) -> Any:
        """The finished RequestOutput. Raises what vLLM has against the request."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._asked.put((str(next(self._ids)), prompt, params, lora, answer, loop))
        return await answer

    def _run(self, base: Path, engine_kwargs: dict[str, Any], started: Future[None]) -> None:
        # Made in the thread that steps it, since threads of PyTorch and their places on cores belong to one thread.
        try:
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            engine = LLMEngine.from_engine_args(EngineArgs(model=str(base), **engine_kwargs))
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            self._step(engine)
        except BaseException:
            logging.exception("The engine has died.")
            logging.shutdown()
            os._exit(1)

    def _step(self, engine: Any) -> None:
        waiting: dict[str, tuple[Any, Any]] = {}
        while True:
            for request_id, prompt, params, lora, answer, loop in self._new(block=not waiting):
                try:
                    engine.add_request(request_id, prompt, params, lora_request=lora)
                    waiting[request_id] = answer, loop
                except Exception as error:
                    loop.call_soon_threadsafe(answer.set_exception, error)
            for output in engine.step() if waiting else ():
                if output.finished:
                    answer, loop = waiting.pop(output.request_id)
                    loop.call_soon_threadsafe(answer.set_result, output)

    def _new(self, *, block: bool) -> list[tuple[Any, ...]]:
        """What was asked since; waits for something when there is nothing else to do."""
        found = [self._asked.get()] if block else []
        while not self._asked.empty():
            found.append(self._asked.get())
        return found
