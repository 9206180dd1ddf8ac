"""Human-written sentence / meaning-representation pairs of other domains, as groups in random output styles.

Reads `*.jsonl.gz` files with the fields `text` and `mr` (`function(attribute[value], ...), function(...)`).
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import values as v
from acts import Act
from compose import Fact
from domain import Attr, Domain
from generate import LAYOUTS, Group
from realise import Said
from render import instruction, make_style, render
from schema import Schema, Slot

Parsed = list[tuple[str, list[tuple[str, str]]]]  # (function, [(attribute, value), ...]) per act


def parse(mr: str) -> Parsed | None:
    """The acts of a meaning representation; None where it is malformed."""
    acts: Parsed = []
    i = 0
    while i < len(mr):
        j = mr.find("(", i)
        if j < 0:
            return None
        name, args = mr[i:j].strip(", "), []
        i = j + 1
        while i < len(mr) and mr[i] != ")":
            j = mr.find("[", i)
            k = mr.find("]", j)
            if j < 0 or k < 0:
                return None
            args.append((mr[i:j].strip(", "), mr[j + 1 : k]))
            i = k + 1
        acts.append((name, args))
        i += 1
    return acts


def pairs(folder: Path) -> Iterator[tuple[str, str]]:
    """Every (text, mr) of the folder."""
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                yield row["text"], row["mr"]


_WORD = re.compile(r"[^\W_]+")
YES_NO = {"yes", "no", "true", "false", "dontcare", "?", "", "none"}


def _stems(text: str) -> set[str]:
    """Lower-case words cut to five letters; camelCase and runs like `isforbusiness` stay what they are."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return {word[:5] for word in _WORD.findall(spaced.lower())}


def clues(rows: list[tuple[str, Parsed]], values: dict[str, list[str]]) -> dict[tuple[str, str], set[str]]:
    """For each value of a closed set, the words that give it away: rows with the word mostly have the value."""
    words: Counter[str] = Counter()
    both: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for text, acts in rows:
        stems = _stems(text)
        words.update(stems)
        for pair in {(a, x) for _, args in acts for a, x in args if values.get(a)}:
            both[pair].update(stems)
    return {
        pair: {word for word, n in counts.items() if n >= 12 and n > 0.8 * words[word]} for pair, counts in both.items()
    }


def inferable(text: str, acts: Parsed, known: dict[tuple[str, str], set[str]]) -> bool:
    """Whether every value of the row can be told from its text."""
    stems, lower = _stems(text), text.lower()
    for _, args in acts:
        for attribute, value in args:
            if value.lower() in YES_NO:
                flat = attribute.lower()
                if (
                    any(len(stem) > 2 and stem[:4] in flat for stem in stems)
                    or known.get((attribute, value), set()) & stems
                ):
                    continue
                return False
            if f"the {value}" in lower and f"The {value}" in text and attribute.lower() in ("name", "near"):
                return False  # the corpus is not sure whether the article belongs to the name
            own = _stems(value)
            if value.lower() in lower or len(own & stems) * 2 > len(own):
                continue
            if not known.get((attribute, value), set()) & stems:
                return False
    return True


@dataclass(slots=True)
class Corpus:
    """One file: parsed rows, its functions, and per attribute the values seen (all of them if few)."""

    name: str
    rows: list[tuple[str, Parsed]]
    functions: list[str]
    attributes: dict[str, list[str]]
    open_class: set[str]


@lru_cache(maxsize=1)
def load(folder: Path) -> list[Corpus]:
    """The corpora of a folder."""
    found: list[Corpus] = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        rows: list[tuple[str, Parsed]] = []
        seen: dict[str, set[str]] = defaultdict(set)
        functions: dict[str, int] = defaultdict(int)
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                acts = parse(row["mr"])
                if not acts or len(row["text"]) > 300:
                    continue
                rows.append((row["text"], acts))
                for name, args in acts:
                    functions[name] += 1
                    for attribute, value in args:
                        seen[attribute].add(value)
        values = {a: sorted(s) if len(s) <= 12 else [] for a, s in seen.items()}
        known = clues(rows, values)
        rows = [(text, acts) for text, acts in rows if inferable(text, acts, known)]
        wide = {a for a, s in seen.items() if len(s) > 25}
        found.append(Corpus(path.name.split(".")[0], rows, sorted(functions), values, wide))
    return found


def _swap(rng: random.Random, text: str, acts: Parsed, open_class: set[str]) -> tuple[str, Parsed]:
    """Replaces verbatim open-class values by random ones, in sentence and answer alike."""
    lower = text == text.lower()
    out: Parsed = []
    for name, args in acts:
        fresh: list[tuple[str, str]] = []
        for attribute, value in args:
            if attribute in open_class and len(value) > 3 and text.count(value) == 1 and rng.random() < 0.7:
                sampler = v.pick(rng, [v.title, v.venue, v.product, v.company, v.title_core, v.phrase])
                new = v.number(rng) if value.isdigit() else sampler(rng)
                new = new.lower() if lower else new
                if not set(new) & set("[]()"):
                    text, value = text.replace(value, new), new
            fresh.append((attribute, value))
        out.append((name, fresh))
    return text, out


def make_group(rng: random.Random, folder: Path) -> Group:
    """One group from a random corpus."""
    corpus = v.pick(rng, load(folder))
    style = make_style(rng)
    n = 6 + int(rng.random() * 9)
    picked = [v.pick(rng, corpus.rows) for _ in range(n)]
    used_f = {name for _, acts in picked for name, _ in acts}
    used_a = {a for _, acts in picked for _, args in acts for a, _ in args}
    functions = [f for f in corpus.functions if f in used_f or rng.random() < 0.5]
    attributes = [a for a in corpus.attributes if a in used_a or rng.random() < 0.5]
    index = {a: i for i, a in enumerate(attributes)}
    slots = [Slot(a, Attr([a], "copy"), corpus.attributes[a], {}) for a in attributes]
    acts_named = [(Act(f, [f], f.replace("_", " "), [], []), f) for f in functions]
    thing = Domain(corpus.name, [corpus.name], Attr([], "copy"), [])
    schema = Schema(thing, thing.nouns, slots, acts_named, "", False, "sentence", False, [], rng.random() < 0.5)
    done: list[tuple[str, str]] = []
    for text, acts in picked:
        if rng.random() < 0.7:
            text, acts = _swap(rng, text, acts, corpus.open_class)
        said: list[Said] = []
        for name, args in acts:
            facts: list[Fact] = []
            for attribute, value in args:
                facts.append(Fact(index[attribute], slots[index[attribute]].attr, value, value))
            if style.kind.startswith("json"):  # repeated attributes become lists
                merged: dict[int, Fact] = {}
                for fact in facts:
                    old = merged.setdefault(fact.slot, fact)
                    if old is not fact:
                        old.out = [*(old.out if isinstance(old.out, list) else [old.out]), str(fact.out)]
                facts = list(merged.values())
            said.append(Said("", name, facts))
        done.append((text, render(schema, style, said)))
    return Group(instruction(rng, schema, style), v.pick(rng, LAYOUTS), done)
