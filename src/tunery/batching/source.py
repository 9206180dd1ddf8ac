"""The input of a batch: files of rows, divided into chunks that are a function of their content alone.

Whoever reads a chunk, and however often, reads the same rows at the same places: all that is exactly once rests on it.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tunery import storage
from tunery.data.files import csv_rows, file_format, json_lines, read_rows
from tunery.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["lines", "csv", "parquet", "whole"]
Columns = dict[str, "pa.DataType"]

CHUNK_ROWS = 256
_FEW_ROWS = 32  # what a chunk is grown from where the input is small, so that there are several chunks to work on
_SMALL = 64 << 20  # bytes
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class File:
    """One input file. `digest` is of its content, or what a remote storage calls its version; `header` a CSV's."""

    path: str
    size: int
    digest: str
    kind: Kind
    header: bytes = b""

    @property
    def label(self) -> str:
        return os.path.basename(storage.shown(self.path))


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows` rows of file number `file`, the first of which stands on `line` (a row number where there are no lines).

    `start` and `size` are bytes of a file of lines, `start` else the first row in the file or in Parquet's `group`.
    """

    number: int
    file: int
    start: int
    size: int
    rows: int
    line: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One row as it was found: its columns, or why it is none and its text."""

    line: int
    row: dict[str, Any] | None
    raw: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Source:
    """All files and chunks. Small enough to travel to every worker: some hundred bytes a chunk."""

    files: tuple[File, ...]
    chunks: tuple[Chunk, ...]

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)

    def read(self, chunk: Chunk) -> list[Entry]:
        """The rows of a chunk in order. Raises StorageError, and DataError for a file that has changed since."""
        file = self.files[chunk.file]
        if file.kind == "parquet":
            table = _group(file, chunk.group).slice(chunk.start, chunk.rows)
            return [Entry(chunk.line + i, row) for i, row in enumerate(table.to_pylist())]
        if file.kind == "whole":
            return _whole(file)[chunk.start : chunk.start + chunk.rows]
        with storage.open_bytes(file.path) as handle:
            handle.seek(chunk.start)
            data = handle.read(chunk.size)
        entries = list(_parsed(file, chunk, data))
        if len(data) != chunk.size or len(entries) != chunk.rows:
            raise DataError("the file has changed while it was read", where=file.label)
        return entries

    def columns(self, *, survey: bool) -> Columns | None:
        """The columns of all rows and their Arrow types; None for JSON, whose rows need not agree, unless `survey`.

        A survey reads all rows once: types that differ are joined, what no type holds is kept as JSON text.
        Raises DataError where files of one kind have other columns than the first.
        """
        import pyarrow as pa

        kinds = {file.kind for file in self.files}
        if kinds == {"parquet"}:
            schemas = [_schema(file) for file in self.files]
            _agree(self.files, [{f.name: str(f.type) for f in schema} for schema in schemas])
            return {field.name: field.type for field in schemas[0]}
        if kinds == {"csv"}:
            headers = [_header(file) for file in self.files]
            _agree(self.files, [dict.fromkeys(header, "text") for header in headers])
            return dict.fromkeys(headers[0], pa.string())
        return joined(e.row for c in self.chunks for e in self.read(c) if e.row is not None) if survey else None


def find(pattern: str, *, chunk_rows: int | None = None) -> Source:
    """Divide the file, folder or glob `pattern`, local or remote, into chunks; reads each file of lines once.

    `chunk_rows` is the most rows of a chunk. Raises DataError when there is nothing to read, StorageError.
    """
    paths = [storage.absolute(p) for p in storage.list_files(pattern)]
    named = [p for p in paths if file_format(p)]
    if not named:
        what = "is of no known type" if paths else "holds no files of rows"
        hint = "rows come in .jsonl, .json, .csv, .tsv, .parquet or .arrow"
        if not paths and not any(sign in pattern for sign in "*?["):
            storage.read_bytes(pattern)  # which says why it cannot be read
        raise DataError(f"{storage.shown(pattern)} {what}", hint=hint)
    files, pieces = [], []
    few = _FEW_ROWS if sum(_size(p) for p in named) <= _SMALL else CHUNK_ROWS
    few = min(few, chunk_rows or few)
    for path in named:
        file, found = _scan(path, len(files), few)
        files.append(file)
        pieces += found
    rows = sum(piece.rows for piece in pieces)
    if not rows:
        raise DataError("the input holds no rows", where=storage.shown(pattern))
    most = chunk_rows or max(_FEW_ROWS, min(CHUNK_ROWS, rows // 16))
    return Source(tuple(files), tuple(_merged(pieces, most)))


def _merged(pieces: Iterable[Chunk], most: int) -> Iterator[Chunk]:
    """Neighbours put together up to `most` rows, numbered."""
    last: Chunk | None = None
    number = 0
    for piece in pieces:
        near = last and (piece.file, piece.group) == (last.file, last.group)
        if last and near and last.rows + piece.rows <= most and last.size + piece.size <= _CHUNK_BYTES:
            last = replace(last, rows=last.rows + piece.rows, size=last.size + piece.size)
            continue
        if last:
            yield last
            number += 1
        last = replace(piece, number=number)
    if last:
        yield last


# --- one file --------------------------------------------------------------------------------------------


def _size(path: str) -> int:
    with storage.open_bytes(path) as handle:
        return handle.seek(0, os.SEEK_END)


def _kind(path: str) -> Kind:
    form = file_format(path)
    if form == "parquet":
        return "parquet"
    if storage.shown(path).lower().endswith(".gz") or form == "arrow":
        return "whole"
    with storage.open_bytes(path) as handle:
        start = handle.read(1 << 16)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or not start.strip():
        return "whole"  # whose reader says what is wrong
    if form == "csv":
        return "csv"
    return "whole" if path.lower().endswith(".json") or start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[" else "lines"


def _scan(path: str, number: int, few: int) -> tuple[File, list[Chunk]]:
    kind = _kind(path)
    if kind == "parquet":
        file = File(path, _size(path), _digest(path), kind)
        pieces, line = [], 1
        for group, rows in enumerate(_group_rows(file)):
            for start in range(0, rows, few):
                pieces.append(Chunk(0, number, start, 0, min(few, rows - start), line + start, group))
            line += rows
        return file, pieces
    if kind == "whole":
        file = File(path, _size(path), _digest(path), kind)
        rows = len(_whole(file))
        return file, [Chunk(0, number, at, 0, min(few, rows - at), at + 1) for at in range(0, rows, few)]
    lines = _Lines(path)
    if kind == "csv":
        header, pieces = _cut_csv(lines, number, few)
    else:
        header, pieces = b"", _cut_lines(lines, number, few)
    return File(path, lines.at, lines.digest.hexdigest()[:32], kind, header), pieces


class _Lines:
    """The lines of a file, with how far they were read and the digest of that."""

    def __init__(self, path: str) -> None:
        self.path, self.at, self.number, self.digest = path, 0, 0, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        with storage.open_bytes(self.path) as handle:
            # fsspec's own lines are slow.
            lines: Any = io.BufferedReader(handle, 1 << 20) if storage.is_remote(self.path) else handle  # type: ignore
            for line in lines:
                self.digest.update(line)
                self.at += len(line)
                self.number += 1
                yield line


def _cut_lines(lines: _Lines, number: int, few: int) -> list[Chunk]:
    pieces: list[Chunk] = []
    start, begins, rows = 0, 1, 0
    for line in lines:
        rows += not line.isspace()
        if rows >= few or (rows and lines.at - start >= _CHUNK_BYTES):
            pieces.append(Chunk(0, number, start, lines.at - start, rows, begins))
            start, begins, rows = lines.at, lines.number + 1, 0
    if rows:
        pieces.append(Chunk(0, number, start, lines.at - start, rows, begins))
    return pieces


def _cut_csv(lines: _Lines, number: int, few: int) -> tuple[bytes, list[Chunk]]:
    """A CSV's header and its pieces. Only reading it tells a line end from one in a quoted cell."""
    label = os.path.basename(storage.shown(lines.path))
    pieces: list[Chunk] = []
    rows = 0

    def refused(error: DataError) -> None:
        nonlocal rows
        rows += 1

    head: list[bytes] = []
    found = iter(lines)
    while not next((cells for cells in csv.reader(map(_text, head)) if cells), None) or _open(head):
        if (line := next(found, None)) is None:
            break
        head.append(line)
    header = b"".join(head)
    start, begins = lines.at, lines.number + 1
    for _ in csv_rows(map(_text, itertools.chain(head, found)), label, _delimiter(label), refused):
        rows += 1
        if rows >= few or lines.at - start >= _CHUNK_BYTES:
            pieces.append(Chunk(0, number, start, lines.at - start, rows, begins))
            start, begins, rows = lines.at, lines.number + 1, 0
    if rows:
        pieces.append(Chunk(0, number, start, lines.at - start, rows, begins))
    return header, pieces


def _open(head: list[bytes]) -> bool:
    """Whether a header goes on in the next line: a quoted name holds a line end."""
    return b"".join(head).count(b'"') % 2 == 1


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _digest(path: str) -> str:
    """sha256 of a local file; of a remote one what its storage says of its version."""
    if storage.is_remote(path):
        fs, inner = storage.filesystem(path)
        with storage.translating(path):
            info = fs.info(inner)
        return str(info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("size")).strip('"')
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:32]


# --- rows ------------------------------------------------------------------------------------------------


def _parsed(file: File, chunk: Chunk, data: bytes) -> Iterator[Entry]:
    """The rows of a file of lines, good and bad, in order."""
    entries: list[Entry] = []
    shift = 0
    if file.kind == "csv":
        head = file.header.splitlines(keepends=True)
        shift = chunk.line - len(head) - 1
        both = map(_text, itertools.chain(head, io.BytesIO(data)))
        rows = csv_rows(both, file.label, _delimiter(file.label), lambda error: refuse(error))
    else:
        rows = json_lines(data.split(b"\n"), file.label, lambda error: refuse(error), chunk.line)

    def refuse(error: DataError) -> None:
        line = int((error.where or ":0").rpartition(":")[2]) + shift
        raw = data.split(b"\n")[line - chunk.line].decode("utf-8", "replace")
        entries.append(Entry(line, None, raw, error.message))

    for line, row in rows:
        yield from entries
        entries.clear()
        yield Entry(line + shift, row)
    yield from entries


def _delimiter(label: str) -> str:
    return "\t" if ".tsv" in label.lower() else ","


def _header(file: File) -> list[str]:
    lines = map(_text, file.header.splitlines(keepends=True))
    return next(cells for cells in csv.reader(lines, delimiter=_delimiter(file.label)) if cells)


@functools.lru_cache(maxsize=1)
def _whole(file: File) -> list[Entry]:
    """Files that only reading from their beginning tells the rows of; kept, since the next chunk is of the same."""
    entries: list[Entry] = []

    def refuse(error: DataError) -> None:
        line = (error.where or "").rpartition(":")[2]
        entries.append(Entry(int(line) if line.isdigit() else 0, None, "", error.message))

    entries += [Entry(line, row) for line, row in read_rows(file.path, file.label, refuse)]
    return sorted(entries, key=lambda e: e.line)


@functools.lru_cache(maxsize=1)
def _group(file: File, group: int) -> pa.Table:
    import pyarrow.parquet as pq

    with _readable(file), storage.open_bytes(file.path) as handle:
        return pq.ParquetFile(handle).read_row_group(group)


def _group_rows(file: File) -> list[int]:
    import pyarrow.parquet as pq

    with _readable(file), storage.open_bytes(file.path) as handle:
        metadata = pq.ParquetFile(handle).metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def _schema(file: File) -> pa.Schema:
    import pyarrow.parquet as pq

    with _readable(file), storage.open_bytes(file.path) as handle:
        return pq.ParquetFile(handle).schema_arrow


class _readable:
    """Says of Arrow's errors which file they are about."""

    def __init__(self, file: File) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException):
            reason = str(error).splitlines()[0]
            raise DataError(f"not a readable Parquet file: {reason}", where=self._file.label) from error


# --- columns ---------------------------------------------------------------------------------------------


def _agree(files: Iterable[File], columns: list[Mapping[str, str]]) -> None:
    for file, found in zip(files, columns, strict=True):
        if found != columns[0]:
            other = sorted(n for n in {*found, *columns[0]} if found.get(n) != columns[0].get(n))
            raise DataError(
                f"its columns are not those of the first file: {', '.join(other)}",
                where=file.label,
                hint="give all files the same columns and types, or run a batch for each kind",
            )


def joined(rows: Iterable[Mapping[str, Any]]) -> Columns:
    """The Arrow type that holds all values of each column, in order of appearance; JSON text where none does."""
    import pyarrow as pa

    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            kind = type(value).__name__
            found.setdefault(name, set()).add("big" if kind == "int" and not -(2**63) <= value < 2**63 else kind)
    types = {}
    for name, kinds in found.items():
        kinds = kinds - {"NoneType"}
        if kinds == {"bool"}:
            types[name] = pa.bool_()
        elif kinds == {"int"}:
            types[name] = pa.int64()
        elif kinds and kinds <= {"int", "float"}:
            types[name] = pa.float64()
        else:
            types[name] = pa.string()
    return types
