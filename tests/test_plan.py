"""What is checked before any worker starts: each fault of a base, a dataset or a setting, and what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunery.config import TrainSpec
from tunery.errors import ConfigError, DataError, ModelError
from tunery.training import prepare


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    """A copy of the tiny base to break."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"instruction": "Do it.", "input": f"box {i}", "output": f"f({i})"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "none.jsonl").write_text("")
    files = {name: {"file_name": f"{name}.jsonl"} for name in ("rows", "none")}
    (folder / "dataset_info.json").write_text(json.dumps(files))
    return folder


def plan(base: Path, data: Path, **more):
    spec = {"model_name_or_path": str(base), "dataset": "rows", "dataset_dir": str(data)} | more
    return prepare(TrainSpec.model_validate(spec))


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def pickled(base: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()


def test_pickled_weights_are_taken_only_when_asked_for(base, data):
    from tunery.training.model import build_model

    pickled(base)
    with pytest.raises(ModelError, match="pickle can run any code") as caught:
        plan(base, data)
    assert "allow_pickle: true" in (caught.value.hint or "")
    found = plan(base, data, allow_pickle=True)
    assert any("loaded from pickles" in note for note in found.notes)
    before = found.base.digest
    build_model(found.spec, base, "cpu")
    (base / "pytorch_model.bin").write_bytes((base / "pytorch_model.bin").read_bytes() + b"x")
    assert plan(base, data, allow_pickle=True).base.digest != before


def test_a_base_without_weights(base, data):
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        plan(base, data, allow_pickle=True)


def test_code_that_comes_with_a_base_runs_only_when_trusted_and_is_named(base, data):
    (base / "config_own.py").write_text(
        "from transformers import Qwen2Config\n\n\nclass OwnConfig(Qwen2Config):\n    model_type = 'own'\n"
    )
    names = {"AutoConfig": "config_own.OwnConfig", "AutoModelForCausalLM": "config_own.OwnModel"}
    change(base / "config.json", model_type="own", architectures=["OwnModel"], auto_map=names)
    with pytest.raises(ModelError) as caught:
        plan(base, data)
    assert "trust_remote_code: true" in (caught.value.hint or "")
    assert any("config_own.py" in note for note in plan(base, data, trust_remote_code=True).notes)


def test_a_model_of_another_kind(base, data):
    change(base / "config.json", model_type="bert", architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError, match="BertForMaskedLM, not a causal language model"):
        plan(base, data)


def test_a_model_transformers_does_not_know(base, data):
    change(base / "config.json", model_type="nosuch")
    with pytest.raises(ModelError, match="does not know"):
        plan(base, data)


def test_a_tokenizer_without_chat_template_names_the_layouts(base, data):
    for file in base.glob("chat_template*"):
        file.unlink()
    with pytest.raises(ModelError, match="no chat template") as caught:
        plan(base, data)
    assert "chatml | qwen | llama3" in (caught.value.hint or "")
    assert plan(base, data, template="chatml").rows


def test_a_tokenizer_that_is_larger_than_the_embedding(base, data):
    change(base / "config.json", vocab_size=100)
    with pytest.raises(ModelError, match="id 258, the embedding has 100 rows"):
        plan(base, data)


def test_an_eval_set_without_rows(base, data):
    with pytest.raises(DataError, match="empty") as caught:
        plan(base, data, eval_dataset="none")
    assert "none.jsonl" in str(caught.value)


def test_settings_that_exclude_each_other(base, data):
    with pytest.raises(ConfigError, match="mask_history and train_on_prompt"):
        plan(base, data, mask_history=True, train_on_prompt=True)


def test_more_workers_than_rows(base, data):
    with pytest.raises(ConfigError, match="5 workers for 4 rows"):
        plan(base, data, ray_num_workers=5)


def test_a_batch_is_the_product_of_its_three_keys_and_may_hold_all_rows(base, data):
    batch = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "ray_num_workers": 2}
    found = plan(base, data, **batch)
    assert found.describe()["batch_rows"] == 12
    assert found.notes == ["a batch of 12 rows holds all 4: each epoch is one step"]


def test_over_the_bundled_base_a_plan_needs_neither_pytorch_nor_transformers(data):
    """Their imports would be most of the time until a mistake is named, or a training begins."""
    code = f"""
import sys
from tunery.config import TrainSpec
from tunery.training import prepare
spec = {{"model_name_or_path": "tunery-base", "dataset": "rows", "dataset_dir": {str(data)!r}}}
plan = prepare(TrainSpec.model_validate(spec))
print(len(plan.units), sorted({{"torch", "transformers", "peft"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "4 []\n"
