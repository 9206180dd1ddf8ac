"""An ASGI application on a socket, inside a process that has other things to do."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp

LOCAL = ("127.0.0.1", "localhost", "::1")  # addresses at which this machine alone can be reached


class Listener:
    """`app` behind `sock`, from `start` until `stop`."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        import uvicorn

        class Server(uvicorn.Server):
            """Signals are Ray's business."""

            def capture_signals(self) -> Any:
                return nullcontext()

        self._sock = sock
        # Without log_config=None it would configure logging anew, which closes the handlers of Serve's logger: a
        # controller that finds this process again could not ask it who it is.
        self._server = Server(
            uvicorn.Config(
                app, log_config=None, log_level="warning", access_log=False, ws="none", server_header=False,
                date_header=False, timeout_keep_alive=75, backlog=2048,
            )
        )  # fmt: skip

    async def start(self) -> None:
        """Returns when connections are taken. Raises what the application's start does."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._sock]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise RuntimeError("the server has ended at once")
            await asyncio.sleep(0.01)

    @property
    def listening(self) -> bool:
        return not self._serving.done()

    async def stop(self, timeout: float) -> None:
        """Take no more connections; returns when what was asked is answered, or after `timeout` seconds."""
        self._server.config.timeout_graceful_shutdown = max(1, int(timeout))
        self._server.should_exit = True
        await self._serving
