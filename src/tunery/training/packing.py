"""Packs: many rows in one sequence, their common prefix computed once.

A pack is `[prefix | suffix 1 | ... | suffix n]`. Every suffix sees the prefix and itself, causally, and its positions
restart at the prefix's length, so each row gets exactly what it would get alone. Attention is split in two, as
PrefixGrouper does (arXiv:2506.05433): the prefix attends to itself; the suffixes, as the rows of a padded batch,
attend to [prefix; own] keys. All other layers run over the unpadded tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunery.data.template import Row

IGNORE = -100
ATTENTION = "tunery_shared_prefix"


@dataclass(frozen=True, slots=True)
class Shape:
    """Where the suffixes of a pack lie. P prefix tokens, n suffixes, S the longest suffix, T tokens in all."""

    prefix: int
    index: Tensor  # (n, S) place of each suffix token, counted from the prefix's end; padding points at 0
    valid: Tensor  # (n, S) bool
    mask: Tensor  # (n, 1, S, P + S) bool, True where a query may look


@dataclass(frozen=True, slots=True)
class Pack:
    """One forward pass. `keep` are the positions whose next token is supervised, `labels` those tokens."""

    ids: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    keep: Tensor  # (K,)
    labels: Tensor  # (K,)
    shape: Shape
    rows: int
    logical_tokens: int  # what the rows would hold unpacked

    def to(self, device: torch.device | str) -> Pack:
        s = self.shape
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            keep=self.keep.to(device),
            labels=self.labels.to(device),
            shape=Shape(s.prefix, s.index.to(device), s.valid.to(device), s.mask.to(device)),
        )


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


def make_packs(rows: Sequence[Row], prefix: int, max_tokens: int, *, train_on_prompt: bool = False) -> Iterator[Pack]:
    """Cut `rows` into packs of at most `max_tokens` tokens each (a longer row gets one of its own)."""
    group: list[Row] = []
    used = prefix
    for row in rows:
        size = len(row) - prefix
        if group and used + size > max_tokens:
            yield build_pack(group, prefix, train_on_prompt=train_on_prompt)
            group, used = [], prefix
        group.append(row)
        used += size
    if group:
        yield build_pack(group, prefix, train_on_prompt=train_on_prompt)


def build_pack(rows: Sequence[Row], prefix: int, *, train_on_prompt: bool = False) -> Pack:
    """One pack of `rows`, which all begin with the same `prefix` tokens. The prefix itself is supervised only with
    `train_on_prompt`, once a row, as it would be unpacked."""
    ids: list[int] = list(rows[0].prompt[:prefix])
    positions = list(range(prefix))
    keep: list[int] = []
    labels: list[int] = []
    spans: list[tuple[int, int]] = []
    for row in rows:
        start = len(ids)
        tokens = row.prompt[prefix:] + row.target
        first = len(row.prompt) if not train_on_prompt else 1
        for at in range(first, len(row)):  # token `at` of the row is predicted from the token before it
            before = at - 1
            keep.append(before if before < prefix else start + before - prefix)
            labels.append(ids[at] if at < prefix else tokens[at - prefix])
        ids += tokens
        positions += range(prefix, prefix + len(tokens))
        spans.append((start, len(tokens)))
    return Pack(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        keep=torch.tensor(keep),
        labels=torch.tensor(labels),
        shape=_shape(prefix, spans),
        rows=len(rows),
        logical_tokens=sum(map(len, rows)),
    )


def _shape(prefix: int, spans: Sequence[tuple[int, int]]) -> Shape:
    starts = torch.tensor([s for s, _ in spans])[:, None]
    lengths = torch.tensor([n for _, n in spans])[:, None]
    steps = torch.arange(int(lengths.max()))[None]
    valid = steps < lengths  # (n, S)
    own = torch.tril(torch.ones(steps.numel(), steps.numel(), dtype=torch.bool))
    mask = torch.cat([torch.ones(len(own), prefix, dtype=torch.bool), own], 1)  # (S, P + S)
    mask = mask.expand(len(spans), 1, -1, -1).clone()
    mask[:, 0, :, prefix:] &= valid[:, None, :]
    # A padded query must see something, or its softmax is NaN; with a prefix it does, without it sees itself.
    mask[:, 0, :, prefix:] |= torch.eye(steps.numel(), dtype=torch.bool) & ~valid[:, None, :]
    return Shape(prefix, torch.where(valid, starts - prefix + steps, 0), valid, mask)


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, H, T, D)
    key: Tensor,  # (1, G, T, D)
    value: Tensor,  # (1, G, T, D)
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shape: Shape | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over one pack; returns (1, T, H, D). Without `shape`: plain causal."""
    gqa = query.shape[1] != key.shape[1]
    if shape is None:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=gqa
        )
        return out.transpose(1, 2), None
    p, rows = shape.prefix, len(shape.index)
    # split, not slices: the backward of a slice fills a whole tensor with zeros
    (q_head, q_tail), (k_head, k_tail), (v_head, v_tail) = (
        x[0].split([p, x.shape[2] - p], 1) for x in (query, key, value)
    )

    def suffixes(tail: Tensor) -> Tensor:  # (H, T - P, D) -> (n, H, S, D)
        return tail[:, shape.index].transpose(0, 1)

    def with_prefix(head: Tensor, tail: Tensor) -> Tensor:  # -> (n, G, P + S, D)
        return torch.cat([head[None].expand(rows, -1, -1, -1), suffixes(tail)], 2)

    out = F.scaled_dot_product_attention(
        suffixes(q_tail),
        with_prefix(k_head, k_tail),
        with_prefix(v_head, v_tail),
        attn_mask=shape.mask,
        scale=scaling,
        enable_gqa=gqa,
    )
    flat = out.transpose(1, 2)[shape.valid]  # (T - P, H, D), in pack order
    if p:
        head = F.scaled_dot_product_attention(
            q_head[None], k_head[None], v_head[None], is_causal=True, scale=scaling, enable_gqa=gqa
        )
        flat = torch.cat([head[0].transpose(0, 1), flat])
    return flat[None], None


def register_attention() -> str:
    """Make the attention known to transformers; returns the name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    return ATTENTION
