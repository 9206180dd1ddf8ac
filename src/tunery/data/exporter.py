"""Datasets out: in any layout (Alpaca, ShareGPT, OpenAI, ranking pairs, KTO) and container, or as annotated spans."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunery import storage
from tunery.data.annotations import ANNOTATIONS, write_annotations
from tunery.data.files import OnFault, reasons
from tunery.data.layouts import converter, guess
from tunery.data.spans import Annotated, Span, checked, place, wanted
from tunery.data.template import inputs, query_at
from tunery.errors import ConfigError, DataError, StorageError
from tunery.types import Dataset, Example

LAYOUTS = ("alpaca", "sharegpt", "openai", "ranking", "kto")
CONTAINERS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
Slots = Callable[[str], Sequence[tuple[str, str]] | None]  # a target's (path, value) pairs, None when it has no form

_OWN = {"row", "file", "query_at", "rejected", "kto_tag"}  # of meta: what loading put there
_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}  # ShareGPT's names


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: read = kept + the sum of dropped."""

    path: Path
    format: str
    read: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    placed: int = 0  # values of targets that stand in their text, as spans now
    unplaced: Mapping[str, int] = field(default_factory=dict)  # label -> values that do not


def export_dataset(
    dataset: Dataset,
    path: storage.AnyPath,
    to: str | None = None,
    *,
    slots: Slots | None = None,
    faults: Sequence[DataError] = (),
) -> Exported:
    """Write a dataset to a local path in the layout or annotation format `to`; the ending names the container.

    Containers are .jsonl, .json, .csv, .tsv and .parquet, and without an ending a folder as `datasets.save_to_disk`
    writes it. `to` is one of LAYOUTS (default: alpaca, or openai for rows with more turns) or of ANNOTATIONS, for which
    `slots` reads the values out of a target. Rows that the format cannot say are dropped and counted, as are the
    `faults` met when the dataset was loaded. Raises ConfigError for an unknown format, StorageError when something is
    at `path` already, DataError when no row is left.
    """
    target = storage.local(path)
    to = to or ("alpaca" if all(_is_alpaca(e) for e in dataset.examples) else "openai")
    if to not in (*LAYOUTS, *ANNOTATIONS):
        raise ConfigError(f'unknown format "{to}"', hint=f"one of: {', '.join((*LAYOUTS, *ANNOTATIONS))}")
    if to in LAYOUTS and target.suffix and target.suffix not in CONTAINERS:
        raise ConfigError(f'cannot write "{target.suffix}"', hint=f"end it in {', '.join(CONTAINERS)}, or in nothing")
    if target.exists():
        raise StorageError(f"{target} exists already", hint="name another path, or remove it first")
    found = list(faults)
    placed, unplaced = 0, Counter[str]()
    if to in ANNOTATIONS:
        if slots is None:
            raise ConfigError(f"{to} needs targets with values", hint="their task is function or json")
        rows: list[tuple[str, Annotated]] = []
        for example, text in zip(dataset.examples, inputs(dataset.examples), strict=True):
            try:
                annotated, lost = annotate(example, text, slots)
            except DataError as error:
                found.append(error)
                continue
            rows.append((example.id, annotated))
            placed += len(annotated.spans)
            unplaced.update(label for label, _ in lost)
        _some(len(rows), found)
        kept = write_annotations(target, to, rows, found.append)
    else:
        plain = list(layout_rows(dataset.examples, to, dataset.name, found.append))
        kept = len(dataset.examples) + len(faults) - len(found)
        _some(kept, found)
        write_rows(target, plain)
    return Exported(target, to, len(dataset) + len(faults), kept, reasons(found), placed, dict(unplaced.most_common()))


def _some(kept: int, found: Sequence[DataError]) -> None:
    if not kept:
        raise DataError(f"no row can be written; the first: {found[0]}", hint=found[0].hint)


# --- layouts ---------------------------------------------------------------------------------------------


def layout_rows(examples: Iterable[Example], layout: str, name: str, fault: OnFault) -> Iterable[dict[str, Any]]:
    """Rows of a layout. Each is read back; an example that the layout cannot say goes to `fault`."""
    for example in examples:
        try:
            rows = _rows_of(example, layout)
            _read_back(example, rows[0], layout)
        except DataError as error:
            fault(DataError(error.message, hint=error.hint, where=example.id))
            continue
        for row in rows:
            own = example.id if "id" not in example.meta and not example.id.startswith(f"{name}-") else None
            extra = {k: v for k, v in example.meta.items() if k not in _OWN and k not in row}
            yield {**({"id": own} if own is not None else {}), **row, **extra}


def plain_rows(examples: Sequence[Example], name: str) -> list[dict[str, Any]]:
    """Rows of the first layout that can say all of the examples. Raises DataError when none can."""
    faults: list[DataError] = []
    for layout in ("ranking", "kto", "alpaca", "openai"):
        needs = {"ranking": "rejected", "kto": "kto_tag"}.get(layout)
        if needs and not all(needs in e.meta for e in examples):
            continue
        faults.clear()
        rows = list(layout_rows(examples, layout, name, faults.append))
        if not faults:
            return rows
    raise faults[0]


def _rows_of(example: Example, layout: str) -> list[dict[str, Any]]:
    target, rejected = example.target or "", example.meta.get("rejected")
    if layout == "ranking":
        if not isinstance(rejected, str):
            raise DataError("it has no rejected answer", hint="ranking rows need both")
        return [_prompt_row(example) | {"chosen": target, "rejected": rejected}]
    if layout == "kto":
        tag = example.meta.get("kto_tag", True)
        rows = [_prompt_row(example) | {"output": target, "kto_tag": tag}]
        if isinstance(rejected, str):  # a pair is two judged answers
            rows.append(_prompt_row(example) | {"output": rejected, "kto_tag": False})
        return rows
    if example.meta.get("kto_tag") is False:
        raise DataError("its answer is tagged as one to avoid", hint="only kto rows can say so")
    if layout == "alpaca":
        return [_prompt_row(example) | {"output": target}]
    turns = [(m.role, m.content) for m in example.messages] + [("assistant", target)]
    if layout == "openai":
        return [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    return [{"conversations": [{"from": _ROLES[role], "value": content} for role, content in turns]}]


def _prompt_row(example: Example) -> dict[str, Any]:
    """The prompt in Alpaca's columns."""
    turns = list(example.messages)
    row: dict[str, Any] = {}
    if turns[0].role == "system":
        row["system"] = turns.pop(0).content
    last = turns.pop()
    user = last.content
    at = query_at(example)
    instruction, text = (user[: at - 1], user[at:]) if at else (user, "")
    if turns:
        if any(m.role not in ("user", "assistant") for m in (*turns, last)) or len(turns) % 2:
            raise DataError("its turns do not alternate between user and assistant", hint="export to openai")
        row["history"] = [[q.content, a.content] for q, a in zip(turns[::2], turns[1::2], strict=True)]
    return {"instruction": instruction, "input": text, **row}


def _is_alpaca(example: Example) -> bool:
    return len(example.messages) - (example.messages[0].role == "system") == 1


def _read_back(example: Example, row: dict[str, Any], layout: str) -> None:
    messages, target, _ = converter(guess("", row, "", True), True)(row)
    if messages != example.messages or target != example.target:
        raise DataError(f"{layout} cannot say it: it would read back differently", hint="export to openai")


# --- containers ------------------------------------------------------------------------------------------


def write_rows(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a local file by its ending, or to a folder without one; atomically."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    kind = target.suffix
    if kind in (".csv", ".tsv"):
        if nested := next((n for n in ("messages", "conversations", "history") if n in names), None):
            raise ConfigError(f'a {kind} file cannot hold the lists of "{nested}"', hint="end it in .jsonl")
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter="\t" if kind == ".tsv" else ",")  # CRLF makes it quote both in cells
        writer.writerow(names)
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
        storage.write_atomic(target, out.getvalue())
    elif kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(_table(rows, names), sink)
        storage.write_atomic(target, sink.getvalue().to_pybytes())
    elif kind == ".json":
        storage.write_atomic(target, "[\n" + ",\n".join(_json(row) for row in rows) + "\n]\n")
    elif kind == ".jsonl":
        storage.write_atomic(target, "".join(_json(row) + "\n" for row in rows))
    else:
        _write_saved(target, rows, names)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else _json(value)


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Columns that have no one type are written as JSON text."""
    import pyarrow as pa

    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError):
            columns[name] = pa.array([None if v is None else _cell(v) for v in values])
    return pa.table(columns)


def _write_saved(target: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """A folder that `datasets.load_from_disk` reads: Arrow's stream form, state.json, dataset_info.json."""
    import pyarrow as pa

    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    table = _table(rows, names)
    data = "data-00000-of-00001.arrow"
    with pa.OSFile(os.fspath(part / data), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    state = {
        "_data_files": [{"filename": data}],
        "_fingerprint": "tunery",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    storage.write_json_atomic(part / "dataset_info.json", {"citation": "", "description": "", "license": ""})
    storage.write_json_atomic(part / "state.json", state)
    part.rename(target)


# --- spans -----------------------------------------------------------------------------------------------


def annotate(example: Example, text: str, slots: Slots) -> tuple[Annotated, list[tuple[str, str]]]:
    """Spans of an example's target in its text, and the (label, value) pairs that do not stand there.

    Offsets that an import kept are used as they are, as long as the target still says the same.
    """
    found = slots(example.target or "")
    if found is None:
        raise DataError(f"its output has no form: {(example.target or '')[:60]!r}", where=example.id)
    pairs = wanted(found)
    meta = {k: v for k, v in example.meta.items() if k not in _OWN}
    if "id" not in meta:
        meta["id"] = example.id
    if kept := _kept_spans(example, text):
        same = sorted((s.label, " ".join(text[s.start : s.end].split())) for s in kept)
        if same == sorted((label, " ".join(value.split())) for label, value in pairs):
            return Annotated(text, kept, meta), []
    spans, lost = place(text, pairs)
    return Annotated(text, tuple(spans), meta), lost


def _kept_spans(example: Example, text: str) -> tuple[Span, ...]:
    given = example.meta.get("spans")
    if not isinstance(given, list) or not all(isinstance(s, dict) for s in given):
        return ()
    try:
        return checked(text, [(s.get("start"), s.get("end"), s.get("label"), s.get("text")) for s in given]).spans
    except DataError:
        return ()
