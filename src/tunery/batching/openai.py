"""OpenAI's batch files: requests for /v1/chat/completions and /v1/completions in, their responses out.

A line of the input is {"custom_id", "method": "POST", "url", "body"}; of the output {"id", "custom_id", "response":
{"status_code", "request_id", "body"}, "error"}. Requests that fail go to the error file in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunery.batching.rows import Ask, fitting, messages_of, prompts_of
from tunery.errors import DataError
from tunery.extraction import Model
from tunery.types import Example

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# The words of OpenAI's requests that vLLM's SamplingParams knows too.
_SAMPLING = "temperature top_p seed stop presence_penalty frequency_penalty top_k min_p repetition_penalty".split()
_INDIFFERENT = frozenset({"model", "messages", "prompt", "user", "metadata", "store", "service_tier", "stream"})
_LIMITS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True)
class Requests:
    """Requests to `models`, by every name that they may have; `created` (seconds) is what responses say."""

    models: Mapping[str, Model]
    default: str
    context: int
    limit: int
    created: int
    constrained: bool = False  # a request says itself what its answer shall be like
    names: frozenset[str] = frozenset()

    @property
    def columns(self) -> Mapping[str, str]:
        return {"id": "custom_id"}

    def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[Ask | str]:
        """Each request, or why it cannot be asked."""
        found: list[Ask | str] = []
        for row in rows:
            try:
                found.append(self._ask(row))
            except (DataError, ValueError, TypeError) as error:
                found.append(getattr(error, "message", str(error)))
        return found

    def _ask(self, row: Mapping[str, Any]) -> Ask | str:
        url, body = row.get("url"), row.get("body")
        if row.get("method", "POST") != "POST" or url not in (CHAT, COMPLETIONS) or not isinstance(body, dict):
            raise DataError(f"a request is a POST to {CHAT} or {COMPLETIONS} with a body")
        name = body.get("model")
        if not isinstance(name, str) or name not in self.models:
            raise DataError(f'The model "{name}" does not exist.')
        model = self.models[name]
        sampling = _sampling(body)
        limit = next((body[k] for k in _LIMITS if body.get(k) is not None), self.limit if url == CHAT else 16)
        template = model.writer
        if url == CHAT:
            example = Example("", messages_of(body.get("messages")), None)
            (prompt,) = prompts_of(template, [example])
            text = example.text
        else:
            text = body.get("prompt")
            if isinstance(text, list) and text and all(isinstance(t, int) for t in text):
                prompt, text = text, ""
            elif isinstance(text, str):
                prompt = template.tokenizer([text])["input_ids"][0]
            else:
                raise DataError("prompt must be a text or a list of token ids")
        if isinstance(prompt, str):
            return prompt
        return fitting(Ask(model, [], text, int(limit), json.dumps(sampling)), prompt, self.context)

    def answer(
        self, row_id: str, row: Mapping[str, Any], ask: tuple[str, str], completion: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The response to one request."""
        chat = row["url"] == CHAT
        choice: dict[str, Any] = {"index": 0, "finish_reason": completion["finish_reason"], "logprobs": None}
        if chat:
            choice["message"] = {"role": "assistant", "content": completion["text"]}
        else:
            choice["text"] = completion["text"]
        given, made = completion["prompt_tokens"], completion["completion_tokens"]
        body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{row_id}",
            "object": "chat.completion" if chat else "text_completion",
            "created": self.created,
            "model": row["body"]["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
        }
        return self._line(row_id, 200, body, None), {}

    def failure(self, row_id: str, where: str, row: Any, reason: str) -> dict[str, Any]:
        """A line of the error file."""
        known = isinstance(row, dict)
        error = {"code": "invalid_request", "message": reason if known else f"{where}: {reason}"}
        body = {"error": {"message": error["message"], "type": "invalid_request_error", "param": None, "code": None}}
        return self._line(row_id, 400, body, error)

    def _line(self, row_id: str, status: int, body: Mapping[str, Any], error: Any) -> dict[str, Any]:
        response = {"status_code": status, "request_id": f"req-{row_id}", "body": body}
        return {"id": f"batch_req_{row_id}", "custom_id": row_id, "response": response, "error": error}

    def id_of(self, row: Mapping[str, Any]) -> str:
        return row["custom_id"]

    def failed_id(self, failed: Mapping[str, Any]) -> str:
        return failed["custom_id"]

    def example(self, failed: Mapping[str, Any]) -> str:
        """A failed request in one line."""
        return f"{failed['custom_id']}: {failed['error']['message']}"


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """SamplingParams of a request; OpenAI's own defaults hold. Raises DataError for what is not supported."""
    known = {*_SAMPLING, *_INDIFFERENT, *_LIMITS, "n", "response_format"}
    if unknown := sorted(k for k, v in body.items() if k not in known and v is not None):
        raise DataError(f"not supported in a batch: {', '.join(unknown)}")
    if body.get("n") not in (None, 1):
        raise DataError("n must be 1")
    found = {"temperature": 1.0} | {k: body[k] for k in _SAMPLING if body.get(k) is not None}
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        found["structured_outputs"] = {"json": form["json_schema"]["schema"]}
    elif form.get("type") == "json_object":
        found["structured_outputs"] = {"json_object": True}
    return found
