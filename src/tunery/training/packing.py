"""Packs: many rows in one sequence, what they share computed once.

A pack is `[prefix | unit 1 | ... | unit n]`, positions restarting at the prefix's length, and a token sees itself and
its ancestors. A unit is one row, or several that share a trunk (the prompt of a preference pair) and then branch:
`[trunk | branch 1 | branch 2]`. Each row gets exactly what it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tunery.data.template import Row
from tunery.training.units import Unit

PADDING = -1


@dataclass(frozen=True, slots=True)
class Pack:
    """One forward pass over T tokens that hold S rows, K of their tokens supervised."""

    ids: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    unit: Tensor  # (T,) which unit a token is of, from 1; 0 is the prefix, PADDING is none
    branch: Tensor  # (T,) which branch of its unit, from 1; 0 is the trunk
    keep: Tensor  # (K,) the positions whose next token is supervised
    labels: Tensor  # (K,) those tokens
    owner: Tensor  # (K,) the row they are of, 0 to S - 1
    last: Tensor  # (S,) where each row ends
    prefix: int
    members: tuple[Row, ...]  # the S rows
    apart: bool = False  # each row is computed by itself: the model would not keep them apart

    @property
    def rows(self) -> int:
        """S."""
        return len(self.members)

    @property
    def logical_tokens(self) -> int:
        """What the rows hold unpacked."""
        return sum(map(len, self.members))

    def to(self, device: torch.device | str) -> Pack:
        names = ("ids", "positions", "unit", "branch", "keep", "labels", "owner", "last")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def padded(self, length: int) -> Pack:
        """The same pack with tokens added at its end that nothing depends on."""
        more = length - self.ids.shape[1]
        if more <= 0:
            return self
        return replace(
            self,
            ids=F.pad(self.ids, (0, more)),
            positions=F.pad(self.positions, (0, more)),
            unit=F.pad(self.unit, (0, more), value=PADDING),
            branch=F.pad(self.branch, (0, more)),
        )


def make_packs(
    units: Sequence[Unit], prefix: int, max_tokens: int, *, train_on_prompt: bool = False, share_trunks: bool = True
) -> Iterator[Pack]:
    """Cut `units` into packs of like size and at most `max_tokens` tokens (a longer unit gets one of its own)."""

    def built() -> Pack:
        return build_pack(group, prefix, train_on_prompt=train_on_prompt, share_trunks=share_trunks)

    sizes = [unit_tokens(unit, prefix, share_trunks) for unit in units]
    room = max(1, max_tokens - prefix)
    even = sum(sizes) / max(1, -(-sum(sizes) // room))  # what each pack holds when all hold the same
    group: list[Unit] = []
    used = done = packs = 0
    for unit, size in zip(units, sizes, strict=True):
        full = used + size > room or done + size / 2 > even * (packs + 1)
        if group and full:
            yield built()
            group, used, packs = [], 0, packs + 1
        group.append(unit)
        used += size
        done += size
    if group:
        yield built()


def unit_tokens(unit: Unit, prefix: int, share_trunk: bool) -> int:
    """What `unit` adds to a pack of that prefix."""
    trunk = _trunk(unit, prefix) if share_trunk else prefix
    return trunk - prefix + sum(len(row) - trunk for row in unit)


def _trunk(unit: Unit, prefix: int) -> int:
    return prefix if len(unit) == 1 else max(prefix, len(unit[0].prompt))


def build_pack(units: Sequence[Unit], prefix: int, *, train_on_prompt: bool = False, share_trunks: bool = True) -> Pack:
    """One pack of `units`, whose prompts all begin with the same `prefix` tokens. What is supervised of the
    prefix (earlier answers, or all with `train_on_prompt`) is so once a row, as it would be unpacked."""
    members = tuple(row for unit in units for row in unit)
    if not share_trunks:
        units = [(row,) for row in members]
    ids: list[int] = list(units[0][0].prompt[:prefix])
    positions = list(range(prefix))
    unit_of, branch_of = [0] * prefix, [0] * prefix
    keep: list[int] = []
    labels: list[int] = []
    owner: list[int] = []
    last: list[int] = []
    for number, unit in enumerate(units, 1):
        trunk = _trunk(unit, prefix)
        trunk_at = len(ids)
        ids += unit[0].prompt[prefix:trunk]
        positions += range(prefix, trunk)
        branch_of += [0] * (trunk - prefix)
        for branch, row in enumerate(unit, 1):
            tokens = row.prompt + row.target
            start = len(ids)
            for at in range(1, len(row)) if train_on_prompt else row.supervised:  # predicted from the token before
                before = at - 1
                place = start + before - trunk if before >= trunk else trunk_at + before - prefix
                keep.append(before if before < prefix else place)
                labels.append(tokens[at])
                owner.append(len(last))
            ids += tokens[trunk:]
            positions += range(trunk, len(row))
            branch_of += [branch] * (len(row) - trunk)
            last.append(len(ids) - 1)
        unit_of += [number] * (len(ids) - trunk_at)
    return Pack(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        unit=torch.tensor(unit_of),
        branch=torch.tensor(branch_of),
        keep=torch.tensor(keep),
        labels=torch.tensor(labels),
        owner=torch.tensor(owner),
        last=torch.tensor(last),
        prefix=prefix,
        members=members,
    )
