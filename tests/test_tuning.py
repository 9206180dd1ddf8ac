"""What is tuned, in LLaMA-Factory's words: each way learns, is kept, and works where it is used."""

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from test_journey import write_rows
from test_packing import SMALL, rows
from transformers import AutoConfig, AutoModelForCausalLM

import tunery
from tunery import versions
from tunery.config import TrainSpec, parse, resolve_train
from tunery.data.template import Row
from tunery.engine.cluster import free_port
from tunery.errors import ConfigError, ModelError
from tunery.ops import registry, verbs
from tunery.training.batches import single
from tunery.training.certificate import certify
from tunery.training.checks import check_stage, check_tuning
from tunery.training.keeping import load_tuned, save_tuned, tuned_state
from tunery.training.loop import Hooks, fit
from tunery.training.model import build_model
from tunery.training.optimizer import build_optimizer, lr_factor
from tunery.training.packing import build_pack, make_packs
from tunery.training.plan import Job, _packing
from tunery.training.prefixes import Group

WAYS = {
    "full": {"finetuning_type": "full", "learning_rate": 3e-3},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "freeze first, mlp": {
        "finetuning_type": "freeze", "freeze_trainable_layers": -1, "freeze_trainable_modules": "mlp",
        "freeze_extra_modules": "norm,lm_head",
    },
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"pissa_init": True, "pissa_iter": -1},
    "lora+": {"loraplus_lr_ratio": 4.0},
    "whole modules": {"additional_target": "embed_tokens,lm_head"},
    "neftune": {"neftune_noise_alpha": 1.0, "packing": "sequence"},
    "dropout": {"lora_dropout": 0.1, "packing": "sequence"},
    "sgd": {"optim": "sgd", "learning_rate": 0.3},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random Llama of two layers, with weights in bf16."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def spec_of(base: Path, **keys) -> TrainSpec:
    common = {
        "lora_rank": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_steps": 6, "logging_steps": 1,
        "per_device_train_batch_size": 6, "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    return resolve_train(TrainSpec(model_name_or_path=str(base), **common | keys))


def job_of(spec: TrainSpec, **more) -> Job:
    shared = spec.packing in ("auto", "shared_prefix")
    spec = spec.model_copy(update={"packing": "shared_prefix"}) if spec.packing == "auto" else spec
    return Job(spec, single(rows()), [Group(20 if shared else 0, list(range(6)))], **more)


def logits(model, row: Row) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([row.prompt + row.target])).logits


def plainly(folder: Path) -> Any:
    """A model as anybody loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_learns_and_goes_on_from_a_checkpoint_as_if_nothing_had_happened(base, way, tmp_path):
    job, logged = job_of(spec_of(base, save_steps=3, **WAYS[way])), []
    model = build_model(job.spec, base, "cpu")
    fit(job, Hooks(log=logged.append, scratch=tmp_path), model=model)
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.1

    again = build_model(job.spec, base, "cpu")
    resumed = job_of(job.spec, resume_from=str(tmp_path / "checkpoint-3"))
    fit(resumed, Hooks(scratch=tmp_path / "again"), model=again)
    for (name, one), (_, two) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert one.equal(two), name


@pytest.mark.parametrize("way", ["full", "freeze", "rslora", "dora", "pissa", "whole modules"])
def test_packed_equals_unpacked_however_it_is_tuned(base, way):
    model = build_model(spec_of(base, **WAYS[way]), base, "cpu")
    data = single(rows())
    found = certify(model, list(make_packs(data, 20, 9999)), data)
    assert found.holds
    assert max(found.loss_error, found.gradient_error) < 1e-4


@pytest.mark.parametrize("way", [w for w in WAYS if w not in ("sgd", "lora+")])
def test_what_is_written_is_what_was_trained(base, way, tmp_path):
    """With the base as it is: also PiSSA's adapter, which was trained on another."""
    spec = spec_of(base, **WAYS[way])
    model = build_model(spec, base, "cpu")
    fit(job_of(spec), Hooks(scratch=tmp_path), model=model)
    folder = tmp_path / "checkpoint-6"
    if spec.finetuning_type != "lora":
        written = AutoModelForCausalLM.from_pretrained(folder)  # in the dtype that its config.json says
        for name, parameter in written.named_parameters():
            assert parameter.equal(model.get_parameter(name).to(torch.bfloat16)), name
    else:
        row = rows()[-1]
        ours = logits(model, row)
        theirs = logits(PeftModel.from_pretrained(plainly(base), str(folder)), row)
        # PiSSA's residual is rounded to the base's dtype, here bf16 held as fp32
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
        assert (ours - logits(plainly(base), row)).abs().max() > 0.01


def test_pissa_is_written_with_twice_the_rank_and_the_same_scale(base, tmp_path):
    for rslora in (False, True):
        model = build_model(spec_of(base, pissa_init=True, use_rslora=rslora), base, "cpu")
        folder = tmp_path / str(rslora)
        folder.mkdir()
        save_tuned(model, folder)
        config = versions.adapter_config(folder)
        assert config["r"] == 8
        root = math.sqrt if rslora else float
        assert config["lora_alpha"] / root(8) == pytest.approx(8 / root(4))
        untrained = logits(PeftModel.from_pretrained(plainly(base), str(folder)), rows()[0])
        torch.testing.assert_close(untrained, logits(plainly(base), rows()[0]), rtol=1e-4, atol=1e-5)


def test_pissa_goes_on_from_another_machines_decomposition(base):
    """Singular vectors are known up to their sign."""
    one, two = (build_model(spec_of(base, **WAYS["pissa"]), base, "cpu") for _ in range(2))
    state = {kind: {name: -weight for name, weight in found.items()} for kind, found in tuned_state(one).items()}
    load_tuned(two, state)
    torch.testing.assert_close(logits(two, rows()[0]), logits(one, rows()[0]))
    with pytest.raises(ValueError, match="other parameters"):
        load_tuned(build_model(spec_of(base), base, "cpu"), {"tuned": {}})


def test_frozen_parts_keep_every_bit(base, tmp_path):
    spec = spec_of(base, **WAYS["freeze"])
    fit(job_of(spec), Hooks(scratch=tmp_path))
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6").state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)


def test_noise_is_as_loud_in_a_pack_as_alone(base):
    """NEFTune's noise is at most alpha / sqrt(L d), L being the row's own length."""
    model: Any = build_model(spec_of(base, neftune_noise_alpha=5.0), base, "cpu")
    heard = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, out: heard.append(out))
    long, short = [(rows()[5],)], [(rows()[0],)]
    pack = build_pack([*long, *short], 0)
    model(input_ids=pack.ids, position_ids=pack.positions)
    model.eval()
    model(input_ids=pack.ids, position_ids=pack.positions)
    noise = (heard[0] - heard[1])[0].abs()
    at = len(rows()[5])
    for part, length in ((noise[:at], at), (noise[at:], len(rows()[0]))):
        limit = 5.0 / math.sqrt(length * 64)
        assert 0.95 * limit < part.max() <= limit * 1.001


def test_b_learns_faster_than_a_with_lora_plus_and_vectors_do_not_decay(base):
    model = build_model(spec_of(base, loraplus_lr_ratio=16.0), base, "cpu")
    names = {p: name for name, p in model.named_parameters()}
    found = build_optimizer(model, spec_of(base, loraplus_lr_ratio=16.0)).param_groups
    assert {(g["initial_lr"], "lora_B" in names[p]) for g in found for p in g["params"]} == {
        (1e-2, False),
        (0.16, True),
    }
    full = spec_of(base, finetuning_type="full", weight_decay=0.1)
    found = build_optimizer(build_model(full, base, "cpu"), full).param_groups
    assert {(g["weight_decay"], p.ndim) for g in found for p in g["params"]} == {(0.1, 2), (0.0, 1)}


@pytest.mark.parametrize(
    ("keys", "shape"),
    [
        ({"lr_scheduler_type": "cosine"}, [0, 0.5, 1, 0.5, 0]),
        ({"lr_scheduler_type": "linear"}, [0, 0.5, 1, 0.5, 0]),
        ({"lr_scheduler_type": "constant"}, [1, 1, 1, 1, 1]),
        ({"lr_scheduler_type": "constant_with_warmup"}, [0, 0.5, 1, 1, 1]),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}}, [0, 0.5, 1, 0.25, 0]),
        ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}}, [0, 0.5, 1, 1, 0]),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}}, [0, 0.5, 1, 0.55, 0.1]),
        ({"lr_scheduler_type": "inverse_sqrt"}, [0, 0.5, 1, math.sqrt(0.5), math.sqrt(1 / 3)]),
    ],
)
def test_the_learning_rate_follows_transformers(keys, shape):
    factor = lr_factor(TrainSpec(learning_rate=1e-2, warmup_steps=2, **keys), 6)
    assert [factor(step) for step in (0, 1, 2, 4, 6)] == pytest.approx(shape, abs=1e-4)


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"finetuning_type": "full", "use_dora": True}, "full has no use_dora", "finetuning_type: lora"),
        ({"freeze_extra_modules": "norm"}, "lora has no freeze_extra_modules", "finetuning_type: freeze"),
        ({"pissa_init": True, "pissa_convert": False}, "fits only a base changed by PiSSA", "leave it out"),
        ({"pissa_init": True, "use_dora": True}, "do not go together", "choose one"),
        ({"fp8": True, "lora_dropout": 0.1}, "do not go together", "choose one"),
        ({"stage": "grpo", "beta": 0.04, "pissa_init": True}, "beneath plain LoRA", "without pissa_init"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, message, hint):
    spec = resolve_train(TrainSpec(**keys))
    check = check_stage if spec.stage == "grpo" else check_tuning
    with pytest.raises(ConfigError) as caught:
        check(spec)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_quantisation_needs_its_package_and_a_gpu(base):
    spec = spec_of(base, quantization_bit=4)
    with pytest.raises(ConfigError, match="needs a GPU"):
        build_model(spec, base, "cpu")
    with pytest.raises(ConfigError, match="needs the package bitsandbytes") as caught:
        check_tuning(spec)
    assert "pip install" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"additional_target": "embed"}, "has no embed", "embed_tokens"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 3}, "has 2 layers", ""),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "attention"}, "has no attention", "self_attn"),
        ({"finetuning_type": "freeze", "freeze_extra_modules": "head"}, "has no head", "lm_head"),
    ],
)
def test_names_that_the_model_does_not_have_are_refused_with_those_it_has(base, keys, message, hint):
    with pytest.raises(ModelError) as caught:
        build_model(spec_of(base, **keys), base, "cpu")
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_values_that_are_not_offered_are_refused_by_name():
    for keys in ({"optim": "adafactor"}, {"lr_scheduler_type": "reduce_lr_on_plateau"}, {"quantization_bit": 3}):
        with pytest.raises(ConfigError, match=f'"{next(iter(keys))}"'):
            parse(TrainSpec, keys)
    with pytest.raises(ConfigError, match="num_decay_steps"):
        lr_factor(TrainSpec(lr_scheduler_type="warmup_stable_decay"), 10)
    with pytest.raises(ConfigError, match="'power'"):
        lr_factor(TrainSpec(lr_scheduler_kwargs={"power": 2}), 10)


def test_what_follows_for_serving_and_packing_is_said_beforehand():
    def notes(**keys) -> str:
        return " ".join(check_tuning(resolve_train(TrainSpec(**keys))))

    assert notes() == notes(use_rslora=True) == notes(finetuning_type="full") == ""
    assert "models export --format merged" in notes(use_dora=True)
    assert "whole modules" in notes(additional_target="lm_head")
    assert "plain LoRA of rank 16" in notes(pissa_init=True, lora_rank=8)
    assert "ranks up to 512" in notes(pissa_init=True, lora_rank=512)
    assert "constant_with_warmup" in notes(lr_scheduler_type="constant", warmup_ratio=0.1)
    said: list[str] = []
    found = tunery.bases.find_base("tunery-base")
    asked = TrainSpec(packing="shared_prefix", lora_dropout=0.1)
    assert _packing(asked, found, 100, said) == "sequence"
    assert "would not be exact" in said[-1]
    assert _packing(TrainSpec(neftune_noise_alpha=5), found, 100, said) == "sequence"
    assert "neftune_noise_alpha" in said[-1]


@pytest.fixture(scope="module")
def shop(tmp_path_factory, tiny_base) -> verbs.Project:
    folder = tmp_path_factory.mktemp("shop")
    write_rows(folder / "data")
    train = {
        "dataset": "shop-train", "eval_dataset": "shop-test", "template": "chatml", "max_steps": 4, "bf16": False,
        "learning_rate": 5e-3, "per_device_train_batch_size": 4, "save_steps": 2, "plot_loss": False,
        "model_name_or_path": str(tiny_base), "lora_rank": 8,
    }  # fmt: skip
    evaluation = {"sampling": {"max_tokens": 12}, "confidence": False}
    return verbs.as_project({"model": "shop", "home": str(folder), "train": train, "eval": evaluation})


@pytest.mark.usefixtures("ray_session")
@pytest.mark.long
def test_a_model_tuned_in_full_is_a_version_that_is_evaluated_beside_its_base_asked_and_served(shop, tmp_path):
    shop.train.finetuning_type = "full"
    run = tunery.train(shop)
    version = versions.get(Path(shop.home), "shop")
    assert (version.rank, version.whole, version.base) == (0, True, shop.train.model_name_or_path)
    assert {p.name for p in version.adapter.iterdir()} >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert not list(version.adapter.glob("adapter*"))
    with pytest.raises(tunery.errors.TrainError, match="already holds a trained model"):
        tunery.training.train(tunery.training.prepare(verbs.placed_train(shop)), Path(run.result["output"]))

    report = tunery.evaluate(shop)
    assert set(report.metrics) == {"base", "shop@1"}
    assert all(a["error"] is None for s in report.samples for a in s["answers"].values())
    model = plainly(version.adapter)
    loaded = verbs.load_model(shop, "shop@1")
    same = 0
    for sample, prompt in zip(report.samples, loaded.template.prompts(tunery.load("shop-test", str(
        Path(shop.home) / "data")).examples), strict=True):  # fmt: skip
        out = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=2)
        text = loaded.template.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip()
        same += text == sample["answers"]["shop@1"]["text"]
    assert same >= 3  # one near-tie in low precision is forgiven

    shop.batch.input, shop.batch.output = str(tmp_path / "rows.csv"), str(tmp_path / "answers.jsonl")
    Path(shop.batch.input).write_text("text\nred bike 1\n")
    shop.batch.sampling.max_tokens = 8
    tunery.batch(shop)
    (answer,) = map(json.loads, Path(shop.batch.output).read_text().splitlines())
    assert answer["error"] is None and answer["completion_tokens"] > 0
    shop.serve.port = free_port("127.0.0.1", 0)
    with tunery.serve(shop) as service:
        assert service.models == ("shop@1", "shop")
        asked = {"model": "shop", "prompt": "red bike", "max_tokens": 4}
        assert httpx.post(f"{service.url}/completions", json=asked, trust_env=False).status_code == 200
    tunery.export("shop@1", tmp_path / "merged", dtype="float32", project=shop)
    with pytest.raises(ConfigError, match="is a whole model and has no adapter"):
        tunery.export("shop@1", tmp_path / "adapter", format="adapter", project=shop)


def test_an_adapter_that_vllm_cannot_apply_is_refused_before_an_engine_starts(shop, tiny_base, tmp_path):
    spec = shop.model_copy(deep=True, update={"home": str(tmp_path), "model": "dora"})
    spec.train = spec.train.model_copy(
        update={"finetuning_type": "lora", "use_dora": True, "dataset_dir": str(Path(shop.home) / "data")}
    )
    plan = tunery.training.prepare(spec.train)
    assert "DoRA" in plan.notes[0]
    (tmp_path / "output").mkdir()
    save_tuned(build_model(plan.spec, tiny_base, "cpu"), tmp_path / "output")
    trained = tunery.training.Trained(tmp_path / "output", {})
    profile = registry.learn_profile(plan)
    registry.register(tmp_path, "dora", plan, trained, profile=profile, run_id="train-1")
    spec.eval.dataset_dir = str(Path(shop.home) / "data")
    spec.serve.models = ["dora"]
    for ask in (lambda: tunery.evaluate(spec), lambda: tunery.batch(spec), lambda: tunery.serve(spec).__enter__()):
        with pytest.raises(ModelError, match="does not apply DoRA") as caught:
            ask()
        assert "tunery models export dora@1" in (caught.value.hint or "")
