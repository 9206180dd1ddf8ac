"""The routes of /v1/files and /v1/batches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import FileResponse, JSONResponse, Response

from tunery.serving.batches import Batches
from tunery.serving.files import PURPOSES, Files
from tunery.serving.gateway import Gateway
from tunery.serving.records import Records
from tunery.serving.refusal import Refusal
from tunery.serving.streams import SECURITY


def add_routes(app: FastAPI, gateway: Gateway, files: Files, batches: Batches, described: Any) -> None:
    """`described` makes a route's OpenAPI."""

    def owner(request: Request, route: str) -> str:
        key = gateway.identify(request)
        gateway.allow(key, route)
        return key.id if key else ""

    def shown(value: Any) -> Response:
        return JSONResponse(value, headers=SECURITY)

    upload = {"type": "object", "required": ["file", "purpose"], "properties": {
        "file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": list(PURPOSES)},
    }}  # fmt: skip
    multipart = {**described(), "requestBody": {"content": {"multipart/form-data": {"schema": upload}}}}

    @app.post("/v1/files", openapi_extra=multipart)
    async def create_file(request: Request) -> Response:
        who = owner(request, "/v1/files")
        limited = Request(request.scope, _limited(request, gateway.spec.max_file_bytes))
        try:
            form = await limited.form(max_files=1, max_fields=8)
        except (MultiPartException, HTTPException) as error:
            why = getattr(error, "message", None) or getattr(error, "detail", "")
            raise Refusal(400, f"The form cannot be read: {why}", code="invalid_form") from None
        async with limited.form():
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise Refusal(400, 'Send the file as the form\'s field "file".', param="file")
            if purpose not in PURPOSES:
                raise Refusal(400, f'"purpose" must be one of {", ".join(PURPOSES)}.', param="purpose")
            return shown(await files.create(file.filename or "upload", str(purpose), _pieces(file), who))

    def readable(path: str, records: Records) -> None:
        @app.get(path, openapi_extra=described())
        async def _(request: Request) -> Response:
            values = records.list(owner(request, path))
            ends = {"first_id": values[0]["id"], "last_id": values[-1]["id"]} if values else {}
            return shown({"object": "list", "data": values, "has_more": False, **ends})

        @app.get(f"{path}/{{record_id}}", openapi_extra=described())
        async def _(request: Request, record_id: str) -> Response:
            return shown(records.get(record_id, owner(request, path)))

    readable("/v1/files", files)
    readable("/v1/batches", batches)

    @app.get("/v1/files/{file_id}/content", openapi_extra=described())
    async def get_content(request: Request, file_id: str) -> Response:
        files.get(file_id, owner(request, "/v1/files"))
        return FileResponse(files.path(file_id), media_type="application/octet-stream", headers=SECURITY)

    @app.delete("/v1/files/{file_id}", openapi_extra=described())
    async def delete_file(request: Request, file_id: str) -> Response:
        return shown(files.delete(file_id, owner(request, "/v1/files")))

    text = {"type": "string"}
    body = {"type": "object", "required": ["input_file_id", "endpoint", "completion_window"], "properties": {
        "input_file_id": text, "endpoint": text, "completion_window": text, "metadata": {"type": "object"},
    }}  # fmt: skip

    @app.post("/v1/batches", openapi_extra=described(body))
    async def create_batch(request: Request) -> Response:
        who = owner(request, "/v1/batches")
        return shown(batches.create(await gateway.body(request), who))

    @app.post("/v1/batches/{batch_id}/cancel", openapi_extra=described())
    async def cancel_batch(request: Request, batch_id: str) -> Response:
        return shown(batches.cancel(batch_id, owner(request, "/v1/batches")))


def _limited(request: Request, most: int) -> Any:
    """`request.receive` up to `most` bytes of body."""
    size = 0

    async def receive() -> Any:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > most:
            raise Refusal(413, f"The file is larger than {most:,} bytes.", code="request_too_large")
        return message

    return receive


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(1 << 20):
        yield piece
