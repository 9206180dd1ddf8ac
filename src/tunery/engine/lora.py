"""LoRA on CPU, adapter by adapter.

vLLM's own CPU path copies an adapter's weights once for every token, which halves the speed of a small model. And it
takes slot -1, its mark for "no adapter", as an index: in a batch that mixes both, requests to the base are answered
with the adapter of the last slot. Here tokens are gathered by adapter, each gets two plain matrix products, and
tokens without one are left alone. Groups are filled up to a few sizes with rows that nobody reads: oneDNN compiles
a program for each shape of a product, which costs more than the rows do, and memory for as long as it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Rows = slice | torch.Tensor
ALL = slice(None)


class Order(NamedTuple):
    """Rows by adapter. `read` are the rows to compute with, group after group; `kept` are those of them that are no
    filling, and `rows` where these came from. A group is a slot and its part of what was read."""

    read: Rows = ALL
    kept: Rows = ALL
    rows: Rows = ALL
    groups: Sequence[tuple[int, slice]] = ()


class GroupedLora(PunicaWrapperCPU):
    """Takes the place of `PunicaWrapperCPU`; stacked weights are A: (slots, 1, r, in) and B: (slots, 1, out, r)."""

    _tokens = Order()
    _samples = Order()

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self._tokens = _ordered(self.token_lora_indices)
        self._samples = _ordered(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        chosen, start = x[self._tokens.read], 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            _add(y[:, start : start + width], chosen, self._tokens, b, a, scale)
            start += width

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        _add(y, x[self._tokens.read].to(y.dtype), self._tokens, lora_b_stacked)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        _add(y, x[self._samples.read], self._samples, lora_b_stacked, lora_a_stacked, scale)


def _add(
    y: torch.Tensor, chosen: torch.Tensor, order: Order, b: torch.Tensor, a: Any = None, scale: float = 1.0
) -> None:
    """Add each group's product to its rows of y: (rows, out). Either of y and B may be the wider one."""
    if not order.groups:
        return
    deltas = []
    for slot, part in order.groups:
        hidden = chosen[part]
        if a is not None:
            hidden = linear(hidden, a[slot, 0]) * scale
        deltas.append(linear(hidden, b[slot, 0]))
    delta = torch.cat(deltas) if len(deltas) > 1 else deltas[0]
    width = min(y.shape[1], delta.shape[1])
    y[order.rows, :width] += delta[order.kept, :width]


def _ordered(slots: torch.Tensor) -> Order:
    """The rows of each slot in use; slot -1 is no adapter. A group has room for a multiple of 8 rows, and for no more
    than a quarter too many beyond 32."""
    used = slots.unique().tolist()
    read, kept, groups, start = [], [], [], 0
    for slot in used:
        if slot < 0:
            continue
        rows = (slots == slot).nonzero().squeeze(1)
        size = len(rows)
        more = -size % max(8, 1 << size.bit_length() >> 3)
        read += [rows, rows.new_zeros(more)]
        kept.append(torch.arange(start, start + size))
        groups.append((slot, slice(start, start := start + size + more)))
    if not groups:
        return Order()
    every, where = torch.cat(read), torch.cat(kept)
    filled = len(where) < len(every)
    if len(used) == 1:  # in their order
        return Order(every if filled else ALL, slice(0, len(where)), slice(0, len(where)), groups)
    return Order(every, where if filled else ALL, every[where], groups)
