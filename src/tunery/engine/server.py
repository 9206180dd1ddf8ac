"""One engine replica under Ray Serve: `ray.serve.llm`'s server with adapters from local folders.

Importing this module is cheap; only the replica's own process imports `ray.serve.llm`, when it starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tunery.errors import EngineError


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


class EngineReplica:
    """A Serve deployment class around `LLMServer`; `config` is what `tunery.engine.vllm.llm_config` returned.

    Requests name the base by its model id and an adapter by its own name.
    """

    async def __init__(self, config: dict[str, Any]) -> None:
        from ray.serve.llm import LLMConfig
        from ray.serve.llm.deployment import LLMServer

        class Server(LLMServer):
            async def _start_engine(self) -> None:
                # Ray LLM's own goes on to report usage through a new process, and waits seconds for it.
                await self.engine.start()  # type: ignore[union-attr]

        self._server = Server.sync_init(LLMConfig(**config))
        await self._server.start()
        self._models: Any = self._server.engine._oai_models  # type: ignore[union-attr]
        self._loading = asyncio.Lock()

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Bring the loaded adapters in line with `config["adapters"]` (name to folder).

        Serve calls it on every replica, new or running. Raises EngineError for an adapter that does not load,
        which makes Serve stop the rollout.
        """
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest

        wanted: dict[str, str] = config["adapters"]
        async with self._loading:
            loaded = self._models.lora_requests
            for name, path in wanted.items():
                if name in loaded:
                    if loaded[name].lora_path != path:
                        raise EngineError(
                            f"adapter name {name!r} is taken by {loaded[name].lora_path}",
                            hint="give other weights another name: cached prefixes are looked up by name",
                        )
                    continue
                request = LoadLoRAAdapterRequest(lora_name=name, lora_path=path)
                answer = await self._models.load_lora_adapter(request)
                if not isinstance(answer, str):
                    raise EngineError(f"adapter {name!r} does not load: {answer.error.message}", where=path)
            for name in loaded.keys() - wanted.keys():
                await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))

    async def check_health(self) -> None:
        await self._server.check_health()

    async def models(self) -> list[dict[str, Any]]:
        """OpenAI's model objects of the base and the loaded adapters."""
        return [card.model_dump(mode="json") for card in (await self._models.show_available_models()).data]
