"""Files wherever they lie: local paths, file://, http(s)://, s3:// and gs:// behind one set of functions.

Local paths never touch fsspec, so reading them costs no import. What fsspec and the vendors below it raise
is translated once, here, to `StorageError` with a hint. Addresses in messages are shown without credentials
and without their query, which may hold a signature.
"""

from __future__ import annotations

import dataclasses
import errno
import glob as _glob
import io
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar, cast

from tunery.errors import RunError, StorageError, UnreachableError

AnyPath = str | os.PathLike[str]
Progress = Callable[[int, int | None], None]  # (bytes done, bytes in all when known)
CHUNK = 1 << 18  # bytes a read
RETRY_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds
T = TypeVar("T")


# --- names -----------------------------------------------------------------------------------------------


def is_remote(path: AnyPath) -> bool:
    """Whether `path` is an address of another machine: anything with a scheme except file://."""
    text = os.fspath(path)
    return "://" in text and not text.startswith("file://")


def local(path: AnyPath) -> Path:
    """The local path behind a plain path or a file:// address. Raises StorageError for a remote one."""
    text = os.fspath(path)
    if is_remote(text):
        raise StorageError(f"{shown(text)} is not on this machine", hint="copy it to a local folder first")
    if text.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        text = unquote(urlsplit(text).path)
    return Path(text).expanduser()


def join(base: AnyPath, *parts: str) -> str:
    """`base` and `parts` as one path; a part that is absolute or remote itself replaces what is before it."""
    out = os.fspath(base)
    for part in parts:
        if "://" in part or part.startswith(("/", "~")):
            out = part
        elif "://" in out:
            out = out.rstrip("/") + "/" + part.lstrip("/")
        else:
            out = os.path.join(out, part)
    return out


def absolute(path: AnyPath) -> str:
    """`path` as a process with another current folder finds it."""
    return os.fspath(path) if is_remote(path) else str(local(path).absolute())


def shown(path: AnyPath) -> str:
    """`path` as it may be printed: an address without user, password and query."""
    text = os.fspath(path)
    if not is_remote(text):
        return text
    scheme, _, rest = text.partition("://")
    if scheme in ("http", "https"):
        rest = rest.partition("?")[0].partition("#")[0]
    host, slash, tail = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{tail}"


# --- errors ----------------------------------------------------------------------------------------------


# Vendors' classes are known by name, so that none of them need be imported.
_VENDORS = ("botocore", "aiobotocore", "boto", "s3fs", "gcsfs", "google", "aiohttp", "fsspec", "requests")
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ProfileNotFound",
}
_OFFLINE = {
    "ClientConnectionError",
    "EndpointConnectionError",
    "HTTPClientError",
    "URLError",
    "TransportError",
}


def translate(error: BaseException, path: AnyPath, action: str = "read") -> StorageError:
    """The StorageError for what a file system or its vendor raised about `path`."""
    error = _true_error(error)
    name = shown(path)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    number = getattr(error, "errno", None)

    if _is_missing(error):
        return StorageError(f"{name} does not exist", hint="check the path; it is read exactly as written")
    if kinds & _NO_CREDENTIALS:
        return StorageError(
            f"no credentials to {action} {name}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE (s3), "
            "GOOGLE_APPLICATION_CREDENTIALS (gs), or use the public https:// address",
        )
    if isinstance(error, PermissionError) or number == errno.EROFS or _status(error) in (401, 403):
        hint = "check what the credentials allow" if is_remote(path) else "check its owner and mode: ls -ld"
        return StorageError(f"not allowed to {action} {name}", hint=hint)
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{name} is a folder, not a file", hint="name a file in it")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return StorageError(f"cannot {action} {name}: a file is where a folder should be")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space left to {action} {name}", hint="free disk space: df -h")
    if isinstance(error, ImportError):
        missing = getattr(error, "name", None) or "s3fs gcsfs aiohttp"
        return StorageError(f"cannot {action} {name}: {error}", hint=f"pip install {missing}")
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        hint = "use a local path, file://, http(s)://, s3:// or gs://"
        return StorageError(f"cannot {action} {name}: unknown scheme", hint=hint)
    busy = is_remote(path) and number in (errno.EBUSY, errno.EREMOTEIO)  # s3fs has them for S3's 5xx
    if isinstance(error, ConnectionError | TimeoutError) or kinds & _OFFLINE or busy or _is_5xx(error):
        hint = "check the network, the proxy and the address"
        return UnreachableError(f"cannot reach {name}: {_brief(error)}", hint=hint)
    return StorageError(f"cannot {action} {name}: {_brief(error)}")


def _true_error(error: BaseException) -> BaseException:
    """fsspec calls every http failure "not found", and keeps the true one as its cause."""
    cause = error.__cause__
    hidden = isinstance(error, FileNotFoundError) and type(cause).__module__.startswith("aiohttp")
    return cause if hidden and cause else error


def _is_missing(error: BaseException | None) -> bool:
    if error is None:
        return False
    error = _true_error(error)
    return isinstance(error, FileNotFoundError) or _status(error) == 404


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp, urllib or gcsfs."""
    return getattr(error, "status", None) or getattr(error, "code", None)


def _is_5xx(error: BaseException) -> bool:
    status = _status(error)
    return isinstance(status, int) and status >= 500


def _brief(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error).strip()
    lines = text.splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextmanager
def translating(path: AnyPath, action: str = "read") -> Iterator[None]:
    """Translate what the body raises about `path`; errors about other files, and of other kinds, pass."""
    try:
        yield
    except Exception as error:
        vendor = type(error).__module__.partition(".")[0] in _VENDORS
        if vendor or (isinstance(error, OSError) and _is_about(error.filename, path)):
            raise translate(error, path, action) from error
        raise


def _is_about(name: Any, path: AnyPath) -> bool:
    """Whether an OSError's file name is `path` or a folder above it. Remote ones name what they like."""
    if name is None or is_remote(path):
        return True
    here = local(path).absolute()
    return isinstance(name, str | bytes) and Path(os.fsdecode(name)).absolute() in (here, *here.parents)


def patiently(work: Callable[[], T]) -> T:
    """`work()`, tried again after ever longer pauses, a minute in all, while its storage cannot be reached.

    Raises what `work` raises: UnreachableError when the pauses are used up, anything else at once.
    """
    for pause in RETRY_PAUSES:
        try:
            return work()
        except UnreachableError:
            time.sleep(pause)
    return work()


def filesystem(path: AnyPath) -> tuple[Any, str]:
    """fsspec's file system for a remote path, and the path inside it. No listing is cached: others write."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(os.fspath(path), use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise translate(error, path) from error


# --- reading ---------------------------------------------------------------------------------------------


@contextmanager
def open_bytes(path: AnyPath, mode: Literal["rb", "wb", "ab"] = "rb") -> Iterator[IO[bytes]]:
    """Open for bytes, anywhere; writing makes missing parent folders. Raises StorageError."""
    with translating(path, "read" if mode == "rb" else "write"):
        if is_remote(path):
            fs, inner = filesystem(path)
            if mode != "rb" and fs.protocol in ("http", ("http", "https")):
                raise StorageError(f"cannot write {shown(path)}: http is read only", hint="write to s3:// or gs://")
            with fs.open(inner, mode) as file:
                yield cast(IO[bytes], file)
        else:
            target = local(path)
            if mode != "rb":
                target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, mode) as file:
                yield file


@contextmanager
def open_text(path: AnyPath, mode: Literal["r", "w", "a"] = "r") -> Iterator[IO[str]]:
    """Open for UTF-8 text, line ends left as they are. Raises StorageError."""
    with open_bytes(path, cast(Any, mode + "b")) as raw:
        text = io.TextIOWrapper(cast(Any, raw), encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()  # the file below is closed by its own owner


def read_bytes(path: AnyPath) -> bytes:
    """The whole file. Raises StorageError."""
    with open_bytes(path) as file:
        return file.read()


def exists(path: AnyPath) -> bool:
    """Whether a file or folder is there. Raises StorageError when that cannot be found out."""
    if not is_remote(path):
        return local(path).exists()
    fs, inner = filesystem(path)
    try:
        with translating(path):
            fs.info(inner)
    except StorageError as error:
        if _is_missing(error.__cause__):
            return False
        raise
    return True


def list_files(path: AnyPath) -> list[str]:
    """The files behind a file name, a folder (not its subfolders) or a glob, sorted; hidden ones left out.

    Empty when there are none. An http(s) address is always one file: http has no listings.
    """
    text = os.fspath(path)
    if text.startswith(("http://", "https://")):
        return [text]
    magic = any(sign in text for sign in "*?[")
    if not is_remote(text):
        here = local(text)
        if here.is_file():
            return [str(here)]
        found = [str(p) for p in here.iterdir()] if here.is_dir() else _glob.glob(str(here)) if magic else []
        return sorted(p for p in found if os.path.isfile(p) and not os.path.basename(p).startswith("."))
    fs, inner = filesystem(text)
    with translating(text, "list"):
        if not magic and fs.isfile(inner):
            return [text]
        found = fs.glob(inner) if magic else fs.glob(inner.rstrip("/") + "/*")
        kept = sorted(p for p in found if not p.rsplit("/", 1)[-1].startswith(".") and fs.isfile(p))
        return [fs.unstrip_protocol(p) for p in kept]


def read_json(path: AnyPath) -> Any:
    """The JSON value in a file. Raises StorageError that names the line for anything else."""
    data = read_bytes(path)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StorageError("not UTF-8 text", where=f"{shown(path)}:{line}") from error
    except json.JSONDecodeError as error:
        what = "the file is empty" if not data.strip() else f"not JSON: {error.msg}"
        raise StorageError(what, where=f"{shown(path)}:{error.lineno}") from error


def read_jsonl_tolerant(path: AnyPath) -> list[Any]:
    """The rows of a JSONL file that may have been cut by a crash: a torn last line is left out.

    A missing file has no rows. Raises StorageError for a malformed line that is not the last.
    """
    try:
        data = read_bytes(path)
    except StorageError as error:
        if _is_missing(error.__cause__):
            return []
        raise
    lines = data.split(b"\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    rows: list[Any] = []
    for i, line in enumerate(lines[: last + 1]):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if i == last:
                break
            raise StorageError("not JSON", where=f"{shown(path)}:{i + 1}") from error
    return rows


# --- writing ---------------------------------------------------------------------------------------------


def write_atomic(path: AnyPath, data: bytes | str, *, mode: int = 0o666) -> None:
    """Write a whole file so that a reader, or a crash, sees the old content or the new, never a part.

    A local file gets the permissions `mode`, less what the umask takes from all files.
    """
    raw = data.encode() if isinstance(data, str) else data
    if is_remote(path):  # object stores show an object only when it is complete
        with open_bytes(path, "wb") as file:
            file.write(raw)
        return
    target = local(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        sync_folder(target.parent)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise translate(error, path, "write") from error


def write_json_atomic(path: AnyPath, value: Any, *, mode: int = 0o666) -> None:
    """`write_atomic` of a value as indented JSON. Dataclasses, paths and numpy scalars are understood."""
    write_atomic(path, to_json(value, indent=2) + "\n", mode=mode)


def remove(path: AnyPath) -> None:
    """Delete one file. Raises StorageError."""
    with translating(path, "remove"):
        if is_remote(path):
            fs, inner = filesystem(path)
            fs.rm_file(inner)
        else:
            local(path).unlink()


def append_jsonl(path: AnyPath, row: Any, *, sync: bool = False) -> None:
    """Append one row to a local JSONL file in one write, after mending a line that a crash has torn.

    `sync` waits until the row is on the disk, for rows that must outlive a power cut.
    """
    target = local(path)
    line = to_json(row).encode() + b"\n"
    with translating(path, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab+") as file:
            if _torn(file):
                line = _mend(file) + line
            file.write(line)
            file.flush()
            if sync:
                os.fsync(file.fileno())


def _torn(file: IO[bytes]) -> bool:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return False
    file.seek(end - 1)
    return file.read(1) != b"\n"


def _mend(file: IO[bytes]) -> bytes:
    """Cut an unfinished last line off; a finished one that lacks only its line end gets it (returned)."""
    file.seek(0)
    data = file.read()
    start = data.rfind(b"\n") + 1
    try:
        json.loads(data[start:])
        return b"\n"
    except ValueError:
        file.truncate(start)
        return b""


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that every parser reads: NaN and infinities become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, indent=indent, default=_plain)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    for method in ("isoformat", "tolist"):  # dates; numpy and torch values
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_plain(value))


def sync_folder(folder: AnyPath) -> None:
    """Make a rename in a local folder outlive a power cut."""
    handle = os.open(local(folder), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- folders ---------------------------------------------------------------------------------------------


def free_bytes(path: AnyPath) -> int | None:
    """Free bytes where `path` lies or will lie; None for a remote path, which knows no limit."""
    if is_remote(path):
        return None
    here = local(path).absolute()
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free


def copy_tree(source: AnyPath, target: AnyPath) -> int:
    """Copy a folder, anywhere to anywhere; returns the bytes copied.

    A local target appears complete or not at all. Raises StorageError when it is already there and not
    empty, or when the source is missing.
    """
    files = list(_walk(source))
    if not files:
        raise StorageError(f"{shown(source)} does not exist or holds no files", hint="check the path")
    if is_remote(target):
        if exists(target):
            raise StorageError(f"{shown(target)} is already there", hint="choose another target or remove it")
        return sum(_copy_file(join(source, name), join(target, name)) for name in files)
    final = local(target)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise StorageError(f"{final} is already there", hint="choose another target or remove it")
    part = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
    try:
        copied = sum(_copy_file(join(source, name), str(part / name)) for name in files)
        with translating(target, "write"):
            os.replace(part, final)
            sync_folder(final.parent)
        return copied
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _walk(folder: AnyPath) -> Iterator[str]:
    """Names of all files below a folder, relative to it, sorted."""
    if not is_remote(folder):
        root = local(folder)
        yield from sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        return
    fs, inner = filesystem(folder)
    with translating(folder, "list"):
        inner = inner.rstrip("/")
        yield from sorted(p[len(inner) + 1 :] for p in fs.find(inner) if p != inner)


def _copy_file(source: str, target: str) -> int:
    copied = 0
    with open_bytes(source) as reader, open_bytes(target, "wb") as writer:
        while chunk := reader.read(CHUNK):
            writer.write(chunk)
            copied += len(chunk)
    return copied


class FolderLock:
    """Exclusive use of a local folder by one process, freed by the system when the process ends.

    `with FolderLock(folder): ...` raises RunError that names the other process when it is in use.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.folder = local(folder)
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        import fcntl

        with translating(self.folder, "lock"):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / ".lock", "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise RunError(
                f"{self.folder} is in use by pid {owner}", hint="wait for it to end, or choose another folder"
            ) from error
        except OSError as error:
            file.close()
            raise translate(error, self.folder, "lock") from error
        # The file stays after release: were it removed, two processes could lock two files of one name.
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None
