"""Methods beside supervised fine-tuning: each loss is its paper's, packing changes nothing, and each moves what it is
meant to move."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from conftest import registered
from making import make_version
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tunery import versions
from tunery.bases import bundled_path
from tunery.config import TrainSpec, load_project, parse, resolve_train
from tunery.data.template import Row
from tunery.errors import ConfigError, ModelError, RunError, TrainError, TuneryError
from tunery.ops import registry, verbs
from tunery.serving import Engine
from tunery.tasks import task_by_name
from tunery.training import model_files, prepare
from tunery.training.attention import ATTENTION
from tunery.training.batches import Packer
from tunery.training.loop import Hooks, fit
from tunery.training.model import build_model
from tunery.training.objectives import (
    answers_of,
    log_probabilities,
    logits_of,
    objective_of,
    preference_losses,
    reference_units,
    rewards_of,
    token_log_probabilities,
    tokens_and_values,
    with_reference,
)
from tunery.training.output import job_of
from tunery.training.packing import build_pack
from tunery.training.plan import Job
from tunery.training.prefixes import Group
from tunery.training.sampling import Sampling, reward, sample
from tunery.training.tuning import transformers_model
from tunery.training.units import Answer

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(folder)
    return folder


def spec_of(stage: str, **settings) -> TrainSpec:
    return resolve_train(TrainSpec.model_validate({"stage": stage, "lora_rank": 4, "bf16": False, **settings}))


@pytest.fixture(scope="module")
def model(folder):
    model = build_model(spec_of("dpo", gradient_checkpointing=False), folder, "cpu")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # B starts at zero: policy and reference would be one
            torch.nn.init.normal_(parameter, 0, 0.05)
    return model


@pytest.fixture(scope="module")
def judge(folder):
    """A reward model with weights all over."""
    model: Any = build_model(spec_of("rm", gradient_checkpointing=False), folder, "cpu")
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "v_head" in name:
            torch.nn.init.normal_(parameter, 0, 0.05)
    return model


def answers(n=4, per_prompt=2, prefix=20) -> list[tuple[Answer, ...]]:
    """`per_prompt` answers to each of `n` prompts that begin alike, with references and worths."""
    g = torch.Generator().manual_seed(0)

    def ids(k):
        return torch.randint(3, 300, (k,), generator=g).tolist()

    shared = ids(prefix)
    units = []
    for i in range(n):
        prompt = [*shared, i + 3, *ids(3 + 2 * i)]
        unit = []
        for j in range(per_prompt):
            length = 2 + (i + 2 * j) % 5
            worth = (0.0 if j else 1 - 2 * (i % 2)) if per_prompt == 2 else j - 1.5
            unit.append(
                Answer(
                    f"{i}/{j}",
                    prompt,
                    ids(length),
                    worth=worth,
                    reward=0.5,
                    reference=-5 - torch.rand(length, generator=g),
                    sampled=torch.linspace(-5, 1, 4 * length).view(length, 4),
                )
            )
        units.append(tuple(unit))
    return units


# --- formulas ----------------------------------------------------------------------------------------------


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def log_odds(log_p: float) -> float:
    return log_p - math.log(1 - math.exp(log_p))


@pytest.mark.parametrize(
    ("settings", "by_hand"),
    [
        ({"stage": "dpo"}, lambda c, r: -log_sigmoid(0.3 * (c - r))),  # arXiv:2305.18290, eq. 7
        (
            {"stage": "dpo", "dpo_label_smoothing": 0.2},
            lambda c, r: -0.8 * log_sigmoid(0.3 * (c - r)) - 0.2 * log_sigmoid(-0.3 * (c - r)),
        ),
        ({"stage": "dpo", "pref_loss": "hinge"}, lambda c, r: max(0.0, 1 - 0.3 * (c - r))),  # arXiv:2305.10425
        ({"stage": "dpo", "pref_loss": "ipo"}, lambda c, r: (c - r - 1 / (2 * 0.3)) ** 2),  # arXiv:2310.12036, eq. 17
        ({"stage": "orpo"}, lambda c, r: -c - 0.3 * log_sigmoid(log_odds(c) - log_odds(r))),  # arXiv:2403.07691, eq. 6
        ({"stage": "simpo"}, lambda c, r: -log_sigmoid(0.3 * c - 0.3 * r - 0.5)),  # arXiv:2405.14734, eq. 6
        ({"stage": "dpo", "pref_loss": "simpo"}, lambda c, r: -log_sigmoid(0.3 * c - 0.3 * r - 0.5)),
    ],
)
def test_preference_losses_are_those_of_their_papers(settings, by_hand):
    chosen, rejected = [-0.5, -2.0, -4.0], [-3.0, -1.0, -4.0]
    found = preference_losses(TrainSpec(**settings, pref_beta=0.3), torch.tensor(chosen), torch.tensor(rejected))
    assert found.tolist() == pytest.approx([by_hand(c, r) for c, r in zip(chosen, rejected, strict=True)], rel=1e-5)


def test_orpo_stays_finite_where_the_model_is_certain():
    chosen = torch.zeros(1, requires_grad=True)
    preference_losses(TrainSpec(stage="orpo"), chosen, torch.tensor([-1.0])).backward()
    assert torch.isfinite(chosen.grad).all()  # type: ignore[arg-type]


def relative(tokens: torch.Tensor, row: Answer) -> torch.Tensor:
    """Log-ratios of policy and reference, a token each."""
    assert row.reference is not None
    return tokens - row.reference


def rows_alone(model, units, temperature=1.0) -> list[list[torch.Tensor]]:
    """Token log-probabilities of every row in a pass of its own."""
    return [[token_log_probabilities(model, build_pack([(row,)], 0), temperature) for row in unit] for unit in units]


def test_dpo_is_relative_to_the_reference_and_can_add_the_likelihood_of_the_chosen(model):
    units = answers()
    spec = spec_of("dpo", pref_beta=0.3, pref_ftx=0.5)
    expected, right = 0.0, 0
    for unit, tokens in zip(units, rows_alone(model, units), strict=True):
        chosen, rejected = (relative(t, row).sum().item() for t, row in zip(tokens, unit, strict=True))
        expected += -log_sigmoid(0.3 * (chosen - rejected)) - 0.5 * tokens[0].mean().item()
        right += chosen > rejected
    loss, further = objective_of(spec, Packer(spec, "cpu", 999)).loss(model, build_pack(units, 20))
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert further["rewards/accuracies"] == right
    assert further["rewards/margins"] == pytest.approx(
        further["rewards/chosen"] - further["rewards/rejected"], abs=1e-4
    )


def test_a_reward_is_the_value_heads_at_the_end_of_an_answer(judge):
    """arXiv:2203.02155, eq. 1, on the hidden states that transformers itself gives."""
    units = answers()
    rewards = []
    for row in (row for unit in units for row in unit):
        inner = transformers_model(judge)
        inner.set_attn_implementation("sdpa")
        hidden = inner(input_ids=torch.tensor([row.prompt + row.target]), output_hidden_states=True).hidden_states[-1]
        inner.set_attn_implementation(ATTENTION)
        rewards.append((judge.v_head.summary.weight @ hidden[0, -1] + judge.v_head.summary.bias).item())
    pairs = list(zip(rewards[::2], rewards[1::2], strict=True))
    loss, further = objective_of(spec_of("rm"), Packer(spec_of("rm"), "cpu", 999)).loss(judge, build_pack(units, 20))
    assert loss.item() == pytest.approx(sum(-log_sigmoid(c - r) for c, r in pairs), rel=1e-4)
    assert further["rewards/accuracies"] == sum(c > r for c, r in pairs)
    assert further["rewards/chosen"] == pytest.approx(sum(c for c, _ in pairs), rel=1e-4)


def test_kto_judges_each_row_against_the_divergence_of_the_batch(model):
    """arXiv:2402.01306, eq. 7: the divergence is the mean log-ratio of mismatched rows, no less than 0."""
    units = answers()
    ratios = [
        [relative(t, row).sum().item() for t, row in zip(tokens, unit, strict=True)]
        for unit, tokens in zip(units, rows_alone(model, units), strict=True)
    ]
    divergence = max(0.0, sum(mismatched for _, mismatched in ratios) / len(ratios))
    expected = 0.0
    for (row, _), (ratio, _) in zip(units, ratios, strict=True):
        side = 1 if row.worth > 0 else -1
        weight = 1.5 if row.worth > 0 else 0.7
        expected += weight * (1 - 1 / (1 + math.exp(-0.3 * side * (ratio - divergence))))
    spec = spec_of("kto", pref_beta=0.3, kto_chosen_weight=1.5, kto_rejected_weight=0.7)
    objective = objective_of(spec, Packer(spec, "cpu", 999))
    with torch.no_grad():
        packs = objective.begin(model, [build_pack(units[:2], 20), build_pack(units[2:], 20)])
    assert sum(objective.weight(pack) for pack in packs) == 4
    assert sum(objective.loss(model, pack)[0].item() for pack in packs) == pytest.approx(expected, rel=1e-4)


def test_grpo_is_advantage_times_likelihood_and_a_divergence(model):
    """arXiv:2402.03300, eq. 3 and 4, where the sampling model is the model itself."""
    units = answers(n=2, per_prompt=4)
    spec = spec_of("grpo", beta=0.1, temperature=0.7, template="chatml", task="function")
    pack = build_pack(units, 20)
    loss, _ = objective_of(spec, Packer(spec, "cpu", 999)).loss(model, pack)
    model.zero_grad()
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    surrogate, value = torch.zeros(()), 0.0
    for unit, tokens in zip(units, rows_alone(model, units, 0.7), strict=True):
        for row, t in zip(unit, tokens, strict=True):
            away = -relative(t, row)
            kl = (away.exp() - away - 1).mean()
            surrogate = surrogate - row.worth * t.mean() + 0.1 * kl
            value += -row.worth + 0.1 * kl.item()
    surrogate.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    assert loss.item() == pytest.approx(value, rel=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_ppo_weighs_answers_by_advantage_and_clips_how_far_it_goes(judge):
    """arXiv:1707.06347, eq. 7 and 9, with GAE (arXiv:1506.02438, eq. 16), a token at a time."""
    rewards = [1.0, 0.0, 0.5, 0.25]
    units = [(replace(row, reward=r),) for (row, _), r in zip(answers(), rewards, strict=True)]
    spec = spec_of("ppo", reward="slot_f1", beta=0.1, temperature=0.7, template="chatml", task="function")
    objective: Any = objective_of(spec, Packer(spec, "cpu", 999))
    objective.answered = lambda model, packs: packs  # these answers
    objective.state["scores"] = 99.0  # others came before
    with torch.no_grad():
        packs = objective.begin(judge, [build_pack(units[:2], 20), build_pack(units[2:], 20)])
        found = [row.sampled for pack in packs for row in pack.members]
        expected, kl = [], 0.0
        for (row,) in units:
            tokens, values = tokens_and_values(judge, build_pack([(row,)], 0), 0.7)
            with judge.disable_adapter():
                away = tokens - token_log_probabilities(judge, build_pack([(row,)], 0), 0.7)
            kl += away.sum().item()
            earned = -0.1 * away
            earned[-1] += row.reward
            deltas = earned + torch.cat([values[1:], torch.zeros(1)]) - values
            n = len(deltas)
            advantages = [sum(0.95 ** (i - at) * deltas[i] for i in range(at, n)) for at in range(n)]
            expected.append(torch.stack([tokens, values, torch.tensor(advantages)], 1))
        raw = torch.cat(expected)[:, 2]
        for got, hand in zip(found, expected, strict=True):
            torch.testing.assert_close(got[:, :2], hand[:, :2], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(got[:, 2], (hand[:, 2] - raw.mean()) / raw.std(), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(got[:, 3], hand[:, 2] + hand[:, 1], rtol=1e-4, atol=1e-4)
        assert objective.state["beta"] == pytest.approx(0.1 * (1 - 0.2 * 4 / 10_000))  # nearer than ppo_target

        moved = torch.tensor([0.5, 0.3, 0.0, 0.0])  # the policy since then, and the value
        packs = [
            replace(p, members=tuple(replace(row, sampled=row.sampled - moved) for row in p.members)) for p in packs
        ]
        loss, report = zip(*(objective.loss(judge, pack) for pack in packs), strict=True)
    total = 0.0
    for got, hand in zip(found, expected, strict=True):
        for (_, value, advantage, gain), (_, before, _) in zip(got.tolist(), hand.tolist(), strict=True):
            total -= min(math.exp(0.5) * advantage, 1.2 * advantage)
            near = before - 0.3 + 0.2
            total += 0.1 * max((value - gain) ** 2, (near - gain) ** 2) / 2
    length = sum(map(len, expected)) / 4
    assert torch.stack(loss).sum().item() == pytest.approx(total / length, rel=1e-3)
    assert sum(r["reward"] for r in report) == sum(rewards)
    assert sum(r["kl"] for r in report) == pytest.approx(kl, rel=1e-3)


@torch.no_grad()
def test_a_new_value_head_expects_the_mean_reward(folder):
    """So that answers which are as good as each other leave the policy alone."""
    units = [(replace(row, reward=0.75),) for row, _ in answers()]
    spec = spec_of("ppo", reward="slot_f1", beta=0, template="chatml", task="function")
    objective: Any = objective_of(spec, Packer(spec, "cpu", 999))
    objective.answered = lambda model, packs: packs
    model = build_model(spec, folder, "cpu")
    for _ in range(2):
        (pack,) = objective.begin(model, [build_pack(units, 20)])
        sampled = torch.cat([row.sampled for row in pack.members])
        torch.testing.assert_close(sampled[:, 1:], torch.tensor([0.75, 0.0, 0.75]).expand(len(sampled), 3))


def test_rewards_are_scaled_by_all_so_far(judge):
    spec = spec_of("ppo", reward="slot_f1", ppo_score_norm=True, template="chatml", task="function")
    objective: Any = objective_of(spec, Packer(spec, "cpu", 999))
    seen = torch.tensor([])
    for batch in (torch.tensor([1.0, 3.0]), torch.tensor([0.0, 8.0, 5.0])):
        seen = torch.cat([seen, batch])
        expected = (batch - seen.mean()) / seen.std()
        torch.testing.assert_close(objective._scaled(batch, True), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective._scaled(batch, False), expected, rtol=1e-4, atol=1e-5)


# --- packs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["rm", "ppo", "dpo", "orpo", "simpo", "kto", "grpo"])
def test_packed_equals_unpacked(model, judge, stage):
    """One pack that shares prompts, packs that do not, and each row by itself: one loss, one gradient."""
    model = judge if stage in ("rm", "ppo") else model
    units = answers(per_prompt=4 if stage == "grpo" else 2)
    found = []
    for packing, room in (("none", 0), ("sequence", 60), ("shared_prefix", 60), ("shared_prefix", 9999)):
        spec = spec_of(stage, packing=packing, template="chatml", task="function", beta=0.1, reward="slot_f1")
        packer = Packer(spec, "cpu", room)
        objective = objective_of(spec, packer)
        packs = packer.packs(units, [Group(20 if packing == "shared_prefix" else 0, list(range(len(units))))])
        if stage == "kto":
            with torch.no_grad():
                packs = objective.begin(model, packs)
        model.zero_grad()
        losses = [objective.loss(model, pack)[0] for pack in packs]
        torch.stack(losses).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        found.append((torch.stack(losses).sum().item(), sum(map(objective.weight, packs)), gradient, len(packs)))
    model.zero_grad()
    (loss, weight, gradient, _), *others = found
    for other_loss, other_weight, other_gradient, _ in others:
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert other_weight == weight
        assert (other_gradient - gradient).norm() / gradient.norm() < 1e-4
    assert found[2][3] > found[3][3] == 1


def test_the_reference_is_the_model_before_training_and_with_its_adapter_off(folder):
    spec = spec_of("dpo")
    model = build_model(spec, folder, "cpu")
    units = [tuple(replace(row, reference=None) for row in unit) for unit in answers()]
    packs = Packer(spec.model_copy(update={"packing": "shared_prefix"}), "cpu", 60).packs(units, [Group(20, [0, 1, 2])])
    with torch.no_grad():
        noted: Any = reference_units(model, units, packs)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, 0, 0.05)
        for unit in noted[:3]:
            for row in unit:
                pack = build_pack([(row,)], 0)
                assert abs(log_probabilities(model, pack) - row.reference.sum()) > 1e-3
                with cast(Any, model).disable_adapter():
                    again = answers_of(with_reference(model, pack))[0].reference
                torch.testing.assert_close(again, row.reference, rtol=1e-4, atol=1e-4)
    assert noted[3][0].reference.abs().sum() == 0  # in no pack


# --- training ----------------------------------------------------------------------------------------------

INSTRUCTION = "Name it."
WORDS = ["red", "green", "blue", "black"]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """Colours of bikes: as answers, as pairs, with tags, as text; `-b` holds bikes that `-a` has not."""
    folder = tmp_path_factory.mktemp("shop")
    for part, numbers in (("a", range(40)), ("b", range(40, 56))):
        asked = [{"instruction": INSTRUCTION, "input": f"{WORDS[i % 4]} bike {i}"} for i in numbers]
        good = [f"is({row['input'].split()[0]})" for row in asked]
        bad = [f"no({row['input'].split()[0]})" for row in asked]
        write(folder / f"sft-{part}.jsonl", [row | {"output": g} for row, g in zip(asked, good, strict=True)])
        pairs = zip(asked, good, bad, strict=True)
        write(folder / f"pairs-{part}.jsonl", [row | {"chosen": g, "rejected": b} for row, g, b in pairs])
        tagged = [
            row | {"output": b if i % 2 else g, "kto_tag": not i % 2}
            for i, (row, g, b) in enumerate(zip(asked, good, bad, strict=True))
        ]
        write(folder / f"tags-{part}.jsonl", tagged)
        write(folder / f"mixed-{part}.jsonl", [{k: v for k, v in row.items() if k != "kto_tag"} for row in tagged])
        write(folder / f"text-{part}.jsonl", [{"text": f"The {row['input']} is here."} for row in asked])
    return folder


SHORT: dict[str, Any] = {
    "max_steps": 6, "save_steps": 3, "bf16": False, "lora_rank": 4, "learning_rate": 5e-3, "eval_strategy": "no",
    "gradient_checkpointing": False,
}  # fmt: skip
DATA = {"sft": "sft", "grpo": "sft", "ppo": "sft", "pt": "text", "kto": "tags"}


def run(stage: str, shop: Path, base: Path, scratch: Path, model=None, **settings) -> tuple[list[dict], list[dict]]:
    """Log rows of steps, and of evaluations before and after training."""
    data = DATA.get(stage, "pairs")
    spec = TrainSpec.model_validate(
        {
            "model_name_or_path": str(base), "stage": stage, "dataset": f"{data}-a.jsonl",
            "eval_dataset": f"{data}-b.jsonl", "dataset_dir": str(shop), "template": "chatml", "lora_rank": 8,
            "per_device_train_batch_size": 8, "learning_rate": 5e-3, "max_steps": 12, "logging_steps": 1,
            "eval_strategy": "steps", "eval_steps": 1, "bf16": False, "gradient_checkpointing": False,
            **settings,
        }
    )  # fmt: skip
    plan = prepare(spec)
    log: list[dict] = []
    fit(
        Job(plan.spec, plan.units, plan.groups, plan.eval_units, plan.eval_groups),
        Hooks(log=log.append, scratch=scratch),
        model=model,
    )
    return [row for row in log if "loss" in row], [row for row in log if "eval_loss" in row]


@pytest.mark.parametrize(
    ("stage", "settings"),
    [("dpo", {}), ("dpo", {"pref_loss": "ipo"}), ("orpo", {}), ("simpo", {}), ("rm", {"learning_rate": 2e-3})],
)
def test_preferences_are_learnt_and_hold_for_prompts_never_seen(stage, settings, shop, tiny_base, tmp_path):
    _, evaluations = run(stage, shop, tiny_base, tmp_path, max_steps=6, eval_steps=3, **settings)
    assert evaluations[-1]["eval_rewards/accuracies"] == 1.0
    assert evaluations[-1]["eval_rewards/margins"] > max(0.0, evaluations[0]["eval_rewards/margins"])
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


def test_a_reward_model_goes_on_from_a_checkpoint_and_is_what_others_read(shop, tiny_base, tmp_path):
    plan = plan_of("rm", "pairs-a.jsonl", shop, tiny_base, **SHORT)
    assert all(row.target[-1] == plan.template.stop_ids[0] for row in plan.rows)  # as sampled answers end
    model, again = (build_model(plan.spec, tiny_base, "cpu") for _ in range(2))
    job = Job(plan.spec, plan.units, plan.groups)
    fit(job, Hooks(scratch=tmp_path), model=model)
    fit(replace(job, resume_from=str(tmp_path / "checkpoint-3")), Hooks(scratch=tmp_path / "again"), model=again)
    for (name, one), (_, two) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert one.equal(two), name

    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, str(tmp_path / "checkpoint-6"))
    head = load_file(tmp_path / "checkpoint-6" / "value_head.safetensors")
    assert set(head) == {"v_head.summary.weight", "v_head.summary.bias"}
    model.eval()
    for row in plan.rows[:4]:
        hidden = peft(input_ids=torch.tensor([row.prompt + row.target]), output_hidden_states=True).hidden_states[-1]
        reward = head["v_head.summary.weight"] @ hidden[0, -1] + head["v_head.summary.bias"]
        torch.testing.assert_close(rewards_of(model, build_pack([(row,)], 0)), reward, rtol=1e-3, atol=1e-4)


def test_a_whole_reward_model_keeps_its_head_apart(shop, tiny_base, tmp_path):
    plan = plan_of("rm", "pairs-a.jsonl", shop, tiny_base, finetuning_type="full", **SHORT | {"max_steps": 1})
    fit(Job(plan.spec, plan.units, plan.groups), Hooks(scratch=tmp_path))
    files = model_files(plan, tmp_path / "checkpoint-1")
    assert list(files)[-2:] == ["value_head.safetensors", "model.safetensors"]
    assert all(path.exists() for path in files.values())
    assert set(load_file(files["model.safetensors"])) == set(load_file(tiny_base / "model.safetensors"))


def test_tags_are_learnt(shop, tiny_base, tmp_path):
    steps, evaluations = run("kto", shop, tiny_base, tmp_path, max_steps=10, eval_steps=5)
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-3)  # the policy is the reference still
    assert evaluations[-1]["eval_rewards/accuracies"] >= 0.9
    assert evaluations[-1]["eval_kl"] >= 0


def test_plain_text_is_learnt_token_by_token(shop, tiny_base, tmp_path):
    _, evaluations = run("pt", shop, tiny_base, tmp_path, max_steps=20, eval_steps=10)
    assert evaluations[-1]["eval_loss"] < 0.85 * math.log(512)  # of 512 tokens, each as likely


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("grpo", {"max_steps": 5, "per_device_train_batch_size": 4}),
        ("ppo", {"max_steps": 2, "per_device_train_batch_size": 32, "reward": "slot_f1", "ppo_epochs": 2, "beta": 0}),
    ],
)
def test_rewards_rise(stage, settings, shop, tmp_path):
    """Three supervised steps first, so that some of the sampled answers earn a reward."""
    torch.manual_seed(0)
    base = bundled_path()
    model = build_model(spec_of(stage, gradient_checkpointing=False, lora_rank=16), base, "cpu")
    start = {"max_steps": 3, "learning_rate": 2e-3, "lr_scheduler_type": "constant", "eval_strategy": "no"}
    run("sft", shop, base, tmp_path, model, **start)
    settings = {"eval_steps": 9, "learning_rate": 1e-3, "max_completion_length": 8} | settings
    steps, evaluations = run(stage, shop, base, tmp_path, model, **settings)
    assert steps[0]["reward"] < 0.5 < steps[-1]["reward"]
    assert evaluations[-1]["eval_reward"] > 0.8


def test_answers_come_to_be_what_a_reward_model_prefers(shop, tmp_path):
    """The policy has learnt good answers and bad ones alike, the reward model which ones are good."""
    base = bundled_path()
    run("rm", shop, base, tmp_path / "rm", max_steps=6, learning_rate=1.5e-3, eval_strategy="no")
    judge = str(tmp_path / "rm" / "checkpoint-6")
    torch.manual_seed(0)
    model = build_model(spec_of("ppo", gradient_checkpointing=False, lora_rank=16, reward_model=judge), base, "cpu")
    start = {"max_steps": 4, "learning_rate": 2e-3, "lr_scheduler_type": "constant", "eval_strategy": "no"}
    run("sft", shop, base, tmp_path, model, dataset="mixed-a.jsonl", **start)
    steps, _ = run(
        "ppo", shop, base, tmp_path, model, reward_model=judge, max_steps=3, eval_strategy="no", learning_rate=1e-3,
        max_completion_length=8, per_device_train_batch_size=10, ppo_epochs=2, beta=0,
    )  # fmt: skip
    assert steps[-1]["reward"] > steps[0]["reward"] + 0.2


def test_ppo_goes_on_from_a_checkpoint_as_if_nothing_had_happened(shop, tiny_base, tmp_path):
    """With what it has learnt of the rewards, and of the divergence."""
    run("rm", shop, tiny_base, tmp_path, max_steps=2, eval_strategy="no")
    settings = SHORT | {"reward_model": str(tmp_path / "checkpoint-2"), "ppo_score_norm": True, "ppo_epochs": 2}
    plan = plan_of("ppo", "sft-a.jsonl", shop, tiny_base, max_completion_length=4, **settings)
    models = [build_model(plan.spec, tiny_base, "cpu") for _ in range(2)]
    job = Job(plan.spec, plan.units, plan.groups)
    for model, start in zip(models, (None, str(tmp_path / "checkpoint-3")), strict=True):
        fit(replace(job, resume_from=start), Hooks(scratch=tmp_path), model=model)
        state = torch.load(tmp_path / "checkpoint-6" / "trainer_state.pt")["objective"]
        assert state["scores"] == 6 * 8
        assert state["beta"] != 0.2
    for (name, one), (_, two) in zip(*(model.named_parameters() for model in models), strict=True):
        assert one.equal(two), name
    assert not any("judge" in name for name in models[0].state_dict())
    assert "value_head.safetensors" not in model_files(plan, tmp_path / "checkpoint-6")


def test_a_loss_that_is_not_finite_names_the_prompts_whose_answers_were_sampled(shop, tmp_path):
    model = build_model(spec_of("grpo", gradient_checkpointing=False, lora_rank=4), bundled_path(), "cpu")

    def breaks_once_it_learns(module, args, out):
        return out * math.nan if torch.is_grad_enabled() else out

    model.get_input_embeddings().register_forward_hook(breaks_once_it_learns)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TrainError, match="not finite at step 1") as caught:
        run("grpo", shop, bundled_path(), tmp_path, model, max_steps=1, max_completion_length=4)
    assert "look at these rows: " in (caught.value.hint or "")


def test_sampled_answers_end_with_their_stop_token_or_at_the_limit(folder):
    """One cache of each prompt serves all its answers."""
    model = build_model(spec_of("grpo"), folder, "cpu")
    prompts = [[5, 6, 7], [8], [9, 10]]
    greedy = sample(model, prompts, Sampling([2], 6))
    assert all(len(a) <= 6 and 2 not in a[:-1] for a in greedy)
    for prompt, answer in zip(prompts, greedy, strict=True):  # what training computes is what was sampled from
        logits = logits_of(model, build_pack([(Row("", prompt, answer),)], 0))
        assert logits.argmax(-1).tolist() == answer
    twice = sample(model, prompts, Sampling([2], 6, count=2))
    assert twice == [answer for answer in greedy for _ in range(2)]
    torch.manual_seed(0)
    assert len({tuple(a) for a in sample(model, [[5, 6]], Sampling([2], 6, 1.0, 8))}) > 1
    assert sample(model, [], Sampling([2], 6)) == []


def test_rewards_are_the_tasks_own_scores():
    task = task_by_name("function")
    gold = "give(name[X], genre[a, b])"
    assert reward(task, "slot_f1", "give(genre[b, a], name[X])", gold) == 1.0
    assert reward(task, "exact_match", "give(genre[b, a], name[X])", gold) == 0.0
    assert reward(task, "slot_f1", "give(name[X])", gold) == pytest.approx(2 * 2 / (2 + 4))
    assert reward(task, "parse_rate", "give(name[X])", gold) == 1.0
    assert reward(task, "parse_rate", "give(name[X", gold) == 0.0
    assert reward(task_by_name("text"), "slot_f1", "so it is", "so it is") == 1.0


def one_of_two(rank: int, world: int, shop: Path, base: Path, folder: Path) -> None:
    """A worker of a training of `world`; the first saves the adapter."""
    torch.set_num_threads(1)  # the parent's threads do not come along
    torch.manual_seed(0)
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder / 'meet'}", world_size=world, rank=rank)
    plan = plan_of(
        "kto", "tags-a.jsonl", shop, base, bf16=False, max_steps=2, lora_rank=4, eval_strategy="no",
        per_device_train_batch_size=6 // world, ray_num_workers=world, gradient_checkpointing=False, learning_rate=1e-2,
    )  # fmt: skip
    model = build_model(plan.spec, base, "cpu")
    fit(Job(plan.spec, plan.units, plan.groups), Hooks(scratch=folder), rank=rank, world=world, model=model)
    if rank == 0:
        torch.save([p for p in model.parameters() if p.requires_grad], folder / f"{world}.pt")


def test_two_workers_learn_what_one_does(shop, tiny_base, tmp_path):
    """References and the divergence of KTO are numbers of all workers' rows."""
    for world in (1, 2):
        mp.start_processes(  # pyright: ignore[reportPrivateImportUsage]
            one_of_two, (world, shop, tiny_base, tmp_path), nprocs=world, start_method="fork"
        )
    for one, two in zip(torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt"), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)


# --- what is said before anything starts -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "dataset", "settings", "message", "hint"),
    [
        ("dpo", "sft", {}, "holds no pairs", "chosen and rejected"),
        ("simpo", "tags", {}, "holds no pairs", "stage: kto"),
        ("rm", "sft", {}, "holds no pairs", "chosen and rejected"),
        ("rm", "pairs", {"fsdp": True}, "rm and fsdp", "leave fsdp out"),
        ("kto", "sft", {}, "holds no tags", "columns.kto_tag"),
        ("kto", "good", {}, "tagged as one to imitate", "both tags"),
        ("sft", "pairs", {}, "pairs of a chosen and a rejected", "stage: dpo"),
        ("grpo", "pairs", {}, "pairs of a chosen and a rejected", "stage: dpo"),
        ("sft", "tags", {}, "tagged as ones to avoid", "stage: kto"),
        ("pt", "sft", {}, "is a conversation", "stage: sft"),
        ("dpo", "pairs", {"train_on_prompt": True}, "train_on_prompt has no meaning", "stage: sft"),
        ("ppo", "pairs", {"reward": "exact_match"}, "pairs of a chosen and a rejected", "stage: dpo"),
        ("ppo", "sft", {}, "has no reward", "reward_model"),
        ("ppo", "sft", {"reward": "slot_f1", "reward_model": "judge"}, "has two rewards", "reward_model"),
        ("ppo", "sft", {"reward_model": "judge"}, 'no model "judge"', "tunery train"),
        ("ppo", "sft", {"reward_model": str(EXAMPLES)}, "is no reward model", "stage: rm"),
        ("ppo", "sft", {"reward_model": "judge", "finetuning_type": "full", "beta": 0}, "shares its base", "lora"),
        ("ppo", "sft", {"reward": "slot_f1", "max_completion_length": 4096}, "more than the 2048", "max_completion"),
        ("ppo", "sft", {"reward_model": "judge", "fp8": True}, "fp8 and reward_model", "choose one"),
        ("ppo", "sft", {"reward": "slot_f1", "fsdp": True}, "ppo and fsdp", "leave fsdp out"),
        ("grpo", "sft", {"max_loss_ratio": 3}, "0 or less", "drop it"),
        ("grpo", "sft", {"reward_model": "judge"}, "no meaning in stage: grpo", "stage: ppo"),
        ("grpo", "sft", {"entity_swap": 0.5}, "entity_swap has no meaning", "stage: sft"),
        ("grpo", "sft", {"max_completion_length": 4096}, "more than the 2048 tokens", "max_completion_length"),
        ("dpo", "pairs", {"pref_loss": "ipo", "dpo_label_smoothing": 0.1}, "pref_loss: sigmoid alone", "drop one"),
        ("dpo", "pairs", {"cutoff_len": 40}, "80 of 80 rows", "overlong"),
    ],
)
def test_data_that_does_not_fit_the_stage_is_refused(stage, dataset, settings, message, hint, shop, tiny_base):
    write(shop / "good-a.jsonl", [{"instruction": "Do", "output": f"ok {i}", "kto_tag": True} for i in range(3)])
    given = {"stage": stage, "dataset": f"{dataset}-a.jsonl", "dataset_dir": str(shop), "template": "chatml"}
    with pytest.raises(TuneryError) as caught:
        prepare(TrainSpec.model_validate({"model_name_or_path": str(tiny_base), **given, **settings}))
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": "ppo", "reward_model_type": "full"}, "adapter on the base"),
        ({"stage": "dpo", "pref_loss": "kto_pair"}, "stage: kto"),
        ({"stage": "dpo", "pref_beta": 0}, "greater than 0"),
        ({"stage": "grpo", "num_generations": 1}, "greater than or equal to 2"),
    ],
)
def test_what_is_not_offered_names_what_is(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(TrainSpec, values)


def test_a_reward_model_is_one_of_the_same_base(shop, tiny_base, folder, tmp_path):
    """Whatever can be seen of it is: where it was registered, more."""
    judge = make_version(tmp_path, tiny_base, "judge@1", stage="rm").adapter
    policy = {"reward_model": "judge", "dataset": "sft-a.jsonl", "dataset_dir": str(shop), "template": "chatml"}

    def refused(message: str, **changes) -> None:
        spec = TrainSpec.model_validate({"stage": "ppo", "model_name_or_path": str(tiny_base), **policy, **changes})
        with pytest.raises(TuneryError, match=message):
            prepare(spec, tmp_path)

    refused(r'"judge" is no reward model: it has no value_head')
    save_file({"v_head.summary.weight": torch.zeros(1, 128)}, judge / "value_head.safetensors")
    refused("on another base", model_name_or_path=str(bundled_path()))
    refused("on another base", model_name_or_path=str(bundled_path()), reward_model=str(judge))
    (judge / "version.json").unlink()  # the output of a training without registry
    refused("on another base", model_name_or_path=str(bundled_path()), reward_model=str(judge))
    plan = prepare(TrainSpec.model_validate({
        "stage": "ppo", "model_name_or_path": str(tiny_base), **policy, "reward_model": str(judge),
    }), tmp_path)  # fmt: skip
    assert plan.spec.reward_model == str(judge.resolve())
    assert set(job_of(plan, [], gpu=False).reward_model or ()) == {p.name for p in judge.iterdir()} - {"README.md"}
    (judge / "adapter_config.json").unlink()
    refused("is a whole model", reward_model=str(judge))


@pytest.mark.parametrize(("key", "hint"), [("ppo_buffer_size", "accumulation"), ("top_p", "leave it out")])
def test_keys_of_others_are_answered_with_ours(key, hint):
    with pytest.raises(ConfigError) as caught:
        parse(TrainSpec, {"stage": "ppo", key: 2})
    assert hint in (caught.value.hint or "")


def plan_of(stage: str, dataset: str, shop: Path, base: Path, **settings):
    given = {"stage": stage, "dataset": dataset, "dataset_dir": str(shop), "template": "chatml", **settings}
    return prepare(TrainSpec.model_validate({"model_name_or_path": str(base), **given}))


def test_units_of_each_stage(shop, tiny_base):
    dpo = plan_of("dpo", "pairs-a.jsonl", shop, tiny_base)
    chosen, rejected = dpo.units[0]
    assert chosen.prompt == rejected.prompt
    assert (dpo.template.decode(chosen.target), dpo.template.decode(rejected.target)) == ("is(red)", "no(red)")
    kto = plan_of("kto", "tags-a.jsonl", shop, tiny_base)
    units: Any = kto.units
    assert [row.worth for row, _ in units[:4]] == [1, -1, 1, -1]
    assert all(a.prompt == b.prompt and b.worth == 0 for a, b in units)
    assert len(kto.examples) == 20  # what the model is to learn to say
    assert registry.learn_profile(kto).rows == 20
    judged = plan_of("kto", "pairs-a.jsonl", shop, tiny_base)
    assert len(judged.units) == 80
    assert judged.describe()["train_rows"] == 80


def test_a_name_stands_for_what_answers_and_never_for_a_reward_model(tmp_path):
    for ref, stage in (("shop@1", "sft"), ("shop@2", "rm"), ("judge@1", "rm")):
        registered(tmp_path, ref, stage=stage)
    assert versions.get(tmp_path, "shop").ref == "shop@1"
    assert versions.get(tmp_path, "shop", judge=True).ref == "shop@2"
    with pytest.raises(RunError, match="is a reward model"):
        versions.get(tmp_path, "judge")
    with pytest.raises(ModelError, match="scores answers, and writes none"):
        verbs.load_model(verbs.as_project({"home": str(tmp_path)}), "shop@2")
    engine = Engine("base", "base", "b", "", 64)
    assert [v.ref for v in versions.list_versions(tmp_path) if engine.admits(v)] == ["shop@1"]


def test_a_pair_that_is_cut_keeps_one_prompt(shop, tiny_base):
    whole = plan_of("dpo", "pairs-a.jsonl", shop, tiny_base)
    cut = plan_of("dpo", "pairs-a.jsonl", shop, tiny_base, cutoff_len=60, overlong="truncate")
    assert all(a.prompt == b.prompt and len(a) <= 60 and len(b) <= 60 for a, b in cut.units)
    assert [row.target for row in cut.rows] == [row.target for row in whole.rows]


def test_a_long_text_goes_on_in_further_rows(shop, tiny_base):
    text = "One sentence, and then another. " * 4
    write(shop / "long.jsonl", [{"text": text}, {"text": "short"}])
    plan = plan_of("pt", "long.jsonl", shop, tiny_base, cutoff_len=32)
    ids = plan.template.texts([text])[0] + [plan.template.tokenizer.eos_token_id]
    first = [row for row in plan.rows if not row.id.startswith("long-1")]
    assert max(map(len, plan.rows)) <= 32
    assert [*first[0].prompt, *(t for row in first for t in row.target)] == ids
    assert isinstance(first[0], Row)
    assert len(plan.units) == len(first) + 1
    assert registry.learn_profile(plan).rows == 2


def test_every_example_is_a_valid_spec_and_each_stage_has_one():
    specs = {path.stem: load_project(path).train for path in sorted(EXAMPLES.glob("*.yaml"))}
    assert {spec.stage for spec in specs.values()} == {"sft", "pt", "rm", "ppo", "dpo", "orpo", "simpo", "kto", "grpo"}
    for name, spec in specs.items():
        assert set(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())) >= {"stage", "model_name_or_path"}
        resolve_train(spec)
