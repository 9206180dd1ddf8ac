"""The function form, `inform(name[The Long Dark], genres[survival, indie])`, parsed in one pass.

Values may hold brackets and parentheses as long as they balance, and commas; a list is split at commas outside
brackets and parentheses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NAME = re.compile(r"\s*([A-Za-z_][\w.\- ]*?)\s*\(")
_ATTRIBUTE = re.compile(r"\s*([A-Za-z_][\w.\- ]*?)\s*\[")
_BARE = re.compile(r"\s*([A-Za-z_][\w.\- ]*?)\s*(?=[,)])")
_COMMA = re.compile(r"\s*,\s*")
_BRACKETS = re.compile(r"[\[\]]")


@dataclass(frozen=True, slots=True)
class Call:
    """One function with its attributes in written order; values () means the attribute stands without one."""

    name: str
    attributes: tuple[tuple[str, tuple[str, ...]], ...]


def parse_calls(text: str) -> list[Call] | None:
    """All calls of `text`, or None when it is not of this form from its first character to its last."""
    calls: list[Call] = []
    at = 0
    while True:
        name = _NAME.match(text, at)
        if not name:
            return None
        body = _parse_body(text, name.end())
        if body is None:
            return None
        attributes, at = body
        calls.append(Call(name[1], tuple(attributes)))
        if not text[at:].strip():
            return calls
        comma = _COMMA.match(text, at)
        if not comma:
            return None
        at = comma.end()


def _parse_body(text: str, at: int) -> tuple[list[tuple[str, tuple[str, ...]]], int] | None:
    attributes: list[tuple[str, tuple[str, ...]]] = []
    while True:
        if not attributes and (close := re.compile(r"\s*\)").match(text, at)):
            return attributes, close.end()
        if attribute := _ATTRIBUTE.match(text, at):
            end = _matching(text, attribute.end())
            if end is None:
                return None
            attributes.append((attribute[1], split_values(text[attribute.end() : end])))
            at = end + 1
        elif bare := _BARE.match(text, at):
            attributes.append((bare[1], ()))
            at = bare.end()
        else:
            return None
        rest = re.compile(r"\s*([,)])").match(text, at)
        if not rest:
            return None
        at = rest.end()
        if rest[1] == ")":
            return attributes, at


def _matching(text: str, at: int) -> int | None:
    depth = 1
    for hit in _BRACKETS.finditer(text, at):
        depth += 1 if hit[0] == "[" else -1
        if depth == 0:
            return hit.start()
    return None


def split_values(text: str) -> tuple[str, ...]:
    """Values of a list: split at commas outside parentheses and brackets; spaces folded, empty parts dropped."""
    if "," not in text:
        folded = " ".join(text.split())
        return (folded,) if folded else ()
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "([":
            depth += 1
        elif char in ")]":
            depth = max(0, depth - 1)
        elif char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return tuple(folded for part in parts if (folded := " ".join(part.split())))


def render_calls(calls: Sequence[Call], *, canonical: bool = False) -> str:
    """The text of `calls`; canonical sorts attributes and list values."""
    return ", ".join(_render(call, canonical) for call in calls)


def _render(call: Call, canonical: bool) -> str:
    attributes = sorted(call.attributes) if canonical else call.attributes
    written = (f"{name}[{', '.join(sorted(values) if canonical else values)}]" for name, values in attributes)
    return f"{call.name}({', '.join(written)})"
