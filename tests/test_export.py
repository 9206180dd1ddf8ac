"""A version taken elsewhere: what is written answers as base and adapter do, and works where such files work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from making import make_adapter

import tunery
from tunery import versions
from tunery.bases import find_base, load_tokenizer
from tunery.config import BUNDLED_BASE, Project
from tunery.data.template import Template
from tunery.errors import ConfigError, ModelError, ResourceError, RunError, StorageError
from tunery.exporting.gguf import pre_tokenizer
from tunery.exporting.greedy import greedy
from tunery.ops import registry, runs
from tunery.training import Trained, prepare

DATA = Path(tunery.__file__).parent / "data" / "bikeshop"


def project_of(home: Path, **train) -> Project:
    return Project.model_validate({
        "model": "shop", "home": str(home),
        "train": {"dataset": "bikeshop-train", "eval_dataset": "bikeshop-val", "dataset_dir": str(DATA)} | train,
    })  # fmt: skip


def registered(project: Project, adapter: Path) -> Project:
    """Give the project a version with this adapter, as the verb `train` does after the workers."""
    plan = prepare(project.train)
    with runs.start(Path(project.home), "train", project.model_copy(update={"train": plan.spec})) as run:
        profile = registry.learn_profile(plan)
        registry.register(Path(project.home), "shop", plan, Trained(adapter, {}), profile=profile, run_id=run.id)
    return project


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Project:
    """A version of the bundled base, trained for 16 steps by the real loop."""
    from tunery.training.batches import single
    from tunery.training.loop import Hooks, fit
    from tunery.training.plan import Job

    home = tmp_path_factory.mktemp("shop")
    project = project_of(home, max_steps=16, max_samples=128, eval_strategy="no")
    plan = prepare(project.train)
    saved: list[Path] = []
    fit(Job(plan.spec, single(plan.rows), plan.groups), Hooks(save=lambda at, _: saved.append(at), scratch=home))
    return registered(project, saved[-1])


@pytest.fixture(scope="module")
def random(tmp_path_factory, tiny_base) -> Project:
    """A version that says random things: an untrained Qwen2 with a random adapter."""
    home = tmp_path_factory.mktemp("random")
    adapter = make_adapter(tiny_base, home / "adapter")
    return registered(project_of(home, model_name_or_path=str(tiny_base), lora_rank=8, template="chatml"), adapter)


def answers(model, prompts, stop_ids) -> list[list[int]]:
    return [[step.token for step in greedy(model, prompt, stop_ids)] for prompt in prompts]


@pytest.fixture(scope="module")
def merged(shop, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "merged"
    done = tunery.export("shop", out, project=shop)
    assert (done.format, done.dtype, done.prompts) == ("merged", "bfloat16", 5)
    return out


def test_the_merged_folder_is_a_base_of_its_own(shop, merged):
    """It answers without Tunery as base and adapter do with it; the files are those save_pretrained writes."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    record = json.loads((merged / "export.json").read_text())
    assert record["version"] == "shop@1"
    assert record["check"]["same"] and record["check"]["tokens"] > 8
    assert record["instruction"].startswith("Turn the bicycle shop message")
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert names <= {file.name for file in merged.iterdir()}
    assert not (merged / ".lock").exists()
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    chat = [{"role": "user", "content": f"{record['instruction']}\nDo you have the Sorrel C42 in red?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    config = GenerationConfig.from_pretrained(merged)
    model: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    told = model.generate(torch.tensor([prompt]), generation_config=config, max_new_tokens=64)[0, len(prompt) :]
    base = AutoModelForCausalLM.from_pretrained(find_base(BUNDLED_BASE).path, dtype=torch.float32)
    version = versions.get(Path(shop.home), "shop")
    (before,) = answers(PeftModel.from_pretrained(base, str(version.adapter)), [prompt], [2])
    assert told.tolist() == before
    assert before[-1] == tokenizer.eos_token_id


def test_the_merged_folder_can_be_trained_on(merged, tmp_path):
    from tunery.training.model import build_model

    plan = prepare(project_of(tmp_path, model_name_or_path=str(merged), max_samples=20).train)
    assert plan.template.name == "auto"
    bundled = prepare(project_of(tmp_path, max_samples=20).train)
    assert plan.rows == bundled.rows
    build_model(plan.spec, plan.base.path, "cpu")


def test_a_named_template_goes_along_as_the_chat_template(tiny_base, tmp_path):
    project = project_of(tmp_path, model_name_or_path=str(tiny_base), lora_rank=8, template="qwen")
    registered(project, make_adapter(tiny_base, tmp_path / "adapter"))
    tunery.export("shop", tmp_path / "out", dtype="float32", project=project)
    base = find_base(str(tmp_path / "out"))
    again = Template("auto", load_tokenizer(base))
    assert again.digest == Template("qwen", load_tokenizer(find_base(str(tiny_base)))).digest


def test_the_adapter_is_a_peft_folder_that_finds_its_base(shop, tmp_path):
    import torch
    from peft import AutoPeftModelForCausalLM

    done = tunery.export("shop@1", tmp_path / "adapter", format="adapter", project=shop)
    assert done.format == "adapter"
    assert {f.name for f in done.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "export.json",
    }  # fmt: skip  (a tokenizer would be taken for the adapter's own by vLLM)
    AutoPeftModelForCausalLM.from_pretrained(str(done.path), dtype=torch.float32)


def test_gguf_holds_the_model_the_tokenizer_and_the_chat_template(shop, tmp_path):
    gguf = pytest.importorskip("gguf")
    done = tunery.export("shop", tmp_path / "gguf", format="gguf", project=shop)
    (file,) = done.path.glob("*.gguf")
    assert file.name == "shop-1-bfloat16.gguf"
    fields = gguf.GGUFReader(file).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["tokenizer.ggml.pre"].contents() == "poro-chat"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert "<|im_start|>" in fields["tokenizer.chat_template"].contents()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_gguf_of_other_families(kind, tiny_base, tmp_path):
    pytest.importorskip("gguf")
    base = tiny_base
    if kind == "qwen3":
        base = other_model(tiny_base, tmp_path / "base", "Qwen3")
    project = project_of(tmp_path, model_name_or_path=str(base), lora_rank=8, template="chatml")
    registered(project, make_adapter(base, tmp_path / "adapter"))
    tunery.export("shop", tmp_path / "gguf", format="gguf", dtype="float32", project=project)


def test_llama_cpp_says_the_same(shop, tmp_path):
    """llama.cpp itself: turns in, text out, written, tokenised and decoded by what the file says."""
    pytest.importorskip("gguf")
    llama = pytest.importorskip("xllamacpp")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunery.data import load

    done = tunery.export("shop", tmp_path / "gguf", format="gguf", dtype="float32", project=shop)
    params = llama.CommonParams()
    params.model.path = str(next(done.path.glob("*.gguf")))
    params.n_ctx, params.cpuparams.n_threads, params.warmup = 2048, 2, False
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    server = llama.Server(params)
    base = find_base(BUNDLED_BASE)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(versions.get(Path(shop.home), "shop").adapter))
    template = Template("chatml", load_tokenizer(base))
    for example in load("bikeshop-test", DATA, max_samples=8).examples:
        messages = [{"role": m.role, "content": m.content} for m in example.messages]
        said = server.handle_chat_completions({"messages": messages, "temperature": 0, "max_tokens": 64})
        (prompt,) = template.prompts([example])
        assert said["usage"]["prompt_tokens"] == len(prompt)
        (ours,) = answers(model, [prompt], template.stop_ids)
        assert said["choices"][0]["message"]["content"] == template.decode(ours)


def other_model(tiny_base: Path, folder: Path, family: str, **changes) -> Path:
    """Another random model with the tiny base's tokenizer."""
    import torch
    import transformers

    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = getattr(transformers, f"{family}Config")(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, head_dim=32,
        num_key_value_heads=2, max_position_embeddings=2048, eos_token_id=2, pad_token_id=0, **changes,
    )  # fmt: skip
    torch.manual_seed(1)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return folder


def test_tokenizers_are_told_apart_by_what_they_do(tiny_base):
    """A byte-level tokenizer with merges across its own cuts is none of llama.cpp's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*letters, "sĠ"])}, [("s", "Ġ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with pytest.raises(ModelError, match="no tokenizer that gives this base's tokens"):
        pre_tokenizer(PreTrainedTokenizerFast(tokenizer_object=core))


# --- what goes wrong ---


def test_an_answer_that_differs_stops_the_export(tiny_base, tmp_path):
    """float16 ends at 65,504: this model's output head does not fit into it."""
    from safetensors.torch import load_file, save_file

    base = other_model(tiny_base, tmp_path / "base", "Qwen3")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] *= 1e7
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    project = project_of(tmp_path, model_name_or_path=str(base), lora_rank=8, template="chatml")
    registered(project, make_adapter(base, tmp_path / "adapter"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=r"5 of 5 answers are not what base and adapter say: .* token 1 was") as caught:
        tunery.export("shop", tmp_path / "out", dtype="float16", project=project)
    assert "--dtype float32" in (caught.value.hint or "")
    assert sorted(tmp_path.iterdir()) == before
    assert runs.list_runs(tmp_path)[0].state == "failed"
    assert tunery.export("shop", tmp_path / "out", dtype="float32", project=project).tokens > 5


def test_prompts_without_the_rows_are_the_versions_instruction(random, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(random.home, home)
    shutil.rmtree(home / "runs")
    project = random.model_copy(update={"home": str(home)})
    assert tunery.export("shop", tmp_path / "out", format="adapter", project=project).prompts == 3


@pytest.mark.parametrize(
    ("ref", "more", "kind", "message", "hint"),
    [
        ("shap", {}, RunError, 'no model "shap"', "did you mean shop"),
        ("shop@7", {}, RunError, 'no version "7"', "it has 1"),
        ("shop", {"format": "ggfu"}, ConfigError, 'unknown format "ggfu"', "gguf"),
        ("shop", {"dtype": "int4"}, ConfigError, 'unknown dtype "int4"', "bfloat16"),
    ],
)
def test_what_is_not_there_is_named(random, tmp_path, ref, more, kind, message, hint):
    with pytest.raises(kind, match=message) as caught:
        tunery.export(ref, tmp_path / "out", project=random, **more)
    assert hint in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_gone(tiny_base, tmp_path):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    project = project_of(tmp_path, model_name_or_path=str(base), lora_rank=8, template="chatml")
    registered(project, make_adapter(base, tmp_path / "adapter"))
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="no such base model"):
        tunery.export("shop", tmp_path / "out", project=project)


def test_nothing_is_overwritten(random, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(StorageError, match="there already"):
        tunery.export("shop", tmp_path, format="adapter", project=random)
    with pytest.raises(StorageError, match="there already"):
        tunery.export("shop", tmp_path / "note.txt", format="adapter", project=random)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.part").mkdir()  # an export that was killed left this
    (tmp_path / ".empty.part" / "model.safetensors").write_text("half")
    done = tunery.export("shop", tmp_path / "empty", format="adapter", project=random)
    assert not (done.path / "model.safetensors").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "note.txt"]


def test_want_of_disk_is_told_before_anything_is_loaded(random, tmp_path, monkeypatch):
    monkeypatch.setattr("tunery.storage.free_bytes", lambda path: 1 << 20)
    with pytest.raises(ResourceError, match="GiB are free"):
        tunery.export("shop", tmp_path / "out", project=random)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Gemma", {}, "GemmaForCausalLM is none of llama, qwen2, qwen3"),
        ("Llama", {"attention_bias": True}, "biases"),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "positions are scaled",
        ),
    ],
)
def test_gguf_is_refused_where_it_would_be_wrong(family, changes, message, tiny_base, tmp_path):
    pytest.importorskip("gguf")
    base = other_model(tiny_base, tmp_path / "base", family, **changes)
    project = project_of(tmp_path, model_name_or_path=str(base), lora_rank=8, template="chatml")
    registered(project, make_adapter(base, tmp_path / "adapter"))
    with pytest.raises(ModelError, match=message) as caught:
        tunery.export("shop", tmp_path / "out", format="gguf", project=project)
    assert "convert_hf_to_gguf.py" in (caught.value.hint or "")


def test_gguf_without_its_package(random, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match="need the package gguf") as caught:
        tunery.export("shop", tmp_path / "out", format="gguf", project=random)
    assert "tunery[gguf]" in (caught.value.hint or "")


def test_the_command_answers_in_json(random, tmp_path, capsys, monkeypatch):
    import yaml

    from tunery import cli

    file = tmp_path / "tunery.yaml"
    file.write_text(yaml.safe_dump(random.model_dump(mode="json")))
    out = tmp_path / "out"
    words = ["models", "export", "shop@1", str(out), "--format", "adapter", "--project", str(file), "--json"]
    monkeypatch.setattr("sys.argv", ["tunery", *words])
    cli.main()
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["format"], told["prompts"]) == (str(out), "adapter", 5)
