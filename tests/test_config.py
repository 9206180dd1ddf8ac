"""Specs: keys as people know them, faults named with the nearest right one."""

import pickle

import pytest

from tunery.config import (
    BUNDLED_BASE,
    Project,
    TrainSpec,
    inert_keys,
    load_project,
    parse,
    placed_train,
    resolve_train,
)
from tunery.errors import ConfigError

LLAMA_FACTORY = """\
model_name_or_path: some/model
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: viggo-train
dataset_dir: /mnt/data
template: qwen
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
logging_steps: 5
save_steps: 50
plot_loss: true
ray_run_name: lora_sft
ray_num_workers: 4
resources_per_worker: {GPU: 1, "accelerator_type:L4": 0.001}
placement_strategy: PACK
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 5.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""


def test_llama_factorys_flat_yaml_is_a_project(tmp_path):
    file = tmp_path / "lora_sft_ray.yaml"
    file.write_text(LLAMA_FACTORY)
    project = load_project(file, ["learning_rate=3e-4"], "train")
    assert project.model == "lora_sft"
    assert project.train.learning_rate == 3e-4
    assert project.train.batch_rows == 1 * 8 * 4
    assert project.train.resources_per_worker == {"GPU": 1, "accelerator_type:L4": 0.001}
    assert inert_keys(file) == ["ddp_timeout", "do_train", "overwrite_cache", "preprocessing_num_workers"]


def test_project_paths_are_relative_to_its_file(tmp_path):
    (tmp_path / "tunery.yaml").write_text("train: {dataset: rows, output_dir: out, ray_storage_path: s3://b/x}\n")
    project = load_project(tmp_path / "tunery.yaml")
    assert project.home == str(tmp_path)
    spec = placed_train(project)
    assert (spec.dataset_dir, spec.output_dir) == (str(tmp_path / "data"), str(tmp_path / "out"))
    assert spec.ray_storage_path == "s3://b/x"


def test_a_batch_has_the_same_rows_whatever_workers_there_are():
    spec = TrainSpec(per_device_train_batch_size=2, gradient_accumulation_steps=3, ray_num_workers=(1, 4))
    assert (spec.workers, spec.batch_rows) == ((1, 4), 24)
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("sets", "message", "hint"),
    [
        (["lora_ranc=3"], 'unknown key "train.lora_ranc"', "lora_rank"),
        (["serve.prot=1"], 'unknown key "serve.prot"', "port"),
        (["lora_rank=0"], '"train.lora_rank"', None),
        (["ray_num_workers=[4, 2]"], "must be a number from 1 up, or [fewest, most]", None),
        (["stage=dance"], "'sft'", None),
        (["learning_rate"], "needs key=value", "for example"),
        (["learning_rate=[1"], "not a YAML value", None),
    ],
)
def test_faults_name_the_key_and_the_nearest_right_one(sets, message, hint):
    with pytest.raises(ConfigError) as caught:
        load_project(None, sets, "train")
    assert message in str(caught.value)
    assert caught.value.exit_status == 2
    if hint:
        assert hint in (caught.value.hint or "")


def test_malformed_yaml_says_where(tmp_path):
    file = tmp_path / "tunery.yaml"
    file.write_text("train:\n  dataset: [unclosed\n")
    with pytest.raises(ConfigError) as caught:
        load_project(file)
    assert (caught.value.where or "").startswith(f"{file}:")
    with pytest.raises(ConfigError, match="no such file"):
        load_project(tmp_path / "missing.yaml")
    file.write_text("- a list\n")
    with pytest.raises(ConfigError, match="must hold keys"):
        load_project(file)


def test_what_is_left_out_takes_the_default_that_fits_the_base():
    bundled = resolve_train(TrainSpec())
    other = resolve_train(TrainSpec(model_name_or_path="some/model"))
    assert bundled.model_name_or_path == BUNDLED_BASE
    assert bundled.lora_rank and other.lora_rank and bundled.lora_rank > other.lora_rank
    assert other.lora_alpha == 2 * other.lora_rank
    assert resolve_train(TrainSpec(lora_rank=4)).lora_alpha == 8
    assert resolve_train(bundled) == bundled
    assert resolve_train(TrainSpec(finetuning_type="full")).learning_rate == pytest.approx(5e-4)


def test_errors_cross_process_borders():
    error = ConfigError("no", hint="do", where="x.yaml:3")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.to_dict()) == (ConfigError, error.to_dict())
    assert str(again) == "x.yaml:3: no"


def test_parse_takes_a_plain_dict():
    assert parse(Project, {"model": "m", "train": {"lora_rank": 4}}).train.lora_rank == 4
