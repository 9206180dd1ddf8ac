"""Whatever is killed in the middle of a training, it ends with the very adapter of a training that nobody disturbed.

(A killed driver: tests/test_journey.py.)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import write_rows

from tunery import storage
from tunery.config import TrainSpec
from tunery.errors import TrainError
from tunery.training import prepare, train
from tunery.training.__main__ import main as train_without_ray

SETTINGS = {
    "dataset": "shop-train", "template": "chatml", "lora_rank": 8, "max_steps": 12, "per_device_train_batch_size": 2,
    "learning_rate": 5e-3, "logging_steps": 2, "save_steps": 4, "bf16": False, "plot_loss": False,
    "ray_num_workers": 2, "resources_per_worker": {"CPU": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory, tiny_base) -> Path:
    """A training file of LLaMA-Factory's flat kind."""
    folder = tmp_path_factory.mktemp("kills")
    write_rows(folder / "data")
    written = SETTINGS | {"model_name_or_path": str(tiny_base), "dataset_dir": str(folder / "data")}
    (folder / "train.yaml").write_text(yaml.safe_dump(written))
    return folder / "train.yaml"


@pytest.fixture(scope="module")
def plan(ray_session, file):
    """For two workers on Ray."""
    return prepare(TrainSpec(**yaml.safe_load(file.read_text())))


@pytest.fixture(scope="module")
def straight(plan, tmp_path_factory) -> Path:
    """The output of a training that nobody disturbs."""
    return train(plan, tmp_path_factory.mktemp("straight")).adapter


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory) -> Path:
    """The same by one process, without Ray."""
    output = tmp_path_factory.mktemp("alone")
    assert train_without_ray([str(file), f"output_dir={output}", "per_device_train_batch_size=4"]) == 0
    return output


def adapter(output: Path) -> str:
    return hashlib.sha256((output / "adapter_model.safetensors").read_bytes()).hexdigest()


def losses(output: Path, steps: range = range(2, 13, 2)) -> dict[int, float]:
    rows = storage.read_jsonl_tolerant(output / "trainer_log.jsonl")
    assert [r["current_steps"] for r in rows] == list(steps)
    return {r["current_steps"]: r["loss"] for r in rows}


def workers() -> list[psutil.Process]:
    """The training workers of this process's Ray."""
    return [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name() + p.cmdline()[0]]


def test_a_killed_worker_is_replaced_and_goes_on_from_the_last_checkpoint(straight, plan, tmp_path):
    heard, killed = [], []

    def kill_at_six(event):
        heard.append(event)
        if event.get("current_steps") == 6 and not killed:
            one, _ = workers()
            one.kill()
            killed.append(one.pid)

    trained = train(plan, tmp_path, on_event=kill_at_six)
    assert killed
    (note,) = (e["note"] for e in heard if "note" in e)
    # What is heard is of a moment before: on a fast machine the worker was further when it was killed.
    assert note in [f"the workers were lost; new ones go on from step {n}" for n in (4, 8, 12)]
    assert adapter(trained.adapter) == adapter(straight)
    assert losses(tmp_path) == losses(straight)


def test_with_no_failures_allowed_a_killed_worker_ends_the_run_and_its_checkpoints_are_kept(plan, tmp_path):
    def kill_at_six(event):
        if event.get("current_steps") == 6:
            workers()[0].kill()

    strict = replace(plan, spec=plan.spec.model_copy(update={"max_failures": 0}))
    with pytest.raises(TrainError, match="training failed"):
        train(strict, tmp_path, on_event=kill_at_six)
    with pytest.raises(TrainError, match="did not end"):
        train(plan, tmp_path)
    other = replace(plan, spec=plan.spec.model_copy(update={"learning_rate": 1e-3}))
    with pytest.raises(TrainError, match=r"another training: learning_rate 0\.005 there, 0\.001 here"):
        train(other, tmp_path, resume=True)
    assert (tmp_path / "checkpoint-4" / "manifest.json").exists()


def test_a_training_that_is_left_gives_back_what_it_had_reserved(plan, tmp_path):
    from ray.util import placement_group_table

    def reserved():
        return {key for key, group in placement_group_table().items() if group["state"] != "REMOVED"}

    before, meanwhile = reserved(), set()

    def leave_at_six(event):
        if event.get("current_steps") == 6:
            meanwhile.update(reserved() - before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path, on_event=leave_at_six)
    assert len(meanwhile) == 1
    assert reserved() == before


TWO_NODES = """
import json, sys
from dataclasses import replace
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from tunery.config import TrainSpec
from tunery.training import prepare, train

# Many steps, since workers outlive their node by a second or two.
more = {"learning_rate": 2e-4, "max_steps": 400, "logging_steps": 20, "save_steps": 100}
plan = prepare(TrainSpec.model_validate_json(sys.argv[1]).model_copy(update=more))
folder = Path(sys.argv[2])
small = {"num_cpus": 2, "object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
nodes = [cluster.add_node(**small)]
ray.init(address=cluster.address, log_to_driver=False)
seen = []

def workers():
    return sum("RayTrainWorker" in p.name() for p in psutil.Process().children(recursive=True))

def go(name, lose=True, **changes):
    seen.clear()
    def hear(event):
        if "note" in event:
            seen.append(event["note"][:21])
        elif lose and event.get("current_steps") == 20 and nodes:
            seen.append(workers())
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        elif "loss" in event and len(seen) == 2:  # the first steps after the note
            seen.append(workers())
    train(replace(plan, spec=plan.spec.model_copy(update=changes)), folder / name, on_event=hear)
    print(json.dumps({"run": name, "seen": seen}), flush=True)

go("straight", lose=False)
go("lost", placement_strategy="SPREAD")
nodes.append(cluster.add_node(**small))
go("elastic", ray_num_workers=(1, 2), resources_per_worker={"CPU": 2})
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.long
def test_a_lost_machine_is_replaced_by_another_or_done_without(plan, tmp_path):
    """On two Ray nodes: as fixed workers, which both go to the other node, and elastic ones, of which one is left."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, plan.spec.model_dump_json(), str(tmp_path)],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = {r["run"]: r["seen"] for r in map(json.loads, re.findall(r"^{.*}$", done.stdout, re.M))}
    assert seen.pop("straight") == []
    assert seen == {"lost": [2, "the workers were lost", 2], "elastic": [2, "the workers were lost", 1]}
    assert adapter(tmp_path / "lost") == adapter(tmp_path / "straight")
    elastic, straight = (losses(tmp_path / name, range(20, 401, 20)) for name in ("elastic", "straight"))
    assert elastic == pytest.approx(straight, rel=1e-4)


def test_torchrun_trains_where_ray_and_vllm_are_not_installed(straight, alone, file, tmp_path):
    (tmp_path / "start.py").write_text(
        "import runpy, sys\n"
        "sys.modules['ray'] = sys.modules['vllm'] = None  # importing them fails\n"
        "runpy.run_module('tunery.training', run_name='__main__')\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    torchrun += [f"--master-port={free_port()}", str(tmp_path / "start.py"), str(file)]
    torchrun += [f"output_dir={tmp_path / 'out'}"]
    done = subprocess.run(torchrun, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "out") == pytest.approx(losses(straight), rel=1e-4)
    assert losses(alone) == pytest.approx(losses(straight), rel=1e-4)
    assert {p.name for p in straight.iterdir()} <= {p.name for p in (tmp_path / "out").iterdir()} | {".lock"}


def free_port() -> int:
    from tunery.engine.cluster import free_port

    return free_port("127.0.0.1", 0)


def test_without_ray_too_a_folder_is_one_trainings(file, tmp_path, capsys):
    with storage.FolderLock(tmp_path / "out"):
        assert train_without_ray([str(file), f"output_dir={tmp_path / 'out'}"]) == 1
    assert "is in use by pid" in capsys.readouterr().err
    assert train_without_ray([str(file)]) == 2
    assert "no output_dir" in capsys.readouterr().err


FULL_DISK = """
import subprocess, sys
from tunery.training.__main__ import main

disk = sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", disk], check=True)
status = main([sys.argv[1], f"output_dir={disk}/out", "per_device_train_batch_size=4"])
subprocess.run(["ls", f"{disk}/out"])
subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
again = main([sys.argv[1], f"output_dir={disk}/out", "per_device_train_batch_size=4", "resume_from_checkpoint=true"])
subprocess.run(["cp", f"{disk}/out/adapter_model.safetensors", sys.argv[3]])
sys.exit(0 if (status, again) == (1, 0) else 1)
"""


def test_a_full_disk_keeps_what_was_complete(alone, file, tmp_path):
    """On a disk of 800 KB, which then grows."""
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no mounts here")
    (tmp_path / "disk").mkdir()
    command = [*namespace, sys.executable, "-c", FULL_DISK, str(file), str(tmp_path / "disk"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no space left to write" in done.stderr
    assert "checkpoint-4" in done.stdout.splitlines()
    assert "checkpoint-12" not in done.stdout.splitlines()
    assert adapter(tmp_path) == adapter(alone)


def test_a_storage_that_fails_and_comes_back(alone, file, tmp_path, s3, monkeypatch, capsys):
    def fails_for(seconds):
        def hear(event):
            if event.get("current_steps") == 6:
                s3.stop()
                if seconds is not None:
                    threading.Timer(seconds, s3.start).start()

        return hear

    def run(name, *more, on_event=None):
        sets = [
            f"output_dir={tmp_path / name}",
            "per_device_train_batch_size=4",
            f"ray_storage_path={s3.address}",
            *more,
        ]
        return train_without_ray([str(file), *sets], on_event)

    assert run("soon", on_event=fails_for(1)) == 0
    assert adapter(tmp_path / "soon") == adapter(alone)
    assert storage.exists(f"{s3.address}/soon/checkpoint-12/manifest.json")

    monkeypatch.setattr(storage, "RETRY_PAUSES", (0.1,))
    assert run("late", on_event=fails_for(None)) == 1
    said = capsys.readouterr().err
    assert "cannot reach s3://tunery-test/late/checkpoint-8" in said
    assert f"all up to {tmp_path / 'late' / 'checkpoint-8'} is kept" in said
    s3.start()
    assert run("late", "resume_from_checkpoint=true") == 0
    assert adapter(tmp_path / "late") == adapter(alone)

    storage.remove(f"{s3.address}/late/checkpoint-12/manifest.json")  # as if the machine were lost, with its disk
    shutil.rmtree(tmp_path / "late")
    assert run("late") == 1
    assert "s3://tunery-test/late holds checkpoints" in capsys.readouterr().err
    assert run("late", "resume_from_checkpoint=true") == 0
    assert adapter(tmp_path / "late") == adapter(alone)
    assert run("new", f"resume_from_checkpoint={s3.address}/late/checkpoint-8") == 0
    assert adapter(tmp_path / "new") == adapter(alone)

    assert run("never", "ray_storage_path=s3://no-such-bucket") == 1
    assert "no-such-bucket" in capsys.readouterr().err
    assert not (tmp_path / "never" / "trainer_log.jsonl").exists()
