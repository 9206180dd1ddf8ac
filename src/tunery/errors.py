"""One tree of errors: each says what failed, where, and what to do next.

The same code, message and hint reach the terminal, `--json` output and API responses. They are picklable,
because they cross process borders through Ray.
"""

from __future__ import annotations

from typing import Any, ClassVar

_LONGEST = 2000  # characters of a message: it may quote a row, and a damaged row holds megabytes in one name


class TuneryError(Exception):
    """Base of every error a user is expected to see without a traceback.

    `where` is a place a person can open ("train.jsonl:41"); `hint` is the next step.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.where)

    def to_dict(self) -> dict[str, str | None]:
        """The machine form: {"code", "message", "hint", "where"}."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "where": self.where}


def _rebuild(kind: type[TuneryError], message: str, hint: str | None, where: str | None) -> TuneryError:
    return kind(message, hint=hint, where=where)


class ConfigError(TuneryError):
    """A key, value or flag that cannot be used. Nothing has been started."""

    code = "config"
    exit_status = 2


class DataError(TuneryError):
    """Rows, columns or files that cannot be read as examples."""

    code = "data"


class StorageError(TuneryError):
    """A path or bucket that cannot be read or written."""

    code = "storage"


class UnreachableError(StorageError):
    """A storage that does not answer now and may later."""


class ModelError(TuneryError):
    """A base model, tokenizer or adapter that is missing or does not fit."""

    code = "model"


class ResourceError(TuneryError):
    """Memory, disk, ports or cluster resources that are not there."""

    code = "resources"


class TrainError(TuneryError):
    """Training started and could not go on."""

    code = "train"


class EngineError(TuneryError):
    """The inference engine failed to start or to answer."""

    code = "engine"


class RunError(TuneryError):
    """A run folder or registry entry that is missing, busy or incomplete."""

    code = "run"
