"""/v1/batches: files of requests, answered by the service's own engines whenever nobody else waits for them.

For data that wants engines of its own there is `tunery batch --openai`, which takes the same files.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.serving.files import Files
from tunery.serving.records import Records
from tunery.serving.refusal import Refusal
from tunery.storage import append_jsonl, read_jsonl_tolerant

if TYPE_CHECKING:
    from tunery.serving.gateway import Gateway
    from tunery.serving.keys import Key

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
ENDED = ("completed", "failed", "cancelled")
AT_ONCE = 16  # requests of a batch
FAULTS = 50  # of an input file that are told
log = logging.getLogger("ray.serve")


class Batches(Records):
    """A batch is its record and `<id>.jsonl`, the lines that are done, each written once.

    What is running when the gateway ends goes on with the next one: lines that are there are not asked again.
    """

    def __init__(self, folder: Path, files: Files, gateway: Gateway) -> None:
        super().__init__(folder, "batch", "batch_")
        self._files, self._gateway = files, gateway
        self._queue: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._live: dict[str, dict[str, Any]] = {}  # those that have not ended: their counts are newer than on disk

    async def run(self) -> None:
        """Work through the batches, one after the other, for ever."""
        for owner, batch in self.all():
            if batch["status"] not in ENDED:
                self._enter(batch, owner)
        while True:
            owner, batch = await self._queue.get()
            try:
                await self._perform(batch, owner)
            except Exception as error:
                log.exception("Batch %s has failed.", batch["id"])
                self._fail(batch, owner, [_told("internal_error", repr(error))])
            del self._live[batch["id"]]

    def create(self, body: Mapping[str, Any], owner: str) -> dict[str, Any]:
        """A new batch, checked as far as its request goes. Raises Refusal."""
        endpoint, file_id = body.get("endpoint"), body.get("input_file_id")
        if endpoint not in ENDPOINTS:
            raise Refusal(400, f'"endpoint" must be one of {", ".join(ENDPOINTS)}.', param="endpoint")
        if not isinstance(file_id, str):
            raise Refusal(400, 'Name a file in "input_file_id".', param="input_file_id")
        if body.get("completion_window", "24h") != "24h":
            raise Refusal(400, '"completion_window" must be "24h".', param="completion_window")
        metadata = body.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise Refusal(400, '"metadata" must be an object.', param="metadata")
        if self._files.get(file_id, owner)["purpose"] != "batch":
            raise Refusal(400, f'`{file_id}` was not uploaded with purpose "batch".', param="input_file_id")
        now = int(time.time())
        batch = {
            "id": f"batch_{secrets.token_hex(12)}", "object": "batch", "endpoint": endpoint, "errors": None,
            "input_file_id": file_id, "completion_window": "24h", "status": "validating", "output_file_id": None,
            "error_file_id": None, "created_at": now, "in_progress_at": None, "expires_at": now + 24 * 3600,
            "finalizing_at": None, "completed_at": None, "failed_at": None, "expired_at": None, "cancelling_at": None,
            "cancelled_at": None, "request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": metadata,
        }  # fmt: skip
        self.write(batch, owner)
        self._enter(batch, owner)
        return batch

    def get(self, record_id: str, owner: str) -> dict[str, Any]:
        """OpenAI's batch object. Raises Refusal for one that is not there, or another's."""
        found = super().get(record_id, owner)
        return self._live.get(record_id, found)

    def all(self) -> list[tuple[str, dict[str, Any]]]:
        """Everybody's, each with its owner, the oldest first."""
        return [(owner, self._live.get(batch["id"], batch)) for owner, batch in super().all()]

    def cancel(self, batch_id: str, owner: str) -> dict[str, Any]:
        """Ask no more of its lines; those that are answered are kept. Raises Refusal as `get` does."""
        batch = self.get(batch_id, owner)
        if batch["status"] in ENDED:
            raise Refusal(409, f"The batch is {batch['status']} already.", code="batch_ended")
        return self._change(batch, owner, status="cancelling", cancelling_at=int(time.time()))

    # -- work ---------------------------------------------------------------------------------------------------

    async def _perform(self, batch: dict[str, Any], owner: str) -> None:
        requests, faults = await asyncio.to_thread(self._requests, batch)
        if faults:
            return self._fail(batch, owner, faults)
        lines = self.folder / f"{batch['id']}.jsonl"
        done = {line["custom_id"]: _well(line) for line in await asyncio.to_thread(_read, lines)}
        counts = {"total": len(requests), "completed": sum(done.values())}
        counts["failed"] = len(done) - counts["completed"]
        batch["request_counts"] = counts
        if batch["status"] == "validating":
            self._change(batch, owner, status="in_progress", in_progress_at=int(time.time()))
        left = iter([r for r in requests if r["custom_id"] not in done])

        async def worker() -> None:
            for request in left:
                if batch["status"] == "cancelling":
                    return
                line = await self._line(request, batch["endpoint"], owner)
                append_jsonl(lines, line)
                counts["completed" if _well(line) else "failed"] += 1

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        files = await asyncio.to_thread(self._files_of, batch, owner, [r["custom_id"] for r in requests])
        end = "cancelled" if batch["status"] == "cancelling" else "completed"
        self._change(batch, owner, **files, **{"status": end, f"{end}_at": int(time.time())})

    def _files_of(self, batch: Mapping[str, Any], owner: str, order: list[str]) -> dict[str, str]:
        """Write what was answered and what was not, in the order of the input; the files' ids."""
        done = {line["custom_id"]: line for line in _read(self.folder / f"{batch['id']}.jsonl")}
        found = {}
        for kind, wanted in (("output", True), ("error", False)):
            if chosen := [done[i] for i in order if i in done and _well(done[i]) is wanted]:
                path = self.folder / f".{batch['id']}.{kind}.part"
                path.write_text("".join(json.dumps(line) + "\n" for line in chosen), encoding="utf-8")
                file = self._files.adopt(path, f"{batch['id']}_{kind}.jsonl", "batch_output", owner)
                found[f"{kind}_file_id"] = file["id"]
        return found

    def _requests(self, batch: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of its input, and what is wrong with them."""
        found: list[dict[str, Any]] = []
        faults: list[dict[str, Any]] = []
        seen: set[str] = set()
        with self._files.path(batch["input_file_id"]).open(encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    request = json.loads(text)
                except ValueError:
                    faults.append(_told("invalid_json", "not valid JSON", number))
                    continue
                if why := _fault(request, batch["endpoint"], seen):
                    faults.append(_told("invalid_request", why, number))
                found.append(request)
        if not found and not faults:
            faults.append(_told("empty_file", "the file has no requests"))
        return found, faults[:FAULTS]

    async def _line(self, request: Mapping[str, Any], endpoint: str, owner: str) -> dict[str, Any]:
        """Ask one request, behind all that come from clients; its line of the output."""
        status, error = 200, None
        try:
            body = await self._answer(request["body"], endpoint, self._gateway.keys.by_id(owner))
        except Refusal as refusal:
            status, body = refusal.status, refusal.body
            error = {"code": refusal.code or "invalid_request", "message": refusal.message}
        response = {"status_code": status, "request_id": f"req-{secrets.token_hex(8)}", "body": body}
        line_id = f"batch_req_{secrets.token_hex(8)}"
        return {"id": line_id, "custom_id": request["custom_id"], "response": response, "error": error}

    async def _answer(self, body: Mapping[str, Any], endpoint: str, key: Key | None) -> Any:
        served, _ = await self._gateway.named(body.get("model"), key, None)
        body = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
        upstream = self._gateway.upstreams[served.engine]
        for attempt in range(100):
            while upstream.queued or not upstream.ready:
                await asyncio.sleep(0.2)
            try:
                return await self._gateway.whole(served, endpoint, body)
            except Refusal as refusal:
                if refusal.status not in (429, 503) or attempt == 99:
                    raise
                await asyncio.sleep(min(5.0, 0.2 * 2**attempt))
        raise AssertionError

    # -- records ------------------------------------------------------------------------------------------------

    def _enter(self, batch: dict[str, Any], owner: str) -> None:
        self._live[batch["id"]] = batch
        self._queue.put_nowait((owner, batch))

    def _change(self, batch: dict[str, Any], owner: str, **changes: Any) -> dict[str, Any]:
        batch.update(changes)
        self.write(batch, owner)
        return batch

    def _fail(self, batch: dict[str, Any], owner: str, faults: list[dict[str, Any]]) -> None:
        errors = {"object": "list", "data": faults}
        self._change(batch, owner, status="failed", failed_at=int(time.time()), errors=errors)


def _read(lines: Path) -> list[Any]:
    return read_jsonl_tolerant(lines) if lines.exists() else []


def _told(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    """OpenAI's error of a batch."""
    return {"code": code, "message": message, "line": line, "param": None}


def _well(line: Mapping[str, Any]) -> bool:
    return line["response"]["status_code"] == 200


def _fault(request: Any, endpoint: str, seen: set[str]) -> str | None:
    """Why a line is no request of the batch."""
    if not isinstance(request, dict) or not isinstance(request.get("body"), dict):
        return 'a line is {"custom_id", "method", "url", "body"}'
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return '"custom_id" must be a text'
    if custom_id in seen:
        return f'"custom_id" {custom_id} was there before'
    seen.add(custom_id)
    if request.get("method", "POST") != "POST" or request.get("url") != endpoint:
        return f'"method" must be POST and "url" {endpoint}, as the batch says'
    return None
