"""Llama in plain PyTorch with shared-prefix attention, named like the transformers model so that weights carry over."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizer import END, PAD, TOKENIZER_FILES, special_ids
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of a model; the head dimension is 64."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ff: int
    vocab: int = 4096


SIZES = {
    "7m": Size(256, 8, 4, 2, 768),
    "30m": Size(512, 8, 8, 4, 1536),
    "150m": Size(1024, 12, 16, 4, 3072),
}
THETA, EPS, POSITIONS = 10_000.0, 1e-6, 2048
Mask = BlockMask | Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
        return (y * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, heads, length, 64] with cos, sin [batch, 1, length, 64]."""
    a, b = x.chunk(2, -1)
    return (x.float() * cos + torch.cat((-b, a), -1).float() * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention without biases."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.q_proj = nn.Linear(size.hidden, size.heads * 64, bias=False)
        self.k_proj = nn.Linear(size.hidden, size.kv_heads * 64, bias=False)
        self.v_proj = nn.Linear(size.hidden, size.kv_heads * 64, bias=False)
        self.o_proj = nn.Linear(size.heads * 64, size.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        b, n, _ = x.shape
        q = rotate(self.q_proj(x).view(b, n, -1, 64).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(b, n, -1, 64).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, n, -1, 64).transpose(1, 2)
        if isinstance(mask, Tensor):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        else:
            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
            assert isinstance(y, Tensor)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, -1))


class MLP(nn.Module):
    """Gated SiLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden, size.ff, bias=False)
        self.up_proj = nn.Linear(size.hidden, size.ff, bias=False)
        self.down_proj = nn.Linear(size.ff, size.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = Attention(size)
        self.mlp = MLP(size)
        self.input_layernorm = RMSNorm(size.hidden)
        self.post_attention_layernorm = RMSNorm(size.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocab, size.hidden)
        self.layers = nn.ModuleList([Layer(size) for _ in range(size.layers)])
        self.norm = RMSNorm(size.hidden)


class Base(nn.Module):
    """The language model; the output layer is the embedding."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.model = Body(size)
        steps = torch.arange(0, 64, 2) / 64
        angle = torch.arange(POSITIONS)[:, None] * (1.0 / THETA**steps)[None]
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), -1), persistent=False)
        self.register_buffer("sin", torch.cat((angle.sin(), angle.sin()), -1), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (2 * size.layers) ** 0.5 if last else 0.02)

    def forward(self, ids: Tensor, position: Tensor, mask: Mask) -> Tensor:
        """Logits [batch, length, vocab] of ids, position [batch, length]."""
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.bfloat16)
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]  # type: ignore[index]
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def dense_mask(group: Tensor, segment: Tensor) -> Tensor:
    """Boolean mask [batch, 1, length, length] of shared-prefix attention from group, segment [batch, length]."""
    n = group.shape[1]
    same = group[:, :, None] == group[:, None, :]
    visible = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    causal = torch.ones(n, n, dtype=torch.bool, device=group.device).tril()
    return (same & visible & causal)[:, None]


def block_mask(group: Tensor, segment: Tensor) -> BlockMask:
    """The same as a FlexAttention block mask."""

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (group[b, q] == group[b, k]) & ((segment[b, k] == 0) | (segment[b, k] == segment[b, q]))

    n = group.shape[1]
    return create_block_mask(allowed, group.shape[0], None, n, n, device=group.device.type)


def hf_config(size: Size, pad: int, eos: int) -> Any:
    """The transformers configuration of the model."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.ff,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        rms_norm_eps=EPS,
        tie_word_embeddings=True,
        head_dim=64,
        attention_bias=False,
        mlp_bias=False,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=eos,
    )


def to_hf(model: Base, pad: int, eos: int) -> Any:
    """A transformers LlamaForCausalLM with the model's weights, in bf16."""
    from transformers import GenerationConfig, LlamaForCausalLM

    hf = LlamaForCausalLM(hf_config(model.size, pad, eos))
    state = {k: v.detach().float().cpu() for k, v in model.state_dict().items()}
    missing, unexpected = hf.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    hf.tie_weights()
    hf.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad, do_sample=False)
    return nn.Module.to(hf, torch.bfloat16)


def export(model: Base, tokenizer: Path, folder: Path) -> None:
    """Writes a transformers folder: bf16 safetensors, configuration, tokenizer."""
    ids = special_ids(Tokenizer.from_file(str(tokenizer / "tokenizer.json")))
    to_hf(model, ids[PAD], ids[END]).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
