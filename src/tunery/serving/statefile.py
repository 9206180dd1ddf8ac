"""A small JSON file of intent (keys, aliases) that a service reads while others change it."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Generic, TypeVar

from tunery.errors import ConfigError, RunError, TuneryError
from tunery.storage import read_json, translating, write_json_atomic

LOOK = 0.5  # seconds between two looks at a file
T = TypeVar("T")
log = logging.getLogger("ray.serve")


class StateFile(Generic[T]):
    """`empty` is what a missing file holds, `parse` makes of its JSON what is worked with.

    A file that is damaged at the start raises RunError. One that is damaged later on, or gone, leaves what was read
    before: a service must not lose its keys, and so be open to everybody, because a file was moved.
    """

    def __init__(self, path: Path, empty: Any, parse: Callable[[Any], T], *, mode: int = 0o666) -> None:
        self._path = path
        self._empty = empty
        self._parse = parse
        self._mode = mode
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._looked = time.monotonic()
        self._value = self._read()

    @property
    def value(self) -> T:
        """What the file says now, or said half a second ago."""
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            try:
                self._look_again()
            except TuneryError as error:
                log.warning("%s; what it said before stays", error)
        return self._value

    def _look_again(self) -> None:
        """Raises TuneryError, once, for a change that cannot be taken up."""
        stamp = self._stat()
        if stamp == self._stamp:
            return
        if stamp is None:
            self._stamp = None
            raise RunError("the file is gone", where=str(self._path))
        self._value = self._read()

    @contextmanager
    def changing(self) -> Iterator[Any]:
        """The file's JSON, to be changed in place; written when the block ends well. One writer at a time."""
        with self._lock, self._alone():
            state = read_json(self._path) if self._path.exists() else deepcopy(self._empty)
            yield state
            self._parse(state)
            write_json_atomic(self._path, state, mode=self._mode)
            self._value = self._read()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process changes the file; it frees the lock when it ends, however it does."""
        with translating(self._path, "lock"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _stat(self) -> tuple[int, int, int] | None:
        with translating(self._path):
            try:
                found = self._path.stat()
            except FileNotFoundError:
                return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> T:
        self._stamp = self._stat()
        try:
            return self._parse(read_json(self._path) if self._stamp else self._empty)
        except ConfigError as error:
            raise RunError(error.message, hint=error.hint, where=str(self._path)) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"was written by another Tunery, or by hand: {error!r}", where=str(self._path)) from None
