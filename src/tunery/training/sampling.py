"""Answers sampled from the model in training, and what they are worth beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunery.config import TrainSpec
from tunery.data.template import Row
from tunery.tasks import Task, task_by_name
from tunery.tasks.score import score_row
from tunery.training.plan import template_of
from tunery.training.sharding import is_sharded
from tunery.training.tuning import transformers_model
from tunery.training.units import Answer, until

SAMPLED_BYTES = 1 << 30  # of keys and values at once
SAMPLED_TOKENS = 1 << 17  # whose activations are there at once


class Judge:
    """Lets the model answer prompts, and scores the answers against the rows' own targets."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self.template = template_of(spec)
        self.count = spec.num_generations if spec.stage == "grpo" else 1
        self.task = task_by_name(spec.task or "text")

    def answers(self, model: nn.Module, rows: Sequence[Row]) -> list[list[Answer]]:
        """For each row `count` sampled answers, their worth the advantage: (reward - mean) / std of the prompt's own
        answers. A model in eval mode gives its one greedy answer, worth 0. Without a score to reward by, rewards are 0.
        """
        count = self.count if model.training else 1
        temperature = self.spec.temperature if model.training else 0.0
        how = Sampling(self.template.stop_ids, self.spec.max_completion_length, temperature, count)
        found = sample(model, [row.prompt for row in rows], how)
        units = []
        for at, row in enumerate(rows):
            targets = found[at * count : (at + 1) * count]
            rewards = torch.zeros(count)
            if kind := self.spec.reward:
                gold = self.template.decode(row.target)
                rewards = torch.tensor([reward(self.task, kind, self.template.decode(t), gold) for t in targets])
            spread = rewards.std() if count > 1 else torch.tensor(0.0)
            worth = ((rewards - rewards.mean()) / (spread + 1e-4)).tolist()
            units.append(
                [
                    Answer(row.id, row.prompt, t, worth=w, reward=r)
                    for t, w, r in zip(targets, worth, rewards.tolist(), strict=True)
                ]
            )
        return units


def reward(task: Task, kind: str, text: str, gold: str) -> float:
    """0 to 1: how right `text` is. Outputs without slots have their exact match for a slot F1."""
    score = score_row(task, text, gold)
    if kind == "parse_rate":
        return float(score.parsed)
    if kind == "exact_match" or not score.gold:
        return float(score.exact)
    return 2 * score.hits / (score.predicted + score.gold)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to answer: `count` times, at most `limit` tokens, greedily at temperature 0."""

    stop: Sequence[int]
    limit: int
    temperature: float = 0.0
    count: int = 1


@torch.no_grad()
def sample(model: Any, prompts: Sequence[list[int]], how: Sampling) -> list[list[int]]:
    """`how.count` answers to each prompt in turn, their stop token included, by the model as it is being trained.

    Meanwhile the model attends as transformers does, since a pack's attention knows no padding and no cache.
    """
    inner, training = transformers_model(model), model.training
    attention = inner.config._attn_implementation
    tokens = min(SAMPLED_TOKENS, SAMPLED_BYTES // _bytes_per_token(inner.config))
    size = max(1, tokens // (how.count * (max(map(len, prompts), default=0) + how.limit)))
    inner.set_attn_implementation("sdpa")
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            parts = [_sampled(model, prompts[at : at + size], how) for at in range(0, len(prompts), size)]
    finally:
        inner.set_attn_implementation(attention)
        model.train(training)
    return [answer for part in parts for answer in part]


def _bytes_per_token(config: Any) -> int:
    """Of keys and values in all layers, at 2 bytes a number."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width


def _sampled(model: Any, prompts: Sequence[list[int]], how: Sampling) -> list[list[int]]:
    """One batch of `sample`. A prompt is computed once for all its answers."""
    device = next(model.parameters()).device
    longest, pad = max(map(len, prompts)), how.stop[0]
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)  # (P, L)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    drawn: dict[str, Any] = {"do_sample": False}
    if how.temperature:
        drawn = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
    out = model.generate(
        input_ids=ids.repeat_interleave(how.count, 0),
        attention_mask=mask.repeat_interleave(how.count, 0),
        past_key_values=_cache(model, ids[:, :-1], mask[:, :-1], how.count),
        max_new_tokens=how.limit,
        eos_token_id=list(how.stop),
        pad_token_id=pad,
        use_cache=True,
        synced_gpus=is_sharded(model),
        **drawn,
    )
    return [until(row, how.stop) for row in out[:, longest:].tolist()]


def _cache(model: Any, ids: Tensor, mask: Tensor, count: int) -> Any:
    """Keys and values of prompts (P, L), each repeated `count` times."""
    from transformers import DynamicCache

    cache = DynamicCache(config=transformers_model(model).config)
    if ids.shape[1]:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache.batch_repeat_interleave(count)
    return cache
