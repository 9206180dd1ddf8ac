"""Turns facts about an entity into English: noun phrases, predicates, one to four clauses."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from domain import JOINT, Attr
from values import cap, pick

VOWELS = "aeiouAEIOU"
JOINERS = [" and ", ", and ", ", ", " and also ", " as well as ", "; "]
AUX = ("is ", "was ", "can ", "will ", "must ", "could ", "may ")
DO_FORMS = {
    "has": "have", "costs": "cost", "stars": "star", "lasts": "last", "takes": "take", "runs": "run", "comes": "come",
    "starts": "start", "serves": "serve", "covers": "cover", "weighs": "weigh", "needs": "need", "belongs": "belong",
    "uses": "use", "goes": "go", "offers": "offer", "includes": "include", "contains": "contain", "features": "feature",
    "leaves": "leave", "works": "work", "allows": "allow", "accepts": "accept", "provides": "provide", "seats": "seat",
}  # fmt: skip


@dataclass(slots=True)
class Fact:
    """One attribute with its value: `out` goes to the answer, `surface` into the sentence; `level` is the scale
    level, or 1/0 for yes/no."""

    slot: int
    attr: Attr
    out: str | list[str]
    surface: str
    level: int = -1
    units: dict[str, list[str]] = field(default_factory=dict)

    def has(self, role: str) -> bool:
        """Whether the fact can be said in `role` without falling back on a generic form."""
        return bool(self.templates(role))

    def templates(self, role: str) -> list[str]:
        """The templates of `role` for this value."""
        if self.units:
            return self.units.get(role, [])
        attr = self.attr
        if attr.kind == "bool":
            if role == "adj":
                return (
                    [a for a in attr.roles.get("a", []) if " " not in a]
                    if self.level and attr.shape == "be"
                    else []
                )
            return attr.roles.get(role + ("+" if self.level else "-"), [])
        if attr.scale is not None and role in ("adj", "vp", "op"):
            found = getattr(attr.scale, role)[self.level]
            return found
        return attr.roles.get(role, [])


def article(np: str) -> str:
    """`np` with the fitting indefinite article."""
    return ("an " if np[:1] in VOWELS else "a ") + np


def listing(rng: random.Random, items: list[str]) -> str:
    """Items as an English enumeration."""
    if len(items) == 1:
        return items[0]
    if len(items) == 2:
        return items[0] + pick(rng, [" and ", " and ", " and ", " & ", ", ", " as well as ", "/"]) + items[1]
    return ", ".join(items[:-1]) + pick(rng, [" and ", ", and ", ", "]) + items[-1]


def say(rng: random.Random, fact: Fact, role: str) -> str:
    """The fact in a role: `vp` (predicate), `mod` (after the noun) or `adj` (before it)."""
    attr, options = fact.attr, fact.templates(role)
    if options and not (rng.random() < 0.1 and attr.kind != "bool" and role != "adj" and not fact.units):
        text = pick(rng, options)
        if fact.units:
            return text
        if attr.kind == "bool":
            return text.replace("{n}", pick(rng, attr.roles["n"]))
        return text.replace("{}", fact.surface)
    if attr.kind == "bool":
        thing = pick(rng, attr.roles["n"])
        yes, no = {"have": ("with ", "without ")}.get(attr.shape, ("that is ", "that is not "))
        return (yes if fact.level else no) + thing
    noun = pick(rng, attr.roles["n"])
    if attr.scale is not None:
        word = pick(rng, attr.scale.adj[fact.level]) if rng.random() < 0.6 else ""
        if role == "vp":
            return "has " + (article(f"{word} {noun}") if word else f"{article(noun)} of {fact.surface}")
        return "with " + (article(f"{word} {noun}") if word else f"{article(noun)} of {fact.surface}")
    if role == "vp":
        return pick(
            rng,
            [
                f"has {article(noun)} of {fact.surface}",
                f"has {fact.surface} as its {noun}",
                f"has the {noun} {fact.surface}",
            ],
        )
    return pick(
        rng,
        [
            f"with {article(noun)} of {fact.surface}",
            f"with {noun} {fact.surface}",
            f"with {fact.surface} as {noun}",
        ],
    )


def copula(rng: random.Random, fact: Fact, subject: str) -> str:
    """`The price of X is Y` and its kin."""
    noun = pick(rng, fact.attr.roles["n"])
    value = fact.surface
    if subject.lower() in ("it", "this one", "that one"):
        return pick(
            rng,
            [
                f"its {noun} is {value}",
                f"the {noun} is {value}",
                f"{value} is its {noun}",
                f"the {noun} being {value}",
            ][:3],
        )
    return pick(
        rng,
        [
            f"the {noun} of {subject} is {value}",
            f"{subject}'s {noun} is {value}",
            f"{value} is the {noun} of {subject}",
        ],
    )


def merge_bools(rng: random.Random, facts: list[Fact]) -> list[Fact]:
    """Sometimes folds two yes/no facts of one shape into a joint phrase (`has a pool but no gym`)."""
    by_shape: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.attr.kind == "bool" and fact.attr.shape in JOINT and not fact.units:
            by_shape.setdefault(fact.attr.shape, []).append(fact)
    for shape, pair in by_shape.items():
        if len(pair) < 2 or rng.random() < 0.25:
            continue
        a, b = pair[0], pair[1]
        yes = [pick(rng, f.attr.roles["n"]) for f in (a, b) if f.level]
        no = [pick(rng, f.attr.roles["n"]) for f in (a, b) if not f.level]
        sign = "++" if len(yes) == 2 else "--" if len(no) == 2 else "+-"
        text = pick(rng, JOINT[shape][sign])
        for mark, word in (("{p}", yes[:1]), ("{q}", yes[1:]), ("{m}", no[:1]), ("{k}", no[1:])):
            if word:
                text = text.replace(mark, word[0])
        joint = Fact(a.slot, a.attr, a.out, "", 1, {"vp": [text], "mod": ["that " + text, "which " + text]})
        facts = [f for f in facts if f is not a and f is not b]
        facts.insert(int(rng.random() * (len(facts) + 1)), joint)
    return facts


def noun_phrase(
    rng: random.Random, nouns: list[str], facts: list[Fact], plural: bool = False, bare: bool = False
) -> str:
    """`a cheap Italian restaurant in Rome with free wifi`: adjectives, noun, modifiers in random order."""
    noun = pick(rng, nouns)
    before: list[str] = []
    after: list[str] = []
    head_taken = False
    for fact in merge_bools(rng, facts):
        if fact.attr.noun and not head_taken and rng.random() < 0.85:
            noun, head_taken = fact.surface, True
        elif len(before) < 3 and fact.has("adj") and rng.random() < 0.8:
            before.append(say(rng, fact, "adj"))
        else:
            after.append(say(rng, fact, "mod"))
    if plural:
        noun = (
            noun
            if noun.endswith("s")
            else noun[:-1] + "ies"
            if noun.endswith(("ry", "ty", "ny", "dy"))
            else noun + "s"
        )
    text = (", " if len(before) > 1 and rng.random() < 0.4 else " ").join([*before, noun])
    if not plural and not bare:
        text = article(text)
    if after:
        text += " " + after[0]
        for part in after[1:]:
            text += pick(rng, [" and ", ", ", " ", " and ", ", and "]) + part
    return text


def predicates(rng: random.Random, facts: list[Fact]) -> str:
    """`costs $5, has no pool and is near the port`."""
    parts = [say(rng, f, "vp") for f in merge_bools(rng, facts)]
    if len(parts) == 1:
        return parts[0]
    if rng.random() < 0.12:
        return ", ".join(parts)
    return (
        ", ".join(parts[:-1])
        + pick(rng, [" and ", ", and ", " and ", " and it ", ", and it ", " but "])
        + parts[-1]
    )


def question(rng: random.Random, subject: str, fact: Fact) -> str:
    """A yes/no question on one fact, without the question mark."""
    text = say(rng, fact, "vp")
    for aux in AUX:
        if text.startswith(aux):
            return f"{aux}{subject} {text[len(aux) :]}"
    verb, _, rest = text.partition(" ")
    if verb in DO_FORMS:
        return f"does {subject} {DO_FORMS[verb]} {rest}"
    return f"is it true that {subject} {text}"


def sentence(rng: random.Random, subject: str, nouns: list[str], facts: list[Fact]) -> str:
    """One sentence about `subject` (no full stop, first letter as it comes)."""
    x = rng.random()
    facts = merge_bools(rng, facts)
    first, rest = facts[0], facts[1:]
    if x < 0.13 and first.has("act"):
        text = pick(rng, first.templates("act")).replace("{}", first.surface) + " " + subject
        return text + (
            pick(rng, [", which ", ", and it ", ", and it ", "; it "]) + predicates(rng, rest) if rest else ""
        )
    if x < 0.22 and rest and not first.units:
        return f"{say(rng, first, 'mod')}, {subject} {predicates(rng, rest)}"
    if x < 0.42:
        return (
            f"{subject} {pick(rng, ['is', 'is', 'is', 'was', 'would be'])} {noun_phrase(rng, nouns, facts)}"
        )
    if x < 0.5 and rest:
        return f"{subject}, {noun_phrase(rng, nouns, [first])}, {predicates(rng, rest)}"
    if x < 0.56:
        return f"{subject} is {article(pick(rng, nouns))} {pick(rng, ['that', 'which'])} {predicates(rng, facts)}"
    if x < 0.66 and first.attr.kind not in ("bool", "scale") and not first.units:
        return copula(rng, first, subject) + (
            pick(rng, [", and it ", " and it ", "; it "]) + predicates(rng, rest) if rest else ""
        )
    if x < 0.7 and subject.lower() not in ("it", "this one", "that one"):
        form = pick(
            rng,
            [
                "there is {n} called {s}",
                "{n} is {s}",
                "{s}: {n}",
                "one {b} is {s}",
                "meet {s}, {n}",
                "{s} - {n}",
            ],
        )
        return (
            form.replace("{s}", subject)
            .replace("{n}", noun_phrase(rng, nouns, facts))
            .replace("{b}", noun_phrase(rng, nouns, facts, bare=True) if "{b}" in form else "")
        )
    if x < 0.74 and rest:
        return f"being {noun_phrase(rng, nouns, [first])}, {subject} {predicates(rng, rest)}"
    if x < 0.78 and first.has("adj"):
        return f"the {say(rng, first, 'adj')} {pick(rng, nouns)} {subject} " + (
            predicates(rng, rest)
            if rest
            else pick(rng, ["is one to know", "is waiting for you", "is what you want", "is here"])
        )
    return f"{subject} {predicates(rng, facts)}"


def clauses(rng: random.Random, subject: str, nouns: list[str], facts: list[Fact]) -> str:
    """One to three sentences about `subject`, with pronouns after the first; ends without a full stop."""
    if not facts:
        return f"{subject} is {article(pick(rng, nouns))}"
    facts = sorted(facts, key=lambda _: rng.random())
    parts: list[str] = []
    who = subject
    while facts:
        n = 1 + int(rng.random() * 3) if len(facts) > 3 or rng.random() < 0.5 else len(facts)
        chunk, facts = facts[:n], facts[n:]
        parts.append(sentence(rng, who, nouns, chunk))
        who = pick(rng, ["it", "it", "it", "the " + pick(rng, nouns), "this " + pick(rng, nouns)])
    text = parts[0]
    for part in parts[1:]:
        joiner = pick(
            rng,
            [
                ". ",
                ". ",
                ". ",
                ", and ",
                "; ",
                ". Also, ",
                ". In addition, ",
                ", but ",
                ". Besides, ",
                "! ",
                ", while ",
            ],
        )
        text += joiner + (cap(part) if joiner in (". ", "! ") else part)
    return text


_NO_ARTICLE = re.compile(r"\b(no|the|No|any) an? ")
_DOUBLE_STOP = re.compile(r"(?<!\.)\.\.(?!\.)")


def tidy(text: str) -> str:
    """Upper-case start, no doubled full stops."""
    return (
        _NO_ARTICLE.sub(r"\1 ", _DOUBLE_STOP.sub(".", cap(text)))
        .replace("?.", "?")
        .replace("!.", "!")
        .replace(" ,", ",")
    )
