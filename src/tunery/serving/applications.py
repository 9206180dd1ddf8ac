"""Ray Serve applications of the user's in the service: Serve's own proxy answers them, on a port of this machine alone,
and the gateway passes on what comes below their prefixes, by the same keys, limits and logs as the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from tunery.config import ServedApplication
from tunery.serving.refusal import Refusal, busy
from tunery.serving.streams import Outgoing, while_there

if TYPE_CHECKING:
    import aiohttp
    from starlette.types import Receive, Scope, Send

    from tunery.serving.gateway import Call, Gateway

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
PASSED = ("content-type", "accept", "accept-language", "user-agent", "traceparent", "tracestate")


class Applications:
    """`proxy` is where Serve's proxy answers, `timeout` the seconds that an answer may take."""

    def __init__(
        self, known: Sequence[ServedApplication], session: aiohttp.ClientSession, proxy: str, timeout: float
    ) -> None:
        self._known, self._session, self._proxy, self._timeout = known, session, proxy, timeout

    def add_routes(self, app: FastAPI, gateway: Gateway) -> None:
        """Everything at and below each application's prefix."""
        for known in self._known:
            self._add(app, gateway, known.route_prefix)

    def _add(self, app: FastAPI, gateway: Gateway, prefix: str) -> None:
        async def passed(request: Request) -> Response:
            call = gateway.admit(request, "applications")
            call.seen.named("", prefix)
            try:
                body = await gateway.raw(request)
            except Refusal as refusal:
                call.end(refusal.status, code=refusal.code)
                raise
            return _Passed(self, call, request, body)

        for path in (prefix, prefix + "/{rest:path}"):
            app.add_api_route(path, passed, methods=list(METHODS), include_in_schema=False)

    async def pass_on(self, call: Call, request: Request, body: bytes, send: Outgoing) -> int:
        """The application's status, once its answer has gone to the client. Raises Refusal."""
        import aiohttp

        headers = {k: v for k in PASSED if (v := request.headers.get(k))} | call.seen.trace_headers()
        headers["x-request-id"] = call.id
        query = f"?{request.url.query}" if request.url.query else ""
        url = f"{self._proxy}{request.scope['raw_path'].decode()}{query}"
        limit = aiohttp.ClientTimeout(total=self._timeout)
        try:
            async with self._session.request(
                request.method, url, data=body, headers=headers, allow_redirects=False, timeout=limit
            ) as answer:
                shown = {k: v for k in ("content-type", "location") if (v := answer.headers.get(k))}
                await send.start(answer.status, shown | call.headers)
                async for chunk in answer.content.iter_any():
                    call.seen.chunk()
                    await send.body(chunk)
                await send.end()
                return answer.status
        except TimeoutError:
            message = f"The application has not answered within {self._timeout:g} s."
            raise Refusal(504, message, code="timeout") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise busy("The application does not answer at the moment.", retry_after=5) from error


class _Passed(Response):
    """An application's answer on its way; given up there too when the client leaves."""

    background = None

    def __init__(self, applications: Applications, call: Call, request: Request, body: bytes) -> None:
        self._applications, self._call, self._request, self._body = applications, call, request, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = Outgoing(send)
        try:
            work = self._applications.pass_on(self._call, self._request, self._body, out)
            self._call.end(await while_there(receive, work))
        except Refusal as refusal:
            self._call.end(refusal.status, code=refusal.code)
            if out.begun:
                raise  # which closes the connection: the client sees that this is not the whole
            if refusal.status != 499:
                await out.whole(refusal.status, json.dumps(refusal.body).encode(), refusal.headers | self._call.headers)


def deployed(known: Sequence[ServedApplication], folder: str) -> list[dict[str, Any]]:
    """Entries of a file for Ray's `serve deploy`; `folder` is where modules are looked for, on each machine."""
    entries = []
    for application in known:
        env = application.runtime_env
        paths = {"PYTHONPATH": folder} | (env.get("env_vars") or {})
        entries.append(application.model_dump() | {"runtime_env": {**env, "env_vars": paths}})
    return entries
