"""Rows divided, and rows chosen, by groups: rows that say the same stay together, or stand for each other once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from tunery.errors import ConfigError, DataError
from tunery.types import Example

Key = Callable[[Example], str]
_LARGE = 0.1  # of all rows in one group of outputs: then outputs are labels, and do not tell rows apart


def folded(text: str) -> str:
    """A text as it compares: case and white space folded."""
    return " ".join(text.split()).casefold()


def group_key(examples: Sequence[Example], by: str | None) -> tuple[str, Key]:
    """What rows are grouped by: "output", "input" or a column; None is output, or input where outputs are labels.

    Raises ConfigError for a column that a row lacks.
    """
    if by is None:
        by = "output"
        if max(map(len, _groups(examples, _KEYS[by]).values()), default=0) > max(1, _LARGE * len(examples)):
            by = "input"
    if by in _KEYS:
        return by, _KEYS[by]
    if lacking := next((e for e in examples if by not in e.meta), None):
        there = ", ".join(k for k in lacking.meta if k not in ("row", "query_at")) or "none"
        raise ConfigError(f'row "{lacking.id}" has no column "{by}"', hint=f"output, input, or one of: {there}")
    return by, lambda e: str(e.meta[by])


_KEYS: dict[str, Key] = {"output": lambda e: folded(e.target or ""), "input": lambda e: folded(e.text)}


def _groups(examples: Sequence[Example], key: Key) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[key(example)].append(i)
    return groups


def _rank(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=8).digest()


def split(
    examples: Sequence[Example], parts: Mapping[str, float], *, by: str | None = None, seed: int = 42
) -> dict[str, list[Example]]:
    """Divide examples into `parts` (name -> share of the rows) and "train", which gets the rest; none in two.

    Rows of one group, and rows with the same input, are in one part, so that no score on a part flatters. Each part is
    as near to its share as whole groups allow; rows keep their order. The same rows and seed give the same parts.
    Raises ConfigError for shares that are none, DataError when there are too few groups.
    """
    if any(not 0 < share < 1 for share in parts.values()) or not 0 < sum(parts.values()) < 1:
        raise ConfigError("the shares must be above 0 and leave some rows for train", hint="--val 0.1 --test 0.1")
    name, key = group_key(examples, by)
    joined = _joined(examples, key)
    order = sorted(joined, key=lambda members: _rank(seed, key(examples[members[0]])))
    chosen: dict[str, list[int]] = {part: [] for part in parts}
    rest: list[int] = []
    for members in order:
        # The part that lacks most, if the group brings it nearer to its share.
        lacking = {part: share * len(examples) - len(chosen[part]) for part, share in parts.items()}
        part = max(lacking, key=lambda p: lacking[p])
        (chosen[part] if lacking[part] >= len(members) / 2 else rest).extend(members)
    short = [part for part, rows in {"train": rest, **chosen}.items() if not rows]
    if short:
        hint = "--by input groups less" if name != "input" else "add rows, or change the shares"
        raise DataError(f"{len(joined)} groups by {name} are too few: no rows for {', '.join(short)}", hint=hint)
    return {part: [examples[i] for i in sorted(rows)] for part, rows in {"train": rest, **chosen}.items()}


def _joined(examples: Sequence[Example], key: Key) -> list[list[int]]:
    """Groups by key and by input together: what is linked through either is one (union-find)."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for by in (key, _KEYS["input"]):
        for members in _groups(examples, by).values():
            for i in members[1:]:
                parent[root(i)] = root(members[0])
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(examples)):
        groups[root(i)].append(i)
    return list(groups.values())


def sample(examples: Sequence[Example], n: int, *, by: str | None = None, seed: int = 42) -> list[Example]:
    """`n` examples of as many groups as there are: one of each, then a second of each, ...; in their order.

    Raises ConfigError when there are fewer than `n` or `n` is not positive.
    """
    if not 0 < n <= len(examples):
        raise ConfigError(f"cannot choose {n} of {len(examples)} rows")
    _, key = group_key(examples, by)
    turns = []
    for group, members in _groups(examples, key).items():
        members = sorted(members, key=lambda i: _rank(seed, examples[i].id))
        turns += [(turn, _rank(seed, group), i) for turn, i in enumerate(members)]
    return [examples[i] for i in sorted(i for _, _, i in sorted(turns)[:n])]
