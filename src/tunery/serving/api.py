"""The gateway's routes, and what its OpenAPI document says of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tunery.serving.applications import Applications
from tunery.serving.batches import Batches
from tunery.serving.extract import MOST_TEXTS, extract
from tunery.serving.files import Files
from tunery.serving.forward import Forward
from tunery.serving.gateway import PROXIED, Call, Gateway, request_id
from tunery.serving.refusal import Refusal
from tunery.serving.streams import SECURITY, while_there
from tunery.serving.uploads import add_routes

log = logging.getLogger("ray.serve")

_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 1}
_TURN = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"type": "string", "enum": ["system", "user", "assistant"]}, "content": _TEXT},
}
_SAMPLING = {
    "max_tokens": _COUNT,
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 8},
    "seed": {"type": "integer"},
    "stream": {"type": "boolean"},
    "user": _TEXT,
}


def _body(required: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    required = {"model": _TEXT, **required}
    return {"type": "object", "required": list(required), "properties": {**required, **more}}


BODIES: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": _body({"messages": {"type": "array", "minItems": 1, "items": _TURN}}, **_SAMPLING),
    "/v1/completions": _body({"prompt": _TEXT}, **_SAMPLING),
    "/v1/responses": _body({"input": _TEXT}, max_output_tokens=_COUNT, stream={"type": "boolean"}),
    "/v1/embeddings": _body({"input": _TEXT}),
}
EXTRACT: dict[str, Any] = {
    "type": "object",
    "required": ["model"],
    "properties": {
        "model": _TEXT,
        "text": {"type": "string", "minLength": 1},
        "texts": {"type": "array", "minItems": 1, "maxItems": MOST_TEXTS, "items": {"type": "string", "minLength": 1}},
        "instruction": {"type": "string", "description": "Instead of the one that the version was trained with."},
        "max_tokens": _COUNT,
        "grammar": {"type": "boolean", "description": "Whether the task's grammar holds. Default: true."},
        "user": _TEXT,
    },
    "oneOf": [{"required": ["text"]}, {"required": ["texts"]}],
    "additionalProperties": False,
}
_ERROR = {
    "type": "object", "required": ["error"],
    "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"}, "type": {"type": "string"},
            "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
        },
    }},
}  # fmt: skip
_FAULTS = {400: "Not understood", 401: "No valid key", 403: "Not allowed", 404: "Not found", 405: "Wrong method",
           413: "Too large", 429: "Too many", 503: "Ask again later"}  # fmt: skip


def described(body: Mapping[str, Any] | None = None, models: Sequence[str] = ()) -> dict[str, Any]:
    """What the OpenAPI document says of a route: its body's schema, and OpenAI's error object for every fault.

    `models` are some of the names that answer when the service starts.
    """
    responses: dict[str, Any] = {
        str(status): {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _FAULTS.items()
    }
    found: dict[str, Any] = {"responses": responses}
    if body:
        if models:
            model = {**body["properties"]["model"], "examples": list(models)[:3]}
            body = {**body, "properties": {**body["properties"], "model": model}}
        if "stream" in body["properties"]:
            either = {"application/json": {}, "text/event-stream": {}}
            responses["200"] = {"description": "The answer, whole or as it comes", "content": either}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def build(gateway: Gateway, files: Files, batches: Batches, applications: Applications) -> FastAPI:
    """The application."""
    app = FastAPI(title="Tunery", docs_url=None, redoc_url=None, redirect_slashes=False)
    cards = gateway.catalog.cards(gateway.shown_aliases)
    versions = [name for name, card in cards.items() if card["version"]]

    def refused(request: Request, refusal: Refusal, call: Call | None = None) -> Response:
        headers = {**SECURITY, "x-request-id": call.id if call else request_id(request), **refusal.headers}
        return JSONResponse(refusal.body, refusal.status, headers)

    @app.exception_handler(Refusal)
    async def _(request: Request, refusal: Refusal) -> Response:
        return refused(request, refusal)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        known = {404: ("unknown_url", f"There is no {request.url.path} here; /openapi.json says what there is."),
                 405: ("method_not_allowed", f"{request.method} is not for {request.url.path}.")}  # fmt: skip
        code, message = known.get(error.status_code, (None, str(error.detail)))
        return refused(request, Refusal(error.status_code, message, code=code, headers=error.headers))

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> Response:
        log.error("A request has failed.", exc_info=error)
        message = "The server failed on this request; its log says why."
        return refused(request, Refusal(500, message, code="internal_error"))

    def proxied(path: str) -> None:
        @app.post(path, openapi_extra=described(BODIES[path], list(cards)), name=path.rpartition("/")[2])
        async def _(request: Request) -> Response:
            call = gateway.admit(request, path)
            try:
                body = await gateway.body(request)
                sticky = body.get("user") if isinstance(body.get("user"), str) else None
                served, shadow = await gateway.resolve(call, body.get("model"), sticky)
            except Refusal as refusal:
                call.end(refusal.status, code=refusal.code)
                return refused(request, refusal, call)
            return Forward(gateway, call, path, body, served, shadow)

    for path in PROXIED:
        proxied(path)

    @app.post("/v1/extract", openapi_extra=described(EXTRACT, versions))
    async def extracted(request: Request) -> Response:
        call = gateway.admit(request, "/v1/extract")
        try:
            body = await gateway.body(request)
            found = await while_there(request.receive, extract(gateway, call, body))
        except Refusal as refusal:
            call.end(refusal.status, code=refusal.code)
            return refused(request, refusal, call)
        except Exception:
            call.end(500, code="internal_error")
            raise
        return JSONResponse(found, headers={**SECURITY, **call.headers})

    @app.get("/v1/models", openapi_extra=described())
    async def models(request: Request) -> Response:
        gateway.allow(gateway.identify(request), "/v1/models")
        cards = gateway.catalog.cards(gateway.shown_aliases)
        return JSONResponse({"object": "list", "data": list(cards.values())}, headers=SECURITY)

    @app.get("/v1/models/{name:path}", openapi_extra=described())
    async def model(request: Request, name: str) -> Response:
        gateway.allow(gateway.identify(request), "/v1/models")
        cards = gateway.catalog.cards(gateway.shown_aliases)
        if name not in cards:
            raise gateway.unknown(name)
        return JSONResponse(cards[name], headers=SECURITY)

    @app.get("/healthz")
    @app.get("/health", include_in_schema=False)
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"}, headers=SECURITY)

    @app.get("/readyz", openapi_extra=described())
    async def readyz() -> Response:
        missing = [name for name, upstream in gateway.upstreams.items() if not upstream.ready]
        if missing or gateway.draining:
            why = "the service is stopping" if gateway.draining else f"no replica of {', '.join(missing)}"
            raise Refusal(503, f"Not ready: {why}.", code="unavailable", headers={"Retry-After": "5"})
        replicas = {name: len(upstream.replicas) for name, upstream in gateway.upstreams.items()}
        return JSONResponse({"status": "ready", "replicas": replicas}, headers=SECURITY)

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        gateway.allow(gateway.identify(request), "metrics")
        texts: dict[str, str] = {}
        for upstream in gateway.upstreams.values():
            texts |= await upstream.scrape()
            gateway.telemetry.engine(upstream.name, len(upstream.replicas), upstream.queued)
        return PlainTextResponse(gateway.telemetry.render(texts), headers=SECURITY)

    add_routes(app, gateway, files, batches, described)
    applications.add_routes(app, gateway)
    if gateway.spec.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=gateway.spec.cors, allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"], max_age=600,
        )  # fmt: skip
    return app
