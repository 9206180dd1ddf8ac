"""Rows out of JSONL, JSON, CSV and Parquet files, each with the line it stands on."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from tunery import storage
from tunery.errors import DataError

FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
Row = tuple[int, dict[str, Any]]  # (line in the file, or row number in Parquet; both from 1), columns


def file_format(path: str) -> str | None:
    """The format by the ending of a name, looking through a .gz: json, csv, parquet or None."""
    name = PurePosixPath(storage.shown(path).lower())
    return FORMATS.get(PurePosixPath(name.stem).suffix if name.suffix == ".gz" else name.suffix)


def read_rows(path: str, label: str) -> list[Row]:
    """All rows of one file; `label` names it in errors. Blank lines are left out.

    Raises DataError with `where="label:line"` for what is not rows, StorageError for what cannot be read.
    """
    kind = file_format(path)
    if kind is None:
        raise DataError(
            "unknown file type", where=label, hint=f"name it {', '.join(FORMATS)} (or any of them with .gz)"
        )
    data = storage.read_bytes(path)
    if storage.shown(path).lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise DataError(f"not a whole gzip file: {error}", where=label) from error
    if not data.strip():
        raise DataError("the file is empty", where=label)
    if kind == "parquet":
        rows = _parquet(data, label)
    else:
        text = _decode(data, label)
        if kind == "csv":
            rows = list(_csv(text, label, "\t" if ".tsv" in path else ","))
        else:
            rows = list(_json_array(text, label) if text.lstrip().startswith("[") else _json_lines(text, label))
    if not rows:
        raise DataError("the file holds no rows", where=label)
    return rows


def _decode(data: bytes, label: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            "the file is UTF-16, not UTF-8", where=f"{label}:1", hint="convert it: iconv -f UTF-16 -t UTF-8"
        )
    if (at := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, at) + 1
        hint = "a crash or a full disk may have left the file damaged; write it again"
        raise DataError("NUL byte", where=f"{label}:{line}", hint=hint)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"byte 0x{data[error.start]:02x} at byte {column} of the line is not UTF-8",
            where=f"{label}:{line}",
            hint="convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8",
        ) from error


def _json_lines(text: str, label: str) -> Iterator[Row]:
    # Only "\n" ends a line: str.splitlines would also cut at U+2028 inside a text.
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _malformed(error, f"{label}:{number}", whole=line.rstrip().endswith("}")) from error
        yield number, _as_object(row, f"{label}:{number}")


def _json_array(text: str, label: str) -> Iterator[Row]:
    """The elements of a top-level list, decoded one by one, so that each knows its line."""
    decode = json.JSONDecoder().raw_decode
    line, counted = 1, 0
    at = _skip_space(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            row, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            here = getattr(error, "lineno", line)
            raise _malformed(error, f"{label}:{here}", whole=text.rstrip().endswith("]")) from error
        yield line, _as_object(row, f"{label}:{line}")
        at = _skip_space(text, end)
        sign = text[at : at + 1]
        if sign == ",":
            at = _skip_space(text, at + 1)
            sign = "," if text[at : at + 1] == "]" else ""  # a comma before the closing bracket
        if sign not in ("", "]") or at >= len(text):
            line += text.count("\n", counted, at)
            what = "a comma too many" if sign == "," else 'expected "," or "]" after the row'
            raise DataError(f"malformed JSON: {what}", where=f"{label}:{line}")
    if text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        raise DataError("malformed JSON: text after the list", where=f"{label}:{line}")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _malformed(error: Exception, where: str, *, whole: bool) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        message = f"malformed JSON: {error.msg} at column {error.colno}"
    else:
        message = f"malformed JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"
    return DataError(message, where=where, hint=None if whole else "the line ends early: was the file cut short?")


def _as_object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"a row must be an object, not {json_type(row)}",
            where=where,
            hint='write it as {"column": value, ...}',
        )
    return row


def _csv(text: str, label: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)  # a cell may hold a document; the default stops at 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where, line, start = f"{label}:{start}", start, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    raise DataError(f'column "{twice[0]}" is there twice', where=where)
                continue
            if len(cells) != len(header):
                hint = "quote cells that hold a comma, a quote or a line end"
                raise DataError(f"{len(cells)} cells, but the header has {len(header)}", where=where, hint=hint)
            yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"malformed CSV: {error}", where=f"{label}:{start}") from error


def _parquet(data: bytes, label: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
        return list(enumerate(table.to_pylist(), 1))
    except (pa.ArrowException, OSError, ValueError) as error:
        brief = str(error).splitlines()[0]
        raise DataError(f"not a readable Parquet file: {brief}", where=label) from error


def json_type(value: Any) -> str:
    """What JSON calls the type of a value, with its article, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
