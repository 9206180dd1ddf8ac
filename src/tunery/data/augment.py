"""`entity_swap`: replace values that are copied from the sentence, in sentence and target alike.

A value takes another value of the same slot, or, half the time, a made-up one of the same shape, so that copying is
learnt as an operation and not as a list of names.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from tunery.types import Example, Message

_SLOT = re.compile(r"([A-Za-z_][\w.\-]*)\[([^\[\]]+)\]")
_OPEN_SHARE = 0.9  # a slot is open when this share of its values stands in the sentence word for word ...
_OPEN_DISTINCT = 20  # ... and it has at least this many distinct ones


class Swapper:
    """Knows the open slots of a dataset in function form and the values seen in each."""

    def __init__(self, examples: Sequence[Example]) -> None:
        seen: dict[str, set[str]] = defaultdict(set)
        copied: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for example in examples:
            for slot, value in _SLOT.findall(example.target or ""):
                seen[slot].add(value)
                copied[slot][0] += value in example.text
                copied[slot][1] += 1
        self.values = {
            slot: sorted(values)
            for slot, values in seen.items()
            if len(values) >= _OPEN_DISTINCT and copied[slot][0] >= _OPEN_SHARE * copied[slot][1]
        }

    def swap(self, example: Example, rng: random.Random, probability: float) -> Example:
        """`example` with each open value replaced at `probability`; unchanged when a swap would be ambiguous."""
        target = example.target or ""
        head, text = example.messages[:-1], example.messages[-1].content
        for slot, value in _SLOT.findall(target):
            if slot not in self.values or rng.random() >= probability:
                continue
            word = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")
            if len(word.findall(text)) != 1 or target.count(f"[{value}]") != 1:
                continue
            new = rng.choice(self.values[slot]) if rng.random() < 0.5 else made_up(value, rng)
            text = word.sub(lambda _, new=new: new, text)
            target = target.replace(f"[{value}]", f"[{new}]")
        return replace(example, messages=(*head, Message("user", text)), target=target)


def made_up(value: str, rng: random.Random) -> str:
    """A made-up string of the same shape: digits for digits, syllables for words, the rest kept."""

    def word(match: re.Match[str]) -> str:
        old = match[0]
        new = "".join(rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range((len(old) + 1) // 2))
        new = new[: len(old)]
        return new.upper() if old.isupper() else new.capitalize() if old[0].isupper() else new

    value = re.sub(r"\d", lambda _: str(rng.randrange(10)), value)
    return re.sub(r"[A-Za-z]{3,}", word, value)
