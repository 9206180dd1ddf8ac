"""Attention over a pack, in the two ways that are fast: split in two on a CPU, FlexAttention on a GPU.

The split is PrefixGrouper's (arXiv:2506.05433): the prefix attends to itself; the units, as the rows of a padded
batch, attend to [prefix; own] keys. FlexAttention skips the blocks of the mask that are empty, and has no backward
on a CPU. All other layers run over the unpadded tokens either way.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tunery.training.packing import Pack

ATTENTION = "tunery_shared_prefix"


@dataclass(frozen=True, slots=True)
class Split:
    """Where the units of a pack lie. P prefix tokens, n units, S the longest of them, T tokens in all."""

    prefix: int
    index: Tensor  # (n, S) place of each unit's token, counted from the prefix's end; padding points at 0
    valid: Tensor  # (n, S) bool
    mask: Tensor  # (n, 1, S, P + S) bool, True where a query may look


View = Split | BlockMask | None  # None: one row, plainly causal


def view(pack: Pack) -> View:
    """What a token of `pack` sees, for the device its tensors are on."""
    if pack.prefix == 0 and pack.rows == 1 and pack.unit[-1] == 1:
        return None
    return _blocks(pack) if pack.ids.is_cuda else _split(pack)


def _blocks(pack: Pack) -> BlockMask:
    unit, branch = pack.unit, pack.branch
    length = unit.numel()

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        own = (unit[q] == unit[kv]) & ((branch[kv] == 0) | (branch[q] == branch[kv]))
        return (q >= kv) & ((unit[kv] == 0) | own)

    return create_block_mask(visible, None, None, length, length, device=str(unit.device))


def _split(pack: Pack) -> Split:
    lengths = torch.bincount(pack.unit)[1:, None]
    starts = lengths.cumsum(0) - lengths
    steps = torch.arange(int(lengths.max()))[None]
    valid = steps < lengths  # (n, S)
    index = torch.where(valid, starts + steps, 0)
    own = torch.ones(steps.numel(), steps.numel(), dtype=torch.bool).tril()[None] & valid[:, None, :]  # (n, S, S)
    if pack.branch.max() > 1:
        branch = pack.branch[pack.prefix :][index]  # (n, S)
        own = own & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    # A padded query must see something, or its softmax is NaN; with a prefix it does, without it sees itself.
    own = own | (torch.eye(steps.numel(), dtype=torch.bool) & ~valid[:, None, :])
    head = torch.ones(pack.prefix, dtype=torch.bool).expand(*own.shape[:2], -1)
    return Split(pack.prefix, index, valid, torch.cat([head, own], 2)[:, None])


def pack_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, H, T, D)
    key: Tensor,  # (1, G, T, D)
    value: Tensor,  # (1, G, T, D)
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    view: View = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over one pack; returns (1, T, H, D)."""
    gqa = query.shape[1] != key.shape[1]
    query, key = query.to(value.dtype), key.to(value.dtype)  # a norm in fp32 lifts them under autocast
    if view is None:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=gqa
        )
        return out.transpose(1, 2), None
    if isinstance(view, Split):
        return _split_attention(query[0], key[0], value[0], view, scaling), None
    flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    if gqa:  # one program of the backward takes all queries of a key's block, and the prefix is seen by all
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    out: Any = flex(query, key, value, block_mask=view, scale=scaling)
    return out.transpose(1, 2), None


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _split_attention(query: Tensor, key: Tensor, value: Tensor, split: Split, scaling: float | None) -> Tensor:
    """(H, T, D), (G, T, D), (G, T, D) -> (1, T, H, D)."""
    p, rows = split.prefix, len(split.index)
    # split, not slices: the backward of a slice fills a whole tensor with zeros
    (q_head, q_tail), (k_head, k_tail), (v_head, v_tail) = (
        x.split([p, x.shape[1] - p], 1) for x in (query, key, value)
    )

    def units(tail: Tensor) -> Tensor:  # (H, T - P, D) -> (n, H, S, D)
        return tail[:, split.index].transpose(0, 1)

    def with_prefix(head: Tensor, tail: Tensor) -> Tensor:  # -> (n, G, P + S, D)
        return torch.cat([head[None].expand(rows, -1, -1, -1), units(tail)], 2)

    # The fused kernel's backward has no use of a CPU's bf16 units; batched products have.
    attend = _masked if query.dtype == torch.float32 else _masked_by_products
    out = attend(units(q_tail), with_prefix(k_head, k_tail), with_prefix(v_head, v_tail), split.mask, scaling)
    flat = out.transpose(1, 2)[split.valid]  # (T - P, H, D), in pack order
    if p:
        head = F.scaled_dot_product_attention(
            q_head[None], k_head[None], v_head[None], is_causal=True, scale=scaling, enable_gqa=True
        )
        flat = torch.cat([head[0].transpose(0, 1), flat])
    return flat[None]


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """(n, H, S, D), (n, G, L, D), (n, G, L, D), mask (n, 1, S, L) -> (n, H, S, D)."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)


def _masked_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """The same, the queries of a key's group in one product. Scores are kept: (n, H, S, L)."""
    n, heads, steps, dim = query.shape
    groups = key.shape[1]
    together = (query * (scaling or dim**-0.5)).reshape(n * groups, -1, dim)
    scores = (together @ key.flatten(0, 1).transpose(1, 2)).view(n, heads, steps, -1)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return (weights.view(n * groups, -1, key.shape[2]) @ value.flatten(0, 1)).view(n, heads, steps, dim)


def register_attention() -> str:
    """Make the attention known to transformers; returns the name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, pack_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    return ATTENTION
