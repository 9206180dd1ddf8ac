"""Synthetic extraction tasks: groups of (sentence, answer) rows that share an invented schema.

python generate.py --seed 1 --groups 3      # print a few
python generate.py --seed 1 --time          # rows per second
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from acts import EMPTY
from domain import HELD_OUT
from realise import Said, grounded, realise, typo
from render import Style, instruction, make_style, render
from schema import Schema, make_schema
from values import pick

LAYOUTS = ["main"] * 16 + ["system", "system", "helper", "helper"]


@dataclass(slots=True)
class Group:
    """An instruction, a prompt layout and the rows that share them."""

    instruction: str
    layout: str
    rows: list[tuple[str, str]]


def one_row(rng: random.Random, schema: Schema, style: Style) -> tuple[str, str] | None:
    """One (sentence, answer) pair; None where the draw did not work out."""
    acts: list[Said] = []
    count = 1 if rng.random() < 0.96 else 2
    for _ in range(count):
        act, function = pick(rng, schema.functions)
        if act.id in EMPTY and rng.random() < 0.6:
            act, function = pick(rng, schema.functions)
        said = realise(rng, schema, act, function)
        if said is None:
            return None
        acts.append(said)
    if count == 2 and acts[0].function == acts[1].function:
        acts = acts[:1]
    if style.kind in ("json_entities", "json_plain") and len(acts) > 1:
        acts = acts[:1]
    facts = [f for a in acts for f in a.facts]
    text = acts[0].text if len(acts) == 1 else acts[0].text + " " + acts[1].text
    if schema.lower:
        text = text.lower()
    text = grounded(text, facts)
    if not text:
        return None
    x = rng.random()
    if x < 0.03:
        text = typo(rng, text, facts)
    elif x < 0.05:
        text = text[:-1] if text[-1] in ".!?" and not any(text.endswith(f.surface) for f in facts) else text
    elif x < 0.06 and not any(text.startswith(f.surface) for f in facts):
        text = text[0].lower() + text[1:]
    return text, render(schema, style, acts)


def schema_rows(rng: random.Random, schema: Schema, style: Style, n: int) -> list[tuple[str, str]]:
    """Up to `n` distinct rows of one schema."""
    found: dict[str, str] = {}
    for _ in range(2 * n + 4):
        row = one_row(rng, schema, style)
        if row is not None:
            found.setdefault(*row)
            if len(found) == n:
                break
    return list(found.items())


def make_group(rng: random.Random, held_out: bool = False, held: tuple[str, ...] = HELD_OUT, n: int = 0) -> Group:
    """One group of `n` (default 8 to 16) rows."""
    while True:
        schema, style = make_schema(rng, held_out, held), make_style(rng)
        pairs = schema_rows(rng, schema, style, n or 8 + int(rng.random() * 9))
        if len(pairs) > 1:
            return Group(instruction(rng, schema, style), pick(rng, LAYOUTS), pairs)


def rows(seed: int, held_out: bool = False, held: tuple[str, ...] = HELD_OUT) -> Iterator[Group]:
    """An endless stream of groups, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield make_group(rng, held_out, held)


def main() -> None:
    """Print groups, or time the generator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    stream = rows(args.seed)
    if args.time:
        next(stream)
        start, n = time.process_time(), 0
        while time.process_time() - start < 3:
            n += len(next(stream).rows)
        print(f"{n / (time.process_time() - start):.0f} rows/s of processor time")
        return
    for _ in range(args.groups):
        group = next(stream)
        print(f"=== {group.layout}\n{group.instruction}\n")
        for text, answer in group.rows:
            print(f"  {text}\n    -> {answer}")


if __name__ == "__main__":
    main()
