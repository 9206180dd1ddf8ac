"""Turns facts about an entity into English: noun phrases, predicates, one to four clauses."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from domain import JOINT, Attr
from values import cap, pick

VOWELS = "aeiouAEIOU"
IS = [
    "is ",
    "is ",
    "is quite ",
    "is really ",
    "is rather ",
    "is pretty ",
    "is very ",
    "is said to be ",
    "can be called ",
]
JOINERS = [" and ", ", and ", ", ", " and also ", " as well as ", "; "]
DOES = ["doesn't"]
AUX = ("is ", "was ", "can ", "will ", "must ", "could ", "may ")
DO_FORMS = {
    "has": "have", "costs": "cost", "stars": "star", "lasts": "last", "takes": "take", "runs": "run", "comes": "come",
    "starts": "start", "lets": "let", "gives": "give", "gets": "get", "makes": "make", "welcomes": "welcome",
    "permits": "permit", "bans": "ban", "lacks": "lack", "holds": "hold", "sells": "sell", "deals": "deal",
    "stands": "stand", "looks": "look", "shows": "show", "hosts": "host", "suits": "suit", "tastes": "taste",
    "smells": "smell", "measures": "measure", "calls": "call", "happens": "happen", "begins": "begin",
    "opens": "open", "dates": "date", "caters": "cater", "consists": "consist", "lies": "lie", "asks": "ask",
    "pays": "pay", "grows": "grow", "carries": "carry", "keeps": "keep", "fits": "fit", "plays": "play", "serves": "serve", "covers": "cover", "weighs": "weigh", "needs": "need", "belongs": "belong",
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
                return [a for a in attr.roles.get("a", []) if " " not in a] if self.level and attr.shape == "be" else []
            return attr.roles.get(role + ("+" if self.level else "-"), [])
        if attr.scale is not None and role in ("adj", "vp", "op"):
            found = getattr(attr.scale, role)[self.level]
            return found
        return attr.roles.get(role, [])


def article(np: str) -> str:
    """`np` with the fitting indefinite article."""
    vowel = (np[:1] in VOWELS and not np.lower().startswith(("one", "uni", "use", "eu"))) or np.startswith(
        ("hour", "honest")
    )
    return ("an " if vowel else "a ") + np


def listing(rng: random.Random, items: list[str]) -> str:
    """Items as an English enumeration."""
    if len(items) == 1:
        return items[0]
    if len(items) == 2:
        if rng.random() < 0.06:
            return f"both {items[0]} and {items[1]}"
        return items[0] + pick(rng, PAIRS) + items[1]
    if rng.random() < 0.08:
        return " and ".join(items)
    return (
        ", ".join(items[:-1])
        + pick(rng, [" and ", ", and ", " and ", ", and ", ", plus ", " as well as ", ", "])
        + items[-1]
    )


PAIRS = [" and "] * 6 + [" & ", ", ", " as well as ", "/", " plus ", " and also ", " along with "]


def either(items: list[str], word: str) -> str:
    """`a, b and c` with `word` before the last."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" {word} " + items[-1]


_MOD_VERB = re.compile(r"\b(that|which) (is|isn't|has|hasn't|does|doesn't|was|wasn't|\w+s)\b")
_TO_PLURAL = {"is": "are", "isn't": "aren't", "doesn't": "don't", "does": "do", "was": "were", "wasn't": "weren't"}


def _agree(match: re.Match[str]) -> str:
    verb = match[2]
    return f"{match[1]} {_TO_PLURAL.get(verb) or DO_FORMS.get(verb) or verb.removesuffix('s')}"


def agree(text: str) -> str:
    """A modifier of a plural noun: `that is` becomes `that are`."""
    return _MOD_VERB.sub(_agree, text.replace("that's ", "that is "))


def comparative(adj: str) -> str:
    """`cheap` to `cheaper`, `affordable` to `more affordable`."""
    known = IRREGULAR.get(adj)
    if known:
        return known[0]
    if adj in SHORT:
        stem = adj[:-1] if adj.endswith("e") else adj
        return (stem[:-1] + "i" if stem.endswith("y") else stem) + "er"
    return "more " + adj


def superlative(adj: str) -> str:
    """`cheap` to `cheapest`, `affordable` to `most affordable`."""
    known = IRREGULAR.get(adj)
    if known:
        return known[1]
    return comparative(adj)[:-1] + "st" if adj in SHORT else "most " + adj


IRREGULAR = {
    "good": ("better", "best"), "bad": ("worse", "worst"), "big": ("bigger", "biggest"), "hot": ("hotter", "hottest"),
    "fun": ("more fun", "most fun"), "excellent": ("better", "best"), "terrible": ("worse", "worst"),
    "poor": ("worse", "worst"),
}  # fmt: skip
SHORT = set(
    "cheap dear small tiny large huge old new quick fast slow loud quiet calm mild warm cool weak great nice hard easy"
    " tough simple pricey costly noisy roomy".split()
)


def tag(statement: str) -> str:
    """The tag question of `it STATEMENT`."""
    first, _, rest = statement.partition(" ")
    if first in ("is", "was", "can", "will", "could"):
        negated = rest.startswith(("not ", "no ", "neither ", "anything but", "in no way", "hardly"))
        return f"{first} it" if negated else {"can": "can't", "will": "won't"}.get(first, first + "n't") + " it"
    if first in ("isn't", "wasn't", "can't", "won't", "doesn't"):
        return {"can't": "can", "won't": "will"}.get(first, first[:-3]) + " it"
    if first == "does" and rest.startswith("not "):
        return "does it"
    return "does it" if rest.startswith(("no ", "neither ")) or first == "lacks" else "doesn't it"


def say(rng: random.Random, fact: Fact, role: str) -> str:
    """The fact in a role: `vp` (predicate), `mod` (after the noun) or `adj` (before it)."""
    attr, options = fact.attr, fact.templates(role)
    if attr.scale is not None and not fact.units:
        x = rng.random()
        if role == "vp" and x < 0.2:
            return pick(rng, IS) + pick(rng, attr.scale.adj[fact.level])
        if role == "mod" and x < 0.35:
            return pick(rng, ["that ", "that ", "which "]) + pick(rng, attr.scale.vp[fact.level])
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
    if subject.lower() in PRONOUNS:
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
    """Sometimes folds yes/no facts of one shape into a joint phrase (`has a pool and a bar but no gym`)."""
    by_shape: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.attr.kind == "bool" and fact.attr.shape in JOINT and not fact.units:
            by_shape.setdefault(fact.attr.shape, []).append(fact)
    for shape, alike in by_shape.items():
        if len(alike) < 2 or rng.random() < 0.2:
            continue
        alike = alike[: 2 + int(rng.random() * 3)]
        first = alike[0]
        yes = [pick(rng, f.attr.roles["n"]) for f in alike if f.level]
        no = [pick(rng, f.attr.roles["n"]) for f in alike if not f.level]
        sign = "+-" if yes and no else "++" if yes else "--"
        both = JOINT[shape]
        said: list[str] = []
        for text in (pick(rng, both[sign]), pick(rng, both["mod" + sign])):
            if sign == "+-":
                text = text.replace("{p}", either(yes, "and")).replace("{m}", either(no, "or"))
            elif sign == "++":
                text = text.replace("{p}", ", ".join(yes[:-1])).replace("{q}", yes[-1])
            else:
                text = text.replace("{m}", ", ".join(no[:-1])).replace("{k}", no[-1])
            said.append(text)
        joint = Fact(first.slot, first.attr, first.out, "", 1, {"vp": said[:1], "mod": said[1:]})
        facts = [f for f in facts if not any(f is x for x in alike)]
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
            else noun + "es"
            if noun.endswith(("ch", "sh", "x"))
            else noun[:-1] + "ies"
            if noun.endswith(("ry", "ty", "ny", "dy"))
            else noun + "s"
        )
    text = (", " if len(before) > 1 and rng.random() < 0.4 else " ").join(before)
    text = f"{text} {noun}" if text else noun
    if not plural and not bare:
        text = article(text)
    if after:
        if plural:
            after = [agree(part) for part in after]
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
    return ", ".join(parts[:-1]) + pick(rng, [" and ", ", and ", " and ", " and it ", ", and it ", " but "]) + parts[-1]


def question(rng: random.Random, subject: str, fact: Fact) -> str:
    """A yes/no question on one fact, without the question mark."""
    text = say(rng, fact, "vp")
    negative = rng.random() < 0.12
    for aux in AUX:
        if text.startswith(aux):
            if negative and aux in ("is ", "was ") and not text.startswith((aux + "not", aux + "n")):
                return f"{aux.strip()}n't {subject} {text[len(aux) :]}"
            return f"{aux}{subject} {text[len(aux) :]}"
    verb, _, rest = text.partition(" ")
    if verb in DO_FORMS:
        plain = not rest.startswith(("no ", "neither "))
        return f"{pick(rng, DOES) if plain and negative else 'does'} {subject} {DO_FORMS[verb]} {rest}"
    if verb == "doesn't" or text.startswith("does not "):
        return f"doesn't {subject} {text.removeprefix('does not ').removeprefix(verb + ' ')}"
    if verb in ("isn't", "can't", "wasn't"):
        return f"{verb} {subject} {rest}"
    return f"is it true that {subject} {text}"


PRONOUNS = ("it", "this one", "that one")
NEUTRAL = ["is one to know", "is waiting for you", "is what you want", "is here", "is one option", "may interest you"]


def sentence(rng: random.Random, subject: str, nouns: list[str], facts: list[Fact]) -> str:
    """One sentence about `subject` (no full stop, first letter as it comes)."""
    x = rng.random()
    facts = merge_bools(rng, facts)
    first, rest = facts[0], facts[1:]
    if x < 0.14 and first.has("act"):
        if rng.random() < 0.25 and subject[:1].isupper() and "'s" not in subject:
            if rng.random() < 0.6:
                return f"{first.surface}'s {subject} {predicates(rng, rest) if rest else pick(rng, NEUTRAL)}"
            text = (
                first.surface
                + pick(rng, [" is behind ", " gave us ", " brought us ", " is responsible for "])
                + subject
            )
        else:
            text = pick(rng, first.templates("act")).replace("{}", first.surface) + " " + subject
        return text + (
            pick(rng, [", which ", ", and it ", ", and it ", "; it "]) + predicates(rng, rest) if rest else ""
        )
    if x < 0.17 and rest and not first.units:
        lead = pick(
            rng, ["although it {v}", "even though it {v}", "since it {v}", "while it {v}", "not only is it {n}"]
        )
        if "{n}" in lead:
            return f"{subject} is not only {noun_phrase(rng, nouns, [first])}, but it also {predicates(rng, rest)}"
        return f"{lead.replace('{v}', say(rng, first, 'vp'))}, {subject} {predicates(rng, rest)}"
    if x < 0.2 and rest and not first.units:
        lead = say(rng, first, "mod")
        if not lead.startswith(("that", "which", "where", "to ")):
            return f"{lead}, {subject} {predicates(rng, rest)}"
    if x < 0.42:
        return f"{subject} {pick(rng, ['is', 'is', 'is', 'was', 'would be'])} {noun_phrase(rng, nouns, facts)}"
    if x < 0.45 and rest:
        return f"{subject}, which {say(rng, first, 'vp')}, {predicates(rng, rest)}"
    if x < 0.5 and rest:
        return f"{subject}, {noun_phrase(rng, nouns, [first])}, {predicates(rng, rest)}"
    if x < 0.56:
        return f"{subject} is {article(pick(rng, nouns))} {pick(rng, ['that', 'which'])} {predicates(rng, facts)}"
    if x < 0.66 and first.attr.kind not in ("bool", "scale") and not first.units:
        return copula(rng, first, subject) + (
            pick(rng, [", and it ", " and it ", "; it "]) + predicates(rng, rest) if rest else ""
        )
    if x < 0.7 and subject.lower() not in PRONOUNS:
        form = pick(
            rng,
            [
                "there is {n} called {s}",
                "{n} is {s}",
                "one {b} is {s}",
                "{n} goes by the name of {s}",
            ],
        )
        return (
            form.replace("{s}", subject)
            .replace("{n}", noun_phrase(rng, nouns, facts))
            .replace("{b}", noun_phrase(rng, nouns, facts, bare=True) if "{b}" in form else "")
        )
    if x < 0.74 and rest:
        return f"being {noun_phrase(rng, nouns, [first])}, {subject} {predicates(rng, rest)}"
    if x < 0.78 and first.has("adj") and subject.lower() not in PRONOUNS and not subject.startswith(("the ", "this ")):
        return f"the {say(rng, first, 'adj')} {pick(rng, nouns)} {subject} " + (
            predicates(rng, rest) if rest else pick(rng, NEUTRAL)
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
        who = pick(rng, ["it", "it", "it", "it", "the " + pick(rng, nouns), "this " + pick(rng, nouns), "this one"])
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
                ". However, ",
                ", although ",
                "; moreover, ",
                ". It's worth adding that ",
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
