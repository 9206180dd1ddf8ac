"""Datasets: from a registered name, or a data file, to checked `Example`s.

A row of any layout becomes chat messages up to the answer, and the answer. Text is kept exactly as it is
written, because rows often share a long instruction that training stores and computes once.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from tunery import storage
from tunery.data.files import FORMATS, OnFault, Row, file_format, read_rows, saved_files, saved_splits, strict
from tunery.data.layouts import Located, check_columns, converter, guess
from tunery.data.registry import REGISTRY, Entry, nearest, parse_entry, read_registry
from tunery.errors import ConfigError, DataError
from tunery.types import Dataset, Example


def load(
    name: str,
    dataset_dir: storage.AnyPath = ".",
    *,
    max_samples: int | None = None,
    labelled: bool = True,
    quarantine: list[DataError] | None = None,
) -> Dataset:
    """A dataset by its name in `dataset_dir`/dataset_info.json, or a data file, folder, glob or URL.

    A folder may be one that `datasets.save_to_disk` wrote, a split of a DatasetDict being FOLDER/SPLIT. `max_samples`
    keeps the first rows. With `labelled=False` rows without an answer are accepted (target None). Ranking pairs have
    the chosen answer as their target and meta["rejected"]; KTO rows have meta["kto_tag"].

    Raises DataError with `where="file:line"` for a row that is no example, or, given a `quarantine`, appends that
    error to it and goes on: rows read = len(dataset) + len(quarantine). Raises StorageError for files that cannot be
    read, ConfigError for a bad `max_samples`, DataError in any case when nothing is left.
    """
    if max_samples is not None and max_samples < 1:
        raise ConfigError(f"max_samples must be at least 1, not {max_samples}")
    fault = strict if quarantine is None else quarantine.append
    before = len(quarantine or ())
    entry, location = _find(name, dataset_dir)
    if entry is not None and entry.source == "hf_hub_url":
        location, parts = entry.location, [(entry.location, _hub_rows(entry))]
    else:
        files = _files(name, location, entry, dataset_dir)
        parts = [(label := _label(file, dataset_dir), read_rows(file, label, fault)) for file in files]
    rows = [(label, line, row) for label, found in parts for line, row in found]
    if not rows and quarantine is not None:
        raise quarantine[before]
    if entry is None:
        entry = guess(_stem(location), rows[0][2], parts[0][0], labelled)
    examples = _examples(entry, rows, max_samples, labelled, fault, many=len(parts) > 1)
    if not examples and quarantine is not None:
        raise quarantine[before]
    return Dataset(entry.name, storage.shown(location), examples, fingerprint(examples))


def load_rows(path: storage.AnyPath) -> list[dict[str, Any]]:
    """The rows of a data file, folder, glob or URL as they are, whatever their columns.

    Raises DataError with `where="file:line"`, StorageError for files that cannot be read.
    """
    location = os.fspath(path)
    files = _files(location, location, None, ".")
    return [row for file in files for _, row in read_rows(file, _label(file, "."))]


def fingerprint(examples: Iterable[Example]) -> str:
    """sha256 (hex) over messages, targets, rejected answers and tags in their order; other columns do not count."""
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    digest = hashlib.sha256()
    for example in examples:
        turns = [[message.role, message.content] for message in example.messages]
        judged = [example.meta[key] for key in ("rejected", "kto_tag") if key in example.meta]
        digest.update(encode([turns, example.target, *judged]).encode() + b"\n")
    return digest.hexdigest()


def list_datasets(dataset_dir: storage.AnyPath) -> list[str]:
    """Names registered in a folder, in its order. Raises DataError when it has no registry."""
    return list(read_registry(dataset_dir))


# --- where the rows lie ----------------------------------------------------------------------------------


def _find(name: str, dataset_dir: storage.AnyPath) -> tuple[Entry | None, str]:
    """The entry of a registered name and its files' location; no entry for a path."""
    registry_path = storage.join(dataset_dir, REGISTRY)
    is_path = storage.is_remote(name) or "/" in name or file_format(name) is not None or Path(name).is_dir()
    registry = {} if is_path and not storage.exists(registry_path) else read_registry(dataset_dir)
    if name in registry:
        where = storage.join(storage.shown(dataset_dir), REGISTRY)
        entry = parse_entry(name, registry[name], where)
        if entry.source == "script_url":
            raise DataError(f'dataset "{name}": loading scripts are not run', where=where, hint="export it to JSONL")
        if entry.source == "ms_hub_url":
            hint = "download it and register its file with file_name, or use hf_hub_url"
            raise DataError(f'dataset "{name}": ModelScope is not supported', where=where, hint=hint)
        if entry.source == "cloud_file_name":
            return entry, entry.location
        return entry, storage.join(dataset_dir, entry.location)
    if is_path:
        beside = storage.join(dataset_dir, name)
        return None, name if storage.is_remote(name) or storage.list_files(name) else beside
    raise DataError(
        f'no dataset "{name}" in {storage.shown(registry_path)}',
        hint=nearest(name, registry) + (f" There are: {', '.join(registry)}" if registry else ""),
    )


def _files(name: str, location: str, entry: Entry | None, dataset_dir: storage.AnyPath) -> list[str]:
    """The data files at a location, all of one format, narrowed to `entry.split` when that names one."""
    looks_like_folder = not location.startswith(("http://", "https://")) and file_format(location) is None
    if looks_like_folder and (splits := saved_splits(location)) is not None:
        return saved_files(_saved_split(location, splits, entry.split if entry else None))
    found = storage.list_files(location)
    # A file named itself is kept whatever its ending is, so that a wrong one is told.
    base = os.path.basename
    files = [f for f in found if base(f) == base(location) or (file_format(f) and base(f) != REGISTRY)]
    if not files:
        around = storage.list_files(dataset_dir) if not storage.is_remote(dataset_dir) else []
        names = [os.path.basename(f) for f in around if file_format(f) and os.path.basename(f) != REGISTRY]
        what = f'dataset "{name}": {storage.shown(location)}' if entry else storage.shown(location)
        hint = nearest(os.path.basename(location), names) if names else "check the path"
        raise DataError(f"{what} does not exist or holds no data files", hint=hint)
    if entry is not None and entry.split not in (None, "train"):
        files = _of_split(entry, files)
    if len({file_format(f) for f in files}) > 1:
        names = ", ".join(os.path.basename(f) for f in files)
        raise DataError(f"{storage.shown(location)} mixes file types: {names}", hint="name one of them: *.jsonl")
    return files


def _saved_split(location: str, splits: Sequence[str], wanted: str | None) -> str:
    """The folder of one saved Dataset, at a location or one below it."""
    if not splits:
        return location
    chosen = wanted or (splits[0] if len(splits) == 1 else None)
    if chosen is None or chosen not in splits:
        what = f'has no split "{chosen}"' if chosen else "holds several splits"
        raise DataError(
            f"{storage.shown(location)} {what}",
            hint=f"name one: {', '.join(storage.join(location, s) for s in splits)}",
        )
    return storage.join(location, chosen)


def _of_split(entry: Entry, files: Sequence[str]) -> list[str]:
    # As Hugging Face names the files of a split: test.jsonl, test-00000-of-00002.parquet, test_1.csv
    chosen = [
        f for f in files if _stem(f) == entry.split or _stem(f).startswith((f"{entry.split}-", f"{entry.split}_"))
    ]
    if not chosen:
        names = ", ".join(os.path.basename(f) for f in files)
        raise DataError(f'dataset "{entry.name}" has no split "{entry.split}"', hint=f"its files are: {names}")
    return chosen


def _stem(path: str) -> str:
    base = os.path.basename(storage.shown(path).rstrip("/"))
    while Path(base).suffix.lower() in (*FORMATS, ".gz"):
        base = Path(base).stem
    return "data" if not base or any(sign in base for sign in "*?[") else base


def _label(file: str, dataset_dir: storage.AnyPath) -> str:
    """How errors name a file: below the dataset folder when it lies there, so that lines stay short."""
    if storage.is_remote(file):
        return storage.shown(file)
    if not storage.is_remote(dataset_dir):
        folder = storage.local(dataset_dir).absolute()
        if Path(file).absolute().is_relative_to(folder):
            return Path(file).absolute().relative_to(folder).as_posix()
    return file


def _hub_rows(entry: Entry) -> list[Row]:
    """Rows of a Hugging Face dataset, through its own library."""
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError as error:
        raise DataError(
            f'dataset "{entry.name}" lies on the Hugging Face hub, and the datasets library is not installed',
            hint="pip install datasets, or download the file and register it with file_name",
        ) from error
    try:
        rows = load_dataset(
            entry.location,
            name=entry.subset,
            data_dir=entry.folder,
            split=entry.split or "train",
            revision=entry.revision,
        )
    except Exception as error:  # the library raises whatever its many loaders raise
        brief = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "check hf_hub_url, subset, folder and split, the network, and HF_TOKEN for private datasets"
        raise DataError(f'cannot load dataset "{entry.name}" from {entry.location}: {brief}', hint=hint) from error
    found = list(enumerate((dict(cast(Any, row)) for row in rows), 1))
    if not found:
        raise DataError(f'dataset "{entry.name}" holds no rows', where=entry.location)
    return found


# --- rows to examples ------------------------------------------------------------------------------------


def _examples(
    entry: Entry,
    rows: list[Located],
    limit: int | None,
    labelled: bool,
    fault: OnFault,
    *,
    many: bool,
) -> tuple[Example, ...]:
    check_columns(entry, rows, labelled)
    convert = converter(entry, labelled)
    own_ids = _own_ids(rows) if "id" not in entry.columns.values() else None
    used = {*entry.columns.values(), *(("id",) if own_ids else ())}
    tools = entry.columns.get("tools")
    examples: list[Example] = []
    repeats: dict[int, int] = {}
    for index in _order(entry, len(rows))[:limit]:
        label, line, row = rows[index]
        try:
            messages, target, extra = convert(row)
        except DataError as error:
            fault(DataError(error.message, hint=error.hint, where=f"{label}:{line}"))
            continue
        meta = {key: value for key, value in row.items() if key not in used} | extra
        meta["row"] = line
        if many:
            meta["file"] = label
        if tools and row.get(tools):
            meta["tools"] = row[tools] if isinstance(row[tools], str) else storage.to_json(row[tools])
        name = own_ids[index] if own_ids else f"{entry.name}-{index}"
        repeats[index] = repeats.get(index, 0) + 1
        if repeats[index] > 1:
            name = f"{name}#{repeats[index]}"
        examples.append(Example(name, messages, target, meta))
    return tuple(examples)


def _order(entry: Entry, n: int) -> Sequence[int]:
    """Row indices: all in order, or `num_samples` at random, with repeats only when there are fewer rows."""
    if entry.num_samples is None:
        return range(n)
    rng = random.Random(42)
    chosen = rng.sample(range(n), min(n, entry.num_samples))
    return chosen + rng.choices(range(n), k=entry.num_samples - len(chosen))


def _own_ids(rows: Sequence[Located]) -> list[str] | None:
    """The rows' own `id` column as text, when every row has one and no two are the same."""
    if "id" not in rows[0][2]:
        return None
    ids = [row.get("id") for _, _, row in rows]
    if not all(isinstance(i, str | int) and not isinstance(i, bool) and i != "" for i in ids):
        return None
    texts = [str(i) for i in ids]
    return texts if len(set(texts)) == len(texts) else None
