"""FSDP2: workers that share the weights learn what one learns alone, and leave the same checkpoints."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tunery.config import TrainSpec, parse, resolve_train
from tunery.data.template import Row
from tunery.errors import ConfigError
from tunery.training.checks import check_tuning
from tunery.training.loop import Hooks, fit
from tunery.training.plan import Job
from tunery.training.prefixes import Group
from tunery.training.sharding import is_sharded
from tunery.training.units import Answer

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
WAYS = {
    "lora": {},
    "lora, activations computed again": {"gradient_checkpointing": True},
    "lora and whole embeddings": {"additional_target": "embed_tokens,lm_head"},
    "full": {"finetuning_type": "full"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "one row at a time": {"packing": "none"},
    "dpo": {"stage": "dpo"},
    "kto": {"stage": "kto"},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random Qwen2 of two layers, whose output is its embedding."""
    folder = tmp_path_factory.mktemp("qwen2")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **SMALL)).save_pretrained(folder)
    return folder


def job_of(base: Path, world: int, **keys: Any) -> Job:
    """Five units that begin alike and one that does not: the worker who gets that one has a pack more."""
    g = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(3, 300, (n,), generator=g).tolist()

    judged = keys.get("stage") in ("dpo", "kto")
    shared = ids(20)
    units: list[tuple[Row, ...]] = []
    for i in range(6):
        prompt = [*(shared if i < 5 else ids(20)), i + 3, *ids(4)]
        if judged:
            units.append(tuple(Answer(f"{i}/{j}", prompt, ids(3 + j), worth=float(1 - j)) for j in range(2)))
        else:
            units.append((Row(str(i), prompt, ids(5)),))
    common = {
        "model_name_or_path": str(base), "lora_rank": 4, "learning_rate": 3e-3, "max_steps": 4, "bf16": False,
        "logging_steps": 1, "save_steps": 2, "packing": "shared_prefix", "gradient_checkpointing": False,
        "per_device_train_batch_size": 6 // world, "ray_num_workers": world, "lr_scheduler_type": "constant",
        "eval_strategy": "steps", "eval_steps": 2,
    }  # fmt: skip
    spec = resolve_train(TrainSpec.model_validate(common | keys))
    groups = [Group(20, [0, 1, 2, 3, 4]), Group(0, [5])]
    if spec.packing == "none":
        groups = [Group(0, list(range(6)))]
    return Job(spec, units, groups, eval_units=units[3:], eval_groups=[Group(0, [0, 1]), Group(0, [2])])


def worker(rank: int, world: int, base: Path, folder: Path, keys: dict[str, Any], start: str | None) -> None:
    """One worker of a training of `world`; the first leaves its log beside its checkpoints."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}-meet", world_size=world, rank=rank)
    job = replace(job_of(base, world, fsdp=world > 1, **keys), resume_from=start)
    log: list[dict[str, Any]] = []
    scratch = folder if rank == 0 else folder / str(rank)
    fit(job, Hooks(log=log.append, scratch=scratch), rank=rank, world=world)
    if rank == 0:
        torch.save(log, folder / "log.pt")


def train(world: int, base: Path, folder: Path, start: Path | None = None, **keys: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    arguments = (world, base, folder, keys, str(start) if start else None)
    mp.start_processes(worker, arguments, nprocs=world, start_method="fork")  # pyright: ignore[reportPrivateImportUsage]
    return torch.load(folder / "log.pt")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_with_half_the_weights_each_learn_what_one_does(base, way, tmp_path):
    alone = train(1, base, tmp_path / "alone", **WAYS[way])
    halves = train(2, base, tmp_path / "halves", **WAYS[way])
    for one, two in zip(alone, halves, strict=True):
        for name in {"loss", "grad_norm", "eval_loss"} & one.keys():
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
    assert alone[-1]["eval_loss"] < alone[1]["loss"] + 1
    one, two = (weights(tmp_path / who / "checkpoint-4") for who in ("alone", "halves"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("way", ["lora", "full"])
def test_a_training_goes_on_with_other_workers_than_it_began_with(base, way, tmp_path):
    straight = train(1, base, tmp_path / "straight", **WAYS[way])
    train(2, base, tmp_path / "halves", **WAYS[way])
    for name, world, start in (("joined", 1, "halves"), ("divided", 2, "straight")):
        log = train(world, base, tmp_path / name, tmp_path / start / "checkpoint-2", **WAYS[way])
        assert log[0]["current_steps"] == 3
        assert log[-1]["eval_loss"] == pytest.approx(straight[-1]["eval_loss"], rel=1e-4)


def test_one_worker_has_nobody_to_share_with(base, tmp_path):
    from tunery.training.model import build_model

    spec = job_of(base, 1, fsdp=True).spec
    assert not is_sharded(build_model(spec, base, "cpu"))
    assert "nobody to share" in check_tuning(spec)[0]


@pytest.mark.parametrize("said", [True, "full_shard auto_wrap", "full_shard"])
def test_fsdp_is_written_as_transformers_has_it(said):
    assert parse(TrainSpec, {"fsdp": said}).fsdp is True


def test_who_comes_from_deepspeed_is_shown_the_way():
    with pytest.raises(ConfigError) as caught:
        parse(TrainSpec, {"deepspeed": "ds_z3_config.json"})
    assert "fsdp: true" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fp8": True}, "fsdp and fp8"),
        ({"pissa_init": True}, "fsdp and pissa_init"),
        ({"stage": "grpo"}, "grpo and fsdp"),
        ({"fsdp": "shard_grad_op"}, '"fsdp"'),
    ],
)
def test_what_is_not_shared_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        check_tuning(parse(TrainSpec, {"fsdp": True} | keys))
