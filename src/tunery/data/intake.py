"""What an import has to rewrite before it is rows of a layout: annotated text, saved datasets, zip archives."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunery import storage
from tunery.data.annotations import ANNOTATIONS, Found, annotation_format, read_annotations
from tunery.data.files import MAX_INFLATED, MAX_RATIO, file_format, read_rows, reasons
from tunery.data.spans import FUNCTION, Form, render
from tunery.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class How:
    """How annotated text becomes rows: `kind` None is told from the file, `form` None is function where it fits."""

    kind: str | None = None
    form: Form | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in ANNOTATIONS:
            raise ConfigError(f'unknown format "{self.kind}"', hint=f"one of: {', '.join(ANNOTATIONS)}")
        if self.form not in (None, "function", "json"):
            raise ConfigError(f'unknown form "{self.form}"', hint="one of: function, json")


@dataclass(frozen=True, slots=True)
class Converted:
    """Rows of an annotated file in Alpaca's layout; read = len(rows) + len(faults)."""

    rows: list[dict[str, Any]]
    form: Form
    labels: Mapping[str, int]
    faults: list[DataError] = field(default_factory=list)


def is_annotated(path: str, how: How) -> str | None:
    """The annotation format of a local file, or None when it is rows already."""
    if how.kind or annotation_format(path):
        return how.kind or annotation_format(path)
    if file_format(path) != "json":
        return None
    ignored: list[DataError] = []
    rows = read_rows(path, Path(path).name, ignored.append)
    if not rows or {"output", "instruction", "messages", "conversations"} & rows[0][1].keys():
        return None
    # A row without spans may look like another format's.
    kinds = (annotation_format(path, row) for _, row in rows[:200])
    return next((kind for kind in kinds if kind), None)


def convert(path: str, kind: str, how: How) -> Converted:
    """Annotated text as rows with instruction, input, output and the spans themselves.

    Without a form it is function, or json when one value does not fit the function form. Raises DataError when no row
    is left.
    """
    faults: list[DataError] = []
    found = read_annotations(path, kind, faults.append)
    form: Form = how.form or ("function" if _all_fit(found) else "json")
    labels: dict[str, int] = {}
    outputs: list[tuple[Found, str]] = []
    for where, annotated in found:
        try:
            outputs.append(((where, annotated), render(annotated, form)))
        except DataError as error:
            faults.append(DataError(error.message, hint=error.hint, where=where))
            continue
        for span in annotated.spans:
            labels[span.label] = labels.get(span.label, 0) + 1
    if not outputs:
        raise faults[0] if faults else DataError("the file holds no annotated text", where=Path(path).name)
    instruction = how.instruction if how.instruction is not None else default_instruction(form, labels)
    rows = []
    for (_, annotated), output in outputs:
        row: dict[str, Any] = {"instruction": instruction, "input": annotated.text, "output": output}
        row["spans"] = [{"start": s.start, "end": s.end, "label": s.label} for s in annotated.spans]
        extra = {(f"source_{k}" if k in row else k): v for k, v in annotated.meta.items()}
        rows.append({**row, **extra})
    return Converted(rows, form, dict(sorted(labels.items())), faults)


def _all_fit(found: Sequence[Found]) -> bool:
    try:
        return all(render(annotated, "function") for _, annotated in found)
    except DataError:
        return False


def default_instruction(form: Form, labels: Mapping[str, int]) -> str:
    """What the model is told when the user says nothing else."""
    shape = f"one function call {FUNCTION}(LABEL[value, ...], ...)" if form == "function" else 'JSON {"LABEL": [value]}'
    return f"Extract what the text names, word for word, as {shape}. Labels: {', '.join(sorted(labels)) or 'none'}."


def write_converted(target: Path, converted: Converted) -> None:
    """The rows as JSONL."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in converted.rows)
    storage.write_atomic(target, text)


def write_dropped(target: Path, faults: Sequence[DataError]) -> dict[str, int]:
    """Write what was dropped, a line a row with its place and reason; returns the counts by reason."""
    if faults:
        storage.write_atomic(target, "".join(f"{fault}\n" for fault in faults))
    else:
        target.unlink(missing_ok=True)
    return reasons(faults)


def unzip(path: Path, into: Path) -> Path:
    """The one data file of a zip archive, written to `into`. Raises DataError for several, none, or a bomb."""
    try:
        with zipfile.ZipFile(io.BytesIO(storage.read_bytes(path))) as archive:
            members = [
                m
                for m in archive.infolist()
                if not m.is_dir()
                and not Path(m.filename).name.startswith(".")
                and not m.filename.startswith("__MACOSX/")
                and (file_format(m.filename) or annotation_format(m.filename))
            ]
            if len(members) != 1:
                named = ", ".join(m.filename for m in members[:5]) or "none"
                raise DataError(f"a zip must hold one data file; here: {named}", where=path.name, hint="unzip it")
            member = members[0]
            limit = max(MAX_INFLATED, MAX_RATIO * member.compress_size)
            with archive.open(member) as file:
                data = file.read(limit + 1)  # what the archive says of sizes need not be true
            if len(data) > limit:
                message = f"{member.compress_size:,} bytes grow to more than {limit:,}"
                raise DataError(message, where=f"{path.name}/{member.filename}", hint="unzip it if you trust it")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise DataError(f"not a readable zip file: {error}", where=path.name) from error
    target = into / Path(member.filename).name
    storage.write_atomic(target, data)
    return target
