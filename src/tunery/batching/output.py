"""Where a batch's answers lie, and what makes each row appear there exactly once.

    answers/                        a folder, or answers.jsonl.parts/ beside an output that is one file
      part-00042.parquet            the answered rows of chunk 42, whole
      errors/part-00042.jsonl       its failed rows, where there are any
      _tunery/manifest.json         what the batch is made of, written before the first part
      _tunery/done/00042.json       chunk 42 is done: its counts and sizes, written after its parts
      _SUCCESS                      all are, and add up

Names are functions of the chunk and every file appears whole, so whoever does a chunk again, at whatever moment it was
interrupted, replaces it. A chunk without its file under done/ does not count.
"""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal

from tunery import storage
from tunery.errors import ConfigError, RunError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["jsonl", "parquet", "csv"]
FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".parquet": "parquet", ".csv": "csv"}

_STALE = 90  # seconds without a sign of life, after which the lock of a remote output is free
_AT_ONCE = 32


@dataclass(frozen=True)
class Output:
    """One output: `path` is a file by its ending, else a folder of `format` parts."""

    path: str
    format: Format

    @classmethod
    def at(cls, path: str) -> Output:
        """Raises ConfigError for a file of another kind."""
        name = os.path.basename(path.rstrip("/"))
        ending = os.path.splitext(name)[1].lower()
        known = ", ".join(FORMATS)
        if ending in (".json", ".arrow", ".tsv", ".gz", ".ndjson", ".txt", ".xlsx"):
            raise ConfigError(f'cannot write "{ending}"', hint=f"end the output in {known}, or name a folder")
        return cls(storage.absolute(path).rstrip("/"), FORMATS.get(ending, "parquet"))

    @property
    def is_file(self) -> bool:
        return os.path.splitext(self.path)[1].lower() in FORMATS

    @property
    def folder(self) -> str:
        return f"{self.path}.parts" if self.is_file else self.path

    @property
    def errors(self) -> str:
        """Where failed rows are found in the end: a file beside an output that is one, else a folder."""
        stem = os.path.splitext(self.path)[0]
        return f"{stem}.errors.jsonl" if self.is_file else storage.join(self.folder, "errors")

    def part(self, number: int) -> str:
        return storage.join(self.folder, f"part-{number:05d}.{self.format}")

    def error_part(self, number: int) -> str:
        return storage.join(self.folder, "errors", f"part-{number:05d}.jsonl")

    def _own(self, *names: str) -> str:
        return storage.join(self.folder, "_tunery", *names)

    # --- the whole ---

    def check(self, manifest: Mapping[str, Any]) -> bool:
        """Whether this very batch was begun here before.

        Raises ConfigError for an output that is not of a batch, RunError for one of another batch, naming what differs.
        """
        before = self.manifest()
        if before is None:
            taken = storage.exists(self.path) if self.is_file else bool(storage.list_files(self.folder))
            if taken:
                raise ConfigError(
                    f"{storage.shown(self.path)} exists already", hint="name another output, or remove it first"
                )
            return False
        now = json.loads(storage.to_json(manifest))
        before["spec"] = now["spec"]  # kept for `retry`; what counts of it is among the settings
        if changed := differences(before, now):
            own = f"and {os.path.basename(self.folder)}/" if self.is_file else "first"
            raise RunError(
                f"{storage.shown(self.path)} is of another batch: {'; '.join(changed)}",
                hint=f"go on with what it was begun with, name another output, or remove it {own}",
            )
        return True

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest of a batch that was not begun before."""
        storage.write_json_atomic(self._own("manifest.json"), manifest)

    def manifest(self) -> dict[str, Any] | None:
        path = self._own("manifest.json")
        return storage.read_json(path) if storage.exists(path) else None

    def success(self) -> dict[str, Any] | None:
        """What `succeed` left; None for a batch that is not done."""
        path = storage.join(self.folder, "_SUCCESS")
        return storage.read_json(path) if storage.exists(path) else None

    def reopen(self) -> None:
        """Take the sign of completion away, since some chunks are about to be done again."""
        if storage.exists(path := storage.join(self.folder, "_SUCCESS")):
            storage.remove(path)

    def lock(self) -> Any:
        """A context in which no other run writes here. Raises RunError for an output that is in use."""
        return _lease(self._own("lock.json")) if storage.is_remote(self.path) else storage.FolderLock(self._own())

    # --- chunks ---

    def done(self) -> dict[int, dict[str, Any]]:
        """What `commit` was told of every chunk that is done."""
        paths = storage.list_files(self._own("done")) if storage.exists(self._own("done")) else []
        with ThreadPoolExecutor(_AT_ONCE if storage.is_remote(self.path) else 1) as pool:
            rows = list(pool.map(storage.read_json, paths))
        return {row["chunk"]: row for row in rows}

    def commit(
        self, number: int, part: bytes, failed: Sequence[Mapping[str, Any]], counts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write one chunk: its answered rows as `encode` made them, its failed ones, then that it is done."""
        errors = "".join(storage.to_json(row) + "\n" for row in failed).encode()
        storage.write_atomic(self.part(number), part)
        if errors:
            storage.write_atomic(self.error_part(number), errors)
        elif storage.exists(self.error_part(number)):
            storage.remove(self.error_part(number))
        marker = {"chunk": number, **counts, "bytes": len(part), "error_bytes": len(errors)}
        storage.write_json_atomic(self._own("done", f"{number:05d}.json"), marker)
        return marker

    def undo(self, number: int) -> None:
        """The chunk is no longer done: it is about to be written again."""
        path = self._own("done", f"{number:05d}.json")
        if storage.exists(path):
            storage.remove(path)

    def failed(self, number: int) -> list[dict[str, Any]]:
        """The failed rows of a chunk."""
        path = self.error_part(number)
        return [json.loads(x) for x in storage.read_bytes(path).splitlines()] if storage.exists(path) else []

    def assemble(self, done: Mapping[int, Mapping[str, Any]]) -> None:
        """Check that nothing is missing, and put the parts together where the output is one file.

        Raises StorageError when a part is not what its chunk left there; that chunk is then done again by the next run.
        """
        self._check(done)
        if self.is_file:
            _assemble(self.path, self.format, (self.part(k) for k in sorted(done)))
            failed = [self.error_part(k) for k in sorted(done) if done[k]["failed"]]
            if failed:
                _assemble(self.errors, "jsonl", iter(failed))
            elif storage.exists(self.errors):
                storage.remove(self.errors)

    def succeed(self, done: Mapping[int, Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
        """Say that the batch is done. A file's parts go, unless `retry` needs them for rows that have failed."""
        storage.write_json_atomic(storage.join(self.folder, "_SUCCESS"), summary)
        if self.is_file and not any(row["failed"] for row in done.values()):
            for k in done:
                storage.remove(self.part(k))

    def _check(self, done: Mapping[int, Mapping[str, Any]]) -> None:
        there = _sizes(self.folder)
        errors = _sizes(storage.join(self.folder, "errors"))
        for k, row in done.items():
            sizes = there.get(os.path.basename(self.part(k))), errors.get(os.path.basename(self.error_part(k)), 0)
            if sizes != (row["bytes"], row["error_bytes"]) or row["rows"] != row["answered"] + row["failed"]:
                self.undo(k)
                raise StorageError(
                    f"{storage.shown(self.part(k))} is not what was written", hint="run the same command to mend it"
                )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two manifests, "key A there, B here"."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        a, b, name = before.get(key), now.get(key), f"{path}{key}"
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{name}.")
        else:
            found.append(f"{name} {_brief(a)} there, {_brief(b)} here")
    return found


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sizes(folder: str) -> dict[str, int]:
    """Name -> bytes of the files in a folder."""
    if not storage.is_remote(folder):
        path = storage.local(folder)
        return {e.name: e.stat().st_size for e in os.scandir(path) if e.is_file()} if path.is_dir() else {}
    fs, inner = storage.filesystem(folder)
    with storage.translating(folder, "list"):
        found = fs.ls(inner, detail=True) if fs.exists(inner) else []
    return {os.path.basename(e["name"]): e["size"] for e in found if e["type"] == "file"}


@contextmanager
def _lease(path: str) -> Iterator[None]:
    """A lock where there are no locks: an object that its owner writes again and again.

    Two runs that take over one lost lease in the same second would both go on, which costs work and no row.
    """
    import threading

    mine = {"host": socket.gethostname(), "pid": os.getpid()}
    if storage.exists(path):
        theirs = storage.read_json(path)
        dead = theirs["host"] == mine["host"] and not _lives(theirs["pid"])
        if not dead and time.time() - theirs["at"] < _STALE:
            raise RunError(
                f"{storage.shown(path)}: in use by pid {theirs['pid']} on {theirs['host']}",
                hint=f"wait for it to end; the lock of one that was killed is free after {_STALE} seconds",
            )
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_STALE / 4):
            storage.patiently(lambda: storage.write_json_atomic(path, mine | {"at": time.time()}))

    storage.write_json_atomic(path, mine | {"at": time.time()})
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        storage.remove(path)


def _lives(pid: int) -> bool:
    import psutil

    return pid != os.getpid() and psutil.pid_exists(pid)


# --- formats ---------------------------------------------------------------------------------------------


def encode(rows: Sequence[Mapping[str, Any]], format: Format, schema: pa.Schema | None) -> bytes:
    """Rows as a whole file. `schema` is Parquet's, and the names of a CSV's columns; JSONL needs none."""
    if format == "jsonl":
        return "".join(storage.to_json(row) + "\n" for row in rows).encode()
    assert schema is not None
    if format == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(schema.names)
        writer.writerows([_cell(row.get(name)) for name in schema.names] for row in rows)
        return text.getvalue().encode()
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array([_fit(row.get(f.name), f.type) for row in rows], type=f.type) for f in schema]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink)
    return sink.getvalue().to_pybytes()


def _cell(value: Any) -> Any:
    return storage.to_json(value) if isinstance(value, list | dict) else value


def _fit(value: Any, kind: pa.DataType) -> Any:
    """JSON text where a column of JSON has values of several types."""
    import pyarrow as pa

    if value is None or isinstance(value, str) or not pa.types.is_string(kind):
        return value
    return storage.to_json(value)


def decode(data: bytes, format: Format) -> list[dict[str, Any]]:
    """Undo `encode`; a CSV's cells stay text."""
    if format == "jsonl":
        return [json.loads(line) for line in data.split(b"\n") if line]
    if format == "csv":
        return list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(data)).to_pylist()


def _assemble(path: str, format: Format, parts: Iterator[str]) -> None:
    """Parts in order as one file, which appears when it is whole; one part at a time is in memory."""
    if storage.is_remote(path):  # which shows a file only when it is complete
        with storage.open_bytes(path, "wb") as sink:
            _join(sink, format, parts)
        return
    whole = storage.local(f"{path}.part")
    with storage.translating(whole, "write"):
        with open(whole, "wb") as sink:
            _join(sink, format, parts)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(whole, path)
        storage.sync_folder(storage.local(path).parent)


def _join(sink: IO[bytes], format: Format, parts: Iterable[str]) -> None:
    if format != "parquet":
        for i, part in enumerate(parts):
            data = storage.read_bytes(part)
            if format == "csv" and i:
                data = data[len(_csv_header(data)) :]
            sink.write(data)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for part in parts:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(part)))
        writer = writer or pq.ParquetWriter(sink, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def _csv_header(data: bytes) -> bytes:
    names = next(csv.reader(io.StringIO(data.decode(), newline="")))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(names)
    return text.getvalue().encode()
