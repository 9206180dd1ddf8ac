"""The function form, `inform(name[The Long Dark], genres[survival, indie])`, parsed in one pass.

Values may hold brackets and parentheses as long as they balance, and commas; a list is split at commas outside
brackets and parentheses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tunery.tasks.base import Structure, Task

if TYPE_CHECKING:
    from tunery.tasks.profile import Attribute, Profile

_NAME = re.compile(r"\s*([A-Za-z_][\w.\- ]*?)\s*\(")
_ATTRIBUTE = re.compile(r"\s*([A-Za-z_][\w.\- ]*?)\s*\[")
_BARE = re.compile(r"\s*([A-Za-z_][\w.\- ]*?)\s*(?=[,)])")
_COMMA = re.compile(r"\s*,\s*")
_BRACKETS = re.compile(r"[\[\]]")
_CLOSE = re.compile(r"\s*\)")
_NEXT = re.compile(r"\s*([,)])")
_STARTS = re.compile(r"(?<![\w.\-])[A-Za-z_][\w.\-]*\s*\(")
_WORD = r"[A-Za-z_][\w.\-]*"
_SIMPLE = re.compile(rf"\s*({_WORD})\(((?:{_WORD}\[[^\[\]]*\](?:,\s*{_WORD}\[[^\[\]]*\])*)?)\)\s*")
_ITEM = re.compile(rf"({_WORD})\[([^\[\]]*)\]")
# How often each attribute of a function must have been seen before all others are ruled out for it. Learnt from draws
# of 100 to 5,103 of ViGGO's training rows, such a grammar shuts out 0.01 % of the validation outputs; one that rules
# out what was never seen, 23 % after 100 rows and 1 % after 1,000.
_SETTLED = 5


class Call(NamedTuple):
    """One function with its attributes in written order; values () means the attribute stands without one."""

    name: str
    attributes: tuple[tuple[str, tuple[str, ...]], ...]


def parse_calls(text: str) -> list[Call] | None:
    """All calls of `text`, or None when it is not of this form from its first character to its last."""
    if simple := _SIMPLE.fullmatch(
        text
    ):  # one call without nested brackets: nearly all of them, and three times faster
        return [Call(simple[1], tuple([(name, split_values(raw)) for name, raw in _ITEM.findall(simple[2])]))]
    found = _parse_prefix(text, 0)
    return found[0] if found and not text[found[1] :].strip() else None


def find_calls(text: str) -> list[Call] | None:
    """The first calls that stand somewhere in `text`, cut-off ones closed; None when there are none.

    What a person would still read: prose or a code fence around the call, or an answer that ran out of tokens.
    """
    for name in islice(_STARTS.finditer(text), 20):  # each try reads to the end
        if found := _parse_prefix(text, name.start()):
            return found[0]
        rest = text[name.start() :].rstrip("`\n ")
        for closing in ("])", ")"):
            for cut in (rest, rest.rpartition(",")[0]):
                if cut and (found := _parse_prefix(cut + closing, 0)):
                    return found[0]
    return None


def _parse_prefix(text: str, at: int) -> tuple[list[Call], int] | None:
    """As many calls as stand at `at`, and where they end."""
    calls: list[Call] = []
    end = at
    while name := _NAME.match(text, at):
        body = _parse_body(text, name.end())
        if body is None:
            break
        attributes, end = body
        calls.append(Call(name[1], tuple(attributes)))
        comma = _COMMA.match(text, end)
        if not comma:
            break
        at = comma.end()
    return (calls, end) if calls else None


def _parse_body(text: str, at: int) -> tuple[list[tuple[str, tuple[str, ...]]], int] | None:
    attributes: list[tuple[str, tuple[str, ...]]] = []
    if close := _CLOSE.match(text, at):
        return attributes, close.end()
    while True:
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
        rest = _NEXT.match(text, at)
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
    if "(" not in text and "[" not in text:
        return tuple([folded for part in text.split(",") if (folded := " ".join(part.split()))])
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
    attributes = call.attributes
    if canonical:
        attributes = sorted([(name, sorted(values) if len(values) > 1 else [*values]) for name, values in attributes])
    written = [f"{name}[{', '.join(values)}]" for name, values in attributes]
    return f"{call.name}({', '.join(written)})"


class FunctionTask(Task):
    """`inform(name[X], genres[a, b])`, one call or several joined by commas.

    Canonical: attributes sorted by name, list values sorted, spacing normalised. A slot is
    (`function.attribute`, value); an attribute without value has the value "". The function itself is the slot
    ("function", name).
    """

    name = "function"

    def parse(self, text: str) -> Structure | None:
        calls = parse_calls(text)
        return _structure(calls) if calls is not None else None

    def parse_tolerant(self, text: str) -> Structure | None:
        calls = parse_calls(text)
        if calls is None:
            calls = find_calls(text)
        return _structure(calls) if calls is not None else None

    def attribute(self, path: str) -> str:
        """The attribute alone: `inform.name` and `recommend.name` are one `name`."""
        return path.partition(".")[2] or path

    def form(self, outputs: Iterable[str]) -> dict[str, Any]:
        """Whether some output holds several calls, whether some attribute stands without brackets, and how often
        each function takes each attribute: {"several", "bare", "takes": {function: {attribute: n}}}."""
        several = bare = False
        takes: dict[str, Counter[str]] = {}
        for output in outputs:
            calls = parse_calls(output) or []
            several |= len(calls) > 1
            bare |= any(not values for call in calls for _, values in call.attributes) and "[]" not in output
            for call in calls:
                takes.setdefault(call.name, Counter()).update(name for name, _ in call.attributes)
        return {"several": several, "bare": bare, "takes": {name: dict(counts) for name, counts in takes.items()}}

    def grammar(self, profile: Profile) -> dict[str, Any] | None:
        """GBNF as xgrammar reads it: the functions seen, each attribute with its closed set, or any balanced text.

        A function takes the attributes that it had in training rows, at any place and as often as it likes; all
        attributes where one of its own is rare, since it then may well take others that no row happens to show.
        """
        functions = profile.attributes.get("function")
        if functions is None:
            return None
        attributes = [a for path, a in profile.attributes.items() if path != "function"]
        lines = [
            'root ::= call (", " call)*' if profile.form.get("several") else "root ::= call",
            # Runs of characters as one repeated class, and in one way only: else xgrammar follows every character of
            # every token through the rules, which takes it two hundred times as long a step.
            r"text ::= [^\[\]\n]+ more | nested [^\[\]\n]* more",
            r"more ::= (nested [^\[\]\n]*)*",
            r'nested ::= "[" [^\[\]\n]* more "]"',
        ]
        rules = {attribute.path: f"a{i}" for i, attribute in enumerate(attributes)}
        signatures: dict[str, list[str]] = {}  # the attributes taken -> the functions that take them
        for function, n in functions.values.items():
            counts = profile.form.get("takes", {}).get(function, {})
            settled = min(counts.values(), default=n) >= _SETTLED
            taken = counts if settled and "takes" in profile.form else rules
            signatures.setdefault(" | ".join(rule for path, rule in rules.items() if path in taken), []).append(
                function
            )
        calls = []
        for i, (taken, names) in enumerate(signatures.items()):
            if taken:
                lines.append(f"s{i} ::= {taken}")
            inside = f'"(" (s{i} ("," " "? s{i})*)? ")"' if taken else '"()"'
            calls.append(f"({' | '.join(map(quoted, names))}) {inside}")
        lines.append(f"call ::= {' | '.join(calls)}")
        for i, attribute in enumerate(attributes):
            lines.extend(_attribute_rules(i, attribute, bool(profile.form.get("bare"))))
        return {"grammar": "\n".join(lines) + "\n"}


def _attribute_rules(i: int, attribute: Attribute, bare: bool) -> list[str]:
    filled = [v for v in attribute.values if v]
    optional = "?" if "" in attribute.values else ""
    name = quoted(attribute.path)
    if not filled:
        return [f'a{i} ::= {name} {"(" if bare else ""}"[]"{")?" if bare else ""}']
    lines = []
    if attribute.kind == "closed":
        lines.append(f"v{i} ::= {' | '.join(quoted(v) for v in filled)}")
        value = f'(v{i} ("," " "? v{i})*)' if attribute.most > 1 else f"v{i}"
    else:
        value = "text"
    brackets = f'"[" {value}{optional} "]"'
    return [*lines, f"a{i} ::= {name} ({brackets}){'?' if bare and optional else ''}"]


def quoted(text: str) -> str:
    """A GBNF string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _structure(calls: Sequence[Call]) -> Structure:
    slots: list[tuple[str, str]] = []
    for name, attributes in calls:
        slots.append(("function", name))
        for attribute, values in attributes:
            path = f"{name}.{attribute}"
            if len(values) == 1:
                slots.append((path, values[0]))
            else:
                slots.extend([(path, value) for value in values or ("",)])
    return Structure(render_calls(calls, canonical=True), tuple(slots))
