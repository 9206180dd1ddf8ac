"""The gateway: what a request meets before a model does. An ASGI application over engines that answer OpenAI's API.

It owns names, keys, limits, retries and what is seen of requests; an answer is the engine's own, passed on as it comes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tunery.config import ServeSpec
from tunery.serving.catalog import Catalog, Served
from tunery.serving.limits import OverLimit
from tunery.serving.listening import LOCAL
from tunery.serving.refusal import Refusal, busy, translated, unknown_model
from tunery.serving.streams import said
from tunery.serving.upstream import ADAPTER, ADAPTER_PATH, Answer, Upstream
from tunery.storage import read_json
from tunery.tasks import task_by_name

if TYPE_CHECKING:
    from starlette.requests import Request

    from tunery.extraction import Model
    from tunery.serving.aliases import Aliases
    from tunery.serving.keys import Key, KeyStore
    from tunery.serving.limits import Grant, Limits
    from tunery.serving.telemetry import Observation, Telemetry

CHAT, TOKENIZE = "/v1/chat/completions", "/tokenize"
PROXIED = (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings")
log = logging.getLogger("ray.serve")


@dataclass
class Call:
    """One request: who asks, what was granted, and what is seen of it."""

    id: str
    route: str
    key: Key | None
    grant: Grant | None
    seen: Observation

    @property
    def headers(self) -> dict[str, str]:
        return {"x-request-id": self.id, **(self.grant.headers() if self.grant else {})}

    def end(self, status: int, usage: Mapping[str, int] | None = None, code: str | None = None) -> None:
        """Account for it; `usage` has OpenAI's fields."""
        usage = usage or {}
        prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0)) or 0
        completion = usage.get("completion_tokens", usage.get("output_tokens", 0)) or 0
        details: Any = usage.get("prompt_tokens_details") or {}
        if self.grant:
            self.grant.settle(prompt + completion)
            self.grant.release()
        cached = details.get("cached_tokens") or 0
        self.seen.end(status, prompt=prompt, completion=completion, cached=cached, code=code)


class Gateway:
    """`upstreams` are the engines by name; all else it asks is on this machine's disk or in its memory."""

    def __init__(
        self,
        spec: ServeSpec,
        catalog: Catalog,
        upstreams: Mapping[str, Upstream],
        *,
        keys: KeyStore,
        aliases: Aliases,
        limits: Limits,
        telemetry: Telemetry,
    ) -> None:
        self.spec = spec
        self.catalog = catalog
        self.upstreams = upstreams
        self.keys = keys
        self.aliases = aliases
        self.limits = limits
        self.telemetry = telemetry
        self.draining = False
        self.extractors: dict[str, tuple[Model, dict[str, Any] | None]] = {}  # by served id, with the grammar
        self._checked: dict[str, asyncio.Task[None]] = {}  # of served ids: are their prompts those of training
        self._behind: set[asyncio.Task[None]] = set()  # shadows under way

    # -- who and what -------------------------------------------------------------------------------------------

    def admit(self, request: Request, route: str) -> Call:
        """Let the request in, or raise Refusal."""
        name = request_id(request)
        seen = self.telemetry.begin(route=route, headers=request.headers, request=name)
        try:
            if self.draining:
                raise busy("The service is stopping.", retry_after=5)
            key = self.identify(request)
            seen.key = key.name if key else ""
            self.allow(key, route)
            return Call(name, route, key, self._granted(key) if key else None, seen)
        except Refusal as refusal:
            seen.end(refusal.status, code=refusal.code)
            raise

    def inner(self, route: str) -> Call:
        """A request of the service's own, which nobody limits."""
        name = f"req-{uuid.uuid4().hex}"
        return Call(name, route, None, None, self.telemetry.begin(route=route, headers={}, request=name))

    def _granted(self, key: Key) -> Grant:
        try:
            return self.limits.admit(key)
        except OverLimit as over:
            headers = {**over.headers, "Retry-After": str(max(1, math.ceil(over.retry_after)))}
            message = f"This key is over its limit of {over.what}; ask again in {over.retry_after:.0f} s."
            raise Refusal(429, message, code="rate_limit_exceeded", headers=headers) from None

    def allow(self, key: Key | None, route: str) -> None:
        """Raises Refusal where the key's scope leaves `route` out."""
        if key and not key.allows_endpoint(route.removeprefix("/v1/").partition("/")[0]):
            raise Refusal(403, f"This key may not use {route}.", code="endpoint_not_allowed")

    def identify(self, request: Request) -> Key | None:
        """The caller's key; None where no keys were made, and the service answers this machine alone."""
        origin = request.headers.get("origin")
        if not self.keys.list() and self.spec.host in LOCAL:
            if origin and urlsplit(origin).hostname not in LOCAL and origin not in self.spec.cors:
                # Without keys any web page could else ask through its visitor's browser.
                raise Refusal(403, f"Requests from pages of {origin} are not answered.", code="origin_not_allowed")
            return None
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        secret = secret.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if not secret:
            message = "An API key is needed: Authorization: Bearer KEY."
            raise Refusal(401, message, code="missing_api_key", headers={"WWW-Authenticate": "Bearer"})
        key = self.keys.find(secret)
        if key is None or key.revoked or key.expired:
            why = "was not found" if key is None else "was revoked" if key.revoked else "has expired"
            raise Refusal(401, f"This API key {why}.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return key

    async def resolve(self, call: Call, name: Any, sticky: str | None) -> tuple[Served, str | None]:
        """What `name` stands for, and the version that is to answer in its shadow. Raises Refusal."""
        served, shadow = await self.named(name, call.key, sticky)
        call.seen.named(name, served.ref)
        return served, shadow

    async def named(self, name: Any, key: Key | None, sticky: str | None) -> tuple[Served, str | None]:
        """The same, for whoever asks with `key`."""
        if not isinstance(name, str) or not name:
            raise Refusal(400, 'Name a model in "model"; GET /v1/models lists them.', param="model")
        split = self.aliases.all().get(name)
        ref = self.aliases.pick(name, sticky or (key.id if key else None)) if split else name
        served = await self.catalog.find(ref)
        if key and not any(map(key.allows_model, {name, ref} if served is None else {name, served.ref})):
            raise Refusal(403, f"This key may not use the model `{name}`.", code="model_not_allowed", param="model")
        if served is None:
            raise self.unknown(name)
        if served.fault:
            raise unknown_model(name, {}, served.fault)
        return served, self.aliases.shadow(name) if split else None

    def unknown(self, name: str) -> Refusal:
        return unknown_model(name, self.catalog.cards(self.shown_aliases))

    @property
    def shown_aliases(self) -> dict[str, str]:
        """Aliases, each with the version that most of its requests go to."""
        return {
            alias: max(entry.versions, key=lambda v: entry.versions[v]) for alias, entry in self.aliases.all().items()
        }

    # -- asking an engine ---------------------------------------------------------------------------------------

    async def raw(self, request: Request) -> bytes:
        """What was sent. Raises Refusal, 413 above `max_body_bytes`."""
        limit = self.spec.max_body_bytes
        over = Refusal(413, f"The body is larger than {limit:,} bytes.", code="request_too_large")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise over
        raw = bytearray()
        async for part in request.stream():
            raw += part
            if len(raw) > limit:
                raise over
        return bytes(raw)

    async def body(self, request: Request) -> dict[str, Any]:
        """The JSON object that was sent. Raises Refusal."""
        raw = await self.raw(request)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            raise Refusal(400, "The body is not valid JSON.", code="invalid_json") from None
        if not isinstance(body, dict):
            raise Refusal(400, "The body must be a JSON object.", code="invalid_json")
        return body

    async def whole(self, served: Served, path: str, body: Mapping[str, Any], call: Call | None = None) -> Any:
        """An engine's whole answer as JSON. Raises Refusal."""
        async with self.asked(served, path, body, call) as answer:
            return json.loads(answer.body)

    @asynccontextmanager
    async def asked(
        self, served: Served, path: str, body: Mapping[str, Any], call: Call | None = None, *, stream: bool = False
    ) -> AsyncIterator[Answer]:
        """An engine's answer to a request for `served`; leaving the block ends it. Raises Refusal."""
        if path != TOKENIZE:
            await self.check(served)
        body = {k: v for k, v in body.items() if k not in ("chat_template", "chat_template_kwargs")}
        body["model"] = served.id
        if path in (CHAT, TOKENIZE) and served.chat_template:
            body["chat_template"] = served.chat_template
        headers = call.seen.trace_headers() if call else {}
        if served.place:
            headers |= {ADAPTER.decode(): served.id, ADAPTER_PATH.decode(): served.place}
        sent = json.dumps(body).encode()
        async with self.upstreams[served.engine].ask(path, sent, headers, stream=stream) as answer:
            if answer.status >= 400:
                raise translated(answer.status, answer.body)
            yield answer

    async def check(self, served: Served) -> None:
        """Before the first request: would its chats be written as its training rows were? Raises Refusal."""
        if served.version is None:
            return
        task = self._checked.get(served.id)
        if task is None or (task.done() and task.exception()):
            task = self._checked[served.id] = asyncio.create_task(self._compare(served))
        if not task.done():
            await asyncio.shield(task)
        task.result()

    async def _compare(self, served: Served) -> None:
        self.telemetry.loads.labels(served.ref).inc()
        assert served.version is not None
        file = served.version.adapter / "prompts.json"
        for sample in read_json(file) if file.exists() else []:
            asked = {"messages": sample["messages"], "add_generation_prompt": True}
            if (await self.whole(served, TOKENIZE, asked))["tokens"] != sample["prompt_token_ids"]:
                message = f"{served.ref} was trained on prompts other than this engine writes; train it again."
                raise Refusal(500, message, code="prompts_differ")

    # -- shadows ------------------------------------------------------------------------------------------------

    def behind(self, shadow: str, path: str, body: Mapping[str, Any], served: Served, answer: str | None) -> None:
        """Ask `shadow` the same, later and for nobody: whether it answers alike is counted."""
        task = asyncio.create_task(self._compare_answers(shadow, path, body, served, answer))
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def _compare_answers(
        self, shadow: str, path: str, body: Mapping[str, Any], served: Served, answer: str | None
    ) -> None:
        try:
            other = await self.catalog.find(shadow)
            if other is None or other.fault:
                raise unknown_model(shadow, {}, "an alias has it as its shadow")
            asked = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
            theirs = said(await self.whole(other, path, asked))
            outcome = "same" if _alike(served, answer, theirs) else "different"
        except Exception as error:
            log.warning("The shadow %s has not answered: %s", shadow, error)
            outcome = "error"
        self.telemetry.shadows.labels(served.ref, shadow, outcome).inc()


def _alike(served: Served, ours: str | None, theirs: str | None) -> bool:
    """Whether two answers mean the same to the version's task."""
    if ours is None or theirs is None or served.version is None:
        return ours == theirs
    task = task_by_name(served.version.task)
    one, two = task.parse(ours.strip()), task.parse(theirs.strip())
    return one.canonical == two.canonical if one and two else ours.strip() == theirs.strip()


def request_id(request: Request) -> str:
    """The client's own, where it is fit to be written into a log; else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else f"req-{uuid.uuid4().hex}"
