"""Which rows are trained on at which step, as packs: a pure function of (seed, step), so nothing of it is saved."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from tunery.config import TrainSpec
from tunery.data.augment import Swapper
from tunery.data.template import Row, Template
from tunery.training.packing import Pack, build_pack, make_packs, unit_tokens
from tunery.training.plan import Job, template_of
from tunery.training.prefixes import Group
from tunery.training.units import Unit

BLOCK = 128  # FlexAttention's


@dataclass(frozen=True, slots=True)
class Batch:
    """One worker's share of an optimizer step."""

    packs: list[Pack]
    members: list[Unit]
    units: int  # in the whole batch, over all workers


class Packer:
    """Turns units into packs as `packing` says, for one device."""

    def __init__(self, spec: TrainSpec, device: str, max_tokens: int) -> None:
        self.packing, self.train_on_prompt = spec.packing, spec.train_on_prompt
        self.cuda = device.startswith("cuda")
        self.max_tokens = max_tokens
        self.usual = 0  # the length of most packs

    def packs(self, units: Sequence[Unit], groups: Sequence[Group], max_tokens: int | None = None) -> list[Pack]:
        """The packs of some units, of at most `max_tokens`; `groups` index into `units`."""
        if self.packing == "none":
            alone = [build_pack([u], 0, train_on_prompt=self.train_on_prompt, share_trunks=False) for u in units]
            return [replace(pack, apart=pack.rows > 1) for pack in alone]
        packs: list[Pack] = []
        for group in groups if self.packing == "shared_prefix" else [Group(0, list(range(len(units))))]:
            members = sorted((units[i] for i in group.members), key=lambda unit: sum(map(len, unit)))
            packs += make_packs(
                members,
                group.prefix,
                max_tokens or self.max_tokens,
                train_on_prompt=self.train_on_prompt,
                share_trunks=self.packing == "shared_prefix",
            )
        return [p.padded(self._length(p.ids.numel())) for p in packs] if self.cuda else packs

    @property
    def eval_tokens(self) -> int:
        """How large packs are that need no gradient: of the length that is trained with anyway."""
        return self.usual if self.cuda and self.usual else self.max_tokens

    def expect(self, units: Sequence[Unit], groups: Sequence[Group], batch: int) -> None:
        """Learn what packs a batch of so many units makes, so that nearly all get one length."""
        shared = self.packing == "shared_prefix"
        prefix = max(groups, key=lambda g: len(g.members)).prefix if shared else 0
        sizes = [unit_tokens(unit, prefix, shared) for unit in units]
        mean = sum(sizes) / len(sizes)
        spread = (sum((x - mean) ** 2 for x in sizes) / len(sizes)) ** 0.5
        count = batch / max(1, math.ceil(batch * mean / max(1, self.max_tokens - prefix)))
        self.usual = _blocks(min(round(prefix + count * mean + 3 * spread * count**0.5), self.max_tokens))

    def _length(self, tokens: int) -> int:
        """What a pack is padded to on a GPU, where layers are compiled for each length: the usual one, or, where that
        were a waste or too short, an eighth of the way between powers of two."""
        if self.usual // 4 < tokens <= self.usual:
            return self.usual
        step = max(BLOCK, 1 << (tokens.bit_length() - 4))
        return -(-tokens // step) * step


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


class Batches:
    """The batches of one worker; the next is made ready while the caller works on the last."""

    def __init__(self, job: Job, packer: Packer, rank: int, world: int) -> None:
        self.job, self.packer, self.rank, self.world = job, packer, rank, world
        self.size = job.spec.batch_rows
        self.per_epoch = math.ceil(len(job.units) / self.size)
        self._group_of = {i: at for at, group in enumerate(job.groups) for i in group.members}
        self._order: tuple[int, list[int]] | None = None
        self._swap: tuple[Swapper, Template] | None = None
        if job.spec.entity_swap:
            self._swap = Swapper(job.examples), template_of(job.spec)
        packer.expect(job.units, job.groups, math.ceil(self.size / world))
        self._pool = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[Batch]] | None = None

    def at(self, step: int) -> Batch:
        """This worker's share of `step`."""
        ready = self._next[1] if self._next and self._next[0] == step else self._pool.submit(self._make, step)
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        return ready.result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, step: int) -> Batch:
        indices = self._indices(step)
        mine = indices[self.rank :: self.world]
        units = [self.job.units[i] for i in mine]
        if self._swap:
            units = self._swapped(mine, step)
        members: dict[int, list[int]] = {}
        for place, i in enumerate(mine):
            members.setdefault(self._group_of[i], []).append(place)
        groups = [Group(self.job.groups[at].prefix, places) for at, places in sorted(members.items())]
        return Batch(self.packer.packs(units, groups), units, len(indices))

    def _swapped(self, mine: Sequence[int], step: int) -> list[Unit]:
        assert self._swap
        swapper, template = self._swap
        spec = self.job.spec
        changed = [
            swapper.swap(self.job.examples[i], random.Random(f"{spec.seed}/{step}/{i}"), spec.entity_swap) for i in mine
        ]
        units: list[Unit] = []
        for i, row in zip(mine, template.rows(changed, mask_history=spec.mask_history), strict=True):
            (old,) = self.job.units[i]
            prefix = self.job.groups[self._group_of[i]].prefix
            same = row.prompt[:prefix] == old.prompt[:prefix]  # a value may stand in the shared instruction
            units.append((row if same else old,))
        return units

    def _indices(self, step: int) -> list[int]:
        epoch, at = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(len(self.job.units), self.job.spec.seed + epoch)
        return self._order[1][at * self.size : (at + 1) * self.size]


def epoch_order(units: int, seed: int) -> list[int]:
    """The order in which an epoch takes its units."""
    return torch.randperm(units, generator=torch.Generator().manual_seed(seed)).tolist()


def single(rows: Sequence[Row]) -> list[Unit]:
    """Rows as units of one."""
    return [(row,) for row in rows]
