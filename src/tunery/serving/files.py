"""/v1/files: what clients upload and batches write, in a folder; each key sees its own."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tunery.serving.records import Records
from tunery.serving.refusal import Refusal

PURPOSES = ("batch", "user_data")


class Files(Records):
    """A file is `<id>` with its contents, and its record, which is written last."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "file", "file-")

    def path(self, file_id: str) -> Path:
        return self.folder / file_id

    async def create(self, name: str, purpose: str, parts: AsyncIterator[bytes], owner: str) -> dict[str, Any]:
        """Store an upload; nothing of it stays when it breaks off. Raises Refusal when the disk is full."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{secrets.token_hex(12)}.part"
        try:
            with part.open("wb") as file:
                async for piece in parts:
                    file.write(piece)
            return self.adopt(part, name, purpose, owner)
        except OSError as error:
            message = f"The file cannot be stored: {error.strerror}."
            raise Refusal(507, message, code="storage_full") from None
        finally:
            part.unlink(missing_ok=True)

    def adopt(self, path: Path, name: str, purpose: str, owner: str) -> dict[str, Any]:
        """Take a finished file over."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file_id = f"file-{secrets.token_hex(12)}"
        shutil.move(path, self.path(file_id))
        shown = {
            "id": file_id, "object": "file", "bytes": self.path(file_id).stat().st_size, "created_at": int(time.time()),
            "filename": name, "purpose": purpose, "status": "processed",
        }  # fmt: skip
        self.write(shown, owner)
        return shown

    def delete(self, file_id: str, owner: str) -> dict[str, Any]:
        """Raises Refusal as `get` does."""
        self.get(file_id, owner)
        self.remove(file_id)
        self.path(file_id).unlink(missing_ok=True)
        return {"id": file_id, "object": "file", "deleted": True}
