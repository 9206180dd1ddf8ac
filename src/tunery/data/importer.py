"""Datasets brought into a folder: downloaded or copied, checked, and only then put in place."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunery import storage
from tunery.data.annotations import annotation_format
from tunery.data.dataset import load
from tunery.data.download import download
from tunery.data.exporter import plain_rows, write_rows
from tunery.data.files import file_format, read_rows, saved_splits
from tunery.data.intake import How, convert, is_annotated, unzip, write_converted, write_dropped
from tunery.data.layouts import guess
from tunery.data.registry import REGISTRY, nearest, parse_entry
from tunery.errors import DataError, StorageError

BUNDLED = "bikeshop"  # the dataset that comes with the package
MANIFEST = "manifest.json"
_STAGING = ".import"

Progress = Callable[[str, int, int | None], None]  # (file, bytes done, bytes in all when known)


@dataclass(frozen=True, slots=True)
class Known:
    """A public dataset that can be imported by its name; `rows` of each file as its authors published it."""

    url: str
    rows: Mapping[str, int]
    registry: Mapping[str, Any]


_ALPACA = {
    "formatting": "alpaca",
    "columns": {"prompt": "instruction", "query": "input", "response": "output"},
}
KNOWN = {
    "viggo": Known(
        url="https://viggo-ds.s3.amazonaws.com",
        rows={"train.jsonl": 5103, "val.jsonl": 714, "test.jsonl": 1083},
        registry={f"viggo-{split}": {"file_name": f"{split}.jsonl", **_ALPACA} for split in ("train", "val", "test")},
    )
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import left in `folder`: rows by file, names to load, files the source did not have."""

    folder: Path
    files: Mapping[str, int]
    datasets: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unchanged: bool = False  # everything was complete before
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> annotated texts that are not among the rows


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to fetch from where. `optional` files may be missing at the source."""

    source: str
    origin: str
    registry: dict[str, Any]
    files: tuple[str, ...]
    rows: Mapping[str, int] = field(default_factory=dict)
    optional: bool = False
    saved: bool = False  # by Hugging Face's library: the files are its splits, rewritten as rows
    how: How = field(default_factory=How)


def import_dataset(
    name_or_url: str,
    into: storage.AnyPath,
    *,
    from_folder: storage.AnyPath | None = None,
    how: How | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Bring a dataset into `into`: a known one, a folder with a dataset_info.json, or one data file.

    A file of annotated text (CoNLL, Label Studio, Prodigy, doccano, DocBin; also as the one file of a zip) becomes
    rows whose outputs are its spans, as `how` says; texts with faults are left out and named, each with its reason, in
    NAME.dropped.log: read = rows + dropped. A folder that `datasets.save_to_disk` wrote becomes a file a split.

    Known are "viggo" and "bikeshop"; `from_folder` takes a known one's files from a folder instead of the
    network, where some may be missing (the result says which). A file is checked before it appears in
    `into`; the manifest is written last. What is complete is not fetched again; what was cut goes on. Raises
    StorageError (not reachable; a file of that name is there and not from an import), DataError (not the
    rows expected), RunError (another import is at work in `into`).
    """
    folder = storage.local(into)
    manifest = _read_manifest(folder / MANIFEST)
    done = manifest["sources"].get(_source(name_or_url))
    how = how or How()
    if done and done.get("how", asdict(How())) != asdict(how):
        hint = "import into another folder, so that nobody takes the one for the other"
        raise StorageError(f"{folder} has {name_or_url} already, imported with another format, form or text", hint=hint)
    if done and not done["missing"] and all(_intact(folder, manifest, name) for name in done["files"]):
        rows = {name: manifest["files"][name]["rows"] for name in done["files"]}
        if (folder / REGISTRY).exists() and storage.read_json(folder / REGISTRY).keys() >= set(done["datasets"]):
            dropped = done.get("dropped", {})
            return Imported(folder, rows, tuple(done["datasets"]), unchanged=True, dropped=dropped)
    plan = _plan(name_or_url, from_folder, how)  # first, so that a wrong name leaves no folder behind
    with storage.FolderLock(folder / _STAGING):
        return _import(plan, folder, progress)


def materialise_bikeshop(into: storage.AnyPath) -> Imported:
    """Copy the packaged bikeshop dataset into a folder. Raises StorageError for other files in the way."""
    return import_dataset(BUNDLED, into)


def _source(name_or_url: str) -> str:
    known = next((name for name, k in KNOWN.items() if name_or_url.rstrip("/") in (name, k.url)), None)
    return known or storage.shown(name_or_url).removesuffix(f"/{REGISTRY}").rstrip("/")


def _plan(name_or_url: str, from_folder: storage.AnyPath | None, how: How) -> _Plan:
    source = _source(name_or_url)
    known = KNOWN.get(source)
    if from_folder is not None:
        origin = os.fspath(from_folder)
    elif source == BUNDLED:
        from importlib.resources import files as resources

        origin = str(resources("tunery.data") / BUNDLED)
    else:
        origin = known.url if known else name_or_url
    if known is not None:
        # Fetched first of all: it proves that this is the place, and may hold more than is known here.
        there = _fetch_registry(origin) if from_folder is None or _there(origin, REGISTRY) else {}
        rows = known.rows
        registry = {**there, **{k: v for k, v in known.registry.items() if k not in there}}
        registry = {k: v for k, v in registry.items() if isinstance(v, dict) and v.get("file_name") in rows}
        return _Plan(source, origin, registry, tuple(rows), rows, optional=from_folder is not None)
    if from_folder is None and not storage.is_remote(origin) and not storage.exists(origin):
        hint = nearest(name_or_url, (*KNOWN, BUNDLED)) + " (or a URL, or a folder with a dataset_info.json)"
        raise DataError(f'no known dataset "{name_or_url}"', hint=hint)
    bare = storage.shown(origin)
    is_file = file_format(origin) or annotation_format(origin) or bare.endswith(".zip") or (how.kind and "." in bare)
    if is_file and not bare.endswith(f"/{REGISTRY}"):
        parent, _, name = origin.rpartition("/")
        name, query, signature = name.partition("?")
        return _Plan(source, f"{parent or '.'}{query}{signature}", {}, (name,), how=how)
    if not storage.is_remote(origin) and (splits := saved_splits(origin)) is not None:
        names = splits or [Path(origin).name]
        return _Plan(source, origin, {}, tuple(f"{name}.jsonl" for name in names), saved=True)
    origin = origin.removesuffix(REGISTRY).rstrip("/") or "."
    entries = _fetch_registry(origin)
    registry = {k: v for k, v in entries.items() if parse_entry(k, v).source == "file_name"}
    if not registry:
        raise DataError(f"{storage.shown(origin)}/{REGISTRY} names no files", hint="name a data file instead")
    files = dict.fromkeys(entry["file_name"] for entry in registry.values())
    for name in files:
        if "://" in name or name.startswith("/") or ".." in Path(name).parts or file_format(name) is None:
            raise DataError(f'cannot import "{name}": only data files below the folder itself', where=REGISTRY)
    return _Plan(source, origin, registry, tuple(files))


def _at(origin: str, name: str) -> str:
    """The address of a file at an origin, whose query (a signature) stays behind the path."""
    if origin.startswith(("http://", "https://")):
        base, query, signature = origin.partition("?")
        return storage.join(base, name) + query + signature
    return storage.join(origin, name)


def _there(origin: str, name: str) -> bool:
    return storage.exists(_at(origin, name))


def _fetch_registry(origin: str) -> dict[str, Any]:
    raw = storage.read_json(_at(origin, REGISTRY))
    if not isinstance(raw, dict):
        raise DataError("must be an object: dataset name -> entry", where=storage.shown(_at(origin, REGISTRY)))
    return raw


def _import(plan: _Plan, folder: Path, progress: Progress | None) -> Imported:
    manifest = _read_manifest(folder / MANIFEST)
    begun = _read_manifest(folder / _STAGING / MANIFEST)  # files in place whose import was cut before its end
    manifest["files"] |= begun["files"]
    missing = [name for name in plan.files if plan.optional and not _there(plan.origin, name)]
    names = [name for name in plan.files if name not in missing]
    if not names:
        raise StorageError(f"{plan.origin} has none of {', '.join(plan.files)}", hint="check the folder")
    for name in names:
        owner = manifest["files"].get(name, {}).get("source", plan.source)
        if owner != plan.source and (folder / name).exists():
            hint = "import into another folder: each file there has one owner"
            raise StorageError(f"{folder / name} belongs to {owner}", hint=hint)
        if (folder / name).exists() and not _intact(folder, manifest, name):
            raise _in_the_way(folder / name)
    registry = dict(plan.registry)
    rows: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    for name in names:
        if _intact(folder, manifest, name):
            rows[name] = manifest["files"][name]["rows"]
        else:
            staged = folder / _STAGING / name
            _fetch(plan, name, staged, progress)
            if not plan.registry and not plan.saved:
                staged, lost = _converted(plan, staged, folder)
                name = staged.name
                dropped.update(lost)
                if (folder / name).exists() and not _intact(folder, manifest, name):
                    raise _in_the_way(folder / name)
            rows[name] = _check(plan, name, staged)
            record = {"source": plan.source, "rows": rows[name], **_facts(staged)}
            # Recorded before it is moved: a crash between the two leaves a record, never an unknown file.
            begun["files"][name] = manifest["files"][name] = record
            storage.write_json_atomic(folder / _STAGING / MANIFEST, begun)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, folder / name)
        if not plan.registry:
            registry |= _entry_of(folder / name, name)
    registry = {k: v for k, v in registry.items() if v["file_name"] in rows}
    _write_registry(folder, manifest, registry)
    manifest["sources"][plan.source] = {
        "origin": storage.shown(plan.origin),
        "imported": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": list(rows),
        "datasets": list(registry),
        "missing": missing,
        "dropped": dropped,
        "how": asdict(plan.how),
    }
    storage.write_json_atomic(folder / MANIFEST, manifest)
    (folder / _STAGING / MANIFEST).unlink(missing_ok=True)
    return Imported(folder, rows, tuple(registry), tuple(missing), dropped=dropped)


def _converted(plan: _Plan, staged: Path, folder: Path) -> tuple[Path, dict[str, int]]:
    """A fetched file as rows: itself, or what was annotated in it; and how many texts were dropped for which reason."""
    if staged.suffix == ".zip":
        archive, staged = staged, unzip(staged, staged.parent)
        archive.unlink()
    kind = is_annotated(str(staged), plan.how)
    if kind is None:
        return staged, {}
    found = convert(str(staged), kind, plan.how)
    target = staged.with_name(staged.name.removesuffix(".gz")).with_suffix(".jsonl")
    staged.unlink()
    write_converted(target, found)
    return target, write_dropped(folder / f"{target.stem}.dropped.log", found.faults)


def _fetch(plan: _Plan, name: str, staged: Path, progress: Progress | None) -> None:
    if plan.saved:
        stem = name.removesuffix(".jsonl")
        split = storage.join(plan.origin, stem) if saved_splits(plan.origin) else plan.origin
        write_rows(staged, plain_rows(load(split).examples, stem))
        return
    address = _at(plan.origin, name)
    report = (lambda done, total: progress(name, done, total)) if progress else None
    if storage.is_remote(address):
        download(address, staged, progress=report)
        return
    data = storage.read_bytes(address)
    storage.write_atomic(staged, data)
    if report:
        report(len(data), len(data))


def _check(plan: _Plan, name: str, staged: Path) -> int:
    """Rows of a fetched file that reads as examples, and is the file it should be; else it is removed."""
    try:
        entries = [entry for entry in plan.registry.items() if entry[1]["file_name"] == name]
        if entries:  # read it through its own entry, as it will be read
            renamed = {key: entry | {"file_name": staged.name} for key, entry in entries}
            storage.write_json_atomic(staged.parent / REGISTRY, renamed)
            n = max(len(load(key, staged.parent)) for key, _ in entries)
        else:
            n = len(load(str(staged), staged.parent))
        expected = plan.rows.get(name, n)
        if n != expected:
            raise DataError(f"{n:,} rows, {expected:,} expected", where=name, hint="the source holds another version")
        return n
    except DataError:
        staged.unlink()
        raise
    finally:
        (staged.parent / REGISTRY).unlink(missing_ok=True)


def _entry_of(path: Path, name: str) -> dict[str, Any]:
    """The registry entry that a single imported file gets."""
    _, row = read_rows(str(path), name)[0]
    entry = guess(name.partition(".")[0], row, name, labelled=True)
    raw: dict[str, Any] = {"file_name": name, "formatting": entry.formatting, "columns": dict(entry.columns)}
    raw |= {"ranking": True} if entry.ranking else {}
    return {entry.name: raw | ({"tags": dict(entry.tags)} if entry.tags else {})}


def _write_registry(folder: Path, manifest: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """Add entries to the folder's registry; those of other datasets there stay."""
    path = folder / REGISTRY
    there = storage.read_json(path) if path.exists() else {}
    ours = {name for source in manifest["sources"].values() for name in source["datasets"]}
    for name, entry in entries.items():
        if name in there and name not in ours and there[name] != entry:
            hint = "import into another folder, or rename that entry"
            raise DataError(f'{path} has another dataset "{name}" already', where=str(path), hint=hint)
    if any(there.get(name) != entry for name, entry in entries.items()):
        storage.write_json_atomic(path, {**there, **entries})


def _in_the_way(path: Path) -> StorageError:
    return StorageError(
        f"{path} is there already and is not what an import wrote",
        hint="import into another folder, or move it",
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    raw = storage.read_json(path) if path.exists() else {}
    if not isinstance(raw, dict) or not all(isinstance(raw.get(k, {}), dict) for k in ("files", "sources")):
        raise _in_the_way(path)
    return {"sources": {}, "files": {}, **raw}


def _facts(path: Path) -> dict[str, Any]:
    with storage.open_bytes(path) as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}  # pyright: ignore[reportArgumentType]


def _intact(folder: Path, manifest: Mapping[str, Any], name: str) -> bool:
    """Whether a file is there, byte for byte as an import wrote it."""
    path, record = folder / name, manifest["files"].get(name)
    return bool(record) and path.is_file() and _facts(path).items() <= record.items()
