"""Server-sent events as they pass through the gateway, and one ASGI answer at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tunery.serving.refusal import Refusal

if TYPE_CHECKING:
    from starlette.types import Receive, Send

T = TypeVar("T")
SECURITY = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


class Usage:
    """Finds the token counts in an engine's events; with `hide` the event that holds nothing else is left out.

    That event is asked for with every stream, since limits and metrics count tokens whether the client does or not.
    """

    def __init__(self, *, hide: bool) -> None:
        self.found: dict[str, Any] | None = None
        self._hide = hide
        self._rest = b""  # of an event that has not wholly arrived

    def read(self, chunk: bytes) -> bytes:
        """What of `chunk` the client gets now: whole events."""
        data = self._rest + chunk if self._rest else chunk
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            self._rest = data
            return b""
        data, self._rest = data[:end], data[end:]
        if b'"usage":' not in data:
            return data
        events = data.split(b"\n\n")[:-1]
        return b"".join(e + b"\n\n" for e in events if b'"usage":' not in e or not self._only_usage(e))

    def _only_usage(self, event: bytes) -> bool:
        """Whether the client has not asked for this event; what it counts is remembered."""
        text = event[event.find(b"data:") + 5 :]
        try:
            said = json.loads(text)
        except ValueError:
            return False
        usage = said.get("usage") or (said.get("response") or {}).get("usage")
        if usage:
            self.found = usage
        return self._hide and bool(usage) and said.get("choices") == []


class Outgoing:
    """An answer under way: `begun` says whether its status has gone out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        raw = [(k.lower().encode(), v.encode("latin-1", "replace")) for k, v in {**SECURITY, **headers}.items()]
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def body(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        sized = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        await self.start(status, sized)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. When the client leaves before, it is cancelled, and Refusal raised once it has ended."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise Refusal(499, "The client has left.", code="client_left")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def said(answer: Any) -> str | None:
    """The text of an OpenAI answer: of its first choice."""
    try:
        choice = answer["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError):
        return None


def joined(events: bytes) -> str:
    """The text of a stream: of its first choice, or of a response."""
    parts: list[str] = []
    for line in events.split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        try:
            event = json.loads(line[6:])
        except ValueError:
            continue
        if isinstance(delta := event.get("delta"), str) and event.get("type") == "response.output_text.delta":
            parts.append(delta)
        for choice in event.get("choices") or ():
            if choice.get("index") == 0:
                parts.append((choice.get("delta") or {}).get("content") or choice.get("text") or "")
    return "".join(parts)
