"""Requests with their answers, kept in Parquet for a later look, where somebody has asked for that."""

from __future__ import annotations

import json
import logging
import queue
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tunery import storage

REDACTED = "[redacted]"
KNOWN = {  # in the order they are looked for: a number may be a part of the others; bounded, so that none takes long
    "email": r"[\w.+%'-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
    "phone": r"\+?\d[\d ()/.-]{6,24}\d",
    "number": r"\d+",
}
ROWS, SECONDS, WAITING = 1000, 60.0, 10_000  # of a file; between two files; rows in memory at most
log = logging.getLogger("ray.serve")


class RequestLog:
    """Writes `folder`/requests-<time>-<random>.parquet, whole files only, in a thread of its own.

    Columns: time, request, key, route, model, version, input and output (JSON), prompt_tokens, completion_tokens. A
    place that cannot be written costs rows, which `dropped` is called with the number of, and never a request.
    """

    def __init__(self, folder: str, sample: float, redact: Sequence[str], dropped: Callable[[int], Any]) -> None:
        self._folder, self._sample, self._dropped = folder, sample, dropped
        names = [name for name in KNOWN if name in redact]
        own = [text for text in redact if text not in KNOWN]
        self._patterns = [re.compile(text) for text in (*own, *(KNOWN[name] for name in names))]
        self._rows: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="request-log", daemon=True)
        self._thread.start()

    def add(self, facts: Mapping[str, Any], asked: Any, answered: Any) -> None:
        """Keep a request, if it is one of the sample."""
        if self._sample < 1 and random.random() >= self._sample:
            return
        try:
            now = datetime.now(UTC)
            self._rows.put_nowait({"time": now, **facts, "input": asked, "output": answered})
        except queue.Full:
            self._dropped(1)

    def close(self) -> None:
        """Write what is there; takes no more after that."""
        self._rows.put(None)
        self._thread.join(30)

    def _work(self) -> None:
        rows: list[dict[str, Any]] = []
        until = time.monotonic() + SECONDS
        while True:
            try:
                row = self._rows.get(timeout=max(0.0, until - time.monotonic()))
                if row is not None:
                    rows.append(row)
            except queue.Empty:
                row = {}
            if row is None or len(rows) >= ROWS or time.monotonic() >= until:
                self._write(rows)
                rows, until = [], time.monotonic() + SECONDS
            if row is None:
                return

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            kept = [{**row, "input": self._text(row["input"]), "output": self._text(row["output"])} for row in rows]
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(kept), sink, compression="zstd")
            name = f"requests-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}.parquet"
            storage.write_atomic(storage.join(self._folder, name), sink.getvalue().to_pybytes())
        except Exception as error:
            log.warning("%d requests are not logged: %s", len(rows), error)
            self._dropped(len(rows))

    def _text(self, value: Any) -> str:
        return json.dumps(self._redacted(value), ensure_ascii=False)

    def _redacted(self, value: Any) -> Any:
        """`value` with what the patterns find in any of its texts replaced."""
        if isinstance(value, str):
            for pattern in self._patterns:
                value = pattern.sub(REDACTED, value)
            return value
        if isinstance(value, Mapping):
            return {k: self._redacted(v) for k, v in value.items()}
        return [self._redacted(v) for v in value] if isinstance(value, list) else value
