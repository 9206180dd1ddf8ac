"""Which rows begin alike: what is computed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """Length of the longest common beginning of all prompts, short of the last token of the shortest."""
    if not prompts:
        return 0
    first, last = min(prompts), max(prompts)  # the two that differ earliest, as lists compare token by token
    limit = min(len(p) for p in prompts) - 1
    same = 0
    while same < limit and first[same] == last[same]:
        same += 1
    return same


@dataclass(frozen=True, slots=True)
class Group:
    """Units (by index) whose prompts begin with the same `prefix` tokens."""

    prefix: int
    members: list[int]


def prefix_groups(prompts: Sequence[list[int]], batch_rows: int) -> list[Group]:
    """Divide `prompts` where that saves tokens: rows of one instruction share more with each other than with all.

    A group that has a share m of a batch of rows, and a prefix d tokens longer than the p common to all, saves
    d * (m - 1) tokens a batch and costs p once more. With `batch_rows` 0 all are one group of no prefix.
    """
    if not batch_rows:
        return [Group(0, list(range(len(prompts))))] if prompts else []

    def divide(members: list[int]) -> list[Group]:
        prefix = common_prefix([prompts[i] for i in members])
        by_next: dict[int, list[int]] = {}
        for i in members:
            by_next.setdefault(prompts[i][prefix], []).append(i)
        rest: list[int] = []
        out: list[Group] = []
        for children in by_next.values() if len(by_next) > 1 else ():
            share = batch_rows * len(children) / len(prompts)
            gain = common_prefix([prompts[i] for i in children]) - prefix
            if gain * (share - 1) > prefix:
                out += divide(children)
            else:
                rest += children
        if not out:
            rest = members
        return [*([Group(common_prefix([prompts[i] for i in rest]), sorted(rest))] if rest else []), *out]

    return sorted(divide(list(range(len(prompts)))), key=lambda group: group.members[0]) if prompts else []
