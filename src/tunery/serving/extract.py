"""POST /v1/extract: texts in, values out, by a version's own prompts and grammar, read as batches read them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tunery.extraction import ANSWER_TOKENS, Model, model_of
from tunery.serving.catalog import base_of
from tunery.serving.refusal import Refusal

if TYPE_CHECKING:
    from tunery.serving.catalog import Served
    from tunery.serving.gateway import Call, Gateway

MOST_TEXTS = 256  # in one request; more are a batch


async def extract(gateway: Gateway, call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to {"model", "text" | "texts", "instruction"?, "max_tokens"?, "grammar"?: false}.

    Texts are asked at once and come back in order; one that fails has an "error" and takes no other with it. Raises
    Refusal where the request itself is wrong, or all of its texts fail.
    """
    texts, single = _texts(body)
    options = _options(body)
    sticky = body.get("user") if isinstance(body.get("user"), str) else None
    served, shadow = await gateway.resolve(call, body.get("model"), sticky)
    if served.version is None:
        message = f"`{body['model']}` is an untuned base: it has no trained prompt to extract with."
        raise Refusal(400, message, code="not_a_version", param="model")
    if served.id not in gateway.extractors:
        gateway.extractors[served.id] = await asyncio.to_thread(_extractor, served)
    model, grammar = gateway.extractors[served.id]
    asked = [_request(model, text, options, grammar) for text in texts]
    done = await asyncio.gather(*(_one(gateway, call, served, model, t, r) for t, r in zip(texts, asked, strict=True)))
    if shadow:
        for request, (row, _) in zip(asked, done, strict=True):
            gateway.behind(shadow, "/v1/chat/completions", request, served, row.get("output"))
    if isinstance(refused := done[0][1], Refusal) and all(isinstance(u, Refusal) for _, u in done):
        raise refused
    counted = [u for _, u in done if isinstance(u, dict)]
    usage = {k: sum(u[k] for u in counted) for k in ("prompt_tokens", "completion_tokens", "total_tokens")}
    rows = [row for row, _ in done]
    if call.seen.keeps:
        call.seen.keep(body, rows)
    call.end(200, usage)
    for row in rows:
        outcome = "error" if "error" in row else "ok" if row["parsed"] is not None else "unparsed"
        gateway.telemetry.rows.labels(served.ref, outcome).inc()
        for span in row.get("spans", ()):
            gateway.telemetry.values.labels(served.ref, span["kind"]).inc()
    shown: dict[str, Any] = rows[0] if single else {"results": rows}
    return {"object": "extraction", "model": served.id, "version": served.ref, **shown, "usage": usage}


def _texts(body: dict[str, Any]) -> tuple[list[str], bool]:
    """What to read, and whether it was a single text."""
    if ("text" in body) == ("texts" in body):
        raise Refusal(400, 'Give either "text" or "texts".', param="text")
    single = "text" in body
    texts = [body["text"]] if single else body["texts"]
    name = "text" if single else "texts"
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        kind = "a text that is not empty" if single else "a list of texts that are not empty"
        raise Refusal(400, f'"{name}" must be {kind}.', param=name)
    if len(texts) > MOST_TEXTS:
        message = f"{len(texts):,} texts are too many for one request; at most {MOST_TEXTS}. A batch takes any number."
        raise Refusal(400, message, param="texts")
    return texts, single


def _options(body: dict[str, Any]) -> dict[str, Any]:
    kinds = {"instruction": str, "max_tokens": int, "grammar": bool}
    known = {*kinds, "model", "text", "texts", "user"}
    if unknown := sorted(set(body) - known):
        raise Refusal(400, f"Unknown: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.", param=unknown[0])
    for name, kind in kinds.items():
        value = body.get(name)
        if value is not None and (not isinstance(value, kind) or (kind is int and (value is True or value < 1))):
            raise Refusal(400, f'"{name}" must be a {kind.__name__}.', param=name)
    return {name: body[name] for name in kinds if body.get(name) is not None}


def _extractor(served: Served) -> tuple[Model, dict[str, Any] | None]:
    """What asks and reads for a version, and its grammar; finding either takes a while."""
    assert served.version is not None
    model = model_of(served.version, base_of(served.base))
    return model, model.grammar()


def _request(model: Model, text: str, options: dict[str, Any], grammar: dict[str, Any] | None) -> dict[str, Any]:
    """The chat that asks for `text`."""
    example = model.example(text, instruction=options.get("instruction"))
    body: dict[str, Any] = {
        "messages": [{"role": m.role, "content": m.content} for m in example.messages],
        "max_tokens": options.get("max_tokens", ANSWER_TOKENS),
        "temperature": 0,
        "logprobs": True,
        "return_token_ids": True,
    }
    if grammar and options.get("grammar", True):
        body["structured_outputs"] = grammar
    return body


async def _one(
    gateway: Gateway, call: Call, served: Served, model: Model, text: str, request: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, int] | Refusal]:
    """One text's row, and its usage or why there is none."""
    try:
        answer = await gateway.whole(served, "/v1/chat/completions", request, call)
    except Refusal as refusal:
        return {"error": refusal.body["error"]}, refusal
    choice = answer["choices"][0]
    said = choice["message"]["content"] or ""
    logprobs = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or []]
    reading = model.read(text, {"text": said, "token_ids": choice.get("token_ids"), "logprobs": logprobs})
    return {
        "output": reading.text,
        "parsed": reading.parsed,
        "value": reading.value,
        "spans": reading.spans,
        "probability": reading.probability,
        "confidence": reading.confidence,
        "finish_reason": choice["finish_reason"],
    }, answer["usage"]
