"""A replica of an engine under Ray Serve: vLLM's application on a port of its own, for the gateway alone."""

from __future__ import annotations

import asyncio
import gc
import hmac
import logging
import math
import secrets
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import storage
from tunery.engine.cluster import redirect
from tunery.engine.server import EngineServer
from tunery.errors import StorageError, TuneryError
from tunery.serving.directory import BEAT, directory
from tunery.serving.listening import Listener
from tunery.serving.upstream import ADAPTER, ADAPTER_PATH, AGAIN, SECRET

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("ray.serve")


class Replica:
    """`service` and `engine` say whose replica it is. `options`: "host", where it listens for the gateway (None: at its
    machine's address), "log", a file for what vLLM writes, and "drain", seconds to end in.
    """

    async def __init__(self, service: str, engine: str, config: dict[str, Any], options: Mapping[str, Any]) -> None:
        import ray

        with suppress(OSError):
            redirect(Path(options["log"]))
        self._directory = directory(service)
        # Imports allocate millions of objects that stay: collecting in between is a sixth of the time they take.
        gc.disable()
        try:
            self._engine = EngineServer(config)
            app = await self._engine.start()
        finally:
            gc.freeze()
            gc.enable()
        self._drain = options["drain"]
        self._name = f"{engine}-{secrets.token_hex(4)}"
        self._service, self._secret = service, await self._directory.secret.remote()
        self._guard = Guard(app, self._engine, self._secret)
        host = options["host"] or ray.util.get_node_ip_address()
        sock = socket.create_server((host, 0), backlog=2048)
        self._listener = Listener(self._guard, sock)
        await self._listener.start()
        self._place = (self._name, engine, f"http://{host}:{sock.getsockname()[1]}")
        await self._directory.announce.remote(*self._place)
        self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            try:
                await self._directory.announce.remote(*self._place)
            except Exception as error:
                log.warning("The directory does not answer: %s", error)
                with suppress(Exception):
                    self._directory = directory(self._service, self._secret)

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine has died."""
        await self._engine.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve cannot see, since requests do not come through it: those that are being answered."""
        return {"ongoing": float(self._guard.ongoing)}

    async def __del__(self) -> None:  # Serve awaits it, within graceful_shutdown_timeout_s
        """Take no more requests, and end when those that were taken are answered."""
        if hasattr(self, "_beating"):
            self._beating.cancel()
            with suppress(Exception):
                await self._directory.withdraw.remote(self._name)
            await asyncio.sleep(0.2)  # what is under way to this port still arrives
            await self._listener.stop(self._drain)


class Guard:
    """ASGI application before vLLM's: answers the gateway alone, and loads the adapter that a request needs."""

    def __init__(self, app: ASGIApp, engine: EngineServer, secret: str) -> None:
        self._app = app
        self._engine = engine
        self._secret = secret.encode()
        self.ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(SECRET, b""), self._secret):
            return await _plain(send, 403, "This port is the gateway's.")
        self.ongoing += 1
        try:
            await self._answer(scope, headers, receive, send)
        finally:
            self.ongoing -= 1

    async def _answer(self, scope: Scope, headers: MutableMapping[bytes, bytes], receive: Receive, send: Send) -> None:
        adapter = headers.get(ADAPTER, b"").decode()
        if adapter and not self._engine.has(adapter):
            try:
                await self._engine.load(adapter, await _local(adapter, headers[ADAPTER_PATH].decode()))
            except TuneryError as error:
                return await _plain(send, 424, error.message)
        if not await self._alive():
            return await _dead(send)
        await self._app(scope, receive, self._watched(send))

    async def _alive(self) -> bool:
        try:
            await self._engine.check_health()
        except Exception:
            return False
        return True

    def _watched(self, send: Send) -> Send:
        """`send` for an answer that may turn out to be the engine's death: then none of it goes out."""
        start: Message | None = None
        lost = False

        async def sent(message: Message) -> None:
            nonlocal start, lost
            if lost:
                return
            if message["type"] == "http.response.start":
                start = message  # until its body shows what it is
                return
            if start is not None:
                failed = start["status"] >= 500 or message.get("body", b"").startswith(b'data: {"error"')
                if failed and not await self._alive():
                    lost = True
                    return await _dead(send)
                await send(start)
                start = None
            await send(message)

        return sent


async def _local(name: str, place: str) -> Path:
    """The folder of an adapter, fetched first from a place that is not this machine's. Raises StorageError."""
    if not storage.is_remote(place):
        return Path(place)
    folder = Path.home() / ".cache" / "tunery" / "adapters" / name
    if not folder.is_dir():
        try:
            await asyncio.to_thread(storage.copy_tree, place, folder)
        except StorageError:
            if not folder.is_dir():  # else a replica beside this one was quicker
                raise
    return folder


async def _dead(send: Send) -> None:
    await _plain(send, 503, "The engine has died.", (AGAIN, b"1"))


async def _plain(send: Send, status: int, text: str, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def scaled(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy over what replicas report: as many as keep `target_ongoing_requests` each.

    Ray's own counts the requests that come through its handles, and these do not. Delays are Ray's to apply.
    """
    ongoing = sum((context.aggregated_metrics or {}).get("ongoing", {}).values())
    wanted = math.ceil(ongoing / context.config.get_target_ongoing_requests())
    return min(max(wanted, context.capacity_adjusted_min_replicas), context.capacity_adjusted_max_replicas), {}
