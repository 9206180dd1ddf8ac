"""LoRA on CPU, adapter by adapter.

vLLM's own CPU path copies an adapter's weights once for every token, which halves the speed of a small model. And it
takes slot -1, its mark for "no adapter", as an index: in a batch that mixes both, requests to the base are answered
with the adapter of the last slot. Here tokens are gathered by adapter, each gets two plain matrix products, and
tokens without one are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Rows = slice | torch.Tensor


class GroupedLora(PunicaWrapperCPU):
    """Takes the place of `PunicaWrapperCPU`; stacked weights are A: (slots, 1, r, in) and B: (slots, 1, out, r)."""

    _tokens: Sequence[tuple[int, Rows]] = ()
    _samples: Sequence[tuple[int, Rows]] = ()

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self._tokens = _groups(self.token_lora_indices)
        self._samples = _groups(self.sampler_indices)

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
        for slot, rows in self._tokens:
            chosen = x[rows]
            start = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                hidden = linear(chosen, a[slot, 0]) * scale
                y[rows, start : start + width] += linear(hidden, b[slot, 0])[:, :width]
                start += width

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for slot, rows in self._tokens:
            y[rows] += linear(x[rows].to(y.dtype), lora_b_stacked[slot, 0])[:, : y.shape[1]]

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
        for slot, rows in self._samples:
            hidden = linear(x[rows], lora_a_stacked[slot, 0]) * scale
            delta = linear(hidden, lora_b_stacked[slot, 0])
            y[rows, : delta.shape[1]] += delta[:, : y.shape[1]]


def _groups(slots: torch.Tensor) -> list[tuple[int, Rows]]:
    """The rows of each slot in use; slot -1 is no adapter."""
    used = slots.unique().tolist()
    if len(used) == 1:
        return [(used[0], slice(0, len(slots)))] if used[0] >= 0 else []
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in used if slot >= 0]
