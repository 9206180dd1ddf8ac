"""Fills an act's frame: samples facts, puts them into the frame's slots, gives the sentence."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import compose as c
from acts import EMPTY, TAIL, Act
from compose import Fact
from schema import Schema, make_fact
from values import cap, pick

HEADS = [
    "Hi! ",
    "Okay, ",
    "Well, ",
    "Hello, ",
    "Right, ",
    "By the way, ",
    "Oh, ",
    "Yes, ",
    "Hmm, ",
    "Sure! ",
    "Great. ",
    "So, ",
]
FACT_SLOTS = "NBPVMSIYG"  # frame slots that take facts
# Openings of frames that stay in upper case after "Well, ".
KEEP = {"I", "I'd", "I'm", "I've", "I'll"}


@dataclass(slots=True)
class Said:
    """One realised act: its text, its function name, facts, and the slots it asks for."""

    text: str
    function: str
    facts: list[Fact] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)


def _deal(rng: random.Random, wanted: list[str], facts: list[Fact]) -> dict[str, list[Fact]]:
    """Deals facts to the frame's slots, each slot getting at least one where there are enough."""
    hands: dict[str, list[Fact]] = {slot: [] for slot in wanted}
    for i, fact in enumerate(facts):
        hands[wanted[i] if i < len(wanted) else pick(rng, wanted)].append(fact)
    return hands


def _asks(rng: random.Random, schema: Schema, asked: list[int], name: str) -> str:
    """A wh-question for the asked slots."""
    parts = []
    who = name
    for index in asked:
        attr = schema.slots[index].attr
        options = attr.roles.get("ask", [])
        noun = pick(rng, attr.roles["n"])
        if options and rng.random() < 0.65:
            parts.append(pick(rng, options).replace("{E}", who))
        else:
            form = pick(
                rng,
                [
                    "what is the {n} of {e}",
                    "what {n} does {e} have",
                    "what's the {n} of {e}",
                    "which {n} has {e}",
                    "what about the {n} of {e}",
                ],
            )
            parts.append(form.replace("{n}", noun).replace("{e}", who))
        who = "it"
    return pick(rng, [" and ", ", and ", "? And "]).join(parts)


OPINIONS = [
    "I think {e} is {a}", "{e} is {a}", "I found {e} {a}", "{e} seems {a} to me", "I thought {e} was {a}", "to me {e} is {a}",
    "I'd call {e} {a}", "{e} struck me as {a}", "I consider {e} {a}", "{e} was {a}, plain and simple",
]  # fmt: skip


def _opinion(rng: random.Random, fact: Fact, name: str) -> str:
    """What the speaker thinks, from a rating-like fact."""
    scale = fact.attr.scale
    assert scale is not None
    options = scale.op[fact.level]
    x = rng.random()
    if options and x < 0.7:
        return pick(rng, options).replace("{E}", name)
    adj = pick(rng, scale.adj[fact.level])
    if x < 0.88:
        return pick(rng, OPINIONS).replace("{e}", name).replace("{a}", adj)
    return f"I think {name} {pick(rng, scale.vp[fact.level])}"


def realise(rng: random.Random, schema: Schema, act: Act, function: str) -> Said | None:
    """One sentence of `act`; None where the schema has no attribute that the drawn frame needs."""
    index = int(rng.random() * len(act.frames))
    frame, need = act.frames[index], act.slots[index]
    if act.id in EMPTY:
        return Said(frame, function)
    special = {schema.other, schema.count}
    pool = [i for i in range(1, len(schema.slots)) if i not in special]
    facts: list[Fact] = []
    asked: list[int] = []
    texts: dict[str, str] = {}
    nouns = schema.nouns
    graded = None
    if need & {"O", "D", "J"}:
        scaled = [i for i in pool if schema.slots[i].attr.scale is not None]
        rated = [i for i in scaled if (s := schema.slots[i].attr.scale) is not None and s.rated]
        if rated and rng.random() < (0.9 if "O" in need else 0.6):
            scaled = rated
        if not scaled:
            return None
        graded = make_fact(rng, schema, pick(rng, scaled))
        pool.remove(graded.slot)
        facts.append(graded)
    name = ""
    generic = (
        "E" in need
        and "J" not in need
        and act.id in ("request", "opinion", "ask_reason", "confirm", "complain", "inform")
        and rng.random() < 0.15
    )
    entity = bool(need & {"E", "S", "Y", "O", "G"}) or "A" in need
    if entity:
        if generic or (act.id in ("search", "deny") and rng.random() < 0.5):
            name = pick(rng, ["it", "this one", "that one", "the " + pick(rng, nouns), "this " + pick(rng, nouns)])
        else:
            key = make_fact(rng, schema, 0)
            facts.append(key)
            name = key.surface
    if "T" in need or "C" in need:
        extra = schema.other if "T" in need else schema.count
        if extra < 0:
            return None
        fact = make_fact(rng, schema, extra)
        facts.append(fact)
        texts["T" if "T" in need else "C"] = fact.surface
    if need & {"A", "R"}:
        if not pool:
            return None
        ask_pool = pool if rng.random() < 0.85 or not facts else [*pool]
        for _ in range(1 + (rng.random() < 0.2)):
            if ask_pool:
                i = pick(rng, ask_pool)
                asked.append(i)
                pool = [p for p in pool if p != i]
                ask_pool = pool
        if "A" in need:
            texts["A"] = _asks(rng, schema, asked, name)
        else:
            the = frame.find("What {R}") < 0 and frame.find("Which {R}") < 0 and frame.find("preference on") < 0
            texts["R"] = c.listing(
                rng, [("the " if the else "") + pick(rng, schema.slots[i].attr.roles["n"]) for i in asked]
            )
    wanted = [s for s in FACT_SLOTS if s in need]
    if wanted:
        k = len(wanted) + int(rng.random() ** 1.6 * 6)
        if act.id in ("search", "ask_preference", "not_found", "count"):
            k = len(wanted) + int(rng.random() ** 1.8 * 4)
        chosen = []
        for _ in range(min(k, len(pool))):
            i = int(rng.random() * len(pool))
            chosen.append(make_fact(rng, schema, pool[i]))
            pool[i] = pool[-1]
            pool.pop()
        if len(chosen) < len(wanted) and need & {"V", "M", "I", "Y"}:
            return None
        hands = _deal(rng, wanted, chosen)
        facts += chosen
        for slot, hand in hands.items():
            if slot == "N":
                texts[slot] = c.noun_phrase(rng, nouns, hand)
            elif slot == "B":
                texts[slot] = c.noun_phrase(rng, nouns, hand, bare=True)
            elif slot == "P":
                texts[slot] = c.noun_phrase(rng, nouns, hand, plural=True)
            elif slot == "V":
                texts[slot] = c.predicates(rng, hand)
            elif slot == "M":
                texts[slot] = pick(rng, [" and ", ", ", " "]).join(
                    [c.say(rng, f, "mod") for f in c.merge_bools(rng, hand)]
                )
            elif slot == "S":
                texts[slot] = c.clauses(rng, name, nouns, hand)
            elif slot == "I":
                texts[slot] = cap(
                    c.clauses(rng, pick(rng, ["it", "it", "this one", "the " + pick(rng, nouns)]), nouns, hand)
                )
            elif slot == "G":
                said = c.predicates(rng, hand)
                texts[slot] = f"{name} {said}, {c.tag(said)}"
            else:
                texts[slot] = c.question(rng, name, hand[0]) + (
                    f" and {c.predicates(rng, hand[1:])}" if len(hand) > 1 else ""
                )
    texts["E"] = name
    if graded is not None and graded.attr.scale is not None:
        if "O" in need:
            texts["O"] = _opinion(rng, graded, name)
        else:
            adj = pick(rng, graded.attr.scale.adj[graded.level])
            if adj not in c.SHORT and " " not in adj and rng.random() < 0.1 and act.id != "compare":
                adj = pick(rng, ["really ", "rather "]) + adj
            texts["D"] = c.comparative(adj) if act.id == "compare" else adj
            texts["J"] = c.superlative(adj.removeprefix("really ").removeprefix("rather "))
    text = frame
    for slot in need:
        text = (
            text.replace("{" + slot + "}", texts.get(slot, ""), 1)
            if text.count("{" + slot + "}") == 1
            else text.replace("{" + slot + "}", texts.get(slot, ""))
        )
    x = rng.random()
    if x < 0.06:
        head = pick(rng, HEADS)
        opening = text.split(" ", 1)[0].rstrip(",:!?")
        if (
            head.endswith(", ")
            and opening not in KEEP
            and not any(text.startswith(f.surface) for f in facts if f.surface)
        ):
            text = text[0].lower() + text[1:]
        text = head + text
    elif x < 0.09:
        text = text + " " + cap(pick(rng, TAIL)) + pick(rng, [".", "!"])
    return Said(c.tidy(text), function, facts, asked)


def grounded(text: str, facts: list[Fact]) -> str:
    """`text` with its first letter lowered where that is needed for every copied value to be found verbatim; empty
    where a value is missing or could be read two ways."""
    for fact in facts:
        if fact.attr.sampler is None:
            continue
        outs = fact.out if isinstance(fact.out, list) else [fact.out]
        for out in outs:
            if out in text or (fact.surface != out and fact.surface in text):
                continue
            if cap(out) == text[: len(out)]:
                text = out[0] + text[1:]
                continue
            return ""
    return text


def typo(rng: random.Random, text: str, facts: list[Fact]) -> str:
    """One misspelt word outside the values."""
    words = text.split(" ")
    keep = " ".join([f.surface for f in facts])
    for _ in range(4):
        i = int(rng.random() * len(words))
        word = words[i]
        if len(word) > 3 and word.isalpha() and word not in keep:
            j = 1 + int(rng.random() * (len(word) - 2))
            x = rng.random()
            if x < 0.4:
                words[i] = word[:j] + word[j + 1] + word[j] + word[j + 2 :]
            elif x < 0.7:
                words[i] = word[:j] + word[j + 1 :]
            else:
                words[i] = word[:j] + word[j] + word[j:]
            break
    return " ".join(words)
