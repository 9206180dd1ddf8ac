"""Rows out of JSONL, JSON, CSV, Parquet and Arrow files, each with the line it stands on.

What is wrong with one row is given to `fault`, which raises (`strict`) or puts it aside and lets the reading go on
(`list.append`). Every row of a file is either yielded or reported, never both, so the two add up.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
    ".arrow": "arrow",
}
Row = tuple[int, dict[str, Any]]  # (line in the file, or row number in Parquet and Arrow; both from 1), columns
OnFault = Callable[[DataError], None]

MAX_LINE = 32 << 20  # bytes of one row; more is no training example, but a file that lacks its line ends
MAX_INFLATED = 256 << 20  # bytes that a compressed file may always grow to ...
MAX_RATIO = 200  # ... and beyond which it must not have been smaller than this part of them (gzip's limit is 1,032)
MAX_CELLS = 200_000_000  # rows times columns of a Parquet or Arrow file: a few hundred bytes can claim billions


def strict(error: DataError) -> None:
    """The fault handler that accepts none."""
    raise error


def file_format(path: str) -> str | None:
    """The format by the ending of a name, looking through a .gz: json, csv, parquet, arrow or None."""
    name = PurePosixPath(storage.shown(path).lower())
    return FORMATS.get(PurePosixPath(name.stem).suffix if name.suffix == ".gz" else name.suffix)


def read_rows(path: str, label: str, fault: OnFault = strict) -> list[Row]:
    """All rows of one file; `label` names it in errors. Blank lines are left out.

    Rows that are none go to `fault` as a DataError with `where="label:line"`. Raises DataError for a file that has no
    readable row at all, StorageError for what cannot be read.
    """
    kind = file_format(path)
    if kind is None:
        raise DataError(
            "unknown file type", where=label, hint=f"name it {', '.join(FORMATS)} (or any of them with .gz)"
        )
    data = read_data(path, label)
    faults = 0

    def counted(error: DataError) -> None:
        nonlocal faults
        faults += 1
        fault(error)

    if kind in ("parquet", "arrow"):
        rows = list(_columnar(data, label, kind, counted))
    elif kind == "csv":
        rows = list(csv_rows(io.StringIO(_decode(data, label), newline=""), label, _delimiter(path), counted))
    elif data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        rows = list(_json_array(_decode(data, label), label, counted))
    else:
        rows = list(json_lines(data.split(b"\n"), label, counted))
    if not rows and not faults:
        raise DataError("the file holds no rows", where=label)
    return rows


def read_data(path: str, label: str) -> bytes:
    """The bytes of a file, decompressed; UTF-16, emptiness and decompression bombs are refused as DataError."""
    data = storage.read_bytes(path)
    if storage.shown(path).lower().endswith(".gz"):
        data = inflate(data, label)
    if not data.strip():
        raise DataError("the file is empty", where=label)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            "the file is UTF-16, not UTF-8", where=f"{label}:1", hint="convert it: iconv -f UTF-16 -t UTF-8"
        )
    return data


def inflate(data: bytes, label: str, what: str = "gzip file") -> bytes:
    """What gzip or zlib compressed, but never more than the limits allow."""
    out, rest = bytearray(), data
    try:
        while rest:
            member = zlib.decompressobj(wbits=47)  # either of the two
            while not member.eof:
                piece = member.decompress(rest, 1 << 24)
                rest = member.unconsumed_tail
                out += piece
                if len(out) > max(MAX_INFLATED, MAX_RATIO * len(data)):
                    raise _bomb(data, len(out), label)
                if not piece and not rest and not member.eof:
                    raise DataError(f"not a whole {what}: it ends early", where=label)
            rest = member.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise DataError(f"not a whole {what}: {error}", where=label) from error
    return bytes(out)


def _bomb(data: bytes, size: int, label: str) -> DataError:
    hint = "decompress it yourself if you trust it"
    return DataError(f"{len(data):,} bytes grow to more than {size:,}", where=label, hint=hint)


def too_large(what: str, size: int, where: str | None = None, hint: str | None = None) -> DataError:
    """The fault of a line or row that is no training example, of this many bytes."""
    return DataError(f"a {what} of {size >> 20} MiB (the limit is {MAX_LINE >> 20})", where=where, hint=hint)


def _decode(data: bytes, label: str) -> str:
    """The text; a byte that is not UTF-8 becomes a lone surrogate, which its row is refused for later."""
    return data.decode("utf-8-sig", errors="surrogateescape")


_SURROGATE = re.compile("[\ud800-\udfff]")


def _unclean(text: str, where: str) -> DataError | None:
    """What is wrong with the characters of a text, if anything is."""
    if (at := text.find("\0")) >= 0:
        hint = "a crash or a full disk may have left the file damaged; write it again"
        return DataError("NUL byte", where=where, hint=hint)
    if found := _SURROGATE.search(text):
        code, at = ord(found[0]), found.start()
        if 0xDC80 <= code <= 0xDCFF:
            at = len(text[:at].encode("utf-8", "surrogateescape")) + 1
            message = f"byte 0x{code - 0xDC00:02x} at byte {at} of the line is not UTF-8"
            return DataError(message, where=where, hint="convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8")
        hint = "the row was cut inside an emoji or the like; write it again"
        return DataError("half a character (a lone surrogate)", where=where, hint=hint)
    return None


def _half_characters(row: Any, source: str, where: str) -> DataError | None:
    """JSON can write half of a surrogate pair as an escape, which is no character."""
    if "\\ud" not in source and "\\uD" not in source:
        return None
    return _unclean(json.dumps(row, ensure_ascii=False).replace("\0", ""), where)


def json_lines(lines: Iterable[bytes], label: str, fault: OnFault = strict, start: int = 1) -> Iterator[Row]:
    """Rows of JSON lines, which are given as bytes because each may be damaged on its own."""
    # Only "\n" ends a line: str.splitlines would also cut at U+2028 inside a text.
    for number, raw in enumerate(lines, start):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw or raw.isspace():
            continue
        where = f"{label}:{number}"
        try:
            if len(raw) > MAX_LINE:
                hint = "one row a line; a list of rows that is one document is named .json and begins with ["
                raise too_large("line", len(raw), where, hint)
            line = raw.decode("utf-8", "surrogateescape")
            if error := _unclean(line, where):
                raise error
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _malformed(error, where, whole=line.rstrip().endswith("}")) from error
            if error := _half_characters(row, line, where):
                raise error
            row = _as_object(row, where)
        except DataError as error:
            fault(error)
            continue
        yield number, row


def _json_array(text: str, label: str, fault: OnFault) -> Iterator[Row]:
    """The elements of a top-level list, decoded one by one, so that each knows its line.

    Where the list itself is damaged, the rest of it is one fault.
    """
    decode = json.JSONDecoder().raw_decode
    line, counted = 1, 0
    at = _skip_space(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        where = f"{label}:{line}"
        try:
            row, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            here = f"{label}:{getattr(error, 'lineno', line)}"
            whole = text.rstrip().endswith("]")
            fault(_unclean(text[at : text.find("\n", at)], where) or _malformed(error, here, whole=whole))
            return
        source = text[at:end]
        try:
            if len(source) > MAX_LINE:
                raise too_large("row", len(source), where)
            if error := _unclean(source, where) or _half_characters(row, source, where):
                raise error
            row = _as_object(row, where)
        except DataError as error:
            fault(error)
        else:
            yield line, row
        at = _skip_space(text, end)
        sign = text[at : at + 1]
        if sign == ",":
            at = _skip_space(text, at + 1)
            sign = "," if text[at : at + 1] == "]" else ""  # a comma before the closing bracket
        if sign not in ("", "]") or at >= len(text):
            line += text.count("\n", counted, at)
            what = "a comma too many" if sign == "," else 'expected "," or "]" after the row'
            fault(DataError(f"malformed JSON: {what}", where=f"{label}:{line}"))
            return
    if text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        fault(DataError("malformed JSON: text after the list", where=f"{label}:{line}"))


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _malformed(error: Exception, where: str, *, whole: bool) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        message = f"malformed JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
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


def _delimiter(path: str) -> str:
    return "\t" if ".tsv" in path else ","


def csv_rows(lines: Iterable[str], label: str, delimiter: str, fault: OnFault = strict) -> Iterator[Row]:
    """Rows of a CSV's lines, whose line ends must be left as they are; a lone surrogate stands for a byte not UTF-8."""
    csv.field_size_limit(MAX_LINE)  # a cell may hold a document; the default stops at 128 KiB
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:  # the reader itself goes on with the next line
            what = str(error)
            # Where a quote is open for so long, the lines after it are no rows either.
            unclosed = "unexpected end" in what or ("field limit" in what and reader.line_num > start)
            if unclosed:
                lost = reader.line_num - start + 1 + sum(1 for _ in lines)
                what = f"a quote that opens here never closes: {lost:,} lines are lost in it"
            fault(DataError(f"malformed CSV: {what}", where=f"{label}:{start}"))
            if unclosed:
                return
            start = reader.line_num + 1
            continue
        if cells is None:
            return
        where, line, start = f"{label}:{start}", start, reader.line_num + 1
        if not cells:
            continue
        if header is None:
            header = cells
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(f'column "{twice[0]}" is there twice', where=where)
            if error := _unclean("\n".join(header), where):
                raise error
            continue
        if error := _unclean(delimiter.join(cells), where):
            fault(error)
        elif len(cells) != len(header):
            hint = "quote cells that hold a comma, a quote or a line end"
            fault(DataError(f"{len(cells)} cells, but the header has {len(header)}", where=where, hint=hint))
        else:
            yield line, dict(zip(header, cells, strict=True))


def _columnar(data: bytes, label: str, kind: str, fault: OnFault) -> Iterator[Row]:
    """Rows of Parquet or Arrow; not beyond the limits, for a dictionary repeats a value at no cost."""
    import pyarrow as pa

    first, cells, size = 1, 0, 0
    try:
        for batch in _batches(data, label, kind):
            cells += batch.num_rows * batch.num_columns
            size += (held := batch.nbytes)
            _within(cells, label)
            if size > max(MAX_INFLATED, MAX_RATIO * len(data)):
                raise _bomb(data, size, label)
            for number, row in enumerate(batch.to_pylist(), first):
                if held > MAX_LINE and (long := len(json.dumps(row, default=str))) > MAX_LINE:
                    fault(too_large("row", long, f"{label}:{number}"))
                else:
                    yield number, row
            first += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        brief = str(error).splitlines()[0]
        name = "Parquet" if kind == "parquet" else "Arrow"
        raise DataError(f"not a readable {name} file: {brief}", where=label) from error


def _batches(data: bytes, label: str, kind: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "parquet":
        source = pq.ParquetFile(pa.BufferReader(data))
        _within(source.metadata.num_rows * source.metadata.num_columns, label)
        return source.iter_batches(batch_size=1 << 7)
    try:  # Hugging Face's datasets writes the stream form, others the file form
        return iter(pa.ipc.open_stream(pa.BufferReader(data)))
    except pa.ArrowInvalid:
        source = pa.ipc.open_file(pa.BufferReader(data))
        return map(source.get_batch, range(source.num_record_batches))


def _within(cells: int, label: str) -> None:
    if cells > MAX_CELLS:
        raise DataError(f"{cells:,} cells are too many to read at once", where=label)


def saved_splits(folder: storage.AnyPath) -> list[str] | None:
    """What `datasets.save_to_disk` wrote to `folder`: split names of a DatasetDict, [] for one Dataset, else None.

    Their files are data-*-of-*.arrow beside state.json, in a folder a split under dataset_dict.json (datasets 5.2,
    `Dataset.save_to_disk`, `DatasetDict.save_to_disk`).
    """
    if storage.exists(path := storage.join(folder, "dataset_dict.json")):
        found = storage.read_json(path)
        splits = found.get("splits") if isinstance(found, dict) else None
        names = splits if isinstance(splits, list) else []
        if not names or not all(isinstance(s, str) and s and os.path.basename(s) == s and s[0] != "." for s in names):
            raise DataError("names no splits", where=storage.shown(path), hint="save the dataset again")
        return names
    return [] if storage.exists(storage.join(folder, "state.json")) else None


def saved_files(folder: storage.AnyPath) -> list[str]:
    """The Arrow files that state.json of a saved Dataset names. Raises DataError when it names none or is damaged."""
    path = storage.join(folder, "state.json")
    state = storage.read_json(path)
    named = state.get("_data_files") if isinstance(state, dict) else None
    names = [f.get("filename") for f in named if isinstance(f, dict)] if isinstance(named, list) else []
    names = [n for n in names if isinstance(n, str) and os.path.basename(n) == n]
    if not names:
        raise DataError("names no data files", where=storage.shown(path), hint="save the dataset again")
    return [storage.join(folder, name) for name in names]


def reasons(faults: Iterable[DataError]) -> dict[str, int]:
    """How many faults there are of each kind, most frequent first; numbers and quoted text do not tell kinds apart."""
    return dict(Counter(_DETAIL.sub("…", fault.message) for fault in faults).most_common())


_DETAIL = re.compile(r"\"[^\"]*\"|'[^']*'|0x[0-9a-f]+|(?<!UTF-)(?<![\w…])\d[\d,]*")


def json_type(value: Any) -> str:
    """What JSON calls the type of a value, with its article, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
