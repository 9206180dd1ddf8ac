"""From rows to answers through the public functions: real Ray Train, a real engine, files on disk."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from conftest import write_rows
from making import make_adapter
from typer.testing import CliRunner

import tunery
from tunery import versions
from tunery.cli.app import app
from tunery.engine.cluster import free_port
from tunery.engine.rows import EngineRows
from tunery.errors import ConfigError, DataError, ModelError, ResourceError, RunError, StorageError, TrainError
from tunery.ops import runs, verbs
from tunery.ops.scaffold import init
from tunery.training import prepare

pytestmark = pytest.mark.usefixtures("ray_session")

SETTINGS = {
    "dataset": "shop-train", "eval_dataset": "shop-test", "template": "chatml", "lora_rank": 8, "max_steps": 8,
    "per_device_train_batch_size": 4, "learning_rate": 5e-3, "logging_steps": 2, "save_steps": 4, "bf16": False,
    "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_base):
    """A project whose model has been trained once."""
    folder = tmp_path_factory.mktemp("shop")
    write_rows(folder / "data")
    return verbs.as_project(
        {
            "model": "shop",
            "home": str(folder),
            "train": SETTINGS | {"model_name_or_path": str(tiny_base)},
            "eval": {"sampling": {"max_tokens": 12}},
        }
    )


@pytest.fixture(scope="module")
def trained(project):
    events = []
    run = tunery.train(project, observer=events.append)
    return run, events


def test_training_leaves_llama_factorys_files_and_a_version(project, trained):
    run, events = trained
    assert run.state == "succeeded"
    output = Path(run.result["output"])
    for name in (
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "trainer_state.json",
        "trainer_log.jsonl", "train_results.json", "eval_results.json", "all_results.json", "training_loss.png",
        "training_eval_loss.png", "checkpoint-4", "checkpoint-8",
    ):  # fmt: skip
        assert (output / name).exists(), name
    log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0]
    assert [row["current_steps"] for row in log if "loss" in row] == [2, 4, 6, 8]
    parity = json.loads((output / "parity.json").read_text())
    assert parity["holds"]
    assert parity["gradient_error"] <= max(parity["tolerance"], 2 * parity["noise"])
    assert (output / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    version = versions.get(Path(project.home), "shop")
    assert (version.ref, version.rank, version.run_id) == ("shop@1", 8, run.id)
    assert version.instruction == "Name the colour as colour(name[...])."
    assert {e["event"] for e in events} >= {"plan", "run", "train"}
    assert next(r["loss"] for r in runs.metrics(run) if "loss" in r) == log[0]["loss"]


@pytest.mark.long
def test_two_workers_reach_the_same_adapter(project, trained):
    spec = project.model_copy(deep=True)
    spec.model = "pair"
    spec.train.ray_num_workers = 2
    spec.train.per_device_train_batch_size = 2
    run = tunery.train(spec)
    from safetensors.torch import load_file

    one = load_file(Path(trained[0].result["adapter"]) / "adapter_model.safetensors")
    two = load_file(Path(run.result["adapter"]) / "adapter_model.safetensors")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)


def test_evaluation_scores_base_and_version_on_one_engine_and_fails_by_its_gate(project, trained, tmp_path):
    file = tmp_path / "tunery.yaml"
    file.write_text(yaml.safe_dump(project.model_dump(mode="json")))
    done = CliRunner().invoke(app, ["eval", "--project", str(file), "--gate", "parse_rate>=0, slot_f1>1", "--json"])
    assert done.exit_code == 1  # as CI wants it
    told = json.loads(done.stdout)
    assert set(told["metrics"]) == {"base", "shop@1"}
    assert told["n"] == 4
    assert [v["passed"] for v in told["record"]["gate"]] == [True, False]
    run = next(r for r in runs.list_runs(Path(project.home)) if r.kind == "eval")
    saved = json.loads((run.path / "report.json").read_text())
    assert saved["metrics"]["shop@1"]["slot_f1"]["n"] == 4
    assert all(a["error"] is None for s in saved["samples"] for a in s["answers"].values())
    assert saved["samples"][0]["answers"]["base"]["finish_reason"] in ("stop", "length")


def test_evaluation_under_the_grammar_with_confidences_and_a_gate(project, trained):
    spec = project.model_copy(deep=True)
    spec.eval.constrained = True
    spec.eval.calibrate_on = "shop-train"
    spec.eval.sampling.max_tokens = 40
    spec.eval.gate = "parse_rate>=0.5, slot_f1>=baseline"
    report = tunery.evaluate(spec)
    assert list(report.metrics) == ["base", "shop@1", "shop@1 constrained"]
    constrained = report.metrics["shop@1 constrained"]
    assert constrained["parse_rate"].value == 1  # the grammar allows nothing else
    values = [v for s in report.samples for v in s["answers"]["shop@1 constrained"]["values"]]
    assert {v["flag"] for v in values} <= {None, "ungrounded"}  # a wrong colour, but none outside the set
    trust = report.details["shop@1 constrained"]["confidence"]
    assert trust["row"]["unknown"] == 0
    assert trust["slot"]["unknown"] == 0
    assert 0 <= trust["row"]["ece_raw"] <= 1
    assert [v["condition"] for v in report.record["gate"]] == ["parse_rate>=0.5", "slot_f1>=baseline"]
    run = next(r for r in runs.list_runs(Path(project.home)) if r.kind == "eval")
    assert {p.name for p in run.path.iterdir()} >= {"report.json", "report.md", "report.html"}
    record = json.loads((run.path / "report.json").read_text())["record"]
    assert record["model"]["ref"] == "shop@1"
    assert record["dataset"]["fingerprint"]
    assert record["profile"]["attributes"]["name"] == {"kind": "closed", "expected": "verbatim", "n": 24}
    assert {"git", "packages", "seeds", "settings", "template", "base", "calibration"} <= set(record)
    found = tunery.compare("shop@1:base", "shop@1", project=project)
    assert (found.a, found.b, found.n) == ("base", "shop@1", 4)
    again = project.model_copy(deep=True)
    again.eval.gate, again.eval.baseline, again.eval.dataset = "slot_f1>=baseline", "shop@1", "shop-train"
    with pytest.raises(ConfigError, match="was evaluated on shop-test"):
        tunery.evaluate(again)
    again.eval.baseline, again.eval.compare_base = None, False
    with pytest.raises(ConfigError, match="no baseline"):
        tunery.evaluate(again)
    again.eval.task = "json"
    with pytest.raises(DataError, match="can parse none of 24 outputs"):
        tunery.evaluate(again)
    spec.eval.calibrate_on = "shop-test"
    with pytest.raises(ConfigError, match="are evaluated on"):
        tunery.evaluate(spec)


def test_engine_answers_equal_transformers_with_the_adapter(project, trained):
    """The prompt that the engine got, and the adapter it applied, are those of training."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = verbs.load_model(project, "shop@1")
    assert loaded.version
    data = tunery.load("shop-test", str(Path(project.home) / "data"))
    prompts = loaded.template.prompts(data.examples)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(loaded.base.path, dtype=torch.float32), loaded.version.adapter
    )
    report = tunery.evaluate(project)
    same = 0
    for sample, prompt in zip(report.samples, prompts, strict=True):
        out = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=loaded.template.stop_ids
        )
        text = loaded.template.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip()
        same += text == sample["answers"]["shop@1"]["text"]
    assert same >= 3  # one near-tie in low precision is forgiven


def test_batch_answers_every_row_in_order(project, trained, tmp_path):
    source, output = tmp_path / "rows.csv", tmp_path / "answers.jsonl"
    source.write_text("id,text\n7,red bike 1\n8,blue bike 2\n9,black bike 3\n")
    spec = project.model_copy(deep=True)
    spec.batch.input, spec.batch.output = str(source), str(output)
    spec.batch.sampling.max_tokens = 40
    result = tunery.batch(spec)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert (result.rows, result.failed) == (3, 0)
    assert [r["id"] for r in rows] == ["7", "8", "9"]
    assert all(r["parsed"] and r["completion_tokens"] > 0 for r in rows)  # the grammar allows nothing else
    assert tunery.batch(spec) == result  # it is done: nothing is asked
    (run,) = [r for r in runs.list_runs(Path(project.home)) if r.kind == "batch"]
    assert [e["done"] for e in runs.metrics(run) if e["event"] == "batch"] == [3]
    spec.batch.output, spec.batch.column = str(tmp_path / "b.jsonl"), "body"
    with pytest.raises(DataError, match='no column "body"'):
        tunery.batch(spec)


def listening(heard: Path):
    """The engine's operator, which also writes down the prompts that vLLM says it was given."""

    class Listening(EngineRows):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            asked = self._engine.generate

            async def generate(prompt, params, lora=None):
                output = await asked(prompt, params, lora)
                with heard.open("a") as file:
                    file.write(json.dumps(output.prompt_token_ids) + "\n")
                return output

            self._engine.generate = generate  # type: ignore[method-assign]

    return Listening


def test_eval_batch_and_serve_give_vllm_the_prompts_of_training(project, trained, tmp_path, monkeypatch):
    heard = tmp_path / "heard.jsonl"
    monkeypatch.setattr("tunery.engine.rows.EngineRows", listening(heard))
    plan = prepare(verbs.placed_train(project))
    wanted = [row.prompt for row in plan.rows[:3]]
    spec = project.model_copy(deep=True)
    spec.eval.dataset, spec.eval.max_samples, spec.eval.compare_base = "shop-train", 3, False
    tunery.evaluate(spec)
    assert sorted(map(json.loads, heard.read_text().splitlines())) == sorted(wanted)

    heard.unlink()
    rows = (Path(project.home) / "data" / "train.jsonl").read_text().splitlines()[:3]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": json.loads(r)["input"]}) + "\n" for r in rows))
    spec.batch.input, spec.batch.output = str(tmp_path / "rows.jsonl"), str(tmp_path / "answers.jsonl")
    spec.batch.sampling.max_tokens = 1
    tunery.batch(spec)
    assert sorted(map(json.loads, heard.read_text().splitlines())) == sorted(wanted)

    bare = other_layout(project)
    served = prepare(verbs.placed_train(bare))
    spec.serve.port = free_port("127.0.0.1", 0)
    with tunery.serve(spec) as service:
        for name, examples, rows in (("shop", plan.examples, plan.rows), ("bare", served.examples, served.rows)):
            for example, row in zip(examples[:3], rows[:3], strict=True):
                messages = [{"role": m.role, "content": m.content} for m in example.messages]
                body = {"model": name, "messages": messages, "max_tokens": 1, "return_token_ids": True}
                answer = httpx.post(f"{service.url}/chat/completions", json=body, timeout=60, trust_env=False)
                assert answer.json()["prompt_token_ids"] == row.prompt


def other_layout(project):
    """A version trained with Qwen's default system turn, over a base whose chat template has none."""
    spec = project.model_copy(deep=True)
    spec.model, spec.train.template, spec.train.max_steps = "bare", "qwen", 1
    rows = [{"instruction": "Colour?", "input": f"red {i}", "output": "c(n[red])"} for i in range(4)]
    file = Path(project.home) / "data" / "bare.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec.train.dataset, spec.train.eval_dataset = str(file), None
    tunery.train(spec)
    return spec


def test_other_prompts_than_those_of_training_are_refused_by_eval_and_batch(project, trained, tmp_path):
    file = versions.get(Path(project.home), "shop@1").adapter / "prompts.json"
    honest = file.read_text()
    samples = json.loads(honest)
    samples[-1]["prompt_token_ids"][-3] += 1
    spec = project.model_copy(deep=True)
    spec.batch.input, spec.batch.output = str(tmp_path / "rows.csv"), str(tmp_path / "answers.jsonl")
    file.write_text(json.dumps(samples))
    try:
        for verb in (tunery.evaluate, tunery.batch):
            with pytest.raises(ModelError, match=r"shop@1: .* does not write the prompts it was trained on"):
                verb(spec)
    finally:
        file.write_text(honest)


def test_a_killed_training_resumes_and_ends_as_if_nothing_had_happened(project, trained, tmp_path):
    """Kill -9 of the driver after its first checkpoint; the resumed adapter equals the undisturbed one."""
    home = tmp_path / "killed"
    spec = project.model_copy(deep=True, update={"home": str(home)})
    spec.train.dataset_dir = str(Path(project.home) / "data")
    code = (
        "import sys, time, tunery\n"
        "from tunery.config import Project\n"
        "def say(e):\n"
        "    if e.get('current_steps') == 6: open(sys.argv[2], 'w').close(); time.sleep(120)\n"
        "tunery.train(Project.model_validate_json(sys.argv[1]), observer=say)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    there = tmp_path / "step-6"
    with subprocess.Popen([sys.executable, "-c", code, spec.model_dump_json(), str(there)], env=env) as process:
        while not there.exists() and process.poll() is None:
            time.sleep(0.2)
        process.kill()
    assert there.exists()
    (run,) = runs.list_runs(home)
    assert run.state == "interrupted"
    assert (run.path / "output" / "checkpoint-4").is_dir()
    assert versions.list_versions(home) == []
    time.sleep(1)

    changed = spec.model_copy(deep=True)
    changed.train.learning_rate = 1e-4
    with pytest.raises(RunError, match="other settings: learning_rate"):
        tunery.train(changed, resume="last")

    again = tunery.train(spec, resume="last")
    assert (again.id, again.state) == (run.id, "succeeded")
    straight = Path(trained[0].result["adapter"]) / "adapter_model.safetensors"
    assert (Path(again.result["adapter"]) / "adapter_model.safetensors").read_bytes() == straight.read_bytes()


def test_a_loss_that_explodes_stops_with_the_rows_named(project, tmp_path):
    spec = project.model_copy(deep=True)
    spec.train.learning_rate = 1e30
    with pytest.raises(TrainError, match="not finite") as caught:
        tunery.train(spec)
    assert "shop-train-" in (caught.value.hint or "")
    run = runs.list_runs(Path(project.home))[0]
    assert run.state == "failed"
    rows = [json.loads(line) for line in (run.path / "output" / "offending_rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(row["id"].startswith("shop-train-") and row["target"].startswith("colour(") for row in rows)
    assert list((run.path / "output").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dataset": "nope"}, DataError, "nope"),
        ({"dataset": None}, ConfigError, "no training dataset"),
        ({"task": "json"}, DataError, "can parse none of 24 outputs; the first: 'colour("),
        ({"model_name_or_path": "./nowhere"}, ModelError, "no such base model"),
        ({"template": "lama3"}, ConfigError, "unknown template"),
        ({"cutoff_len": 40}, DataError, "longer than 40 tokens"),
        ({"resources_per_worker": {"GPU": 1}}, ResourceError, "GPU"),
        ({"resources_per_worker": {"CPU": 999}}, ResourceError, "999 CPU"),
        ({"resources_per_worker": {"forklift": 1}}, ResourceError, "--set resources_per_worker=null"),
        ({"ray_num_workers": (7, 9)}, ResourceError, "--set 'ray_num_workers=[4, 9]'"),
        (
            {"placement_strategy": "STRICT_SPREAD", "ray_num_workers": 2},
            ResourceError,
            "--set 'ray_num_workers=[1, 2]'",
        ),
        ({"ray_storage_path": "/proc/nowhere"}, StorageError, "/proc/nowhere"),
        ({"resume_from_checkpoint": True}, TrainError, "no complete checkpoint"),
        ({"lora_target": "qkv"}, ModelError, "linear layers are"),
    ],
)
def test_what_cannot_work_is_said_before_it_starts(project, change, error, message):
    spec = project.model_copy(deep=True)
    for key, value in change.items():
        setattr(spec.train, key, value)
    with pytest.raises(error) as caught:
        tunery.train(spec)
    assert message in f"{caught.value} {caught.value.hint}"


def test_overlong_rows_can_be_dropped_or_cut_and_it_is_said(project):
    spec = verbs.placed_train(project)
    longest = max(map(len, prepare(spec).rows))
    dropped = prepare(spec.model_copy(update={"cutoff_len": longest - 1, "overlong": "drop"}))
    assert 0 < len(dropped.rows) < 24
    assert "dropped" in dropped.notes[0]
    cut = prepare(spec.model_copy(update={"cutoff_len": longest - 1, "overlong": "truncate"}))
    assert len(cut.rows) == 24
    assert max(map(len, cut.rows)) == longest - 1


def test_a_version_of_another_base_or_rank_is_refused(project, trained, tiny_base, tmp_path):
    home = Path(project.home)
    version = versions.get(home, "shop@1")
    file = version.adapter / "version.json"
    honest = file.read_text()
    try:
        for key, value, message in (
            ("base_digest", "0" * 16, "another base"),
            ("template_digest", "0" * 16, "another prompt layout"),
            ("rank", 4, "has rank 8"),
        ):
            file.write_text(json.dumps(json.loads(honest) | {key: value}))
            with pytest.raises(ModelError, match=message):
                verbs.load_model(project, "shop@1")
    finally:
        file.write_text(honest)
    spec = project.model_copy(deep=True)
    spec.eval.engine.engine_kwargs = {"max_lora_rank": 4}
    with pytest.raises(ModelError, match="max_lora_rank"):
        tunery.evaluate(spec)
    make_adapter(tiny_base, tmp_path / "loose")
    assert versions.adapter_config(tmp_path / "loose")["r"] == 8
    with pytest.raises(ModelError, match="not a PEFT adapter"):
        versions.adapter_config(tmp_path)


def test_init_writes_a_project_that_loads(tmp_path):
    write_rows(tmp_path / "rows")
    file = init(tmp_path / "p", tmp_path / "rows")
    spec = verbs.as_project(file)
    assert (spec.model, spec.train.dataset, spec.eval.dataset) == ("shop", "shop-train", "shop-test")
    with pytest.raises(ConfigError, match="exists already"):
        init(tmp_path / "p")
    embedded = verbs.as_project(init(tmp_path / "q"))
    assert embedded.train.dataset
    data = tunery.load(embedded.train.dataset, str(tmp_path / "q" / "data"))
    assert len(data) == 1500
