"""/v1/files: what clients upload and batches write, in a folder; each key sees its own."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tunery.serving.refusal import Refusal
from tunery.storage import read_json, write_json_atomic

PURPOSES = ("batch", "user_data")


class Files:
    """A file is `<id>` with its contents and `<id>.json`, written last, with OpenAI's object and its owner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file_id: str) -> Path:
        return self._folder / file_id

    async def create(self, name: str, purpose: str, parts: AsyncIterator[bytes], owner: str) -> dict[str, Any]:
        """Store an upload; nothing of it stays when it breaks off. Raises Refusal when the disk is full."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file_id = f"file-{secrets.token_hex(12)}"
        part = self._folder / f".{file_id}.part"
        try:
            with part.open("wb") as file:
                async for piece in parts:
                    file.write(piece)
            return self.adopt(part, name, purpose, owner, file_id)
        except OSError as error:
            message = f"The file cannot be stored: {error.strerror}."
            raise Refusal(507, message, code="storage_full") from None
        finally:
            part.unlink(missing_ok=True)

    def adopt(self, path: Path, name: str, purpose: str, owner: str, file_id: str | None = None) -> dict[str, Any]:
        """Take a finished file over."""
        file_id = file_id or f"file-{secrets.token_hex(12)}"
        shutil.move(path, self.path(file_id))
        shown = {
            "id": file_id, "object": "file", "bytes": self.path(file_id).stat().st_size, "created_at": int(time.time()),
            "filename": name, "purpose": purpose, "status": "processed",
        }  # fmt: skip
        write_json_atomic(self._folder / f"{file_id}.json", {"owner": owner, "file": shown})
        return shown

    def get(self, file_id: str, owner: str) -> dict[str, Any]:
        """OpenAI's file object. Raises Refusal for one that is not there, or another key's."""
        known = self._folder / f"{file_id}.json"
        if file_id.startswith("file-") and file_id[5:].isalnum() and known.exists():
            entry = read_json(known)
            if entry["owner"] == owner:
                return entry["file"]
        raise Refusal(404, f"There is no file `{file_id}`.", code="file_not_found", param="id")

    def list(self, owner: str) -> list[dict[str, Any]]:
        """The owner's files, the newest first."""
        entries = [read_json(path) for path in self._folder.glob("file-*.json")] if self._folder.is_dir() else []
        own = [e["file"] for e in entries if e["owner"] == owner]
        return sorted(own, key=lambda f: f["created_at"], reverse=True)

    def delete(self, file_id: str, owner: str) -> dict[str, Any]:
        """Raises Refusal as `get` does."""
        self.get(file_id, owner)
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)
        return {"id": file_id, "object": "file", "deleted": True}
