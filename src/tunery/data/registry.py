"""`dataset_info.json`, in LLaMA-Factory's words: the datasets of a folder, and their columns' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunery import storage
from tunery.errors import DataError

REGISTRY = "dataset_info.json"
FORMATTINGS = ("alpaca", "sharegpt", "openai")
SOURCES = (
    "hf_hub_url",
    "ms_hub_url",
    "script_url",
    "cloud_file_name",
    "file_name",
)  # the first one there wins
COLUMNS = (
    "prompt",
    "query",
    "response",
    "history",
    "messages",
    "system",
    "tools",
    "chosen",
    "rejected",
    "kto_tag",
)
_KEYS = (*SOURCES, "formatting", "ranking", "columns", "tags", "num_samples", "split", "subset", "folder", "revision")
_OTHER_STAGES = ("images", "videos", "audios")

ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
TAGS = {
    "sharegpt": {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    },
    "openai": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One dataset of the registry, checked. `columns` maps roles (COLUMNS) to the names the rows use."""

    name: str
    source: str  # one of SOURCES
    location: str  # what the source key says
    formatting: str
    columns: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    ranking: bool = False  # rows are pairs: a chosen and a rejected answer
    mapped: bool = False  # whether the entry names its columns itself
    num_samples: int | None = None
    split: str | None = None
    subset: str | None = None
    folder: str | None = None
    revision: str | None = None


def read_registry(dataset_dir: storage.AnyPath) -> dict[str, Any]:
    """The raw entries by name. Raises DataError when the folder has no registry or it is no object."""
    path = storage.join(dataset_dir, REGISTRY)
    if not storage.exists(path):
        raise DataError(
            f"{storage.shown(dataset_dir)} has no {REGISTRY}",
            hint="name a folder that has one with dataset_dir, or name a data file instead of a dataset",
        )
    raw = storage.read_json(path)
    if not isinstance(raw, dict):
        raise DataError("must be an object: dataset name -> entry", where=storage.shown(path))
    if "features" in raw and "file_name" not in str(raw):
        hint = "name the folder itself: it is read as the dataset that it is"
        raise DataError("is of a dataset saved by Hugging Face's library", where=storage.shown(path), hint=hint)
    return raw


def parse_entry(name: str, raw: Any, where: str = REGISTRY) -> Entry:
    """Check one raw entry. Raises DataError that names the key, and the nearest right one."""

    def fail(message: str, hint: str | None = None) -> DataError:
        return DataError(f'dataset "{name}": {message}', where=where, hint=hint)

    if not isinstance(raw, dict):
        raise fail("its entry must be an object")
    for key in raw:
        if key in _OTHER_STAGES and raw[key]:
            raise fail(f'"{key}" is not supported', "only text is")
        if key not in _KEYS and key not in _OTHER_STAGES:
            raise fail(f'unknown key "{key}"', nearest(key, _KEYS))
    formatting = raw.get("formatting", "alpaca")
    if formatting not in FORMATTINGS:
        raise fail(f'unknown formatting "{formatting}"', nearest(str(formatting), FORMATTINGS))
    source = next((key for key in SOURCES if raw.get(key)), None)
    if source is None:
        raise fail("no source", 'add "file_name"')
    for key in (source, "split", "subset", "folder", "revision"):
        if raw.get(key) is not None and not isinstance(raw[key], str):
            raise fail(f'"{key}" must be text')
    samples = raw.get("num_samples")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise fail(f'"num_samples" must be a positive whole number, not {samples!r}')
    ranking = raw.get("ranking") or False
    if not isinstance(ranking, bool):
        raise fail('"ranking" must be true or false')
    default_tags = TAGS.get(formatting, TAGS["sharegpt"])
    columns = _names(raw, "columns", (*COLUMNS, *_OTHER_STAGES), fail)
    for key in columns:
        if key in _OTHER_STAGES:
            raise fail(f"columns.{key} is not supported", "only text is")
    if ranking and not (columns.get("chosen") and columns.get("rejected")):
        raise fail("ranking needs columns.chosen and columns.rejected", "map both to the columns that hold the answers")
    return Entry(
        name=name,
        source=source,
        location=raw[source],
        formatting=formatting,
        columns=_default_columns(formatting, columns),
        tags={**default_tags, **_names(raw, "tags", tuple(default_tags), fail)},
        ranking=ranking,
        mapped="columns" in raw,
        num_samples=samples,
        split=raw.get("split"),
        subset=raw.get("subset"),
        folder=raw.get("folder"),
        revision=raw.get("revision"),
    )


def _names(raw: Mapping[str, Any], key: str, known: tuple[str, ...], fail: Any) -> dict[str, str]:
    given = raw.get(key) or {}
    if not isinstance(given, dict):
        raise fail(f'"{key}" must be an object')
    for name, value in given.items():
        if name not in known:
            raise fail(f'unknown key "{key}.{name}"', nearest(name, known))
        if value is not None and not isinstance(value, str):
            raise fail(
                f'"{key}.{name}" must be the name of a column' if key == "columns" else f'"{key}.{name}" must be text'
            )
    return {name: value for name, value in given.items() if value}


def _default_columns(formatting: str, given: dict[str, str]) -> dict[str, str]:
    """As LLaMA-Factory: an entry that names its columns names all of them; the others are not read."""
    if formatting == "alpaca":
        return given or dict(ALPACA_COLUMNS)
    return {"messages": "messages" if formatting == "openai" else "conversations", **given}


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the known word that was probably meant, or all of them."""
    import difflib

    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else f"known are: {', '.join(words) or 'none'}"
