"""Big datasets: rows checked, divided and tokenised through Ray Data, in memory that does not grow with them.

The driver only cuts JSONL files into parts at line ends and adds up what workers report of their parts; rows go from
file to file. What the driver keeps of a row is two 64-bit hashes and a byte, which find repeats across all parts.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunery import storage
from tunery.bases import Base, QuickTokenizer, load_tokenizer
from tunery.data.files import OnFault, json_lines, reasons
from tunery.data.layouts import converter, guess
from tunery.data.registry import Entry
from tunery.data.sampling import folded
from tunery.data.template import Template
from tunery.errors import ConfigError, DataError, StorageError
from tunery.types import Example

PART = 8 << 20  # bytes of a part; a worker holds a few times as much
_PARTS = ("train", "val", "test")
_STEP = 10  # tokens of a bar of the histogram


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was made of a source: read = the sum of rows and of dropped.

    `folder`/SPLIT/part-N.parquet hold a Row's fields, token ids; `folder`/dropped/part-N.log says of every
    dropped row where it stands and why.
    """

    folder: Path
    read: int
    rows: Mapping[str, int]  # split -> rows
    dropped: Mapping[str, int]  # reason -> rows
    duplicates: int  # rows whose input and output stand earlier
    contradictions: int  # inputs with more than one output
    leakage: int  # inputs that are in more than one split
    tokens: int
    histogram: tuple[tuple[int, int, int], ...] = field(default=())  # (from, below, rows) of the lengths in tokens
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker has to know."""

    base: Base
    template: str
    cutoff: int
    entry: Entry
    shares: tuple[float, float]  # of val and test
    seed: int
    folder: Path


def prepare(
    source: storage.AnyPath,
    into: storage.AnyPath,
    *,
    base: Base,
    template: str,
    cutoff_len: int | None = None,
    val: float = 0.05,
    test: float = 0.0,
    seed: int = 42,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Prepared:
    """Check, divide and tokenise JSONL (a local file, folder or glob) into the empty local folder `into`.

    Expects a running Ray. Rows with the same output fall into the same split, by a hash of it, so the shares hold on
    average over many distinct outputs. Rows longer than `cutoff_len` tokens (default: what the base reads) are dropped
    with that reason. Near repeats are not looked for: `tunery data check` does, on what fits into memory. Raises
    DataError for a source without a readable row or a layout that cannot be told, StorageError when `into` is not
    empty.
    """
    import ray.data

    began = time.monotonic()
    folder = storage.local(into)
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder} is not empty", hint="name another folder")
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ConfigError("val and test are shares that leave some rows for train")
    files = [f for f in storage.list_files(source) if f.endswith((".jsonl", ".ndjson"))]
    if not files:
        raise DataError(f"{source} holds no .jsonl files")
    entry = _entry(files)
    job = _Job(base, template, min(cutoff_len or base.context, base.context), entry, (val, test), seed, folder)
    for name in (*_PARTS, "dropped"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    parts = [{"number": i, **part} for i, part in enumerate(p for file in files for p in _cut(file))]
    done = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
        functools.partial(_prepare_part, job=job), num_cpus=1, runtime_env={"env_vars": {"RAYON_NUM_THREADS": "1"}}
    )
    total = _Totals()
    for report in done.iter_rows():
        total.add(report)
        on_progress(total.read)
    return total.result(folder, time.monotonic() - began)


def _entry(files: list[str]) -> Entry:
    """The layout, from the first readable row."""
    for file in files:
        for part in _cut(file):
            for _, row in _lines(part, lambda fault: None):
                return guess(Path(file).stem, row, os.path.basename(file), labelled=True)
    raise DataError("no readable row", where=files[0])


def _cut(file: str) -> Iterator[dict[str, Any]]:
    """Parts of a file that end with a line: path, first byte, bytes, and the number of their first line."""
    with open(file, "rb") as handle:
        start, line, size, lines = 0, 1, 0, 0
        while block := handle.read(PART):
            rest = handle.readline()  # to the line's end
            size = len(block) + len(rest)
            lines = block.count(b"\n") + rest.count(b"\n")
            yield {"path": file, "start": start, "bytes": size, "line": line}
            start, line = start + size, line + lines


def _lines(part: Mapping[str, Any], fault: OnFault) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(part["path"], "rb") as handle:
        handle.seek(part["start"])
        data = handle.read(part["bytes"])
    return json_lines(data.split(b"\n"), os.path.basename(part["path"]), fault, part["line"])


@functools.lru_cache(maxsize=1)
def _template(base: Base, name: str) -> Template:
    return Template(name, load_tokenizer(base) if name == "auto" else QuickTokenizer(base))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _prepare_part(part: dict[str, Any], job: _Job) -> dict[str, Any]:
    """One part from file to files, in a worker; returns numbers and hashes alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    faults: list[DataError] = []
    convert = converter(job.entry, labelled=True)
    label = os.path.basename(part["path"])
    examples: list[Example] = []
    for line, row in _lines(part, faults.append):
        try:
            messages, target, _ = convert(row)
        except DataError as error:
            faults.append(DataError(error.message, hint=error.hint, where=f"{label}:{line}"))
        else:
            examples.append(Example(f"{label}:{line}", messages, target))
    encoded = _template(job.base, job.template).rows(examples)
    ids = pa.list_(pa.int32())
    schema = pa.schema({"id": pa.string(), "prompt": ids, "target": ids, "answers": pa.list_(ids)})
    columns: dict[str, list[Any]] = {name: [] for name in _PARTS}
    lengths: Counter[int] = Counter()
    inputs, outputs, splits = [], [], []
    tokens = 0
    for example, row in zip(examples, encoded, strict=True):
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
    name = f"part-{part['number']:05}"
    for split, rows in columns.items():
        if rows:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
            storage.write_atomic(job.folder / split / f"{name}.parquet", sink.getvalue().to_pybytes())
    if faults:
        storage.write_atomic(job.folder / "dropped" / f"{name}.log", "".join(f"{fault}\n" for fault in faults))
    return {
        "read": len(splits) + len(faults),
        "dropped": storage.to_json(reasons(faults)),
        "lengths": storage.to_json({str(k): n for k, n in lengths.items()}),
        "tokens": tokens,
        "inputs": np.array(inputs, dtype=np.uint64).tobytes(),
        "outputs": np.array(outputs, dtype=np.uint64).tobytes(),
        "splits": np.array(splits, dtype=np.uint8).tobytes(),
    }


def _split(job: _Job, output: str) -> int:
    place = _hash(f"{job.seed}\n{output}") / 2**64
    val, test = job.shares
    return 1 if place < val else 2 if place < val + test else 0


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

    def result(self, folder: Path, seconds: float) -> Prepared:
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
