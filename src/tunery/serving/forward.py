"""An engine's answer on its way to the client."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from tunery.serving.refusal import Refusal, translated
from tunery.serving.streams import Outgoing, Usage, disconnected, joined, said

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tunery.serving.catalog import Served
    from tunery.serving.gateway import Call, Gateway
    from tunery.serving.upstream import Upstream

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
        work = asyncio.create_task(self._answer(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work
                self.call.end(499, code="client_left")
            else:
                work.result()
        finally:
            gone.cancel()
            work.cancel()

    async def _answer(self, send: Send) -> None:
        begun = Outgoing(send)
        try:
            await self.gateway.check(self.served)
            if self.body.get("stream") is True:
                usage = await self._stream(begun)
            else:
                usage = await self._whole(begun)
            self.call.end(200, usage)
        except Refusal as refusal:
            self.call.end(refusal.status, code=refusal.code)
            await self._refuse(begun, refusal)
        except Exception:
            log.exception("A request has failed.")
            refusal = Refusal(500, "The server failed on this request; its log says why.", code="internal_error")
            self.call.end(500, code="internal_error")
            await self._refuse(begun, refusal)

    async def _refuse(self, send: Outgoing, refusal: Refusal) -> None:
        if send.begun:
            await send.body(refusal.event)
            await send.end()
        else:
            await send.whole(refusal.status, json.dumps(refusal.body).encode(), refusal.headers | self.call.headers)

    async def _whole(self, send: Outgoing) -> Mapping[str, int] | None:
        sent, headers = self.gateway.prepared(self.served, self.path, self.body)
        headers |= self.call.seen.trace_headers()
        async with self._upstream.ask(self.path, sent, headers, stream=False) as answer:
            if answer.status >= 400:
                raise translated(answer.status, answer.body)
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
        sent, headers = self.gateway.prepared(self.served, self.path, body)
        headers |= self.call.seen.trace_headers()
        usage, kept = Usage(hide=counted and not wanted), []
        async with self._upstream.ask(self.path, sent, headers, stream=True) as answer:
            if answer.rest is None:
                raise translated(answer.status, answer.body)
            self.call.seen.chunk()
            await send.start(200, {"content-type": answer.content_type, **self.call.headers})
            if shown := usage.read(answer.first):
                await send.body(shown)
            kept.append(shown)
            async for chunk in answer.rest:
                self.call.seen.chunk()
                if shown := usage.read(chunk):
                    await send.body(shown)
                if self.call.seen.keeps:
                    kept.append(shown)
            await send.end()
        if self.call.seen.keeps:
            self.call.seen.keep(self.body, joined(b"".join(kept)))
        return usage.found

    @property
    def _upstream(self) -> Upstream:
        return self.gateway.upstreams[self.served.engine]
