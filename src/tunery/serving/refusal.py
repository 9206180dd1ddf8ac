"""Answers other than success, as OpenAI words them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """An HTTP status and OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @property
    def event(self) -> bytes:
        """The same at the end of a stream that has begun."""
        return f"data: {json.dumps(self.body)}\n\n".encode()


def busy(message: str, *, status: int = 503, retry_after: float = 1.0) -> Refusal:
    """A refusal that time may mend."""
    code = "overloaded" if status == 429 else "unavailable"
    return Refusal(status, message, code=code, headers={"Retry-After": str(max(1, round(retry_after)))})


def unknown_model(name: str, served: Mapping[str, Any], why: str | None = None) -> Refusal:
    """Raised for a model that is not served; `why` where it exists all the same."""
    if why:
        return Refusal(404, f"The model `{name}` is not served: {why}", code="model_not_found", param="model")
    shown = ", ".join(list(served)[:20]) + (", ..." if len(served) > 20 else "")
    message = f"The model `{name}` does not exist. Served here: {shown}."
    return Refusal(404, message, code="model_not_found", param="model")


def translated(status: int, body: bytes) -> Refusal:
    """An engine's error answer in OpenAI's form: one line, a type OpenAI has, a code that is a string."""
    if status == 404 and body == b'{"detail":"Not Found"}':  # vLLM has routes for what a model can do alone
        return Refusal(404, "This model does not offer that endpoint.", code="unsupported_endpoint")
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
