"""Who may ask, and how much."""

from __future__ import annotations

import json
import time

import httpx

from tunery.ops.access import revoke_key

from .asking import (
    MESSAGES,
    post,
)


def test_keys_scopes_and_limits(service, keys, home):
    crm = keys("crm", models=["bikeshop*"], endpoints=["chat", "models"], requests_per_minute=3)
    other = keys("other")
    time.sleep(1)

    def status(secret: str | None, path: str = "/chat/completions", model: str = "bikeshop") -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        body = {"model": model, "messages": MESSAGES, "prompt": "x", "max_tokens": 2}
        return post(service, path, json=body, headers=headers)

    assert (status(None).status_code, status("tnr-wrong").status_code) == (401, 401)
    assert status(None).headers["www-authenticate"] == "Bearer"
    first = status(crm)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert status(crm, "/completions").json()["error"]["code"] == "endpoint_not_allowed"
    assert status(crm, model="viggo").json()["error"]["code"] == "model_not_allowed"
    assert status(crm).status_code == 200
    over = status(crm)
    assert over.status_code == 429
    assert 1 <= int(over.headers["retry-after"]) <= 60
    assert status(other).status_code == 200
    revoke_key("other", project={"home": str(home)})
    time.sleep(1)
    assert "revoked" in status(other).json()["error"]["message"]


def test_what_is_too_large_is_not_read(service):
    body = json.dumps({"model": "bikeshop", "messages": MESSAGES, "user": "x" * (5 << 20)})
    assert post(service, "/chat/completions", content=body).json()["error"]["code"] == "request_too_large"
    chunked = (part.encode() for part in (body[: 1 << 20], body[1 << 20 :]))
    assert post(service, "/chat/completions", content=chunked).status_code == 413
