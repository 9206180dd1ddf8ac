"""Run folders and the registry: what they hold, and what a crash leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tunery import versions
from tunery.config import Project
from tunery.errors import DataError, RunError
from tunery.ops import runs


def test_a_run_records_how_it_ended(tmp_path):
    with runs.start(tmp_path, "train", Project(), parents=["eval-1"]) as recorder:
        recorder.log({"loss": 1.5})
        recorder.result(version="m@1")
        assert runs.get(tmp_path, recorder.id).state == "running"
    run = runs.get(tmp_path, recorder.id)
    assert (run.state, run.result, run.kind) == ("succeeded", {"version": "m@1"}, "train")
    assert runs.metrics(run) == [{"loss": 1.5}]
    assert run.spec["train"]["stage"] == "sft"
    status = json.loads((run.path / "status.json").read_text())
    assert status["packages"]["python"] == sys.version.split()[0]


def test_a_failed_run_keeps_code_message_and_hint(tmp_path):
    with pytest.raises(DataError), runs.start(tmp_path, "eval", Project()) as recorder:
        raise DataError("bad row", hint="mend it", where="a.jsonl:3")
    run = runs.get(tmp_path, recorder.id)
    assert run.state == "failed"
    assert run.error == {"code": "data", "message": "bad row", "hint": "mend it", "where": "a.jsonl:3"}


def test_ctrl_c_is_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt), runs.start(tmp_path, "eval", Project()) as recorder:
        raise KeyboardInterrupt
    assert runs.get(tmp_path, recorder.id).state == "interrupted"


def test_a_killed_run_is_seen_as_interrupted_and_its_torn_line_is_left_out(tmp_path):
    code = (
        "import pathlib, time\n"
        "from tunery.config import Project\n"
        "from tunery.ops import runs\n"
        f"with runs.start(pathlib.Path({str(tmp_path)!r}), 'train', Project()) as r:\n"
        "    r.log({'loss': 1})\n"
        "    (r.path / 'metrics.jsonl').open('a').write('{\"lo')\n"
        "    print(r.id, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        run_id = process.stdout.readline().strip()
        assert runs.get(tmp_path, run_id).state == "running"
        os.kill(process.pid, signal.SIGKILL)
    run = runs.get(tmp_path, run_id)
    assert run.state == "interrupted"
    assert runs.metrics(run) == [{"loss": 1}]


def test_unknown_and_ambiguous_ids_say_so(tmp_path):
    with runs.start(tmp_path, "train", Project()) as one:
        pass
    with runs.start(tmp_path, "train", Project()):
        time.sleep(0)
    with pytest.raises(RunError, match="more than one"):
        runs.get(tmp_path, "train-")
    with pytest.raises(RunError, match="no run") as caught:
        runs.get(tmp_path, one.id + "x")
    assert one.id[:20] in (caught.value.hint or "")
    assert len(runs.list_runs(tmp_path)) == 2
    (tmp_path / "runs" / one.id / "status.json").write_text("{")
    assert len(runs.list_runs(tmp_path)) == 1


def test_the_registry_names_what_there_is(tmp_path):
    with pytest.raises(RunError, match='no model "shop"'):
        versions.get(tmp_path, "shop")
    # A folder without version.json is half a version: it is neither listed nor served.
    (tmp_path / "models" / "shop" / "1").mkdir(parents=True)
    assert versions.list_versions(tmp_path) == []
    with pytest.raises(RunError, match='no model "shop"'):
        versions.get(tmp_path, "shop")
