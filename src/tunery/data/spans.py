"""Spans of a text, and the structured targets that stand for them: there and back.

A target names what was found, not where: models copy text well and count characters badly. `render` writes spans as
a target, `place` finds the values of a target in the text again, all of them together, so that repeated ones get places
of their own. (How far one value is grounded at all, be it as a number or a date, is another question, which
tunery.tasks.grounding answers; what a whole word is, both take from here.) Offsets are in Unicode code points, end
exclusive, as Python slices.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from tunery.errors import DataError

Form = Literal["function", "json"]
FUNCTION = "extract"  # the function of a target in function form


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """`text[start:end]` is a `label`."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Annotated:
    """A text and its spans in reading order. `meta` holds what else its file said about it."""

    text: str
    spans: tuple[Span, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


def checked(text: str, spans: Iterable[tuple[Any, Any, Any, Any]], meta: Mapping[str, Any] | None = None) -> Annotated:
    """An Annotated from (start, end, label, surface or None) as a file has them; raises DataError for what cannot be.

    Some tools count UTF-16 units, as JavaScript does, where an emoji counts twice. Where the surface is given it
    decides between the two.
    """
    found = []
    for start, end, label, surface in spans:
        if not isinstance(label, str) or not label.strip():
            raise DataError(f"a span without a label: {label!r}")
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in (start, end)):
            raise DataError(f"span offsets are {start!r} and {end!r}, not whole numbers")
        if isinstance(surface, str) and text[max(0, start) : end] != surface:
            surface = surface.replace("\\n", "\n")  # Label Studio escapes line ends
            units = text.encode("utf-16-le")
            in_units = units[2 * max(0, start) : 2 * end].decode("utf-16-le", "replace")
            if in_units == surface:
                start, end = (len(units[: 2 * n].decode("utf-16-le", "replace")) for n in (start, end))
            elif text[max(0, start) : end] != surface:
                raise DataError(f'the span {start}-{end} holds "{text[max(0, start) : end]}", not "{surface}"')
        if not 0 <= start < end <= len(text):
            raise DataError(f"the span {start}-{end} lies outside the text (0-{len(text)})")
        found.append(Span(start, end, label.strip()))
    return Annotated(text, tuple(sorted(found)), meta or {})


# --- spans to target -------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_][\w.-]*( [\w.-]+)*")


def render(annotated: Annotated, form: Form) -> str:
    """The target for spans: `extract(PER[Ann, Bob], LOC[Paris])`, or `{"PER": ["Ann", "Bob"], "LOC": ["Paris"]}`.

    Labels come in the order of their first span, values in reading order, repeats kept. Raises DataError for a label
    or value that the function form cannot hold: it splits values at commas and needs balanced brackets.
    """
    values: dict[str, list[str]] = {}
    for span in annotated.spans:
        values.setdefault(span.label, []).append(annotated.text[span.start : span.end])
    if form == "json":
        return json.dumps(values, ensure_ascii=False)
    for label, texts in values.items():
        if not _NAME.fullmatch(label):
            raise DataError(f'the function form cannot hold the label "{label}"', hint="use the form json")
        for text in texts:
            if not text.strip() or not _fits(text):
                raise DataError(f'the function form cannot hold the value "{text}"', hint="use the form json")
    written = (f"{label}[{', '.join(' '.join(t.split()) for t in texts)}]" for label, texts in values.items())
    return f"{FUNCTION}({', '.join(written)})"


def _fits(value: str) -> bool:
    """Whether the function form reads a value back as one: brackets balance, commas only inside them."""
    square = depth = 0
    for char in value:
        if char in "([":
            depth += 1
            square += char == "["
        elif char in ")]":
            depth -= 1
            square -= char == "]"
            if depth < 0 or square < 0:
                return False
        elif char == "," and depth == 0:
            return False
    return depth == 0 and square == 0


# --- target to spans -------------------------------------------------------------------------------------


def wanted(slots: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(label, value) pairs of a parsed target's slots, whose paths are "function.label" or "label[]"."""
    pairs = []
    for path, value in slots:
        if path == "function" or not value.strip():
            continue
        label = path.removesuffix("[]")
        pairs.append((label.partition(".")[2] or label, value))
    return pairs


def place(text: str, pairs: Sequence[tuple[str, str]]) -> tuple[list[Span], list[tuple[str, str]]]:
    """Spans of (label, value) pairs in `text`, in reading order, and the pairs that do not stand there.

    Case, width, accents' composition, kinds of quotes and white space may differ. A value that repeats takes the
    next occurrence; whole words, the exact spelling and free places come first.
    """
    folded, starts, ends = _fold(text)
    spans: list[Span] = []
    lost: list[tuple[str, str]] = []
    # The longest first, so that "New York" does not take the beginning of "New York Times".
    for label, value in sorted(pairs, key=lambda pair: -len(pair[1])):
        needle = _fold(value)[0].strip()
        best: tuple[Any, ...] | None = None
        at = folded.find(needle) if needle else -1
        while at >= 0:
            span = Span(starts[at], ends[at + len(needle) - 1], label)
            if span not in spans:
                taken = any(span.start < s.end and s.start < span.end for s in spans)
                cut = inside_word(text, span.start) or inside_word(text, span.end)
                rank = (cut, taken, text[span.start : span.end] != value, span)
                best = rank if best is None else min(best, rank)
            at = folded.find(needle, at + 1)
        if best is None:
            lost.append((label, value))
        else:
            spans.append(best[-1])
    return sorted(spans), lost


_PLAIN = str.maketrans("‘’‚‛“”„‟‐‑‒–—−\u00a0", "''''\"\"\"\"------ ")


def _fold(text: str) -> tuple[str, list[int], list[int]]:
    """A text as it compares, and for each of its characters where the original ones start and end."""
    if text.isascii() and "  " not in text and not any(c in text for c in "\t\n\r\v\f"):
        return text.lower(), list(range(len(text))), list(range(1, len(text) + 1))
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    while at < len(text):
        end = at + 1
        if text[at].isspace():
            while end < len(text) and text[end].isspace():
                end += 1
            piece = " "
        else:
            while end < len(text) and unicodedata.combining(text[end]):
                end += 1
            piece = unicodedata.normalize("NFKC", text[at:end].translate(_PLAIN)).casefold()
        out.append(piece)
        starts += [at] * len(piece)
        ends += [end] * len(piece)
        at = end
    return "".join(out), starts, ends


def inside_word(text: str, at: int) -> bool:
    """Whether a cut at `at` parts a word. Scripts without spaces have words that begin anywhere."""
    return 0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at])


def _in_word(char: str) -> bool:
    spaceless = "\u0e00" <= char <= "\u0eff" or "\u3040" <= char <= "\u9fff" or char >= "\U00020000"
    return (char.isalnum() or bool(unicodedata.combining(char))) and not spaceless


# --- tokens ----------------------------------------------------------------------------------------------

# A word with its accents; or one sign with its accents, variation, skin tone and what is joined to it.
_TOKEN = re.compile(r"\w[\w\u0300-\u036f]*|[^\w\s](?:[\u0300-\u036f\ufe0f\U0001f3fb-\U0001f3ff]|\u200d\S)*")


def tokens(annotated: Annotated) -> list[tuple[int, int]]:
    """(start, end) of the tokens of a text: those its file had, else words and signs. No span parts a token."""
    text, given = annotated.text, annotated.meta.get("tokens")
    if isinstance(given, list) and all(isinstance(t, str) for t in given) and " ".join(given) == text:
        found, at = [], 0
        for token in given:
            found.append((at, at + len(token)))
            at += len(token) + 1
    else:
        found = [match.span() for match in _TOKEN.finditer(text)]
    cuts = sorted({n for span in annotated.spans for n in (span.start, span.end)})
    out = []
    for start, end in found:
        inner = [n for n in cuts if start < n < end]
        out += zip([start, *inner], [*inner, end], strict=True)
    return out


def overlap(spans: Sequence[Span]) -> bool:
    """Whether two of the sorted spans share a character, which tags of tokens cannot say."""
    return any(b.start < a.end for a, b in pairwise(spans))
