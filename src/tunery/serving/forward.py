"""An engine's answer on its way to the client."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from tunery.serving.refusal import Refusal
from tunery.serving.streams import Outgoing, Usage, joined, said, while_there

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tunery.serving.catalog import Served
    from tunery.serving.gateway import Call, Gateway

log = logging.getLogger("ray.serve")


class Forward(Response):
    """The engine's answer, passed on, and broken off in the engine too when the client leaves."""

    background = None

    def __init__(
        self, gateway: Gateway, call: Call, path: str, body: dict[str, Any], served: Served, shadow: str | None
    ) -> None:
        self.gateway, self.call, self.path, self.body, self.served = gateway, call, path, body, served
        self.shadow = shadow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_there(receive, self._answer(Outgoing(send)))
        except Refusal as left:
            self.call.end(left.status, code=left.code)

    async def _answer(self, send: Outgoing) -> None:
        try:
            if self.body.get("stream") is True:
                usage = await self._stream(send)
            else:
                usage = await self._whole(send)
            self.call.end(200, usage)
        except Refusal as refusal:
            self.call.end(refusal.status, code=refusal.code)
            await self._refuse(send, refusal)
        except Exception:
            log.exception("A request has failed.")
            refusal = Refusal(500, "The server failed on this request; its log says why.", code="internal_error")
            self.call.end(500, code="internal_error")
            await self._refuse(send, refusal)

    async def _refuse(self, send: Outgoing, refusal: Refusal) -> None:
        if send.begun:
            await send.body(refusal.event)
            await send.end()
        else:
            await send.whole(refusal.status, json.dumps(refusal.body).encode(), refusal.headers | self.call.headers)

    async def _whole(self, send: Outgoing) -> Mapping[str, int] | None:
        async with self.gateway.asked(self.served, self.path, self.body, self.call) as answer:
            self.call.seen.chunk()
            await send.whole(answer.status, answer.body, {"content-type": answer.content_type} | self.call.headers)
        found = json.loads(answer.body)
        if self.call.seen.keeps:
            self.call.seen.keep(self.body, found)
        if self.shadow:
            self.gateway.behind(self.shadow, self.path, self.body, self.served, said(found))
        return found.get("usage") if isinstance(found, dict) else None

    async def _stream(self, send: Outgoing) -> Mapping[str, int] | None:
        options = self.body.get("stream_options")
        wanted = bool(isinstance(options, dict) and options.get("include_usage"))
        body = self.body
        counted = self.path in ("/v1/chat/completions", "/v1/completions")
        if counted and not wanted:
            body = {**body, "stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True}}
        usage, kept = Usage(hide=counted and not wanted), []
        async with self.gateway.asked(self.served, self.path, body, self.call, stream=True) as answer:
            assert answer.rest is not None
            self.call.seen.chunk()
            await send.start(200, {"content-type": answer.content_type, **self.call.headers})
            chunk = answer.first
            while chunk:
                if shown := usage.read(chunk):
                    await send.body(shown)
                if self.call.seen.keeps:
                    kept.append(shown)
                if chunk := await anext(answer.rest, b""):
                    self.call.seen.chunk()
            await send.end()
        if self.call.seen.keeps:
            self.call.seen.keep(self.body, joined(b"".join(kept)))
        return usage.found
