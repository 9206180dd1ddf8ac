"""The gateway under Ray Serve: it listens on the service's own port and follows the directory and the registry."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunery.config import ServeSpec
from tunery.engine.cluster import redirect
from tunery.errors import TuneryError
from tunery.serving.catalog import LOOK, Catalog, Engine
from tunery.serving.directory import directory
from tunery.serving.gateway import Gateway
from tunery.serving.listening import Listener
from tunery.serving.refusal import Refusal
from tunery.serving.upstream import Upstream

log = logging.getLogger("ray.serve")


class Host:
    """`service` names the directory; `limits` are, by engine, the requests a replica gets at once and those that wait.

    What is written besides logs lies in `home`: keys.json and aliases.json, which are read again when they change.
    """

    async def __init__(
        self, service: str, home: Path, spec: ServeSpec, engines: Sequence[Engine],
        limits: dict[str, tuple[int, int]], log_dir: Path,
    ) -> None:  # fmt: skip
        import aiohttp

        from tunery.serving.aliases import Aliases
        from tunery.serving.api import build
        from tunery.serving.applications import Applications
        from tunery.serving.batches import Batches
        from tunery.serving.files import Files
        from tunery.serving.keys import KeyStore
        from tunery.serving.limits import Limits
        from tunery.serving.telemetry import Telemetry

        with suppress(OSError):
            redirect(log_dir / "gateway.log")
        self._spec = spec
        self._directory = directory(service)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60))
        self._service, self._secret = service, await self._directory.secret.remote()
        upstreams = {
            name: Upstream(name, session, self._secret, at_once, queue, spec.request_timeout_s)
            for name, (at_once, queue) in limits.items()
        }
        self._catalog = Catalog(spec.registry or str(home), engines, log_dir / "registry")
        self._gateway = Gateway(
            spec, self._catalog, upstreams,
            keys=KeyStore(home / "keys.json"), aliases=Aliases(home / "aliases.json"), limits=Limits(),
            telemetry=Telemetry(spec.telemetry, log_dir),
        )  # fmt: skip
        files = Files(home / "files")
        batches = Batches(home / "batches", files, self._gateway)
        self._tasks = [asyncio.create_task(work) for work in (self._follow(), self._look(), batches.run())]
        proxy = f"http://127.0.0.1:{spec.proxy}"
        applications = Applications(spec.applications, session, proxy, spec.request_timeout_s)
        await self._listen(build(self._gateway, files, batches, applications))

    async def _listen(self, app: Any) -> None:
        family = socket.AF_INET6 if ":" in self._spec.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # In an update the next gateway listens beside this one, until this one has answered what it took.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((self._spec.host, self._spec.port))
        self._listener = Listener(app, sock)
        await self._listener.start()

    async def _follow(self) -> None:
        """Keep the upstreams in line with the directory."""
        seen = 0
        while True:
            try:
                seen, places = await self._directory.changes.remote(seen)
            except Exception as error:
                log.warning("The directory does not answer: %s", error)
                await asyncio.sleep(1)
                with suppress(Exception):
                    self._directory = directory(self._service, self._secret)
                continue
            for name, upstream in self._gateway.upstreams.items():
                upstream.update(places.get(name, {}))

    async def _look(self) -> None:
        """Keep the catalog in line with the registry."""
        while True:
            await asyncio.sleep(LOOK)
            await asyncio.to_thread(self._catalog.refresh)

    async def ready(self) -> bool:
        """Whether every engine has a replica."""
        return all(upstream.ready for upstream in self._gateway.upstreams.values())

    async def models(self) -> list[str]:
        """All names that answer, aliases included; served ids left out."""
        return [
            n
            for n, c in self._gateway.catalog.cards(self._gateway.shown_aliases).items()
            if "@" not in n or c["root"] != n
        ]

    async def warm(self, names: Sequence[str]) -> dict[str, str]:
        """Ask each model for one token, so that it is loaded and known to answer. Faults, by name."""
        faults = {}
        for name in names:
            try:
                served = await self._catalog.find(name)
                if served is None:
                    raise self._gateway.unknown(name)
                if served.fault:
                    raise Refusal(404, served.fault)
                await self._gateway.whole(served, "/v1/completions", {"prompt": ".", "max_tokens": 1})
            except (Refusal, TuneryError) as error:
                faults[name] = error.message
        return faults

    async def extract(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What POST /v1/extract answers to `body`, OpenAI's error object included, for an application beside:

        `await serve.get_app_handle("gateway").extract.remote({"model": "bikeshop", "text": "..."})`
        """
        from tunery.serving.extract import extract

        call = self._gateway.inner("/v1/extract")
        try:
            return await extract(self._gateway, call, dict(body))
        except Refusal as refusal:
            call.end(refusal.status, code=refusal.code)
            return refusal.body

    async def check_health(self) -> None:
        """Serve replaces a gateway that no longer listens."""
        if not self._listener.listening and not self._gateway.draining:
            raise RuntimeError("the gateway has stopped listening")

    async def drain(self) -> None:
        """Take no more requests; returns when those that were taken are answered, or `drain_timeout_s` are over."""
        if self._gateway.draining:
            return
        self._gateway.draining = True
        await self._listener.stop(self._spec.drain_timeout_s)
        for task in self._tasks:
            task.cancel()
        self._gateway.telemetry.close()

    async def __del__(self) -> None:  # Serve awaits it, within graceful_shutdown_timeout_s
        if hasattr(self, "_listener"):
            await self.drain()
