"""A small template engine: patterns with slots become text, a masked skeleton and labels.

A pattern is one line: ``text => attribute=value; attribute=``. In the text ``[a|b]`` is a choice and
``{slot}`` is filled by the functions below, which also write the label.
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
    "{model}", "{model}", "{model}", "{model}", "{brand} {model}", "{brand} {model}", "{brand} {model}",
    "{brand} {model}", "{model} from {brand}", "{size} {model}", "{size} {brand} {model}", "{model} in {size_in}",
    "{e_pre} {model}", "{model} {e_post}", "{brand} {model} {e_post}",
)  # fmt: skip
KIND = (
    "{type}", "{type}", "{brand} {type}", "{brand} {type}", "{e_pre} {type}", "{e_pre} {type}",
    "{type} from {brand}", "{size} {type}", "{type} in {size_in}", "{type} {e_post}", "{e_pre} {brand} {type}",
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
    return [Segment(determiner), *render(draft.rng.choice(pool), draft)]


def _type(draft: Draft) -> list[Segment]:
    label = draft.rng.choices(tuple(names.TYPES), (4, 4, 4, 4, 3, 3, 2))[0]
    return _value(draft, "bike_type", label, draft.rng.choice(names.TYPES[label]))


def _electric(draft: Draft, forms: dict[str, tuple[str, ...]]) -> list[Segment]:
    label = draft.rng.choice(("yes", "no"))
    return _value(draft, "electric", label, draft.rng.choice(forms[label]))


def _size(draft: Draft, form: int) -> list[Segment]:
    made = names.size(draft.rng)
    return _value(draft, "frame_size", made[0], made[form])


def _level(draft: Draft) -> list[Segment]:
    label = draft.rng.choice(tuple(names.LEVELS))
    return _value(draft, "level", label, draft.rng.choice(names.LEVELS[label]))


def _part(draft: Draft) -> list[Segment]:
    return _value(draft, "part", draft.local(names.fixed_side(names.fault_part(draft.rng), draft.rng)))


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


def _date(draft: Draft, preposition: bool) -> list[Segment]:
    text, before = names.date(draft.rng, draft.us, past=draft.function == "report_fault")
    if not preposition:
        before = "the " if before == "on the " else ""
    return [Segment(before), *_value(draft, "date", text)]


def _price(draft: Draft) -> list[Segment]:
    small = "part" in draft.labels and "model" not in draft.labels
    return _value(draft, "price", names.price(draft.rng, draft.us, small, draft.function == "book_service"))


SLOTS: dict[str, Callable[[Draft], list[Segment]]] = {
    "model": lambda d: _value(d, "model", names.model(d.rng)),
    "models_or": lambda d: _listed(d, "model", [names.model(d.rng), names.model(d.rng)], "or", "the "),
    "brand": lambda d: _value(d, "brand", names.brand(d.rng)),
    "customer": lambda d: _value(d, "customer", names.customer(d.rng)),
    "order_no": lambda d: _value(d, "order_no", names.order_number(d.rng)),
    "orders": lambda d: _listed(d, "order_no", [names.order_number(d.rng), names.order_number(d.rng)], "and"),
    "type": _type,
    "a_type": lambda d: [Segment("a "), *_type(d)],
    "e_pre": lambda d: _electric(d, names.ELECTRIC_PRE),
    "e_post": lambda d: _electric(d, names.ELECTRIC_POST),
    "size": lambda d: _size(d, 1),
    "size_in": lambda d: _size(d, 2),
    "level": _level,
    "part": _part,
    "part_pl": lambda d: _value(d, "part", d.local(names.ordered_part(d.rng, True))),
    "a_part": lambda d: [Segment(d.rng.choice(("a ", "a new "))), *_value(
        d, "part", d.local(names.ordered_part(d.rng, False))
    )],
    "a_parts": lambda d: _a_parts(d, d.rng.choice((2, 2, 3))),
    "date": lambda d: _date(d, False),
    "on_date": lambda d: _date(d, True),
    "price": _price,
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
    """Children's bikes get no adult's size or skill."""
    kids = "kids" in draft.labels.get("bike_type", [])
    return not (kids and (draft.labels.get("frame_size") or draft.labels.get("level")))


def call(draft: Draft) -> str:
    found = [f"{name}[{', '.join(draft.labels[name])}]" for name in ATTRIBUTES if name in draft.labels]
    return f"{draft.function}({', '.join(found)})"
