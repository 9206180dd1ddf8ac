"""A small template engine: patterns with slots become text, a masked skeleton and labels.

A pattern is one line: ``text => attribute=value; attribute=``. In the text ``[a|b]`` is a choice and
``{slot}`` is filled by the functions below, which also write the label. A slot that starts with ``x``
(``{xbrand}``) is a distractor: it is filled but not labelled.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import names

ATTRIBUTES = (
    "model", "brand", "bike_type", "electric", "frame_size", "level", "part", "customer", "order_no",
    "date", "price", "under_warranty", "pickup", "urgency", "opinion",
)  # fmt: skip

BIKE = frozenset[str](("model", "brand", "bike_type", "electric", "frame_size"))
ALLOWED: dict[str, frozenset[str]] = {
    "order": BIKE | {"level", "part", "customer", "order_no", "date", "price", "pickup", "urgency"},
    "ask_price": BIKE | {"part", "customer", "price", "under_warranty", "pickup"},
    "request_info": frozenset(ATTRIBUTES) - {"price", "urgency", "opinion"},
    "report_fault": BIKE | {"part", "customer", "order_no", "date", "under_warranty", "urgency"},
    "book_service": BIKE | {"part", "customer", "date", "price", "under_warranty", "pickup", "urgency"},
    "cancel": BIKE | {"part", "customer", "order_no", "date", "urgency"},
    "recommend": BIKE | {"level", "part", "customer", "price"},
    "ask_advice": BIKE | {"level", "customer", "price"},
    "give_opinion": BIKE | {"level", "part", "customer", "price", "opinion"},
}


class Conflict(Exception):
    """The parts chosen for a row do not go together; the row is drawn again."""


@dataclass
class Segment:
    """A piece of text; ``mask`` names what stands there in the skeleton."""

    text: str
    mask: str = ""


@dataclass
class Draft:
    """A row being written."""

    rng: random.Random
    function: str
    us: bool
    labels: dict[str, list[str]] = field(default_factory=dict)
    distractors: list[tuple[str, str]] = field(default_factory=list)

    def set(self, attribute: str, *values: str) -> None:
        if attribute in self.labels or attribute not in ALLOWED[self.function]:
            raise Conflict(attribute)
        if len(set(values)) != len(values):
            raise Conflict("repeated value")
        self.labels[attribute] = list(values)

    def local(self, text: str) -> str:
        if self.us:
            for british, american in names.US_WORDS:
                text = text.replace(british, american)
        return text


# Noun phrases for a bike, without determiner.
NAMED = (
    "{model}", "{model}", "{model}", "{brand} {model}", "{brand} {model}", "{brand} {model}",
    "{model} from {brand}", "{model} by {brand}", "{size} {model}", "{model} in {size_in}",
    "{size} {brand} {model}", "{e_pre} {model}", "{model} {e_post}", "{brand} {model} {e_post}",
    "{brand} {model} {type}", "{model} {type}", "{brand} {model} in {size_in}", "{e_pre} {brand} {model}",
    "{model} ([{size}|{brand}|{e_pre}])", "{e_pre} {model} {type}", "{brand}'s {model}*",
)  # fmt: skip
KIND = (
    "{type}", "{type}", "{brand} {type}", "{brand} {type}", "{e_pre} {type}", "{e_pre} {type}",
    "{type} from {brand}", "{size} {type}", "{type} in {size_in}", "{brand} {type} in {size_in}",
    "{type} {e_post}", "{e_pre} {brand} {type}", "{size} {e_pre} {type}", "{e_pre} {type} from {brand}",
    "{type} made by {brand}", "{size} {brand} {type}", "{brand} {type} {e_post}", "{brand} e-bike",
    "e-bike from {brand}",
)  # fmt: skip


def _value(draft: Draft, attribute: str, value: str, text: str | None = None) -> list[Segment]:
    draft.set(attribute, value)
    return [Segment(value if text is None else text, attribute)]


def _listed(draft: Draft, attribute: str, values: list[str], word: str, lead: str = "") -> list[Segment]:
    draft.set(attribute, *values)
    out: list[Segment] = []
    for i, value in enumerate(values):
        if i:
            out.append(Segment(f" {word} " if i == len(values) - 1 else ", "))
        if lead and i:
            out.append(Segment(lead))
        out.append(Segment(value, attribute))
    return out


def _bike(draft: Draft, determiner: str, pool: tuple[str, ...]) -> list[Segment]:
    pattern = draft.rng.choice(pool)
    possessive = pattern.endswith("*")
    if possessive and determiner != "the ":
        raise Conflict("a brand's model is definite")
    head = [] if possessive else [Segment(determiner)]
    out = head + render(pattern.rstrip("*"), draft)
    if "e-bike" in pattern:
        draft.set("electric", "yes")
    return out


def _type(draft: Draft) -> list[Segment]:
    label = draft.rng.choices(tuple(names.TYPES), (4, 4, 4, 4, 3, 3, 2))[0]
    return _value(draft, "bike_type", label, draft.rng.choice(names.TYPES[label]))


def _types(draft: Draft) -> list[Segment]:
    labels = draft.rng.sample(("road", "mountain", "gravel", "city", "folding", "cargo"), 2)
    draft.set("bike_type", *labels)
    return [
        Segment(labels[0], "bike_type"),
        Segment(" or "),
        Segment(labels[1], "bike_type"),
        Segment(" bike"),
    ]


def _types_and(draft: Draft) -> list[Segment]:
    out = _types(draft)
    return [out[0], Segment(" bike and a "), *out[2:]]


def _electric(draft: Draft, forms: dict[str, tuple[str, ...]]) -> list[Segment]:
    label = draft.rng.choice(("yes", "no"))
    return _value(draft, "electric", label, draft.rng.choice(forms[label]))


def _size(draft: Draft, form: int) -> list[Segment]:
    made = names.size(draft.rng)
    return _value(draft, "frame_size", made[0], made[form])


def _sizes(draft: Draft) -> list[Segment]:
    first, second = names.size(draft.rng), names.size(draft.rng)
    draft.set("frame_size", first[0], second[0])
    return [Segment(first[2], "frame_size"), Segment(" and "), Segment(second[2], "frame_size")]


def _level(draft: Draft) -> list[Segment]:
    label = draft.rng.choice(tuple(names.LEVELS))
    return _value(draft, "level", label, draft.rng.choice(names.LEVELS[label]))


def _part(draft: Draft) -> list[Segment]:
    return _value(draft, "part", draft.local(names.fixed_side(names.fault_part(draft.rng), draft.rng)))


def _parts(draft: Draft) -> list[Segment]:
    rng = draft.rng
    if rng.random() < 0.25:
        return _value(draft, "part", draft.local(rng.choice(names.PLURAL_PARTS[:4])))
    found = [names.fixed_side(names.fault_part(rng), rng) for _ in range(rng.choice((2, 2, 2, 3)))]
    return _listed(draft, "part", [draft.local(part) for part in found], "and", "the ")


def _a_parts(draft: Draft, count: int) -> list[Segment]:
    rng = draft.rng
    made: list[tuple[str, str]] = []
    for _ in range(count):
        plural = rng.random() < 0.4
        lead = rng.choice(("", "some ", "new ", "some new ")) if plural else rng.choice(("a ", "a ", "a new "))
        made.append((lead, draft.local(names.ordered_part(rng, plural))))
    draft.set("part", *(part for _, part in made))
    out: list[Segment] = []
    for i, (lead, part) in enumerate(made):
        joint = "" if not i else (" and " if i == count - 1 else ", ")
        out += [Segment(joint + lead), Segment(part, "part")]
    return out


def _n_parts(draft: Draft) -> list[Segment]:
    number = draft.rng.choice(("two", "three", "four", "a couple of", "a set of", "a pair of", "six"))
    part = draft.rng.choice(("inner tubes", "tyres", "brake pads", "gear cables", "lights", "panniers", "mudguards"))
    return [Segment(number + " "), *_value(draft, "part", draft.local(part))]


def _date(draft: Draft, preposition: bool, label: bool = True) -> list[Segment]:
    text, before = names.date(draft.rng, draft.us, past=draft.function == "report_fault")
    if not preposition:
        before = "the " if before == "on the " else ""
    if label:
        return [Segment(before), *_value(draft, "date", text)]
    draft.distractors.append(("date", text))
    return [Segment(before), Segment(text, "xdate")]


def _dates(draft: Draft) -> list[Segment]:
    days = draft.rng.sample(names.WEEKDAYS, draft.rng.choice((2, 2, 3)))
    if draft.rng.random() < 0.35:
        days = [f"{day} {draft.rng.choice(names.DAY_PARTS)}" for day in days]
    return _listed(draft, "date", days, "or")


def _price(draft: Draft, label: bool = True) -> list[Segment]:
    small = "part" in draft.labels and "model" not in draft.labels
    text = names.price(draft.rng, draft.us, small, draft.function == "book_service")
    if label:
        return _value(draft, "price", text)
    if draft.labels.get("price"):  # what is set against a price is higher, in the same words
        if not (number := re.search(r"\d+", draft.labels["price"][0])):
            raise Conflict("a price without digits")
        more = str(int(int(number[0]) * draft.rng.uniform(1.1, 1.6)) + 5)
        text = draft.labels["price"][0].replace(number[0], more, 1)
    draft.distractors.append(("price", text))
    return [Segment(text, "xprice")]


def _other(draft: Draft, attribute: str, make: Callable[[random.Random], str]) -> list[Segment]:
    text = make(draft.rng)
    if any(attribute == name for name, _ in draft.distractors):
        raise Conflict("one distractor of a kind is enough")
    draft.distractors.append((attribute, text))
    return [Segment(text, f"x{attribute}")]


def _xsize(draft: Draft) -> list[Segment]:
    made = names.size(draft.rng)
    draft.distractors.append(("frame_size", made[0]))
    return [Segment(made[2], "xframe_size")]


def _xtype(draft: Draft) -> list[Segment]:
    label = draft.rng.choice(("road", "mountain", "gravel", "city", "folding", "cargo"))
    draft.distractors.append(("bike_type", label))
    return [Segment(names.TYPES[label][0], "xbike_type")]


def _several(make: Callable[[random.Random], str], draft: Draft, count: int) -> list[str]:
    return [make(draft.rng) for _ in range(count)]


SLOTS: dict[str, Callable[[Draft], list[Segment]]] = {
    "model": lambda d: _value(d, "model", names.model(d.rng)),
    "models": lambda d: _listed(
        d, "model", _several(names.model, d, d.rng.choice((2, 2, 3))), "and", d.rng.choice(("", "the "))
    ),
    "models_two": lambda d: _listed(d, "model", _several(names.model, d, 2), "and", "the "),
    "models_or": lambda d: _listed(d, "model", _several(names.model, d, 2), "or", "the "),
    "models_nor": lambda d: _listed(d, "model", _several(names.model, d, 2), "nor", "the "),
    "brand": lambda d: _value(d, "brand", names.brand(d.rng)),
    "brands_or": lambda d: _listed(d, "brand", _several(names.brand, d, 2), "or"),
    "brands": lambda d: _listed(d, "brand", _several(names.brand, d, 2), "and"),
    "customer": lambda d: _value(d, "customer", names.customer(d.rng)),
    "titled": lambda d: [
        Segment(d.rng.choice(("Mr ", "Ms ", "Mrs ", "Dr "))),
        *_value(d, "customer", d.rng.choice(names.LAST_NAMES)),
    ],
    "order_no": lambda d: _value(d, "order_no", names.order_number(d.rng)),
    "orders": lambda d: _listed(d, "order_no", _several(names.order_number, d, 2), "and"),
    "type": _type,
    "a_type": lambda d: [Segment("a "), *_type(d)],
    "types_or": _types,
    "types_and": _types_and,
    "a_xtype": lambda d: [Segment("a "), *_xtype(d)],
    "e_pre": lambda d: _electric(d, names.ELECTRIC_PRE),
    "e_post": lambda d: _electric(d, names.ELECTRIC_POST),
    "size": lambda d: _size(d, 1),
    "size_in": lambda d: _size(d, 2),
    "sizes": _sizes,
    "level": _level,
    "part": _part,
    "parts": _parts,
    "part_pl": lambda d: _value(d, "part", d.local(names.ordered_part(d.rng, True))),
    "xpart": lambda d: _other(d, "part", lambda rng: d.local(names.fixed_side(names.fault_part(rng), rng))),
    "a_part": lambda d: [Segment(d.rng.choice(("a ", "a new "))), *_value(
        d, "part", d.local(names.ordered_part(d.rng, False))
    )],
    "a_parts": lambda d: _a_parts(d, d.rng.choice((2, 2, 3))),
    "n_parts": _n_parts,
    "date": lambda d: _date(d, False),
    "on_date": lambda d: _date(d, True),
    "dates": _dates,
    "price": _price,
    "xprice": lambda d: _price(d, label=False),
    "xdate": lambda d: _date(d, False, label=False),
    "x_on_date": lambda d: _date(d, True, label=False),
    "xbrand": lambda d: _other(d, "brand", names.brand),
    "xmodel": lambda d: _other(d, "model", names.model),
    "xorder_no": lambda d: _other(d, "order_no", names.order_number),
    "friend": lambda d: _other(d, "customer", lambda rng: rng.choice(names.FIRST_NAMES)),
    "xsize": _xsize,
    "xtype": _xtype,
}  # fmt: skip
for _name, _determiner in (("a", "a "), ("the", "the "), ("my", "my "), ("bare", "")):
    SLOTS[f"{_name}_named"] = lambda d, det=_determiner: _bike(d, det, NAMED)
    SLOTS[f"{_name}_kind"] = lambda d, det=_determiner: _bike(d, det, KIND)
    SLOTS[f"{_name}_bike"] = lambda d, det=_determiner: _bike(d, det, d.rng.choice((NAMED, KIND)))


def choose(template: str, rng: random.Random) -> str:
    """Resolve every ``[a|b]``."""
    while match := re.search(r"\[([^\[\]]*)\]", template):
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]
    return template


def split_labels(line: str) -> tuple[str, dict[str, str]]:
    text, _, labels = line.partition("=>")
    pairs = [pair.partition("=") for pair in labels.split(";") if "=" in pair]
    return text.strip(" "), {name.strip(): value.strip() for name, _, value in pairs}


def render(line: str, draft: Draft) -> list[Segment]:
    text, labels = split_labels(line)
    for attribute, value in labels.items():
        draft.set(attribute, *([draft.local(value)] if value else []))
    out: list[Segment] = []
    for i, piece in enumerate(re.split(r"\{(\w+)\}", choose(text, draft.rng))):
        out += SLOTS[piece](draft) if i % 2 else [Segment(draft.local(piece))]
    return [segment for segment in out if segment.text]


def is_consistent(draft: Draft) -> bool:
    """Distractors differ from labels, and children's bikes get no adult's size or skill."""
    labels = draft.labels
    for attribute, text in draft.distractors:
        if any(text in value or value in text for value in labels.get(attribute, [])):
            return False
    if any(attribute not in labels for attribute, _ in draft.distractors if attribute == "frame_size"):
        return False
    kids = "kids" in labels.get("bike_type", [])
    return not (kids and (labels.get("frame_size") or labels.get("level")))


def call(draft: Draft) -> str:
    found = [f"{name}[{', '.join(draft.labels[name])}]" for name in ATTRIBUTES if name in draft.labels]
    return f"{draft.function}({', '.join(found)})"
