"""A schema: one group's invented task. Attributes get names and value spellings, acts get function names."""

from __future__ import annotations

import random
from dataclasses import dataclass

import words as w
from acts import ACTS, EMPTY, Act
from compose import Fact, listing
from domain import BOOL_SHAPES, Attr, Domain, common, domains, general, lexicons
from values import SAMPLERS, cap, fake, phrase, pick, term, word

YES_NO = [("yes", "no")] * 22 + [("true", "false")] * 3 + [("Yes", "No")] * 2 + [
    ("True", "False"),
    ("1", "0"),
    ("Y", "N"),
]  # fmt: skip
NAME_STYLES = ["snake"] * 13 + ["plain"] * 4 + ["camel"] * 2 + ["kebab", "upper", "squash", "title"]
OPINIONATED = {"opinion", "ask_reason", "review", "surprise"}


def style_name(name: str, style: str) -> str:
    """`lead actor` in a naming style."""
    parts = name.replace("-", " ").split()
    if style == "snake":
        return "_".join(parts)
    if style == "camel":
        return parts[0].lower() + "".join(p.capitalize() for p in parts[1:])
    if style == "pascal":
        return "".join(p.capitalize() for p in parts)
    if style == "kebab":
        return "-".join(parts)
    if style == "upper":
        return "_".join(parts).upper()
    if style == "squash":
        return "".join(parts)
    if style == "title":
        return " ".join(p.capitalize() for p in parts)
    return " ".join(parts)


@dataclass(slots=True)
class Slot:
    """An attribute in a schema. `values[i]` is the schema's spelling of scale level i, or of no/yes;
    `surfaces` maps a set value's spelling to what may be said for it."""

    name: str
    attr: Attr
    values: list[str]
    surfaces: dict[str, list[str]]


@dataclass(slots=True)
class Schema:
    """Everything the rows of a group share. `slots[0]` names the entity; `other` is the second entity's slot
    index, `count` that of result counts (-1: the schema has none). `rank[i]` is slot i's place in the answer, `listed`
    whether the instruction lists the attributes in that order."""

    domain: Domain
    nouns: list[str]
    slots: list[Slot]
    functions: list[tuple[Act, str]]
    asked: str
    lower: bool
    list_order: str
    digits: bool
    rank: list[int]
    listed: bool
    other: int = -1
    count: int = -1


def invented_attr(rng: random.Random) -> Attr:
    """An attribute of made-up name, sometimes with a made-up closed value set."""
    name = rng.random()
    label = f"{pick(rng, w.NOUNS)} {pick(rng, w.NOUNS)}" if name < 0.4 else fake(rng) if name < 0.6 else phrase(rng)
    label = label.lower()
    x = rng.random()
    if x < 0.4:
        attr = Attr(
            [label],
            "copy",
            sampler=SAMPLERS[pick(rng, ["title", "person", "company", "word", "code", "term", "product", "number"])],
        )
        attr.many = rng.random() < 0.25
    elif x < 0.7:
        values = {word(rng): list[str]() for _ in range(2 + int(rng.random() * 5))}
        for value in values:
            values[value] = [value] + ([word(rng)] if rng.random() < 0.25 else [])
        attr = Attr([label], "set", values=values, many=rng.random() < 0.25)
        if rng.random() < 0.6:
            attr.roles["adj"] = ["{}", "{}-style"][: 1 + (rng.random() < 0.1)]
    elif x < 0.8:
        attr = Attr([label], "set", values=acronym_set(rng))
    elif x < 0.88:
        attr = Attr(
            [label],
            "scale",
            scale=lexicons()[0][pick(rng, ["rating", "size", "level", "urgency", "popularity"])],
        )
    else:
        shape = pick(rng, ["have", "have", "on", "on", "allow"])
        thing = term(rng)
        attr = Attr([pick(rng, [thing, f"has {thing}", label])], "bool", shape=shape)
        attr.roles["n"] = [thing, thing + "s" if shape != "on" else thing]
        attr.roles.update({role: list(said) for role, said in BOOL_SHAPES[shape].items()})
        return attr
    attr.roles["n"] = [label]
    return attr


def acronym_set(rng: random.Random) -> dict[str, list[str]]:
    """Closed values with both a short and a long form: `SRT (silver road tariff)`."""
    found: dict[str, list[str]] = {}
    wide = rng.random() < 0.5
    for _ in range(3 + int(rng.random() * 4)):
        parts = [word(rng) for _ in range(1 if rng.random() < 0.2 else 2 + int(rng.random() * 2))]
        long = " ".join(cap(p) for p in parts) if wide else " ".join(parts)
        short = (
            "".join(p[0] for p in parts).upper() if len(parts) > 1 else parts[0][: 1 + int(rng.random() * 3)].upper()
        )
        if len(short) == 3 and short[1:] == "PG":
            continue
        form = f"{short} ({long})" if rng.random() < 0.8 else short
        found[form] = [short, long, long.lower(), "-".join(parts), form]
    return found or {"NA (not assigned)": ["NA", "not assigned"]}


def make_slot(rng: random.Random, attr: Attr, style: str, used: set[str]) -> Slot:
    """Names an attribute and spells its closed values."""
    name = ""
    for _ in range(6):
        base = pick(rng, attr.names[:3]) if rng.random() < 0.8 else pick(rng, attr.names)
        if attr.kind == "bool" and rng.random() < 0.2 and not base.startswith(("has", "is ")):
            base = pick(rng, ["has ", "is ", "with "]) + base
        name = style_name(base, style)
        if name not in used:
            break
    while name in used:
        name = style_name(pick(rng, attr.names) + " " + fake(rng), style)
    used.add(name)
    if attr.kind == "scale" and attr.scale is not None:
        schemes = attr.scale.schemes
        return Slot(name, attr, schemes[int(rng.random() ** 1.3 * len(schemes))], {})
    if attr.kind == "bool":
        return Slot(name, attr, [], {})
    surfaces: dict[str, list[str]] = {}
    if attr.kind == "set":
        keep = sorted(attr.values, key=lambda _: rng.random())[: 4 + int(rng.random() * 10)]
        spelling = rng.random()
        for value in keep:
            out = (
                value.lower()
                if spelling < 0.04
                else value.upper()
                if spelling < 0.05
                else cap(value)
                if spelling < 0.08
                else value
            )
            if spelling > 0.94 and " (" in value:
                out = value.split(" (")[0]
            surfaces[out] = attr.values[value] + (
                [value] if value not in attr.values[value] and rng.random() < 0.3 else []
            )
    return Slot(name, attr, list(surfaces), surfaces)


def make_schema(rng: random.Random, held_out: bool, held: tuple[str, ...]) -> Schema:
    """A random schema over a random domain; `held_out` picks among the `held` domains, else among the others."""
    domain = pick(rng, [d for d in domains() if (d.name in held) == held_out])
    style = pick(rng, NAME_STYLES)
    used: set[str] = set()
    slots = [make_slot(rng, domain.key, style, used)]
    n = 3 + int(rng.random() * 5) if rng.random() < 0.12 else 6 + int(rng.random() * 9)
    chosen = sorted(domain.attrs, key=lambda _: rng.random())[:n]
    have = {name for attr in domain.attrs for name in attr.names}
    if rng.random() < 0.3:
        extra = pick(rng, general())
        chosen += [extra] if have.isdisjoint(extra.names) else []
    chosen += [invented_attr(rng) for _ in range(int(rng.random() * (4 if rng.random() < 0.4 else 1.8)))]
    acts = [ACTS["inform"]] if rng.random() < 0.7 else []
    others = [a for a in ACTS.values() if a.id != "inform" and (a.id not in EMPTY or rng.random() < 0.3)]
    count = 1 + int(rng.random() * 3) if rng.random() < 0.12 else 3 + int(rng.random() * 7)
    acts += sorted(others, key=lambda _: rng.random())[:count]
    if all(a.id in EMPTY for a in acts):
        acts.append(ACTS["inform"])
    if OPINIONATED & {a.id for a in acts} and not any(a.scale is not None and a.scale.rated for a in chosen):
        chosen.insert(int(rng.random() * len(chosen)), common()["rating"])
    slots += [make_slot(rng, attr, style, used) for attr in chosen]
    yes, no = pick(rng, YES_NO)
    for slot in slots:
        if slot.attr.kind == "bool":
            slot.values = [no, yes]
    named: list[tuple[Act, str]] = []
    taken: set[str] = set()
    fstyle = pick(rng, ["snake"] * 8 + ["plain", "camel", "camel", "kebab", "pascal", "upper"])
    prefix = domain.name + " " if rng.random() < 0.05 else ""
    for act in acts:
        base = act.names[0] if rng.random() < 0.4 else pick(rng, act.names)
        name = style_name(prefix + base, fstyle)
        if name in taken:
            name = style_name(prefix + act.id.replace("_", " "), fstyle)
        if name not in taken:
            taken.add(name)
            named.append((act, name))
    schema = Schema(
        domain,
        domain.nouns if rng.random() < 0.5 else domain.nouns[:1],
        slots,
        named,
        asked=pick(rng, ["", "", "", "", "", "?", "bare"]),
        lower=rng.random() < 0.05,
        list_order=pick(rng, ["sentence"] * 6 + ["sorted", "listed"]),
        digits=rng.random() < 0.5,
        rank=[],
        listed=rng.random() < 0.85,
    )
    ids = {a.id for a, _ in named}
    if ids & {"compare", "choose"}:
        schema.other = len(slots)
        label = pick(rng, ["other", "second", "compared with", "alternative", "versus", "than"])
        slots.append(
            make_slot(
                rng,
                Attr([label, label + " " + domain.key.names[0]], "copy", sampler=domain.key.sampler),
                style,
                used,
            )
        )
    if "count" in ids:
        schema.count = len(slots)
        slots.append(
            make_slot(
                rng,
                Attr(["count", "choice", "number of results"], "copy", sampler=SAMPLERS["number"]),
                style,
                used,
            )
        )
    schema.rank = list(range(len(slots)))
    if rng.random() < 0.6:
        rng.shuffle(schema.rank)
        if rng.random() < 0.6:  # the name first
            schema.rank[schema.rank.index(0)], schema.rank[0] = schema.rank[0], 0
    return schema


MANY = [1] * 9 + [2] * 7 + [3] * 3 + [4]


def make_fact(rng: random.Random, schema: Schema, index: int) -> Fact:
    """Samples a value of slot `index` with the words to say it."""
    slot = schema.slots[index]
    attr = slot.attr
    if attr.kind == "bool":
        level = int(rng.random() < 0.58)
        return Fact(index, attr, slot.values[level], slot.values[level], level)
    if attr.kind == "scale" and attr.scale is not None:
        level = int(rng.random() * len(slot.values))
        return Fact(index, attr, slot.values[level], slot.values[level], level)
    n = 1
    if attr.many:
        n = pick(rng, MANY)
    if attr.kind == "set":
        outs: list[str] = []
        for _ in range(n):
            value = pick(rng, slot.values)
            if value not in outs:
                outs.append(value)
        said = []
        for value in outs:
            s = slot.surfaces[value]
            said.append(s[0] if rng.random() < 0.45 else pick(rng, s))
    else:
        assert attr.sampler is not None
        outs = []
        for _ in range(n):
            value = attr.sampler(rng)
            if value not in outs:
                outs.append(value)
        if schema.lower:
            outs = [o.lower() for o in outs]
        said = list(outs)
        if (
            schema.digits
            and n == 1
            and outs[0].isdigit()
            and len(outs[0]) < 3
            and int(outs[0]) <= 20
            and rng.random() < 0.5
        ):
            said = [w.NUMBER_WORDS[int(outs[0])]]
    surface = listing(rng, said)
    if attr.many and len(outs) > 1 and "adj" in attr.roles and rng.random() < 0.4:
        surface = pick(rng, [" ", " ", ", ", " and ", "-", "/"]).join(said)
    if schema.list_order == "sorted":
        outs = sorted(outs)
    elif schema.list_order == "listed" and attr.kind == "set":
        outs.sort(key=slot.values.index)
    return Fact(index, attr, outs if len(outs) > 1 else outs[0], surface)
