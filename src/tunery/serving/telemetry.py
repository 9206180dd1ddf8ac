"""What is seen of requests: Prometheus metrics, an access log without contents, traces."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tunery.config import TelemetrySpec
from tunery.serving.requestlog import RequestLog

if TYPE_CHECKING:
    from tunery.serving.tracing import Span, Tracer

_WHO = ("model", "version", "key", "route")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
log = logging.getLogger("ray.serve")
LOG_BYTES, LOG_FILES = 50 << 20, 5
LOG_LINES = 10_000  # that wait to be written


class Telemetry:
    """One gateway's. Names that requests bring become labels only when they are known, so a scan makes none."""

    def __init__(self, spec: TelemetrySpec | None = None, log_dir: Path | None = None) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("tunery_requests", "Requests answered.", (*_WHO, "status"), registry=r)
        self.errors = Counter("tunery_errors", "Answers other than success.", ("route", "code"), registry=r)
        self.seconds = Histogram("tunery_request_seconds", "Request to last byte.", _WHO, buckets=_SECONDS, registry=r)
        self.ttft = Histogram("tunery_ttft_seconds", "Request to first byte.", _WHO, buckets=_SECONDS, registry=r)
        self.tpot = Histogram(
            "tunery_tpot_seconds", "Between two tokens of a stream.", ("model", "version"), buckets=_TOKEN, registry=r
        )
        self.tokens = Counter("tunery_tokens", "Tokens, as the engine counts them.", (*_WHO, "direction"), registry=r)
        self.in_flight = Gauge("tunery_in_flight", "Requests being answered.", registry=r)
        self.queued = Gauge("tunery_queue_depth", "Requests that wait for an engine.", ("engine",), registry=r)
        self.replicas = Gauge("tunery_replicas", "Replicas that answer.", ("engine",), registry=r)
        self.loads = Counter("tunery_adapter_loads", "Versions asked for the first time.", ("version",), registry=r)
        self.rows = Counter("tunery_extract_rows", "Texts extracted from.", ("version", "outcome"), registry=r)
        self.values = Counter("tunery_extract_values", "Values found.", ("version", "kind"), registry=r)
        self.shadows = Counter("tunery_shadow", "Answers of shadows.", ("version", "shadow", "outcome"), registry=r)
        self.unlogged = Counter("tunery_access_log_dropped", "Lines the disk was too slow for.", registry=r)
        self.dropped = Counter("tunery_request_log_dropped", "Requests that were not logged.", registry=r)
        spec = spec or TelemetrySpec()
        self._log, self._listener = None, None
        if spec.access_log and log_dir:
            self._log, self._listener = _access_log(log_dir, self.unlogged.inc)
        self._requests: RequestLog | None = None
        if spec.request_log:
            redact, dropped = spec.redact, self.dropped.inc
            self._requests = RequestLog(spec.request_log, spec.request_log_sample, redact, dropped)
        self._tracer: Tracer | None = None
        if spec.otlp_endpoint:
            from tunery.serving.tracing import Tracer

            self._tracer = Tracer(spec.otlp_endpoint)

    def begin(self, *, route: str, headers: Mapping[str, str], request: str) -> Observation:
        """A request has come in; its `headers` may say which trace it belongs to."""
        self.in_flight.inc()
        span = self._tracer.begin(route, headers) if self._tracer else None
        return Observation(self, route, request, span)

    def engine(self, name: str, replicas: int, queued: int) -> None:
        self.replicas.labels(name).set(replicas)
        self.queued.labels(name).set(queued)

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of the access log; written in a thread."""
        if self._log:
            self._log.info(json.dumps(line, ensure_ascii=False))

    def render(self, replicas: Mapping[str, str]) -> str:
        """All metrics as Prometheus text: ours, and each replica's with its name as a label."""
        return generate_latest(self.registry).decode() + merged(replicas)

    def close(self) -> None:
        """Write what is still to be written."""
        if self._listener:
            with suppress(queue.Full):  # a disk that takes nothing any more
                self._listener.stop()
        if self._requests:
            self._requests.close()
        if self._tracer:
            self._tracer.close()


class Observation:
    """One request, from its arrival to its last byte."""

    def __init__(self, telemetry: Telemetry, route: str, request: str, span: Span | None) -> None:
        self._all, self._route, self._request, self._span = telemetry, route, request, span
        self.key = ""  # its name
        self._began = time.perf_counter()
        self._first = self._last = 0.0
        self._chunks = 0
        self._model = self._version = ""
        self._ended = False
        self._kept: tuple[Any, Any] | None = None

    def named(self, model: str, version: str) -> None:
        """The model that was asked for, and the version that it stands for; both are known to the service."""
        self._model, self._version = model, version

    def chunk(self) -> None:
        """A part of the answer has come; the first one is the first token."""
        now = time.perf_counter()
        self._first = self._first or now
        self._last = now
        self._chunks += 1

    @property
    def keeps(self) -> bool:
        """Whether contents are kept at all; streams are put together only then."""
        return self._all._requests is not None

    def keep(self, asked: Any, answered: Any) -> None:
        """What was asked and answered, for the request log."""
        self._kept = (asked, answered)

    def trace_headers(self) -> dict[str, str]:
        """For the engine, so that its spans join this one."""
        return self._span.headers() if self._span else {}

    def end(
        self, status: int, *, prompt: int = 0, completion: int = 0, cached: int = 0, code: str | None = None
    ) -> None:
        """The request is over; a second time does nothing."""
        if self._ended:
            return
        self._ended = True
        now = time.perf_counter()
        who = (self._model, self._version, self.key, self._route)
        t = self._all
        t.in_flight.dec()
        t.requests.labels(*who, str(status)).inc()
        if code or status >= 400:
            t.errors.labels(self._route, code or str(status)).inc()
        t.seconds.labels(*who).observe(now - self._began)
        if self._first:
            t.ttft.labels(*who).observe(self._first - self._began)
        if self._chunks > 2 and completion > 1:
            t.tpot.labels(*who[:2]).observe((self._last - self._first) / (completion - 1))
        for direction, count in (("prompt", prompt), ("completion", completion), ("cached", cached)):
            if count:
                t.tokens.labels(*who, direction).inc(count)
        if self._span:
            self._span.end(status, self._model, self._version, prompt, completion)
        if t._requests and self._kept:
            facts = {
                "request": self._request, "key": self.key, "route": self._route, "model": self._model,
                "version": self._version, "prompt_tokens": prompt, "completion_tokens": completion,
            }  # fmt: skip
            t._requests.add(facts, *self._kept)
        t.log({
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "request": self._request, "key": self.key,
            "route": self._route, "model": self._model, "version": self._version, "status": status, "code": code,
            "ms": round(1000 * (now - self._began), 1),
            "ttft_ms": round(1000 * (self._first - self._began), 1) if self._first else None,
            "prompt_tokens": prompt, "completion_tokens": completion, "cached_tokens": cached,
        })  # fmt: skip


class _Handing(logging.handlers.QueueHandler):
    """Hands lines on as long as they can be held."""

    def __init__(self, lines: queue.Queue[Any], dropped: Callable[[], None]) -> None:
        super().__init__(lines)
        self._dropped = dropped

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped()


class _Writing(logging.handlers.QueueListener):
    """Writes the lines in a thread."""

    def __init__(self, lines: queue.Queue[Any], file: logging.Handler) -> None:
        super().__init__(lines, file)
        self._lines = lines

    def enqueue_sentinel(self) -> None:
        self._lines.put(None, timeout=5)  # behind the lines that wait


def _access_log(folder: Path, dropped: Callable[[], None]) -> tuple[logging.Logger, logging.handlers.QueueListener]:
    """A logger that hands lines to a thread, which writes them and starts a new file every 50 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(
        folder / "access.jsonl", maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"
    )
    lines: queue.Queue[Any] = queue.Queue(LOG_LINES)
    logger = logging.Logger("tunery.access")
    logger.addHandler(_Handing(lines, dropped))
    listener = _Writing(lines, file)
    listener.start()
    return logger, listener


def merged(replicas: Mapping[str, str]) -> str:
    """Prometheus texts of several replicas as one: each family described once, each sample with its replica's name."""
    from prometheus_client.parser import text_string_to_metric_families as families

    described: dict[str, list[str]] = {}
    for replica, text in replicas.items():
        try:
            found = list(families(text))
        except ValueError as error:  # the others' are worth having
            log.warning("The metrics of %s cannot be read: %s", replica, error)
            continue
        for family in found:
            name = f"{family.name}_total" if family.type == "counter" else family.name  # which the parser takes off
            head = [f"# HELP {name} {family.documentation}", f"# TYPE {name} {family.type}"]
            lines = described.setdefault(name, head)
            for sample in family.samples:
                labels = {**sample.labels, "replica": replica}
                shown = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
                lines.append(f"{sample.name}{{{shown}}} {sample.value}")
    return "".join(line + "\n" for lines in described.values() for line in lines)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
