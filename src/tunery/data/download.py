"""Downloads that survive a cut connection, a killed process and a file that changes meanwhile."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunery import storage
from tunery.errors import StorageError

TRIES = 4  # connections in a row that bring nothing before a download gives up
BACKOFF = 0.2  # seconds before the second of them, doubled for each further one
TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True, slots=True)
class _Stream:
    body: IO[bytes]
    start: int  # offset of the body's first byte in the file
    total: int | None  # bytes of the whole file
    version: str | None  # changes when the remote file does; without one nothing can be resumed


def download(url: str, path: storage.AnyPath, *, progress: storage.Progress | None = None) -> int:
    """Copy a remote file (http, https, s3, gs) to a local path; returns its bytes.

    Bytes arrive in `path`.part, which a later call goes on from when the remote file is still the same; only
    a file of the announced size is renamed to `path`. Raises StorageError when it cannot be had; what has
    arrived by then is kept.
    """
    target = storage.local(path)
    part, state = Path(f"{target}.part"), Path(f"{target}.part.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        failures = 0
        while (cut := _attempt(url, part, state, before := _size(part), progress)) is not None:
            failures = 0 if _size(part) > before else failures + 1
            if failures == TRIES:
                error = storage.translate(cut, url)
                hint = f"run it again: {_size(part):,} bytes are here already" if _size(part) else error.hint
                raise StorageError(error.message, hint=hint) from cut
            time.sleep(BACKOFF * 2**failures)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        state.unlink(missing_ok=True)
        storage.sync_folder(target.parent)
        return target.stat().st_size
    except OSError as error:
        raise storage.translate(error, target, "write") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, part: Path, state: Path, have: int, progress: storage.Progress | None) -> Exception | None:
    """One connection. Returns what cut it, None when the file is complete; raises what no retry can mend."""
    version = _read_version(state, url) if have else None
    try:
        stream = _open(url, have if version else 0, version)
    except StorageError:
        raise
    except Exception as error:
        if getattr(error, "code", 500) in (408, 429) or getattr(error, "code", 500) >= 500:
            return error
        raise storage.translate(error, url) from error
    with stream.body as body, open(part, "r+b" if stream.start else "wb") as file:
        if stream.version and not stream.start:
            storage.write_json_atomic(state, {"url": storage.shown(url), "version": stream.version})
        elif not stream.version:
            state.unlink(missing_ok=True)
        done = file.seek(stream.start)
        while True:
            try:
                chunk = body.read(storage.CHUNK)
            except Exception as error:  # a cut shows as many types as there are vendors; all may be retried
                return error
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, stream.total)
    if stream.total is not None and done < stream.total:
        return ConnectionError(f"the connection ended after {done:,} of {stream.total:,} bytes")
    if stream.total is not None and done > stream.total:
        part.unlink()
        return ConnectionError(f"{done:,} bytes came, {stream.total:,} were announced")
    return None


def _read_version(state: Path, url: str) -> str | None:
    try:
        found = json.loads(state.read_text())
        return found["version"] if found["url"] == storage.shown(url) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open(url: str, offset: int, version: str | None) -> _Stream:
    """The remote file from `offset` when it is still `version`, from its start otherwise."""
    if not url.startswith(("http://", "https://")):
        return _open_object(url, offset, version)
    import urllib.error
    import urllib.request

    # Without "identity" a server may compress, and then neither sizes nor ranges are those of the file.
    headers = {"Accept-Encoding": "identity", "User-Agent": "tunery"}
    if offset and version:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # what is here is longer than what is there
            return _open(url, 0, None)
        raise
    found = _http_version(response.headers)
    first, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if response.status == 206 and first.partition("-")[0] == str(offset) and found == version:
        return _Stream(response, offset, int(total) if total.isdigit() else None, version)
    if response.status == 206:  # another part, or of another version: not what was asked for
        response.close()
        return _open(url, 0, None)
    length = response.headers.get("Content-Length", "")
    return _Stream(response, 0, int(length) if length.isdigit() else None, found)


def _http_version(headers: Mapping[str, Any]) -> str | None:
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _open_object(url: str, offset: int, version: str | None) -> _Stream:
    with storage.translating(url):
        fs, inner = storage.filesystem(url)
        info = fs.info(inner)
        found = next((str(info[key]) for key in ("ETag", "etag", "LastModified", "mtime") if info.get(key)), None)
        start = offset if found == version else 0
        body = fs.open(inner, "rb")
        body.seek(start)
        return _Stream(body, start, info.get("size"), found)
