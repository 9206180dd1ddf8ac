"""What is seen of requests."""

from __future__ import annotations

import json

from tunery.ops import runs

from .asking import (
    ask,
    samples,
    wait_for,
)

CHAT = "/v1/chat/completions"


def test_metrics_tell_models_apart_and_replicas(service, client):
    ask(client, "bikeshop", max_tokens=3)
    list(ask(client, "bikeshop", max_tokens=5, stream=True))
    (requests,) = (
        s for s in samples(service, "tunery_requests_total")
        if s.labels == {"key": "", "model": "bikeshop", "route": CHAT, "status": "200", "version": "bikeshop@3"}
    )  # fmt: skip
    assert requests.value >= 2
    assert any(s.value > 0 for s in samples(service, "tunery_tpot_seconds_count"))
    assert [s.value for s in samples(service, "tunery_replicas")] == [2]
    assert len({s.labels["replica"] for s in samples(service, "vllm:generation_tokens_total")}) == 2


def test_the_access_log_has_all_but_contents(service, client, home):
    secret = "unspeakable"
    client.chat.completions.create(
        model="bikeshop",
        messages=[{"role": "user", "content": secret}],
        max_tokens=3,
        extra_headers={"x-request-id": "mine-1"},
    )
    run = next(r for r in runs.list_runs(home) if r.state == "running")
    log = run.path / "logs" / "access.jsonl"
    wait_for(lambda: "mine-1" in log.read_text())
    line = next(line for line in map(json.loads, log.read_text().splitlines()) if line["request"] == "mine-1")
    assert (line["model"], line["version"], line["status"], line["completion_tokens"]) == (
        "bikeshop",
        "bikeshop@3",
        200,
        3,
    )
    assert secret not in log.read_text()
