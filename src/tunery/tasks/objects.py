"""JSON objects and arrays: slots are leaves, the grammar is an inferred JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from tunery.tasks.base import Structure, Task, unfenced

if TYPE_CHECKING:
    from tunery.tasks.profile import Profile

_MANY = 200  # distinct keys of one object: more, and it is a mapping with free keys


class JsonTask(Task):
    """A JSON object or array. Canonical: sorted keys, sorted arrays, no spaces. Slots are the leaves by their path.

    Array order does not count, as list order does not for functions: extracted lists are sets. A key that stands twice
    in one object, NaN and Infinity are no JSON here.
    """

    name = "json"

    def parse(self, text: str) -> Structure | None:
        try:
            value = _DECODER.decode(text.strip())
            return _structure(value) if isinstance(value, dict | list) else None
        except (ValueError, RecursionError):
            return None

    def parse_tolerant(self, text: str) -> Structure | None:
        """Also inside prose or a code fence, with trailing commas, or cut off: open strings and brackets are closed."""
        if found := self.parse(text):
            return found
        text = unfenced(text)
        start = re.search(r"[{\[]", text)
        if not start:
            return None
        body = text[start.start() :]
        try:
            value, _ = _DECODER.raw_decode(body)
            return _structure(value)
        except (ValueError, RecursionError):
            return self.parse(_closed(body))

    def form(self, outputs: Iterable[str]) -> dict[str, Any]:
        """{"schema": a JSON Schema that all outputs fulfil}."""
        values = []
        for output in outputs:
            try:
                values.append(_DECODER.decode(output.strip()))
            except (ValueError, RecursionError):
                continue
        try:
            return {"schema": infer_schema(values)} if values else {}
        except RecursionError:  # nested deeper than any grammar could follow
            return {}

    def grammar(self, profile: Profile) -> dict[str, Any] | None:
        """The schema, closed sets of strings as enums."""
        schema = profile.form.get("schema")
        return {"json": _with_enums(schema, "", profile)} if schema else None


def infer_schema(values: Sequence[Any]) -> dict[str, Any]:
    """The narrowest JSON Schema (2020-12) of types, properties, required and items that all `values` fulfil.

    Properties stand in their most usual order, which xgrammar makes the model follow.
    """
    kinds: list[dict[str, Any]] = []
    objects = [v for v in values if isinstance(v, dict)]
    arrays = [v for v in values if isinstance(v, list)]
    if objects:
        places: dict[str, list[int]] = {}
        for value in objects:
            for i, key in enumerate(value):
                places.setdefault(key, []).append(i)
        if len(places) > _MANY:
            kinds.append(
                {"type": "object", "additionalProperties": infer_schema([v for o in objects for v in o.values()])}
            )
        else:
            order = sorted(places, key=lambda k: sum(places[k]) / len(places[k]))
            kinds.append({
                "type": "object",
                "properties": {k: infer_schema([o[k] for o in objects if k in o]) for k in order},
                "required": [k for k in order if len(places[k]) == len(objects)],
                "additionalProperties": False,
            })  # fmt: skip
    if arrays:
        items = [v for a in arrays for v in a]
        kinds.append({"type": "array", "items": infer_schema(items)} if items else {"type": "array", "maxItems": 0})
    if any(isinstance(v, str) for v in values):
        kinds.append({"type": "string"})
    if any(isinstance(v, bool) for v in values):
        kinds.append({"type": "boolean"})
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if numbers:
        kinds.append({"type": "integer" if all(isinstance(v, int) for v in numbers) else "number"})
    if any(v is None for v in values):
        kinds.append({"type": "null"})
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _with_enums(schema: dict[str, Any], path: str, profile: Profile) -> dict[str, Any]:
    if "anyOf" in schema:
        return {"anyOf": [_with_enums(s, path, profile) for s in schema["anyOf"]]}
    if schema["type"] == "object" and "properties" in schema:
        inner = {k: _with_enums(s, f"{path}.{k}" if path else k, profile) for k, s in schema["properties"].items()}
        return schema | {"properties": inner}
    if schema["type"] == "array" and "items" in schema:
        return schema | {"items": _with_enums(schema["items"], f"{path}[]", profile)}
    attribute = profile.attributes.get(path)
    if schema["type"] == "string" and attribute and attribute.kind == "closed":
        return {"type": "string", "enum": list(attribute.values)}
    return schema


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _structure(value: Any) -> Structure:
    slots: list[tuple[str, str]] = []
    _leaves(value, "", slots)
    return Structure(_dump(value), tuple(slots))


def _dump(value: Any) -> str:
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, dict):
        return "{" + ",".join([f"{encode_basestring(k)}:{_dump(v)}" for k, v in sorted(value.items())]) + "}"
    if isinstance(value, list):
        return "[" + ",".join(sorted([_dump(v) for v in value])) + "]"
    return json.dumps(value)


def _leaves(value: Any, path: str, slots: list[tuple[str, str]]) -> None:
    if isinstance(value, str):
        slots.append((path, value))
    elif isinstance(value, dict):
        for key, inner in value.items():
            _leaves(inner, f"{path}.{key}" if path else key, slots)
    elif isinstance(value, list):
        for inner in value:
            _leaves(inner, f"{path}[]", slots)
    else:
        slots.append((path, json.dumps(value)))


def _closed(text: str) -> str:
    """`text` with its open strings and brackets closed and commas before closing brackets removed."""
    stack: list[str] = []
    quoted = escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "{[":
            stack.append("}" if char == "{" else "]")
        elif not quoted and char in "}]" and stack:
            stack.pop()
    text = text.rstrip()
    if quoted:
        text = (text[:-1] if escaped else text) + '"'
    text = re.sub(r'[,{]\s*"[^"]*"\s*:?\s*$', lambda m: m[0][0] if m[0].endswith(":") else m[0], text).rstrip(", ")
    return re.sub(r",\s*([}\]])", r"\1", text + "".join(reversed(stack)))
