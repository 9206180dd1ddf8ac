"""Big datasets: rows checked, divided and tokenised through Ray Data, in memory that does not grow with them.

The driver only cuts files into parts and adds up what workers report of them; rows go from file to file. What the
driver keeps of a row is two 64-bit hashes and a byte, which find repeats across all parts. A part is done when its
report is there, and all of them when prepared.json is: what was interrupted goes on with the parts that lack theirs.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunery import storage
from tunery.bases import Base
from tunery.data.files import OnFault, Row, csv_rows, json_lines, reasons
from tunery.data.layouts import converter, guess
from tunery.data.registry import Entry
from tunery.data.sampling import folded
from tunery.data.template import quick_template
from tunery.errors import ConfigError, DataError, EngineError, StorageError, TuneryError
from tunery.types import Example

PART = 8 << 20  # bytes of a part, and of the rows that a worker holds at once; it takes a few times as much
ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
BEGUN, DONE = "prepare.json", "prepared.json"
_PARTS = ("train", "val", "test")
_STEP = 10  # tokens of a bar of the histogram


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was made of a source: read = the sum of rows and of dropped.

    `folder`/SPLIT/*.parquet hold a Row's fields (token ids), in the source's order; `folder`/dropped/*.log says
    of every dropped row where it stands and why; `folder`/prepared.json, written last, holds this.
    """

    folder: str
    read: int
    rows: Mapping[str, int]  # split -> rows
    dropped: Mapping[str, int]  # reason -> rows
    duplicates: int  # rows whose input and output stand earlier
    contradictions: int  # inputs with more than one output
    leakage: int  # inputs that are in more than one split
    tokens: int
    histogram: tuple[tuple[int, int, int], ...] = field(default=())  # (from, below, rows) of the lengths in tokens
    seconds: float = 0.0  # of this run: one that went on counts the earlier parts' rows, not their time


@dataclass(frozen=True, slots=True)
class Job:
    """What shall be prepared, checked: see `plan`."""

    files: Mapping[str, int]  # path -> bytes
    folder: str
    base: Base
    template: str
    cutoff: int
    entry: Entry
    shares: tuple[float, float]  # of val and test
    seed: int
    begun: bool  # an earlier run of the same has left parts

    def settings(self) -> dict[str, Any]:
        """All that decides what comes out, as JSON values."""
        entry = {"formatting": self.entry.formatting, "columns": dict(self.entry.columns)}
        return {
            "files": {storage.shown(path): size for path, size in self.files.items()},
            "base": self.base.name,
            "base_digest": self.base.digest,
            "template": self.template,
            "cutoff_len": self.cutoff,
            "val": self.shares[0],
            "test": self.shares[1],
            "seed": self.seed,
            **entry,
        }


def plan(
    source: storage.AnyPath,
    into: storage.AnyPath,
    *,
    base: Base,
    template: str,
    cutoff_len: int | None = None,
    val: float = 0.05,
    test: float = 0.0,
    seed: int = 42,
) -> Job:
    """Check that JSONL, CSV or Parquet (a file, folder or glob, here or remote) can be prepared into the folder `into`.

    Nothing is written. Raises DataError for a source without a readable row or a layout that cannot be told,
    StorageError for an `into` that is done, is not empty or was begun with other settings.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ConfigError("val and test are shares that leave some rows for train")
    files = {storage.absolute(f): _size(f) for f in storage.list_files(source) if _ending(f)}
    if not files:
        hint = f"files end in {', '.join(ENDINGS)}, uncompressed"
        raise DataError(f"{storage.shown(source)} holds no files of rows", hint=hint)
    folder, shown = storage.absolute(into), storage.shown(into)
    cutoff = min(cutoff_len or base.context, base.context)
    job = Job(files, folder, base, template, cutoff, _entry(list(files)), (val, test), seed, begun=False)
    if storage.exists(storage.join(folder, DONE)):
        raise StorageError(f"{shown} is prepared already", hint="name another folder, or remove it first")
    if storage.exists(begun := storage.join(folder, BEGUN)):
        before, now = storage.read_json(begun), job.settings()
        changed = [k for k in now if not isinstance(before, dict) or before.get(k) != now[k]]
        if changed:
            hint = "go on with the same ones, name another folder, or remove it first"
            raise StorageError(f"{shown} was begun with other settings: {', '.join(changed)}", hint=hint)
        return dataclasses.replace(job, begun=True)
    if storage.list_files(folder) or (not storage.is_remote(folder) and _has_entries(storage.local(folder))):
        raise StorageError(f"{shown} is not empty", hint="name another folder")
    return job


def prepare(job: Job, *, on_progress: Callable[[int], None] = lambda rows: None) -> Prepared:
    """Check, divide and tokenise what `plan` looked at; goes on where an earlier run was interrupted.

    Expects a running Ray. Rows with the same output fall into the same split, by a hash of it, so the shares hold on
    average over many distinct outputs. Rows longer than the cutoff are dropped with that reason. Near repeats are not
    looked for: `tunery data check` does, on what fits into memory. Raises StorageError or EngineError when a part
    cannot be read or written; what is done by then stays.
    """
    import ray.data
    from ray.exceptions import RayError

    began = time.monotonic()
    storage.write_json_atomic(storage.join(job.folder, BEGUN), job.settings())
    parts = [{"number": i, **part} for i, part in enumerate(p for file in job.files for p in _cut(file))]
    total = _Totals()
    left = []
    for part in parts:
        if job.begun and storage.exists(report := _report(job, part)):
            for row in _read_report(report):
                total.add(row)
        else:
            left.append(part)
    on_progress(total.read)
    if left:
        done = ray.data.from_items(left, override_num_blocks=len(left)).flat_map(
            functools.partial(_attempt, job=job), num_cpus=1, runtime_env={"env_vars": {"RAYON_NUM_THREADS": "1"}}
        )
        try:
            for report in done.iter_rows():
                if "error" in report:
                    raise pickle.loads(report["error"])
                total.add(report)
                on_progress(total.read)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(f"a worker failed: {reason}", hint="run the same command to go on") from error
    result = total.result(job.folder, time.monotonic() - began)
    storage.write_json_atomic(storage.join(job.folder, DONE), {"prepared": result, "settings": job.settings()})
    return result


# --- files and parts -------------------------------------------------------------------------------------


def _ending(path: str) -> str | None:
    name = storage.shown(path).lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def _size(path: str) -> int:
    with storage.open_bytes(path) as handle:
        return handle.seek(0, os.SEEK_END)


def _has_entries(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _entry(files: list[str]) -> Entry:
    """The layout, from the first readable row."""
    for file in files:
        for part in _cut(file):
            for _, row in _rows(part, lambda fault: None):
                name = os.path.basename(storage.shown(file))
                return guess(Path(name).stem, row, name, labelled=True)
    raise DataError("no readable row", where=storage.shown(files[0]))


def _cut(file: str) -> Iterator[dict[str, Any]]:
    """Parts of a file that can be read apart: {"path", "start", "size", "line"}, the line (or row) it begins with.

    JSONL is cut at line ends, start and size in bytes; Parquet in its row groups, start being the group. CSV is one
    part, since only reading it from its beginning tells a line end from one in a quoted cell.
    """
    ending = _ending(file)
    with storage.open_bytes(file) as handle:
        if ending == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                metadata = pq.ParquetFile(handle).metadata
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise DataError(f"not a readable Parquet file: {reason}", where=storage.shown(file)) from error
            row = 1
            for group in range(metadata.num_row_groups):
                yield {"path": file, "start": group, "size": metadata.row_group(group).num_rows, "line": row}
                row += metadata.row_group(group).num_rows
            return
        if ending in (".csv", ".tsv"):
            yield {"path": file, "start": 0, "size": handle.seek(0, os.SEEK_END), "line": 1}
            return
        start, line = 0, 1
        while block := handle.read(PART):
            rest = handle.readline()  # to the line's end
            size = len(block) + len(rest)
            yield {"path": file, "start": start, "size": size, "line": line}
            start, line = start + size, line + block.count(b"\n") + rest.count(b"\n")


def _rows(part: Mapping[str, Any], fault: OnFault) -> Iterator[Row]:
    """The rows of a part, one after the other."""
    path = part["path"]
    label, ending = os.path.basename(storage.shown(path)), _ending(path)
    with storage.open_bytes(path) as handle:
        if ending == ".parquet":
            import pyarrow.parquet as pq

            batches = pq.ParquetFile(handle).iter_batches(batch_size=1024, row_groups=[part["start"]])
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), part["line"])
        elif ending in (".csv", ".tsv"):
            text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
            yield from csv_rows(text, label, "," if ending == ".csv" else "\t", fault)
        else:
            handle.seek(part["start"])
            yield from json_lines(handle.read(part["size"]).split(b"\n"), label, fault, part["line"])


# --- a worker's part -------------------------------------------------------------------------------------


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _report(job: Job, part: Mapping[str, Any]) -> str:
    return storage.join(job.folder, "reports", f"part-{part['number']:05}.parquet")


def _read_report(path: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(storage.read_bytes(path))).to_pylist()


def _attempt(part: dict[str, Any], job: Job) -> list[dict[str, Any]]:
    """`_prepare_part`, with an error of ours as its answer: Ray Data would hand on a page about where it arose."""
    try:
        return _prepare_part(part, job)
    except TuneryError as error:
        return [{"error": pickle.dumps(error)}]


def _prepare_part(part: dict[str, Any], job: Job) -> list[dict[str, Any]]:
    """One part from file to files, in a worker, as many rows at once as make up PART bytes; then its report."""
    reports: list[dict[str, Any]] = []
    faults: list[DataError] = []
    rows: list[Row] = []
    held = 0

    def flush() -> None:
        nonlocal held
        name = f"part-{part['number']:05}-{len(reports):04}"
        reports.append(_prepare_rows(rows, faults, os.path.basename(storage.shown(part["path"])), name, job))
        rows.clear()
        faults.clear()
        held = 0

    for row in _rows(part, faults.append):
        rows.append(row)
        held += sum(len(v) for v in row[1].values() if isinstance(v, str)) or 64
        if held >= PART:
            flush()
    if rows or faults or not reports:
        flush()
    _write_parquet(_report(job, part), reports)
    return reports


def _write_parquet(path: str, rows: list[dict[str, Any]], schema: Any = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    storage.write_atomic(path, sink.getvalue().to_pybytes())


def _prepare_rows(rows: list[Row], faults: list[DataError], label: str, name: str, job: Job) -> dict[str, Any]:
    """Rows to files called `name`; returns numbers and hashes alone. Adds to `faults` what it drops."""
    import pyarrow as pa

    convert = converter(job.entry, labelled=True)
    examples: list[Example] = []
    for line, row in rows:
        try:
            messages, target, _ = convert(row)
        except DataError as error:
            faults.append(DataError(error.message, hint=error.hint, where=f"{label}:{line}"))
        else:
            examples.append(Example(f"{label}:{line}", messages, target))
    ids = pa.list_(pa.int32())
    schema = pa.schema({"id": pa.string(), "prompt": ids, "target": ids, "answers": pa.list_(ids)})
    columns: dict[str, list[Any]] = {split: [] for split in _PARTS}
    lengths: Counter[int] = Counter()
    inputs, outputs, splits = [], [], []
    tokens = 0
    for example, row in zip(examples, quick_template(job.base, job.template).rows(examples), strict=True):
        size = len(row)
        if size > job.cutoff:
            faults.append(DataError(f"longer than {job.cutoff} tokens", where=example.id))
            continue
        output = folded(example.target or "")
        split = _split(job, output)
        columns[_PARTS[split]].append({name: getattr(row, name) for name in schema.names})
        lengths[size // _STEP] += 1
        tokens += size
        inputs.append(_hash("\x1f".join(folded(m.content) for m in example.messages)))
        outputs.append(_hash(output))
        splits.append(split)
    for split, found in columns.items():
        if found:
            _write_parquet(storage.join(job.folder, split, f"{name}.parquet"), found, schema)
    if faults:
        log = storage.join(job.folder, "dropped", f"{name}.log")
        storage.write_atomic(log, "".join(f"{fault}\n" for fault in faults))
    return {
        "read": len(splits) + len(faults),
        "dropped": storage.to_json(reasons(faults)),
        "lengths": storage.to_json({str(k): n for k, n in lengths.items()}),
        "tokens": tokens,
        "inputs": np.array(inputs, dtype=np.uint64).tobytes(),
        "outputs": np.array(outputs, dtype=np.uint64).tobytes(),
        "splits": np.array(splits, dtype=np.uint8).tobytes(),
    }


def _split(job: Job, output: str) -> int:
    place = _hash(f"{job.seed}\n{output}") / 2**64
    val, test = job.shares
    return 1 if place < val else 2 if place < val + test else 0


# --- the driver's sums -----------------------------------------------------------------------------------


class _Totals:
    """Adds up the reports of parts."""

    def __init__(self) -> None:
        self.read = self.tokens = 0
        self.dropped: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        self.inputs, self.outputs, self.splits = bytearray(), bytearray(), bytearray()

    def add(self, report: Mapping[str, Any]) -> None:
        import json

        self.read += report["read"]
        self.tokens += report["tokens"]
        self.dropped.update(json.loads(report["dropped"]))
        self.lengths.update({int(k): n for k, n in json.loads(report["lengths"]).items()})
        for name in ("inputs", "outputs", "splits"):
            getattr(self, name).extend(report[name])

    def result(self, folder: str, seconds: float) -> Prepared:
        inputs = np.frombuffer(self.inputs, dtype=np.uint64)
        outputs = np.frombuffer(self.outputs, dtype=np.uint64)
        splits = np.frombuffer(self.splits, dtype=np.uint8)
        order = np.lexsort((outputs, inputs))
        inputs, outputs = inputs[order], outputs[order]
        same = inputs[1:] == inputs[:-1]
        again = same & (outputs[1:] == outputs[:-1])
        counts = np.bincount(splits, minlength=len(_PARTS))
        split_order = splits[order]
        bars = sorted(self.lengths)
        return Prepared(
            folder=folder,
            read=self.read,
            rows={name: int(n) for name, n in zip(_PARTS, counts, strict=True)},
            dropped=dict(self.dropped.most_common()),
            duplicates=int(again.sum()),
            contradictions=len(np.unique(inputs[1:][same & ~again])),
            # Rows of one input lie beside each other, by output; one output is in one split, so a change shows.
            leakage=len(np.unique(inputs[1:][same & (split_order[1:] != split_order[:-1])])),
            tokens=self.tokens,
            histogram=tuple((i * _STEP, (i + 1) * _STEP, self.lengths[i]) for i in bars),
            seconds=seconds,
        )
