"""A training seen while it runs: scores of answers, the best evaluation, figures elsewhere, and how it fails."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunery.bases import find_base, load_tokenizer
from tunery.config import Project, TrainSpec, resolve_train
from tunery.data.template import Template
from tunery.errors import ConfigError, RunError, TrainError
from tunery.ops import runs
from tunery.tasks import LabelTask, score_rows
from tunery.training.artifacts import history
from tunery.training.batches import single
from tunery.training.checks import check_watching, generates
from tunery.training.loop import Hooks, fit
from tunery.training.model import build_model
from tunery.training.objectives import Supervised
from tunery.training.packing import build_pack
from tunery.training.plan import Job
from tunery.training.prefixes import prefix_groups
from tunery.training.progress import flops_per_token
from tunery.training.sampling import Sampling, sample
from tunery.training.trackers import reporting, scalars, trackers_of
from tunery.training.watching import Best
from tunery.types import Example, Message

WORDS = ("red", "green", "blue", "grey", "teal", "pink", "gold", "plum")


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory) -> Path:
    """The tiny base with larger embeddings, so that a small adapter can make it sure of something."""
    folder = tmp_path_factory.mktemp("teachable") / "base"
    shutil.copytree(tiny_base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 8
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def examples(shift=0) -> list[Example]:
    """Each word is answered by its colour's number; with `shift`, by another's."""
    return [
        Example(f"row-{i}", (Message("user", f"Number of {word}?"),), f"n{(i + shift) % len(WORDS)}")
        for i, word in enumerate(WORDS)
    ]


def job_of(base: Path, *, held_out=None, **changes) -> Job:
    spec = resolve_train(
        TrainSpec.model_validate({
            "model_name_or_path": str(base), "template": "chatml", "lora_rank": 16, "learning_rate": 5e-3,
            "adam_beta2": 0.99, "max_steps": 4, "per_device_train_batch_size": 8, "logging_steps": 1, "bf16": False,
            "packing": "none", "gradient_checkpointing": False, **changes,
        })
    )  # fmt: skip
    template = Template("chatml", load_tokenizer(find_base(str(base))))
    rows, eval_rows = template.rows(examples()), template.rows(held_out or [])
    return Job(
        spec, single(rows), prefix_groups([r.prompt for r in rows], 8), single(eval_rows),
        prefix_groups([r.prompt for r in eval_rows], 0), task=LabelTask() if generates(spec, False) else None,
    )  # fmt: skip


def watched(job: Job, folder: Path, model=None):
    """Summary, log rows and checkpoint folders by step of one training."""
    log, saved = [], {}
    hooks = Hooks(log=log.append, save=lambda path, step: saved.update({step: path}), scratch=folder)
    return fit(job, hooks, model=model), log, saved


def reference(base: Path, adapter: Path, prompts, stop: int) -> list[list[int]]:
    """One prompt at a time through PEFT and transformers as they come."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        row = said[0, len(prompt) :].tolist()
        out.append(row[: row.index(stop)] if stop in row else row)
    return out


def test_scores_at_an_evaluation_are_those_of_the_saved_adapters_answers(base, tmp_path):
    job = job_of(
        base, held_out=examples(), predict_with_generate=True, max_steps=60, eval_strategy="steps", eval_steps=20
    )
    summary, log, saved = watched(job, tmp_path)
    template = Template("chatml", load_tokenizer(find_base(str(base))))
    (stop,) = template.stop_ids
    said = reference(base, saved[60], [u[0].prompt for u in job.eval_units], stop)
    pairs = [(template.decode(ids), e.target or "") for ids, e in zip(said, examples(), strict=True)]
    expected = score_rows(LabelTask(), pairs)[0]
    evaluations = [row for row in log if "eval_loss" in row]
    assert len(evaluations) == 3
    assert evaluations[-1]["eval_predict_samples"] == 8
    assert evaluations[-1]["eval_exact_match"] == expected["exact_match"].value == summary["eval_exact_match"]
    assert summary["eval_exact_match"] > evaluations[0]["eval_exact_match"]
    assert evaluations[-1]["eval_parse_rate"] == expected["parse_rate"].value


def test_answering_changes_nothing_in_the_training(base, tmp_path):
    settings = {"eval_strategy": "epoch", "packing": "shared_prefix"}
    plain = watched(job_of(base, held_out=examples(), **settings), tmp_path / "a")[1]
    scored = watched(job_of(base, held_out=examples(), predict_with_generate=True, **settings), tmp_path / "b")[1]
    assert [r["loss"] for r in plain if "loss" in r] == [r["loss"] for r in scored if "loss" in r]
    assert [r["eval_loss"] for r in plain if "eval_loss" in r] == [r["eval_loss"] for r in scored if "eval_loss" in r]
    assert not any("eval_exact_match" in r for r in plain)


def test_answers_leave_the_models_attention_and_mode_as_they_were(base):
    model: Any = build_model(job_of(base).spec, base, "cpu")
    assert [len(a) <= 3 for a in sample(model, [[5, 6, 7], [8]], Sampling([2], 3))] == [True, True]
    assert model.training
    assert model.base_model.model.config._attn_implementation == "tunery_shared_prefix"


def test_a_training_that_gets_worse_stops_early_and_keeps_its_best(base, tmp_path):
    job = job_of(
        base, held_out=examples(shift=3), max_steps=60, eval_strategy="steps", eval_steps=1,
        early_stopping_patience=3, load_best_model_at_end=True, save_strategy="no",
    )  # fmt: skip
    summary, log, saved = watched(job, tmp_path)
    losses = {r["current_steps"]: r["eval_loss"] for r in log if "eval_loss" in r}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 3 < 60
    assert (summary["best_global_step"], summary["best_metric"]) == (best, losses[best])
    assert summary["eval_loss"] == losses[best]
    assert {best, best + 3} <= set(saved)  # the best, and the last


def test_the_best_follows_the_metric_the_threshold_and_an_earlier_runs_evaluations():
    spec = TrainSpec(metric_for_best_model="exact_match", early_stopping_patience=2, early_stopping_threshold=0.05)
    best = Best(spec)
    values = [0.2, 0.5, 0.52, 0.53]
    assert [best.heard(i, {"eval_exact_match": v}) for i, v in enumerate(values)] == [True] * 4  # greater is better
    assert (best.step, best.waited, best.exhausted) == (3, 2, True)  # but two of them by too little
    resumed = Best(spec, [{"current_steps": i, "eval_exact_match": v, "loss": 9} for i, v in enumerate(values[:3])])
    assert (resumed.value, resumed.waited, resumed.exhausted) == (0.52, 1, False)
    assert not resumed.heard(3, {"eval_exact_match": math.nan})
    assert resumed.exhausted
    lower = Best(TrainSpec(metric_for_best_model="exact_match", greater_is_better=False))
    assert [lower.heard(i, {"eval_exact_match": v}) for i, v in enumerate(values)] == [True, False, False, False]
    with pytest.raises(TrainError, match="eval_exact_match") as caught:
        best.heard(5, {"eval_loss": 1.0})
    assert "loss" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({"load_best_model_at_end": True}, 0, "need evaluations"),
        ({"early_stopping_patience": 1, "eval_strategy": "no"}, 5, "need evaluations"),
        ({"metric_for_best_model": "accuracy"}, 5, 'no metric "accuracy"'),
        ({"metric_for_best_model": "slot_f1", "predict_with_generate": False}, 5, "predict_with_generate"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_start(changes, rows, message):
    with pytest.raises(ConfigError, match=message):
        check_watching(TrainSpec(**changes), rows)


def test_a_log_row_says_how_fast_how_large_and_how_long(base, tmp_path):
    _, log, _ = watched(job_of(base, max_steps=3), tmp_path)
    first, *_, last = log
    assert {
        "current_steps", "total_steps", "epoch", "percentage", "elapsed_time", "remaining_time", "loss", "lr",
        "grad_norm", "samples_per_second", "logical_tokens_per_second", "executed_tokens_per_second", "memory_rss",
    } <= set(first)  # fmt: skip
    assert first["executed_tokens_per_second"] == pytest.approx(
        first["logical_tokens_per_second"], rel=1e-3
    )  # unpacked
    assert 0.05 < last["memory_rss"] < 64
    assert (last["percentage"], last["remaining_time"]) == (100, 0)


def test_the_flops_of_mfu_are_those_that_pytorch_counts(base):
    from torch.utils.flop_counter import FlopCounterMode

    model: Any = build_model(job_of(base).spec, base, "cpu")
    model.enable_input_require_grads()  # else the first layer has less to do than the others
    for module in model.modules():
        module.__dict__.pop("forward", None)  # the counter does not know the fused layers' in-place products
    pack = build_pack([job_of(base).units[0]], 0)
    with FlopCounterMode(display=False) as counter:
        Supervised().loss(model, pack)[0].backward()
    head = 4 * len(pack.labels) * model.get_output_embeddings().weight.numel()
    assert counter.get_total_flops() - head == flops_per_token(model) * pack.ids.numel()


class Poisoned:
    """A model whose output is NaN where `token` stands in the input, as a broken row's would be."""

    def __init__(self, job: Job, base: Path, token: int, from_call: int = 0) -> None:
        torch.manual_seed(job.spec.seed)
        self.model: Any = build_model(job.spec, base, "cpu")
        self.token, self.calls, self.from_call = token, 0, from_call
        self.model.get_input_embeddings().register_forward_hook(self.hook)

    def hook(self, module, args, out):
        self.calls += 1
        return out * math.nan if self.calls > self.from_call and (args[0] == self.token).any() else out


def test_a_loss_that_is_not_finite_keeps_the_rows_and_the_weights_before_them(base, tmp_path):
    job = job_of(base, max_steps=5)
    bad = job.units[5][0]  # the only one with a "k"
    (token,) = set(bad.prompt) - {t for u in job.units if u[0] is not bad for t in u[0].prompt}
    poisoned = Poisoned(job, base, token, from_call=2 * len(job.units))
    found, saved = [], {}
    hooks = Hooks(offending=found.extend, save=lambda path, step: saved.update({step: path}), scratch=tmp_path)
    with pytest.raises(TrainError, match="not finite at step 3") as caught:
        fit(job, hooks, model=poisoned.model)
    assert bad.id in (caught.value.hint or "")
    assert found[0] == {"id": bad.id, "loss": None, "prompt_ids": bad.prompt, "target_ids": bad.target}
    assert {row["id"] for row in found} == {u[0].id for u in job.units}
    assert all(row["loss"] > 0 for row in found[1:])
    straight = watched(replace(job, spec=job.spec.model_copy(update={"save_steps": 2})), tmp_path / "straight")[2]
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (saved[2], straight[2]))
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, msg=name)


def test_a_loss_that_rises_too_far_ends_the_run(base, tmp_path):
    with pytest.raises(TrainError, match="rose to") as caught:
        watched(
            job_of(base, learning_rate=0.5, max_steps=50, per_device_train_batch_size=1, max_loss_ratio=1.5), tmp_path
        )
    assert "learning_rate" in (caught.value.hint or "")


def test_a_lack_of_memory_says_which_setting_to_change(base, tmp_path):
    """The CPU's allocator really refuses; the GPU's refusal has a class of its own."""

    def too_much(*_):
        torch.empty(1 << 60, dtype=torch.uint8)

    def on_gpu(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    for hook, where in ((too_much, "machine's memory"), (on_gpu, "GPU's memory")):
        job = job_of(base, packing="shared_prefix")
        model: Any = build_model(job.spec, base, "cpu")
        model.get_input_embeddings().register_forward_hook(hook)
        with pytest.raises(TrainError, match=where) as caught:
            watched(job, tmp_path, model)
        assert "gradient_checkpointing: true, then packing: none" in (caught.value.hint or "")


# --- trackers ---


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_before_the_start():
    assert trackers_of("none") == []
    assert "tensorboard" in trackers_of("all")
    with pytest.raises(ConfigError, match="unknown tracker") as caught:
        trackers_of(["tensorbord"])
    assert "tensorboard" in (caught.value.hint or "")
    for name in {"mlflow", "wandb"} - set(trackers_of("all")):
        with pytest.raises(ConfigError, match="not installed") as caught:
            trackers_of(name)
        assert f"pip install {name}" in (caught.value.hint or "")


ROWS = [
    {"current_steps": 1, "total_steps": 2, "loss": 2.0, "lr": 0.1},
    {"current_steps": 2, "total_steps": 2, "loss": 1.0, "lr": 0.05},
    {"current_steps": 2, "total_steps": 2, "eval_loss": 1.5, "eval_exact_match": 0.25, "best_global_step": 2},
]


def report_all(tracker: str, folder: Path) -> None:
    with reporting(TrainSpec(report_to=tracker), folder, "run-1") as report:
        for row in ROWS:
            assert report(row) == []


def tensorboard_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of the event files by tag, read as TensorBoard reads them: TFRecords of Event messages."""
    import struct

    from tensorboardX.proto import event_pb2

    message: Any = event_pb2
    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.glob("events.out.tfevents*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = message.Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_reads_what_was_logged(tmp_path):
    report_all("tensorboard", tmp_path)
    found = tensorboard_events(tmp_path / "tensorboard")
    assert found["train/loss"] == [(1, 2.0), (2, 1.0)]
    assert found["eval/loss"] == [(2, 1.5)]
    assert found["eval/exact_match"] == [(2, 0.25)]
    assert not any("steps" in tag for tag in found)


def test_mlflow_holds_what_was_logged(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    report_all("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tunery").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["stage"]) == ("run-1", "FINISHED", "sft")
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [(1, 2.0), (2, 1.0)]
    assert run.data.metrics["eval/exact_match"] == 0.25
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(ConfigError, match="mlflow does not start"):
        report_all("mlflow", tmp_path)


def test_wandb_works_without_a_network(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    report_all("wandb", tmp_path)
    wandb.teardown()
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"eval/exact_match" in log.read_bytes()


def test_a_tracker_that_fails_on_the_way_does_not_end_the_training(tmp_path):
    with reporting(TrainSpec(report_to="tensorboard"), tmp_path, "run-1") as report:
        (fault,) = report({"current_steps": "no step", "loss": 1.0})
        assert fault.startswith("tensorboard gets no more of this run")
        assert report(ROWS[0]) == []


def test_rays_metrics_hold_the_figures_of_a_worker(ray_session):
    import time
    import urllib.request

    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def __init__(self):
            from tunery.training.trackers import ray_gauges

            self.show = ray_gauges("run-7")

        def log(self, row):
            self.show(row)

    worker = Worker.remote()
    for row in ROWS:
        ray.get(worker.log.remote(row))
    port = ray.nodes()[0]["MetricsExportPort"]
    for _ in range(120):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        if "tunery_train_loss" in text and "tunery_eval_exact_match" in text:
            break
        time.sleep(0.5)
    found = [line for line in text.splitlines() if "tunery_train_loss{" in line]
    assert any('run="run-7"' in line and line.endswith(" 1.0") for line in found)


# --- runs ---


def recorded(home: Path, rate: float) -> str:
    with runs.start(home, "train", Project(train=TrainSpec(learning_rate=rate))) as run:
        for step in range(1, 31):
            run.log({"current_steps": step, "loss": 2 / step**rate})
            if step % 10 == 0:
                run.log({"current_steps": step, "eval_loss": 2.2 / step**rate, "eval_exact_match": step / 40,
                         "eval_slot_f1": step / 32})  # fmt: skip
        run.result(train_loss=rate, version="m@1")
    return run.id


def tunery(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("tunery")), *args]
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_runs_are_drawn_over_each_other(tmp_path):
    a, b = recorded(tmp_path, 0.5), recorded(tmp_path, 0.8)
    done = tunery("runs", "plot", a, b, "-o", "both.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.rstrip().endswith("both.png")
    assert "eval_exact_match ▁" in done.stdout
    empty = tunery("runs", "plot", a, b, "-o", "nowhere/x.png", cwd=tmp_path)
    assert (empty.returncode, "cannot draw nowhere/x.png" in empty.stderr) == (1, True)
    with runs.start(tmp_path, "eval", Project()) as evaluation:
        pass
    none = tunery("runs", "plot", evaluation.id, "--json", cwd=tmp_path)
    assert (none.returncode, json.loads(none.stdout)["error"]["code"]) == (1, RunError.code)


def test_two_runs_are_compared_by_what_differs(tmp_path):
    a, b = recorded(tmp_path, 0.5), recorded(tmp_path, 0.8)
    found = json.loads(tunery("runs", "compare", a, b, "--json", cwd=tmp_path).stdout)
    assert found["settings"] == {"train.learning_rate": [0.5, 0.8]}
    assert found["results"] == {"train_loss": [0.5, 0.8], "version": ["m@1", "m@1"]}
    shown = tunery("runs", "compare", a, b, cwd=tmp_path).stdout
    assert "train.learning_rate" in shown
    assert tunery("runs", "compare", a, "nothing", cwd=tmp_path).returncode == 1


def test_steps_done_twice_by_a_resumed_run_are_counted_once():
    rows = [{"current_steps": s, "loss": v} for s, v in ((1, 3.0), (2, 2.0), (3, 9.0), (2, 2.0), (3, 1.0))]
    rows.insert(2, {"current_steps": 2, "eval_loss": 5.0})
    found = history(rows)
    assert [r.get("loss") for r in found] == [3.0, 2.0, None, 1.0]
    assert scalars(found[2]) == {"eval/loss": 5.0}


@pytest.mark.long
def test_a_watched_training_from_the_command_line(tmp_path):
    """Two workers share the answering; the best version, not the last, is registered and kept."""
    assert tunery("init", "shop", cwd=tmp_path).returncode == 0
    shop = tmp_path / "shop"
    sets = {
        "max_samples": 24, "max_steps": 6, "logging_steps": 1, "ray_num_workers": 2, "eval_strategy": "steps",
        "eval_steps": 2, "save_steps": 1, "save_total_limit": 1, "max_predict_samples": 5, "learning_rate": 3e-3,
        "metric_for_best_model": "slot_f1", "load_best_model_at_end": True, "report_to": "tensorboard",
    }  # fmt: skip
    done = tunery("train", "--json", *(f"--set={k}={v}" for k, v in sets.items()), cwd=shop)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    output = Path(shop, result["output"]) if not Path(result["output"]).is_absolute() else Path(result["output"])
    log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    scores = {r["current_steps"]: r["eval_slot_f1"] for r in log if "eval_slot_f1" in r}
    best = result["best_global_step"]
    assert list(scores) == [2, 4, 6]
    assert scores[best] == max(scores.values()) == result["eval_slot_f1"] == result["best_metric"]
    assert result["eval_predict_samples"] == 5
    assert {p.name for p in output.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-6"}
    kept = (output / f"checkpoint-{best}" / "adapter_model.safetensors").read_bytes()
    assert (shop / result["adapter"] / "adapter_model.safetensors").read_bytes() == kept
    assert json.loads((output / "trainer_state.json").read_text())["best_global_step"] == best
    assert [step for step, _ in tensorboard_events(output / "tensorboard")["eval/slot_f1"]] == [2, 4, 6]
    metrics = [json.loads(line) for line in (shop / "runs" / result["run"] / "metrics.jsonl").read_text().splitlines()]
    assert [r for r in metrics if "parity" not in r] == log
    assert len(json.loads(tunery("runs", "plot", result["run"], "--json", cwd=shop).stdout)["runs"][result["run"]]) == 9
