"""What a service shows and writes of its requests: metrics, traces, logs."""

from __future__ import annotations

import json
import os
import re
import select
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families as families

import tunery
from tunery.config import TelemetrySpec, parse
from tunery.errors import ConfigError
from tunery.serving.requestlog import RequestLog
from tunery.serving.streams import Usage, joined
from tunery.serving.telemetry import LOG_LINES, Telemetry, merged


def ask(telemetry: Telemetry, **headers: str):
    seen = telemetry.begin(route="/v1/chat/completions", headers=headers, request="req-1")
    seen.key = "crm"
    seen.named("prod", "shop@3")
    return seen


def test_metrics_of_one_request():
    telemetry = Telemetry()
    seen = ask(telemetry)
    assert telemetry.in_flight._value.get() == 1
    for _ in range(4):
        seen.chunk()
    seen.end(200, prompt=7, completion=3)
    seen.end(500)  # it is over already
    found = {
        (s.name, s.labels.get("direction")): s
        for family in families(telemetry.render({})) for s in family.samples
    }  # fmt: skip
    requests = found["tunery_requests_total", None]
    assert requests.value == 1
    assert requests.labels == {
        "model": "prod", "version": "shop@3", "key": "crm", "route": "/v1/chat/completions", "status": "200"
    }  # fmt: skip
    assert found["tunery_tokens_total", "prompt"].value == 7
    assert found["tunery_tpot_seconds_count", None].value == 1
    assert found["tunery_in_flight", None].value == 0


def test_a_disk_that_stalls_holds_no_request_up(tmp_path):
    """What cannot be written in time is counted instead of kept in memory for ever."""
    os.mkfifo(tmp_path / "access.jsonl")
    disk = os.open(tmp_path / "access.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    telemetry = Telemetry(log_dir=tmp_path)
    lines = LOG_LINES + 3000
    for _ in range(lines):
        telemetry.log({"request": "x" * 100})
    dropped = int(telemetry.unlogged._value.get())
    assert dropped > 0

    closing = threading.Thread(target=telemetry.close)
    closing.start()  # writes what it has, as soon as the disk takes it
    written = b""
    while closing.is_alive() or select.select([disk], [], [], 0)[0]:
        if select.select([disk], [], [], 0.1)[0]:
            if not (read := os.read(disk, 1 << 16)):
                break
            written += read
    os.close(disk)
    assert written.count(b"\n") + dropped == lines


def test_replicas_metrics_are_told_apart_and_described_once():
    text = '# HELP vllm:tokens_total Tokens.\n# TYPE vllm:tokens_total counter\nvllm:tokens_total{model="a\\"b"} 3.0\n'
    both = merged({"engine-1": text, "engine-2": text, "engine-3": "}{"})
    assert both.count("# TYPE") == both.count("# TYPE vllm:tokens_total counter") == 1
    samples = [s for family in families(both) for s in family.samples]
    assert [(s.labels["replica"], s.labels["model"], s.value) for s in samples] == [
        ("engine-1", 'a"b', 3.0), ("engine-2", 'a"b', 3.0)
    ]  # fmt: skip


def test_a_span_joins_the_clients_trace_and_is_joined_by_the_engines():
    """Against a collector that speaks OTLP over HTTP."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    heard: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    telemetry = Telemetry(TelemetrySpec(otlp_endpoint=f"http://127.0.0.1:{server.server_port}"))
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    seen = ask(telemetry, traceparent=f"00-{trace}-{parent}-01")
    passed_on = seen.trace_headers()["traceparent"]
    seen.end(200, prompt=7, completion=3)
    telemetry.close()
    server.shutdown()
    request = ExportTraceServiceRequest.FromString(heard[0])
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    assert passed_on == f"00-{trace}-{span.span_id.hex()}-01"
    attributes = {a.key: a.value for a in span.attributes}
    assert attributes["gen_ai.response.model"].string_value == "shop@3"
    assert attributes["gen_ai.usage.output_tokens"].int_value == 3


def test_the_request_log_keeps_whole_files_without_what_is_redacted(tmp_path):
    folder = tmp_path / "kept"
    telemetry = Telemetry(TelemetrySpec(request_log=str(folder), redact=["number", "email", r"Ada \w+"]))
    for i in range(3):
        seen = ask(telemetry)
        seen.keep({"messages": [{"content": f"{i} Ada Lovelace, ann7@example.org"}]}, {"text": "a red bike"})
        seen.end(200, prompt=7, completion=3)
    telemetry.close()
    (file,) = folder.iterdir()
    rows = pq.read_table(file).to_pylist()
    assert [json.loads(r["input"])["messages"][0]["content"] for r in rows] == [
        "[redacted] [redacted], [redacted]" for _ in range(3)
    ]
    assert json.loads(rows[0]["output"]) == {"text": "a red bike"}
    assert (rows[0]["version"], rows[0]["completion_tokens"]) == ("shop@3", 3)


def test_a_request_log_that_cannot_be_written_costs_rows_alone(tmp_path):
    (tmp_path / "file").write_text("in the way")
    lost: list[int] = []
    log = RequestLog(str(tmp_path / "file" / "kept"), 1.0, [], lost.append)
    log.add({}, "asked", "answered")
    log.close()
    assert lost == [1]


def test_a_sample_of_requests(tmp_path):
    log = RequestLog(str(tmp_path), 0.2, [], lambda n: None)
    for i in range(1000):
        log.add({}, i, i)
    log.close()
    assert 120 < sum(pq.read_metadata(f).num_rows for f in tmp_path.iterdir()) < 280


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="no regular expression"):
        parse(TelemetrySpec, {"redact": ["("]})


def test_the_access_log_turns_over_and_blocks_nobody(tmp_path):
    telemetry = Telemetry(TelemetrySpec(), tmp_path)
    ask(telemetry).end(429, code="rate_limit_exceeded")
    telemetry.close()
    line = json.loads((tmp_path / "access.jsonl").read_text())
    assert (line["key"], line["model"], line["status"], line["code"]) == ("crm", "prod", 429, "rate_limit_exceeded")


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_the_usage_of_a_stream_is_found_wherever_it_is_cut(cut):
    events = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a red"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":" bike"}}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
        b"data: [DONE]\n\n"
    )
    hiding, showing = Usage(hide=True), Usage(hide=False)
    pieces = [events[i : i + cut] for i in range(0, len(events), cut)]
    shown = b"".join(map(hiding.read, pieces))
    assert b"usage" not in shown
    assert shown.endswith(b"data: [DONE]\n\n")
    assert b"".join(map(showing.read, pieces)) == events
    assert hiding.found == showing.found == {"prompt_tokens": 7, "completion_tokens": 3}
    assert joined(shown) == "a red bike"


def test_the_dashboard_asks_for_metrics_that_there_are():
    from importlib.util import find_spec

    dashboard = json.loads((Path(tunery.__file__).parent / "assets" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    names = {name for text in asked for name in re.findall(r"\b(?:tunery_|vllm:)\w+", text)}
    telemetry = Telemetry()
    ours = {s.name for family in telemetry.registry.collect() for s in family.samples} | {
        f"{family.name}{end}"
        for family in telemetry.registry.collect() for end in ("", "_total", "_bucket", "_sum", "_count")
    }  # fmt: skip
    spec = find_spec("vllm")
    assert spec
    assert spec.origin
    theirs = "".join(p.read_text() for p in (Path(spec.origin).parent / "v1" / "metrics").glob("*.py"))
    for name in names:
        if name.startswith("vllm:"):
            assert re.sub(r"_(total|bucket|sum|count)$", "", name) in theirs, name
        else:
            assert name in ours, name
    assert len(names) > 10


def test_a_thousand_requests_leave_one_series():
    telemetry = Telemetry()
    for _ in range(1000):
        ask(telemetry).end(200)
    assert len([s for f in families(telemetry.render({})) for s in f.samples if s.name == "tunery_requests_total"]) == 1
