"""Whatever is killed in the middle of a batch, every row is answered once, byte for byte as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tunery import storage
from tunery.bases import find_base
from tunery.batching import Model, perform, prepare
from tunery.config import BatchSpec
from tunery.engine.rows import EngineRows

TUNERY = str(Path(sys.executable).with_name("tunery"))
# Few sequences at once, so that there is something to kill in the middle of.
ENGINE = {"engine_kwargs": {"max_model_len": 256, "max_num_seqs": 4}, "batch_size": 16}
SAMPLING = {"max_tokens": 32}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    source.write_text("".join(json.dumps({"id": i, "text": f"bike number {i}"}) + "\n" for i in range(320)))
    return source


@pytest.fixture(scope="module")
def batch(rows, tiny_base):
    """A batch of the base's answers into an output."""
    base = find_base(str(tiny_base))
    models = {"base": Model("base", base, "chatml", "text")}

    def make(output: Path | str, **settings):
        given = {"input": str(rows), "output": str(output), "id_column": "id", "engine": ENGINE, "sampling": SAMPLING}
        spec = BatchSpec.model_validate(given | settings)
        return prepare(spec, models=models, default="base", adapters=[], log_dir=None)

    return make


@pytest.fixture(scope="module")
def straight(ray_session, batch, tmp_path_factory) -> bytes:
    """The answers of a batch that nobody disturbs."""
    result = perform(batch(tmp_path_factory.mktemp("straight") / "answers.jsonl"), lambda event: None)
    data = Path(result.output).read_bytes()
    assert [json.loads(line)["id"] for line in data.splitlines()] == list(range(320))
    return data


def engines() -> list[psutil.Process]:
    """The processes of this process's Ray that hold an engine."""
    return [p for p in psutil.Process().children(recursive=True) if "EngineRows" in "".join(p.cmdline()[:1])]


def test_a_killed_engine_is_replaced_each_time(straight, batch, tmp_path):
    killed: list[int] = []

    def kill(event):
        if event["event"] == "batch" and event["done"] > 80 * (len(killed) + 1) and len(killed) < 2:
            (engine,) = engines()
            engine.kill()
            killed.append(engine.pid)

    result = perform(batch(tmp_path / "answers.jsonl"), kill)
    assert len(set(killed)) == 2
    assert Path(result.output).read_bytes() == straight


@pytest.mark.long
def test_killed_workers_are_replaced(straight, batch, tmp_path):
    """Those that read and write, in the middle of it."""
    killed: list[int] = []
    over = threading.Event()

    def hunt() -> None:
        while len(killed) < 3 and not over.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "ray::MapBatches(_" in "".join(process.cmdline()[:1]):
                        process.kill()
                        killed.append(process.pid)

    hunter = threading.Thread(target=hunt)
    hunter.start()
    result = perform(batch(tmp_path / "answers.jsonl"), lambda event: None)
    over.set()
    hunter.join()
    assert killed
    assert Path(result.output).read_bytes() == straight


@pytest.mark.long
def test_a_row_that_kills_the_engine_is_one_failed_row(straight, batch, tmp_path, monkeypatch):
    poisoned = batch(tmp_path / "answers.jsonl")
    prompt = poisoned.shape.ask([{"id": 70, "text": "bike number 70"}])[0].prompt

    class Dying(EngineRows):
        async def _generate(self, request):
            if request["prompt_token_ids"] == prompt:
                os._exit(1)  # as a fault in native code ends a process
            return await super()._generate(request)

    monkeypatch.setattr("tunery.engine.rows.EngineRows", Dying)
    result = perform(poisoned, lambda event: None)
    monkeypatch.undo()
    assert (result.answered, result.failed) == (319, 1)
    (failed,) = map(json.loads, Path(result.errors or "").read_text().splitlines())
    assert (failed["row_id"], failed["reason"]) == ("70", "the engine died each time that it was asked this")
    retried = perform(batch(tmp_path / "answers.jsonl"), lambda event: None, retry=True)
    assert (retried.answered, retried.failed) == (320, 0)
    assert Path(retried.output).read_bytes() == straight


@pytest.mark.long
def test_a_killed_driver_goes_on_with_the_same_command(straight, rows, tiny_base, bucket, tmp_path):
    """Twice, with the output on S3: `tunery batch` as it is typed."""
    project = {
        "train": {"model_name_or_path": str(tiny_base), "template": "chatml"},
        "batch": {"engine": ENGINE, "sampling": SAMPLING},
    }
    (tmp_path / "tunery.yaml").write_text(yaml.safe_dump(project))
    output = f"{bucket}/killed/answers.jsonl"
    command = [TUNERY, "batch", str(rows), output, "--model", "base", "--id-column", "id"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    for least in (3, 8):
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and done(output) < least:
                time.sleep(0.3)
            assert process.poll() is None, "it ended before it could be killed"
            process.send_signal(signal.SIGKILL)
        assert not storage.exists(output)
    before = done(output)
    ended = subprocess.run([*command, "--json"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert next(e for e in told if e.get("event") == "resumed")["done"] >= before * 16
    assert storage.read_bytes(output) == straight
    again = subprocess.run([*command, "--json"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "is done already" in again.stdout and again.returncode == 0
    assert storage.read_bytes(output) == straight


def done(output: str) -> int:
    folder = f"{output}.parts/_tunery/done"
    return len(storage.list_files(folder)) if storage.exists(folder) else 0


TWO_NODES = """
import json, sys
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from tunery.bases import find_base
from tunery.batching import Model, perform, prepare
from tunery.config import BatchSpec

spec, base = BatchSpec.model_validate_json(sys.argv[1]), find_base(sys.argv[2])
small = {"num_cpus": 2, "object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
nodes = [cluster.add_node(**small), cluster.add_node(**small)]
ray.init(address=cluster.address, log_to_driver=False)
seen = set()

def hear(event):
    if event["event"] != "batch":
        return
    for process in psutil.Process().children(recursive=True):
        if "EngineRows" in "".join(process.cmdline()[:1]):
            seen.add(process.pid)
    if event["done"] > 100 and len(nodes) == 2:
        cluster.remove_node(nodes.pop(), allow_graceful=False)

batch = prepare(spec, models={"base": Model("base", base, "chatml", "text")}, default="base", adapters=[], log_dir=None)
result = perform(batch, hear)
print(json.dumps({"engines": len(seen), "nodes": len(nodes), "failed": result.failed}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.long
def test_a_lost_machine_of_several_takes_no_row_with_it(straight, batch, tiny_base, tmp_path):
    """Two engines, three machines, one of which is lost."""
    spec = batch(tmp_path / "answers.jsonl").spec.model_copy(deep=True)
    spec.engine.concurrency = 2
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-c", TWO_NODES, spec.model_dump_json(), str(tiny_base)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=560)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["engines"] >= 2 and told["nodes"] == 1 and told["failed"] == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == straight
