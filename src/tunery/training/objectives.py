"""What a step minimises: the loss of a pack as a sum, and what that sum is divided by over the whole batch.

Preference losses follow LLaMA-Factory's and TRL's formulas, sums over rows in place of means over a padded batch.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tunery.config import TrainSpec
from tunery.training.attention import view
from tunery.training.batches import Packer
from tunery.training.packing import Pack, build_pack
from tunery.training.prefixes import Group
from tunery.training.sampling import Judge
from tunery.training.sharding import in_step
from tunery.training.tuning import transformers_model
from tunery.training.units import Answer, Unit


class Objective(ABC):
    """One `stage`. The loss of a batch is the sum of `loss` over its packs divided by the sum of `weight`."""

    reports: tuple[str, ...] = ()  # what `loss` reports beside the loss, also where there is no pack
    needs_reference = False  # whether `Answer.reference` has to be there
    updates = 1  # optimizer steps on the same packs

    @functools.cached_property
    def state(self) -> dict[str, float]:
        """What it has learnt of earlier batches: kept in checkpoints."""
        return {}

    def begin(self, model: nn.Module, packs: Sequence[Pack]) -> Sequence[Pack]:
        """Look at a worker's share of a batch before its gradient; returns the packs to take the loss of."""
        return packs

    def weight(self, pack: Pack) -> float:
        """The pack's part of the divisor."""
        return float(pack.rows)

    @abstractmethod
    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        """Summed loss (a scalar, fp32) and the sums that `reports` names, divided like the loss."""


class Supervised(Objective):
    """`stage: sft` and `pt`: mean cross-entropy of the supervised tokens."""

    def weight(self, pack: Pack) -> float:
        return float(len(pack.labels))

    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        return F.cross_entropy(logits_of(model, pack).float(), pack.labels, reduction="sum"), {}


class Pairs(Objective):
    """Mean over pairs, whose chosen row comes before its rejected one."""

    reports = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")

    def weight(self, pack: Pack) -> float:
        return pack.rows / 2

    def compared(self, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
        """What is reported of the rewards of pairs."""
        found = (chosen.sum(), rejected.sum(), (chosen > rejected).sum(), (chosen - rejected).sum())
        return {name: value.item() for name, value in zip(self.reports, found, strict=True)}


class Reward(Pairs):
    """`stage: rm` (arXiv:2203.02155, eq. 1): the value head's number at the end of an answer is its reward."""

    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        chosen, rejected = rewards_of(model, pack).view(-1, 2).unbind(1)
        return -F.logsigmoid(chosen - rejected).sum(), self.compared(chosen.detach(), rejected.detach())


class Preference(Pairs):
    """`stage: dpo`, `orpo`, `simpo`."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self.needs_reference = spec.preference in ("sigmoid", "hinge", "ipo")

    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        tokens = token_log_probabilities(model, pack)
        lengths = by_row(torch.ones_like(tokens), pack)
        scores = by_row(tokens - reference_of(pack) if self.needs_reference else tokens, pack)
        if self.spec.preference in ("ipo", "orpo", "simpo"):
            scores = scores / lengths
        chosen, rejected = scores[0::2], scores[1::2]
        losses = preference_losses(self.spec, chosen, rejected)
        if self.spec.pref_ftx:
            losses = losses - self.spec.pref_ftx * (by_row(tokens, pack) / lengths)[0::2]
        beta = self.spec.pref_beta
        return losses.sum(), self.compared(beta * chosen.detach(), beta * rejected.detach())


def preference_losses(spec: TrainSpec, chosen: Tensor, rejected: Tensor) -> Tensor:
    """(P,) losses of pairs, from log-probabilities of their answers: for sigmoid and hinge summed over tokens and
    relative to the reference, for ipo the mean over tokens of that, for orpo and simpo the plain mean over tokens.

    DPO arXiv:2305.18290, hinge 2305.10425, IPO 2310.12036, ORPO 2403.07691, SimPO 2405.14734.
    """
    beta, smoothing, margin = spec.pref_beta, spec.dpo_label_smoothing, chosen - rejected
    if spec.preference == "sigmoid":
        return -F.logsigmoid(beta * margin) * (1 - smoothing) - F.logsigmoid(-beta * margin) * smoothing
    if spec.preference == "hinge":
        return torch.relu(1 - beta * margin)
    if spec.preference == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if spec.preference == "simpo":
        return -F.logsigmoid(beta * margin - spec.simpo_gamma)
    log_odds = margin - (_log_complement(chosen) - _log_complement(rejected))
    return -chosen - beta * F.logsigmoid(log_odds)


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p), finite where a model is certain."""
    return torch.log1p(-torch.exp(log_p.clamp(max=-1e-6)))


class Kto(Objective):
    """`stage: kto` (arXiv:2402.01306): mean over judged rows, each against the batch's divergence from the reference.

    A unit is a judged row and one of the same prompt with another row's target (`worth` 0), of which the divergence
    is estimated. It is a number of the whole batch, so it is found in a pass of its own before any gradient.
    """

    reports = ("kl", "rewards/accuracies")
    needs_reference = True

    def __init__(self, spec: TrainSpec) -> None:
        self.beta = spec.pref_beta
        self.weights = spec.kto_chosen_weight, spec.kto_rejected_weight
        self.divergence = 0.0

    def begin(self, model: nn.Module, packs: Sequence[Pack]) -> Sequence[Pack]:
        packs = [pack.to(device_of(model)) for pack in packs]
        sums = torch.zeros(2, dtype=torch.float64, device=device_of(model))
        for pack in in_step(model, packs):
            mismatched = worth_of(pack) == 0
            ratios = by_row(token_log_probabilities(model, pack) - reference_of(pack), pack)
            sums += torch.stack([ratios[mismatched].sum(), mismatched.sum()])
        total, rows = _over_workers(sums).tolist()
        self.divergence = max(0.0, total / max(1.0, rows))
        return packs

    def weight(self, pack: Pack) -> float:
        return float(sum(row.worth != 0 for row in answers_of(pack)))

    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        worth = worth_of(pack)
        ratios = by_row(token_log_probabilities(model, pack) - reference_of(pack), pack)
        gains = worth * (ratios - self.divergence)
        weights = torch.where(worth > 0, *self.weights) * (worth != 0)
        right = ((gains > 0) & (worth != 0)).sum().item()
        return (weights * (1 - torch.sigmoid(self.beta * gains))).sum(), {
            "kl": self.divergence * self.weight(pack),
            "rewards/accuracies": right,
        }


class Sampled(Objective):
    """Learns from answers that the model itself gives to the rows' prompts."""

    def __init__(self, spec: TrainSpec, packer: Packer) -> None:
        self.spec, self.packer, self.judge = spec, packer, Judge(spec)

    def answered(self, model: nn.Module, packs: Sequence[Pack]) -> list[Pack]:
        """New answers to the prompts in `packs`, packed, with their rewards."""
        units: list[Unit] = []
        groups: list[Group] = []
        for pack in packs:
            start = len(units)
            units += self.judge.answers(model, pack.members)
            groups.append(Group(pack.prefix, list(range(start, len(units)))))
        return [pack.to(device_of(model)) for pack in self.packer.packs(units, groups)]


class Grpo(Sampled):
    """`stage: grpo` (arXiv:2402.03300): answers sampled from the model as it is, judged against their likes.

    Each batch is answered anew and used for one update, so the ratio of new to old policy is 1 and nothing is
    clipped. As in the paper, tokens are averaged over an answer and answers over the batch.
    """

    reports = ("reward", "completion_length", "kl")

    def begin(self, model: nn.Module, packs: Sequence[Pack]) -> Sequence[Pack]:
        packs = self.answered(model, packs)
        if self.spec.beta:
            base: Any = model
            with base.disable_adapter():
                packs = [with_reference(model, pack, self.spec.temperature) for pack in packs]
        return packs

    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        tokens = token_log_probabilities(model, pack, self.spec.temperature)
        lengths = by_row(torch.ones_like(tokens), pack)
        losses = -torch.exp(tokens - tokens.detach()) * worth_of(pack)[pack.owner]
        kl = torch.zeros_like(tokens)
        if self.spec.beta:
            away = reference_of(pack) - tokens
            kl = torch.exp(away) - away - 1
            losses = losses + self.spec.beta * kl
        rewards = torch.tensor([row.reward for row in answers_of(pack)])
        return (by_row(losses, pack) / lengths).sum(), {
            "reward": rewards.sum().item(),
            "completion_length": lengths.sum().item(),
            "kl": (by_row(kl.detach(), pack) / lengths).sum().item(),
        }


CLIP = 0.2  # of the ratio to the sampling policy, and of a value's move
LAMBDA = 0.95  # of GAE (arXiv:1506.02438); rewards are not discounted
VALUE_WEIGHT = 0.1  # of the value's loss beside the policy's
HORIZON = 10_000  # answers in which `beta` follows the divergence


class Ppo(Sampled):
    """`stage: ppo` (arXiv:1707.06347) with the constants of TRL and LLaMA-Factory: several updates on the same answers.

    A token is rewarded by -beta times its divergence from the untuned model, and the last one by what the answer is
    worth. `Answer.sampled` has of each token its log-probability, value, advantage and return, all of them when it was
    sampled. The loss is a mean over all tokens; reports are means over answers.
    """

    reports = ("reward", "completion_length", "kl", "value_loss")

    def __init__(self, spec: TrainSpec, packer: Packer) -> None:
        super().__init__(spec, packer)
        self.updates = spec.ppo_epochs
        self.state.update(beta=spec.beta or 0.0, scores=0.0, sum=0.0, squares=0.0)
        self.length, self.divergence = 1.0, 0.0  # of the batch's mean answer

    def begin(self, model: Any, packs: Sequence[Pack]) -> Sequence[Pack]:
        device = device_of(model)
        packs = self.answered(model, packs)
        said = [self._said(model, pack) for pack in packs]
        sizes = [len(row.target) for pack in packs for row in pack.members]
        ends = torch.tensor(sizes, dtype=torch.long, device=device) - 1  # (N,)
        real = torch.arange(max(sizes, default=0), device=device) <= ends[:, None]  # (N, L): all but padding

        def joined(what: int) -> Tensor:
            return torch.cat([torch.zeros(0, device=device), *(found[what] for found in said)])

        old, values, away = (torch.zeros(real.shape, device=device).masked_scatter(real, joined(i)) for i in range(3))
        rewards = joined(3)
        sums = torch.stack([torch.ones_like(rewards).sum(), real.sum(), away.sum()])
        rows, tokens, divergence = _over_workers(sums.double()).tolist()
        self.length, self.divergence = tokens / max(1.0, rows), divergence / max(1.0, rows)
        scores = self._scaled(rewards, model.training)
        if model.training and self.state["scores"] == rows:  # the first batch: all of its rewards would be a surprise
            expected = _over_workers(scores.double().sum()).item() / rows
            model.v_head.summary.bias += expected
            values = values + expected * real
        earned = -self.state["beta"] * away
        earned[torch.arange(len(ends), device=device), ends] += scores
        if self.spec.ppo_whiten_rewards:
            earned = whitened(earned, real, shift=False)
        advantages = torch.zeros_like(values)
        later = torch.zeros_like(rewards)
        for at in reversed(range(real.shape[1])):
            ahead = values[:, at + 1] if at + 1 < real.shape[1] else 0.0
            later = earned[:, at] + ahead - values[:, at] + LAMBDA * later
            advantages[:, at] = later
        returns = advantages + values
        found = torch.stack([old, values, whitened(advantages, real), returns], 2)[real].split(sizes)
        if model.training:
            off = max(-0.2, min(0.2, self.divergence / self.spec.ppo_target - 1))
            self.state["beta"] *= 1 + off * rows / HORIZON
        noted, worth = iter(found), iter(rewards.tolist())
        return [
            replace(p, members=tuple(replace(r, sampled=next(noted), reward=next(worth)) for r in answers_of(p)))
            for p in packs
        ]

    def _said(self, model: Any, pack: Pack) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probability, value and divergence of each token (K,), and the reward of each answer (S,)."""
        tokens, values = tokens_and_values(model, pack, self.spec.temperature)
        away = torch.zeros_like(tokens)
        if self.spec.beta:
            with model.disable_adapter():
                away = tokens - token_log_probabilities(model, pack, self.spec.temperature)
        if judge := getattr(model, "judge", None):
            transformers_model(judge).set_attn_implementation(transformers_model(model).config._attn_implementation)
            return tokens, values, away, rewards_of(judge, pack)
        return tokens, values, away, torch.tensor([row.reward for row in answers_of(pack)], device=tokens.device)

    def _scaled(self, rewards: Tensor, learning: bool) -> Tensor:
        """With `ppo_score_norm` relative to the mean and deviation of all rewards so far."""
        state = self.state
        if learning:
            new = torch.stack([torch.ones_like(rewards), rewards, rewards**2]).double().sum(1)
            for name, value in zip(("scores", "sum", "squares"), _over_workers(new).tolist(), strict=True):
                state[name] += value
        if not self.spec.ppo_score_norm:
            return rewards
        mean = state["sum"] / max(1.0, state["scores"])
        variance = (state["squares"] - state["sum"] * mean) / max(1.0, state["scores"] - 1)
        return (rewards - mean) / (max(0.0, variance) ** 0.5 + 1e-6)

    def loss(self, model: nn.Module, pack: Pack) -> tuple[Tensor, dict[str, float]]:
        tokens, values = tokens_and_values(model, pack, self.spec.temperature)
        sampled = torch.cat([cast(Tensor, row.sampled) for row in answers_of(pack)])
        old, before, advantages, returns = sampled.to(tokens.device).unbind(1)
        ratio = torch.exp(tokens - old)
        policy = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        near = before + (values - before).clamp(-CLIP, CLIP)
        value = torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
        return (policy + VALUE_WEIGHT * value).sum() / self.length, {
            "reward": sum(row.reward for row in answers_of(pack)),
            "completion_length": float(len(pack.labels)),
            "kl": self.divergence * pack.rows,
            "value_loss": value.sum().item() / self.length,
        }


def whitened(values: Tensor, real: Tensor, *, shift: bool = True) -> Tensor:
    """`values` where `real`, divided by their deviation over all workers and, with `shift`, less their mean."""
    count, total = _over_workers(torch.stack([real.sum(), values[real].sum()]).double()).tolist()
    mean = total / max(1.0, count)
    variance = _over_workers(((values[real] - mean) ** 2).double().sum()).item() / max(1.0, count - 1)
    scaled = (values - mean) / (variance + 1e-8) ** 0.5 + (0.0 if shift else mean)
    return scaled * real


def logits_of(model: nn.Module, pack: Pack) -> Tensor:
    """(K, V): what the model says at the supervised places, in its own dtype."""
    if pack.apart:
        return torch.cat([logits_of(model, one) for one in _passes(pack)])
    return _logits(model, pack, pack.keep)


def rewards_of(model: nn.Module, pack: Pack) -> Tensor:
    """(S,): what the value head says at the end of each row, fp32."""
    return torch.cat([_with_values(model, one, one.last)[1] for one in _passes(pack)])


def _passes(pack: Pack) -> list[Pack]:
    """The packs to compute one after the other in place of `pack`."""
    return [build_pack([(row,)], 0).to(pack.ids.device) for row in pack.members] if pack.apart else [pack]


def _logits(model: nn.Module, pack: Pack, places: Tensor) -> Tensor:
    seen: Any = view(pack)
    further = {} if seen is None else {"view": seen}
    return model(
        input_ids=pack.ids, position_ids=pack.positions, logits_to_keep=places, use_cache=False, **further
    ).logits[0]


def _with_values(model: Any, pack: Pack, places: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at `places`, and what the value head makes of the hidden states that they come from."""
    heard: list[Tensor] = []
    head = transformers_model(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: heard.append(args[0][0]))
    try:
        logits = _logits(model, pack, places)
    finally:
        hook.remove()
    return logits, model.v_head(heard[0])


def token_log_probabilities(model: nn.Module, pack: Pack, temperature: float = 1.0) -> Tensor:
    """(K,): log-probability of each supervised token."""
    return -F.cross_entropy(logits_of(model, pack).float() / temperature, pack.labels, reduction="none")


def tokens_and_values(model: nn.Module, pack: Pack, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(K,), (K,): log-probability of each supervised token, and the value of what stands before it."""
    tokens, values = [], []
    for one in _passes(pack):
        logits, value = _with_values(model, one, one.keep)
        tokens.append(-F.cross_entropy(logits.float() / temperature, one.labels, reduction="none"))
        values.append(value)
    return torch.cat(tokens), torch.cat(values)


def by_row(tokens: Tensor, pack: Pack) -> Tensor:
    """(K,) -> (S,): summed over each row's supervised tokens."""
    return torch.zeros(pack.rows, device=tokens.device).index_add(0, pack.owner, tokens)


def log_probabilities(model: nn.Module, pack: Pack) -> Tensor:
    """(S,): summed log-probability of each row's supervised tokens."""
    return by_row(token_log_probabilities(model, pack), pack)


def with_reference(model: nn.Module, pack: Pack, temperature: float = 1.0) -> Pack:
    """The same pack, its answers' log-probabilities under `model` noted as their reference."""
    tokens = token_log_probabilities(model, pack, temperature).split([len(row.target) for row in pack.members])
    return replace(pack, members=tuple(map(_noted, answers_of(pack), tokens)))


def _noted(row: Answer, reference: Tensor) -> Answer:
    return replace(row, reference=reference)


def reference_units(model: nn.Module, units: Sequence[Unit], packs: Sequence[Pack]) -> list[Unit]:
    """`units` with the reference of each answer, which is `model` as it is now. Call before the first step.

    `packs` are this worker's share of them; together the workers' packs hold each unit once, or not at all where no
    step will need it. A pass before training costs a third of an epoch, once, and needs neither a second model nor an
    adapter that can be turned off.
    """
    rows = [cast(Answer, row) for unit in units for row in unit]
    starts: dict[int, int] = {}
    size = 0
    for row in rows:
        starts[id(row)] = size
        size += len(row.target)
    values = torch.zeros(size, device=device_of(model))
    for pack in in_step(model, packs):
        pack = pack.to(device_of(model))
        at = torch.cat([torch.arange(len(row.target)) + starts[id(row)] for row in pack.members])
        values[at.to(values.device)] = token_log_probabilities(model, pack)
    parts = iter(_over_workers(values).cpu().split([len(row.target) for row in rows]))
    return [tuple(_noted(cast(Answer, row), next(parts)) for row in unit) for unit in units]


def answers_of(pack: Pack) -> tuple[Answer, ...]:
    """The members of a pack of judged rows."""
    return cast(tuple[Answer, ...], pack.members)


def reference_of(pack: Pack) -> Tensor:
    """(K,): the reference model's log-probability of each supervised token."""
    return torch.cat([cast(Tensor, row.reference) for row in answers_of(pack)]).to(pack.ids.device)


def worth_of(pack: Pack) -> Tensor:
    """(S,): each answer's worth."""
    return torch.tensor([row.worth for row in answers_of(pack)], device=pack.ids.device)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    return next(model.parameters()).device


def _over_workers(values: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def objective_of(spec: TrainSpec, packer: Packer) -> Objective:
    """The objective that `spec.stage` names."""
    if spec.stage == "grpo":
        return Grpo(spec, packer)
    if spec.stage == "ppo":
        return Ppo(spec, packer)
    if spec.stage == "kto":
        return Kto(spec)
    if spec.stage == "rm":
        return Reward()
    return Supervised() if spec.stage in ("sft", "pt") else Preference(spec)
