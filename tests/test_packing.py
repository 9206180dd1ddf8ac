"""Packs give what unpacked rows give: the same loss, the same gradients."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from transformers import Qwen2Config as Q2

from tunery.config import TrainSpec, resolve_train
from tunery.data.template import Row
from tunery.training import attention
from tunery.training.batches import single
from tunery.training.certificate import certify
from tunery.training.model import build_model
from tunery.training.objectives import Supervised, log_probabilities
from tunery.training.packing import build_pack, make_packs
from tunery.training.prefixes import common_prefix, prefix_groups

SMALL = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS = {"qwen2": Q2, "qwen3": Qwen3Config, "llama": LlamaConfig}


def rows(n=6, prefix=20, seed=0) -> list[Row]:
    g = torch.Generator().manual_seed(seed)

    def ids(k):
        return torch.randint(3, 300, (k,), generator=g).tolist()

    shared = ids(prefix)
    answers = ((5, 9), (prefix + 2, prefix + 4))  # every second row is a conversation, an answer of it in the prefix
    return [Row(str(i), [*shared, i + 3, *ids(3 + 4 * i)], ids(2 + 3 * i), answers * (i % 2)) for i in range(n)]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[request.param](**SMALL)).save_pretrained(folder)
    spec = resolve_train(
        TrainSpec(model_name_or_path=str(folder), lora_rank=4, bf16=False, gradient_checkpointing=False)
    )
    model = build_model(spec, folder, "cpu")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # B starts at zero, which would hide faults in A's gradient
            torch.nn.init.normal_(parameter, 0, 0.05)
    return model


def loss_and_gradient(model, packs):
    model.zero_grad()
    total = torch.stack([Supervised().loss(model, pack)[0] for pack in packs]).sum()
    total.backward()
    return total.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_packed_equals_unpacked(model, train_on_prompt):
    data = rows()
    prefix = common_prefix([r.prompt for r in data])
    assert prefix == 20
    alone = [build_pack([(r,)], 0, train_on_prompt=train_on_prompt) for r in data]
    loss, gradient = loss_and_gradient(model, alone)
    for how in (
        make_packs(single(data), prefix, 9999, train_on_prompt=train_on_prompt),
        make_packs(single(data), prefix, 60, train_on_prompt=train_on_prompt),
        make_packs(single(data), 0, 9999, train_on_prompt=train_on_prompt),
    ):
        packed_loss, packed_gradient = loss_and_gradient(model, list(how))
        assert packed_loss == pytest.approx(loss, rel=1e-5)
        assert (packed_gradient - gradient).norm() / gradient.norm() < 1e-5


def test_unpacked_equals_transformers_and_peft(model):
    """The reference is PEFT's own forward with transformers' attention and its labels, -100 on the prompt."""
    row = rows()[-1]
    ours = Supervised().loss(model, build_pack([(row,)], 0))[0].item()
    fused = [(m, m.__dict__.pop("forward")) for m in model.modules() if "forward" in m.__dict__]
    assert fused
    model.base_model.model.set_attn_implementation("eager")
    try:
        ids = row.prompt + row.target
        assert row.answers
        labels = torch.tensor([[token if at in row.supervised else -100 for at, token in enumerate(ids)]])
        out = model(input_ids=torch.tensor([ids]), labels=labels)
        assert ours == pytest.approx(out.loss.item() * len(row.supervised), rel=1e-5)
    finally:
        model.base_model.model.set_attn_implementation("tunery_shared_prefix")
        for module, forward in fused:
            module.forward = forward


def test_packs_hold_every_row_once_and_stay_within_the_limit():
    data = rows(n=9)
    packs = list(make_packs(single(data), 20, 90))
    assert sum(p.rows for p in packs) == 9
    assert all(p.ids.numel() <= 90 or p.rows == 1 for p in packs)
    assert sum(len(p.labels) for p in packs) == sum(len(r.supervised) for r in data)
    assert sum(p.logical_tokens for p in packs) == sum(map(len, data))


def test_common_prefix_leaves_each_prompt_a_token_of_its_own():
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1, 2], [3]]) == 0
    assert common_prefix([]) == 0


def pairs(n=4, prefix=20, seed=1) -> list[tuple[Row, Row]]:
    """Two answers to each prompt."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for row in rows(n, prefix, seed):
        other = torch.randint(3, 300, (len(row.target) + 2,), generator=g).tolist()
        out.append((row, Row(f"{row.id}-", row.prompt, other, row.answers)))
    return out


def test_answers_to_one_prompt_share_it_and_do_not_see_each_other(model):
    data = pairs()
    alone = torch.cat([log_probabilities(model, build_pack([(row,)], 0)) for pair in data for row in pair])
    pack = build_pack(data, 20)
    assert pack.ids.numel() == 20 + sum(len(a.prompt) - 20 + len(a.target) + len(b.target) for a, b in data)
    torch.testing.assert_close(log_probabilities(model, pack), alone)
    flat = [single for pair in data for single in pair]
    assert pack.logical_tokens == sum(map(len, flat))


def test_rows_of_several_instructions_share_each_their_own():
    first, second = [7] * 40, [7] * 4 + [9] * 36
    prompts = [[*(first if i % 2 else second), 100 + i, 5] for i in range(40)]
    groups = prefix_groups(prompts, batch_rows=16)
    assert sorted((g.prefix, len(g.members)) for g in groups) == [(40, 20), (40, 20)]
    assert sorted(i for g in groups for i in g.members) == list(range(40))
    # With two rows a batch there is nothing to share within a group: the four tokens all have in common stay.
    assert [(g.prefix, len(g.members)) for g in prefix_groups(prompts, batch_rows=2)] == [(4, 40)]


def test_packs_of_a_batch_are_of_like_size():
    data = [Row(str(i), [1] * 10 + [i], [2] * 9) for i in range(10)]
    sizes = [p.rows for p in make_packs(single(data), 10, 10 + 4 * 10)]
    assert sorted(sizes) == [3, 3, 4]


def test_attention_by_products_equals_the_fused_one():
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 16, generator=g) for heads, n in ((4, 5), (2, 9), (2, 9)))
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4).expand(3, 1, 5, 9)
    one, other = (
        attend(query, key, value, mask, None) for attend in (attention._masked, attention._masked_by_products)
    )
    torch.testing.assert_close(one, other)


def test_a_certificate_holds_for_a_model_that_heeds_the_mask(model):
    data = single(rows())
    found = certify(model, list(make_packs(data, 20, 9999)), data)
    assert found.holds
    assert found.gradient_error < 1e-4
    assert found.packed_tokens < found.unpacked_tokens == sum(len(r) for (r,) in data)
    assert all(p.grad is None for p in model.parameters())


def test_a_certificate_fails_for_a_model_that_lets_rows_see_each_other(model):
    data = single(rows())
    leaking = list(make_packs(data, 20, 9999))
    one = [replace(p, unit=(p.unit > 0).long()) for p in leaking]  # all rows as one unit
    assert not certify(model, one, data).holds
