"""One engine that answers OpenAI's API: vLLM's own application over `ray.serve.llm`'s engine, with adapters on demand.

Importing this module is cheap; only the replica's own process imports `ray.serve.llm`, when it starts.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import ModelError

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def __getattr__(name: str) -> Any:
    # Ray loads the callback by its dotted name, in a process where ray.llm is imported already.
    if name == "LocalModel":
        return _local_model()
    raise AttributeError(name)


def _local_model() -> type:
    from ray.llm._internal.common.callbacks.base import CallbackBase

    class LocalModel(CallbackBase):
        """Says that there is nothing to download: finding out takes a task that imports all of ray.llm."""

        async def on_before_node_init(self) -> None:
            self.ctx.run_init_node = False

    return LocalModel


class EngineServer:
    """A running engine; `config` is what `tunery.engine.vllm.llm_config` returned.

    Requests name the base by its model id and an adapter by its own name, once it is loaded.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        from ray.serve.llm import LLMConfig
        from ray.serve.llm.deployment import LLMServer

        class Server(LLMServer):
            async def _start_engine(self) -> None:
                # Ray LLM's own goes on to report usage through a new process, and waits seconds for it.
                await self.engine.start()  # type: ignore[union-attr]

        self._server = Server.sync_init(LLMConfig(**config))
        self._loading = asyncio.Lock()

    async def start(self) -> ASGIApp:
        """Load the model. vLLM's application, which answers from then on."""
        await self._server.start()
        engine: Any = self._server.engine
        self._models: Any = engine._oai_models
        return await engine.build_asgi_app()

    def has(self, name: str) -> bool:
        """Whether `name` is a model that answers: the base or a loaded adapter."""
        return self._models.is_base_model(name) or name in self._models.lora_requests

    async def load(self, name: str, path: Path) -> None:
        """Let the adapter in the folder `path` answer to `name`; does nothing when it does already.

        The engine keeps as many as its max_cpu_loras and reads others from their folders when they are asked again.
        A name stands for the same weights for good: cached prefixes are looked up by it. Raises ModelError for an
        adapter that does not load.
        """
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        async with self._loading:
            if not self.has(name):
                answer = await self._models.load_lora_adapter(
                    LoadLoRAAdapterRequest(lora_name=name, lora_path=str(path))
                )
                if not isinstance(answer, str):
                    raise ModelError(f'the adapter "{name}" does not load: {answer.error.message}', where=str(path))

    async def check_health(self) -> None:
        """Raises when the engine has died."""
        await self._server.check_health()
