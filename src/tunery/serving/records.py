"""OpenAI's objects of one kind in a folder, each with its owner; who owns one alone sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunery.serving.refusal import Refusal
from tunery.storage import read_json, write_json_atomic


class Records:
    """An object is `<id>.json`; an id is `prefix` and letters. An owner is a key's id, "" where there are no keys."""

    def __init__(self, folder: Path, kind: str, prefix: str) -> None:
        self.folder = folder
        self._kind, self._prefix = kind, prefix

    def write(self, value: dict[str, Any], owner: str) -> None:
        write_json_atomic(self._path(value["id"]), {"owner": owner, "value": value})

    def get(self, record_id: str, owner: str) -> dict[str, Any]:
        """Raises Refusal for one that is not there, or another's."""
        name = record_id.removeprefix(self._prefix)
        if name != record_id and name.isalnum() and (path := self._path(record_id)).exists():
            entry = read_json(path)
            if entry["owner"] == owner:
                return entry["value"]
        raise Refusal(404, f"There is no {self._kind} `{record_id}`.", code=f"{self._kind}_not_found", param="id")

    def list(self, owner: str) -> list[dict[str, Any]]:
        """The owner's, the newest first."""
        return [value for whose, value in reversed(self.all()) if whose == owner]

    def all(self) -> list[tuple[str, dict[str, Any]]]:
        """Everybody's, each with its owner, the oldest first."""
        entries = [read_json(path) for path in self.folder.glob(f"{self._prefix}*.json")]
        return sorted(((e["owner"], e["value"]) for e in entries), key=lambda pair: pair[1]["created_at"])

    def remove(self, record_id: str) -> None:
        self._path(record_id).unlink(missing_ok=True)

    def _path(self, record_id: str) -> Path:
        return self.folder / f"{record_id}.json"
