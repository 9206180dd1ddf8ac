"""Reads the domain and lexicon files: what can be said about a film, a parcel, a bug, and in which words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import values as v

FOLDER = Path(__file__).parent
HELD_OUT = ("museum", "wine", "plan")  # never in the training stream

# Constructions of yes/no attributes by shape: role -> alternatives; "+" affirms, "-" denies; {n} is the thing.
BOOL_SHAPES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "have": {
        "vp+": "has {n}|offers {n}|comes with {n}|features {n}|includes {n}|provides {n}|does have {n}|also has {n}".split(
            "|"
        ),
        "vp-": (
            "has no {n}|doesn't have {n}|does not offer {n}|lacks {n}|comes without {n}|doesn't come with {n}"
            "|does not have {n}|doesn't include {n}|has no {n} whatsoever|offers no {n}"
        ).split("|"),
        "mod+": "with {n}|offering {n}|that has {n}|including {n}|that comes with {n}".split("|"),
        "mod-": "without {n}|with no {n}|lacking {n}|that has no {n}|that doesn't have {n}|minus the {n}".split("|"),
    },
    "be": {
        "vp+": "is {n}|is indeed {n}|is also {n}|is actually {n}|is considered {n}".split("|"),
        "vp-": "isn't {n}|is not {n}|is not really {n}|is anything but {n}|is in no way {n}|is not considered {n}".split(
            "|"
        ),
        "mod+": "that is {n}|which is {n}|that's {n}".split("|"),
        "mod-": "that isn't {n}|that is not {n}|which is not {n}".split("|"),
    },
    "on": {
        "vp+": "is available on {n}|can be had on {n}|is out on {n}|comes on {n}|is also on {n}|can be found on {n}".split(
            "|"
        ),
        "vp-": "is not available on {n}|isn't on {n}|can't be had on {n}|is not out on {n}|never made it to {n}".split(
            "|"
        ),
        "mod+": "available on {n}|on {n}|that is on {n}|that's out on {n}".split("|"),
        "mod-": "not available on {n}|that isn't on {n}|that is not on {n}".split("|"),
    },
    "allow": {
        "vp+": "allows {n}|welcomes {n}|accepts {n}|permits {n}|is happy to take {n}|lets you have {n}".split("|"),
        "vp-": "doesn't allow {n}|does not accept {n}|bans {n}|doesn't permit {n}|allows no {n}|won't accept {n}".split(
            "|"
        ),
        "mod+": "that allows {n}|that accepts {n}|allowing {n}|where you can have {n}".split("|"),
        "mod-": "that doesn't allow {n}|not accepting {n}|that bans {n}|where you can't have {n}".split("|"),
    },
}

# Several yes/no attributes said at once. "+-": {p} is the affirmed list, {m} the denied one; "++" and "--": {p}, {q}
# and {m}, {k} are the list without its last item and the last item. Predicates, then modifiers.
JOINT: Mapping[str, Mapping[str, Sequence[str]]] = {
    "have": {
        "+-": "has {p} but no {m}|offers {p}, but not {m}|comes with {p} but lacks {m}|has no {m}, but it does have {p}|has {p} though not {m}|doesn't have {m} but does offer {p}|has {p} but does not have {m}|may lack {m} but has {p}|gives you {p}, just not {m}".split("|"),
        "++": "has both {p} and {q}|comes with {p} and {q}|offers {p} as well as {q}|has {p}, and {q} too|has {p} plus {q}|not only has {p} but also {q}|has {p} along with {q}".split("|"),
        "--": "has neither {m} nor {k}|doesn't have {m} or {k}|lacks both {m} and {k}|comes without {m} and {k}|has no {m} and no {k} either|has no {m} or {k}|does not offer {m}, nor does it have {k}".split("|"),
        "mod+-": "with {p} but no {m}|with {p} but without {m}|with {p}, though not {m}|that has {p} but not {m}|without {m} but with {p}|offering {p} but no {m}".split("|"),
        "mod++": "with {p} and {q}|with both {p} and {q}|that has {p} as well as {q}|offering {p} plus {q}".split("|"),
        "mod--": "with neither {m} nor {k}|without {m} or {k}|that has no {m} and no {k}|lacking {m} and {k}|that doesn't have {m} or {k}".split("|"),
    },
    "be": {
        "+-": "is {p} but not {m}|is not {m}, but it is {p}|is {p}, though not {m}|isn't {m} but {p}|is {p} without being {m}|is {p} yet not {m}".split("|"),
        "++": "is both {p} and {q}|is {p} and also {q}|is {p} as well as {q}|is not only {p} but also {q}".split("|"),
        "--": "is neither {m} nor {k}|isn't {m} or {k}|is not {m} and not {k} either|is not {m}, nor is it {k}".split("|"),
        "mod+-": "that is {p} but not {m}|that isn't {m} but {p}|that's {p}, though not {m}".split("|"),
        "mod++": "that is both {p} and {q}|that's {p} and {q}".split("|"),
        "mod--": "that is neither {m} nor {k}|that isn't {m} or {k}".split("|"),
    },
    "on": {
        "+-": "is available on {p} but not on {m}|is out on {p}, though not on {m}|isn't on {m} but is on {p}|can be had on {p} but not {m}|is available on {p} but not {m}|comes on {p} and not on {m}|is on {p}, just not on {m}|is not out on {m}, only on {p}".split("|"),
        "++": "is available on {p} and {q}|is out on both {p} and {q}|can be had on {p} as well as {q}|is on {p} and also on {q}|comes on {p} and {q}".split("|"),
        "--": "is on neither {m} nor {k}|isn't available on {m} or {k}|is not out on {m} and not on {k}|is not available on {m}, nor on {k}|can't be had on {m} or {k}".split("|"),
        "mod+-": "on {p} but not {m}|available on {p} but not on {m}|that is on {p} but not on {m}|out on {p} though not {m}|on {p} and not on {m}".split("|"),
        "mod++": "on {p} and {q}|available on both {p} and {q}|that is on {p} as well as {q}".split("|"),
        "mod--": "on neither {m} nor {k}|not available on {m} or {k}|that isn't on {m} or {k}".split("|"),
    },
    "allow": {
        "+-": "allows {p} but not {m}|accepts {p}, though no {m}|doesn't allow {m}, but {p} are fine|welcomes {p} but bans {m}|permits {p}, just not {m}".split("|"),
        "++": "allows both {p} and {q}|accepts {p} and {q}|welcomes {p} as well as {q}".split("|"),
        "--": "allows neither {m} nor {k}|doesn't allow {m} or {k}|bans both {m} and {k}".split("|"),
        "mod+-": "that allows {p} but not {m}|accepting {p} but no {m}".split("|"),
        "mod++": "that allows {p} and {q}|where you can have {p} and {q}".split("|"),
        "mod--": "that allows neither {m} nor {k}|where you can't have {m} or {k}".split("|"),
    },
}  # fmt: skip


@dataclass(slots=True)
class Scale:
    """Ordered levels; `schemes` are alternative value names, `adj`/`vp`/`op` are surfaces per level."""

    schemes: list[list[str]] = field(default_factory=list)
    adj: list[list[str]] = field(default_factory=list)
    vp: list[list[str]] = field(default_factory=list)
    op: list[list[str]] = field(default_factory=list)

    @property
    def rated(self) -> bool:
        """Whether the levels can be said as opinions."""
        return bool(self.op and self.op[0])


@dataclass(slots=True)
class Attr:
    """One attribute of a domain. `kind` is copy, set, scale or bool; `roles` maps a role to its templates."""

    names: list[str]
    kind: str
    sampler: v.Sampler | None = None
    scale: Scale | None = None
    values: dict[str, list[str]] = field(default_factory=dict)
    shape: str = ""
    many: bool = False
    noun: bool = False
    roles: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Domain:
    """A kind of thing: its nouns, its naming attribute and the others."""

    name: str
    nouns: list[str]
    key: Attr
    attrs: list[Attr]


def _alternatives(text: str) -> list[str]:
    return [part.strip() for part in text.split("|") if part.strip()]


def _lines(folder: str) -> Iterator[str]:
    """The lines of a folder's files, in the order of their names."""
    for file in sorted((FOLDER / folder).glob("*.txt")):
        yield from file.read_text(encoding="utf-8").splitlines()


@lru_cache(maxsize=1)
def lexicons() -> tuple[dict[str, Scale], dict[str, dict[str, list[str]]]]:
    """All scales and all closed sets (value -> surfaces), by name."""
    scales: dict[str, Scale] = {}
    sets: dict[str, dict[str, list[str]]] = {}
    scale: Scale | None = None
    current: dict[str, list[str]] = {}
    for line in _lines("lexicons"):
        head, _, rest = line.partition(" ")
        if not line.strip() or line.startswith("#"):
            continue
        if head == "scale":
            scale = scales[rest] = Scale()
        elif head == "set":
            scale, current = None, sets.setdefault(rest, {})
        elif scale is None:
            value, _, surfaces = line.partition(":")
            own = [] if "(" in value else [value.strip()]
            current[value.strip()] = own + _alternatives(surfaces)
        elif head == "names":
            scale.schemes.append(_alternatives(rest))
        elif head == "level":
            for bucket in (scale.adj, scale.vp, scale.op):
                bucket.append([])
        else:
            getattr(scale, head)[-1] = _alternatives(rest)
    return scales, sets


def parse_attr(line: str) -> Attr:
    """One attribute line: `names = kind [flags] ; role alternatives ; ...`."""
    head, *roles = [part.strip() for part in line.split(" ; ")]
    names, _, spec = head.partition(" = ")
    words = spec.split()
    scales, sets = lexicons()
    attr = Attr(_alternatives(names), "copy")
    attr.many, attr.noun = "many" in words[1:], "noun" in words[1:]
    if words[0] == "scale":
        attr.kind, attr.scale = "scale", scales[words[1]]
    elif words[0] == "set":
        attr.kind, attr.values = "set", sets[words[1]]
    elif words[0] == "bool":
        attr.kind, attr.shape = "bool", words[1]
    elif words[0] == "measure":
        attr.sampler = v.measure(words[1])
    else:
        attr.sampler = v.SAMPLERS[words[0]]
    for role in roles:
        name, _, rest = role.partition(" ")
        attr.roles[name] = _alternatives(rest)
    if attr.kind == "bool":
        things = attr.roles.get("n") or attr.roles.get("a") or [attr.names[0]]
        attr.roles["n"] = things
        for role, templates in BOOL_SHAPES.get(attr.shape, {}).items():
            # Paraphrases of the attribute's own weigh as much as the general forms.
            own = attr.roles.get(role, [])
            attr.roles[role] = list(templates) + own * (len(templates) // (2 * len(own)) + 1 if own else 0)
    attr.roles.setdefault("n", attr.names[:1])
    return attr


@lru_cache(maxsize=1)
def common() -> dict[str, Attr]:
    """The shared attributes by name."""
    found: dict[str, Attr] = {}
    for line in (FOLDER / "common.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" = ")
            found[name] = parse_attr(rest)
    return found


@lru_cache(maxsize=1)
def general() -> list[Attr]:
    """The shared attributes that fit any domain."""
    names = "rating price fee city year popularity age level status refund online colour size language released maker"
    return [common()[name] for name in names.split()]


@lru_cache(maxsize=1)
def domains() -> list[Domain]:
    """Every domain of the data files."""
    found: list[Domain] = []
    for line in _lines("domains"):
        if line.startswith("# "):
            name, _, nouns = line[2:].partition(": ")
            found.append(Domain(name, _alternatives(nouns), Attr([], "copy"), []))
        elif line.startswith("key "):
            found[-1].key = parse_attr(line[4:])
        elif line.startswith("@"):
            found[-1].attrs.append(common()[line[1:].strip()])
        elif line.strip():
            found[-1].attrs.append(parse_attr(line))
    return found
