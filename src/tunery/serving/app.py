"""What runs in a replica: the engine, vLLM's own OpenAI server over it, and a front that knows the served names.

One process does all three, so a request crosses one process border (Serve's proxy) instead of two, and only one
process pays for importing vLLM. Answers are vLLM's; the front decides which model is meant and what is offered.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tunery.engine.cluster import redirect
from tunery.engine.server import EngineReplica

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASKED = frozenset({"/v1/chat/completions", "/v1/completions"})  # each with a model in its JSON body
SHOWN = frozenset({"/health", "/version", "/metrics"})
LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})

log = logging.getLogger("ray.serve")


class Replica(EngineReplica):
    """An engine replica that answers HTTP itself. `reconfigure` also takes "aliases": name to adapter name.

    What vLLM writes goes to `log_path`, where that folder can be written.
    """

    _aliases: Mapping[str, str] = {}

    async def __init__(self, config: dict[str, Any], log_path: Path) -> None:
        with suppress(OSError):
            redirect(log_path)
        # Imports allocate millions of objects that stay: collecting in between is a sixth of the time they take.
        gc.disable()
        try:
            await super().__init__(config)
        finally:
            gc.freeze()
            gc.enable()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        engine: Any = self._server.engine
        return Front(await engine.build_asgi_app(), self)

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        await super().reconfigure(config)
        self._aliases = dict(config["aliases"])

    def resolve(self, name: str) -> str | None:
        """The served model that `name` stands for: itself, or an alias's adapter; None when nothing is."""
        name = self._aliases.get(name, name)
        return name if self._models.is_base_model(name) or name in self._models.lora_requests else None

    async def cards(self) -> dict[str, dict[str, Any]]:
        """OpenAI's model object of every name that answers; an alias has the model it stands for as its root."""
        cards = {card["id"]: card for card in await self.models()}
        return cards | {alias: {**cards[name], "id": alias, "root": name} for alias, name in self._aliases.items()}


class Refusal(Exception):
    """An answer other than success: an HTTP status and OpenAI's error object."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Front:
    """ASGI application in front of vLLM's: served names, a short list of paths, and errors in OpenAI's form."""

    def __init__(self, app: ASGIApp, replica: Replica) -> None:
        self._app = app
        self._replica = replica
        self._leaving: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks only weakly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and turn what goes wrong before the first byte into an error object."""
        from starlette.responses import JSONResponse

        answer = _Answer(send)
        try:
            await self._answer(scope, receive, answer.send)
            if answer.refused:
                raise _refusal(answer.refused, answer.body)
        except Refusal as refusal:
            await JSONResponse(refusal.body, refusal.status)(scope, receive, send)
        except Exception:
            log.exception("A request has failed.")
            if answer.begun:
                raise  # the client sees the answer break off
            failed = Refusal(500, "The server failed on this request; its log says why.", code="internal_error")
            await JSONResponse(failed.body, failed.status)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import JSONResponse

        request = Request(scope, receive)
        path = request.url.path
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).hostname not in LOCAL:
            # There are no API keys: without this any web page could ask through its visitor's browser.
            raise Refusal(403, f"Requests from pages of {origin} are not answered.", code="origin_not_allowed")
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _expect(request.method, "GET")
            content = await self._described(path.removeprefix("/v1/models").removeprefix("/"))
            await JSONResponse(content)(scope, receive, send)
        elif path in SHOWN:
            _expect(request.method, "GET")
            await self._app(scope, receive, send)
        elif path in ASKED:
            _expect(request.method, "POST")
            try:
                body = await self._named(await request.body())
            except ClientDisconnect:
                return
            await self._ask(scope, body, send)
        else:
            offered = ", ".join(sorted(ASKED | SHOWN | {"/v1/models"}))
            raise Refusal(404, f"There is no {path} here. There are: {offered}.", code="unknown_url")

    async def _ask(self, scope: Scope, body: bytes, send: Send) -> None:
        """Let vLLM answer `body`, until the client leaves.

        Serve then cancels this call. vLLM's handlers wait for a message instead, and a cancelled one would leave
        its request running in the engine; so they get their message, and end by themselves.
        """
        left = asyncio.Event()
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def answer() -> None:
            await self._app(scope, receive, send)

        answering = asyncio.create_task(answer())
        try:
            await asyncio.shield(answering)
        except asyncio.CancelledError:
            left.set()
            self._leaving.add(answering)
            answering.add_done_callback(self._left)
            raise

    def _left(self, answering: asyncio.Task[None]) -> None:
        self._leaving.discard(answering)
        if not answering.cancelled() and answering.exception():
            log.warning("An abandoned request has failed: %s", answering.exception())

    async def _described(self, name: str) -> dict[str, Any]:
        cards = await self._replica.cards()
        if not name:
            return {"object": "list", "data": list(cards.values())}
        if name not in cards:
            raise _unknown(name, cards)
        return cards[name]

    async def _named(self, body: bytes) -> bytes:
        """`body` with an alias in "model" resolved. Raises Refusal when it names no served model."""
        try:
            asked = json.loads(body)
        except ValueError:
            raise Refusal(400, "The body is not valid JSON.", code="invalid_json") from None
        if not isinstance(asked, dict):
            raise Refusal(400, "The body must be a JSON object.", code="invalid_json")
        name = asked.get("model")
        if not isinstance(name, str) or not name:
            raise Refusal(400, 'Name a model in "model"; GET /v1/models lists them.', param="model")
        served = self._replica.resolve(name)
        if served is None:
            raise _unknown(name, await self._replica.cards())
        return body if served == name else json.dumps(asked | {"model": served}).encode()


class _Answer:
    """Passes an answer on as it comes, but holds an error back: `refused` is its status, `body` what it says."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.refused = 0
        self.body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self.refused = message["status"]
        elif self.refused:
            self.body += message.get("body", b"")
        else:
            self.begun = True
            await self._send(message)


def _expect(method: str, expected: str) -> None:
    if method != expected:
        raise Refusal(405, f"Use {expected} here, not {method}.", code="method_not_allowed")


def _unknown(name: str, served: Mapping[str, Any]) -> Refusal:
    message = f"The model `{name}` does not exist. Served here: {', '.join(served)}."
    return Refusal(404, message, code="model_not_found", param="model")


def _refusal(status: int, body: bytes) -> Refusal:
    """vLLM's error answer in OpenAI's form: one line, a type OpenAI has, a code that is a string."""
    try:
        error = json.loads(body)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        return Refusal(status, body.decode(errors="replace").strip() or f"HTTP {status}")
    faults = re.findall(r"^ +(\{.*\})$", message, re.MULTILINE)
    if faults:
        message = "; ".join(map(_fault, faults))
    message = re.sub(r" \(parameter=.*\)$", "", message)
    code = "context_length_exceeded" if "maximum context length" in message else None
    return Refusal(status, message, code=code, param=param and str(param).removeprefix("body."))


def _fault(text: str) -> str:
    """A validation fault, which vLLM's message has as a printed dict, in words."""
    try:
        fault = ast.literal_eval(text)
        place = ".".join(str(part) for part in fault["loc"] if part != "body")
        return f"{place}: {fault['msg']}"
    except (ValueError, SyntaxError, KeyError, TypeError):
        return text
