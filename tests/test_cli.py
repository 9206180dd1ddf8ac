"""The command line as a person and as a script meet it. Heavy verbs are tested through their functions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import registered

TUNERY = str(Path(sys.executable).with_name("tunery"))
VERBS = [
    "init", "doctor", "quickstart", "train", "eval", "batch", "serve", "data import", "data export", "data check",
    "data show", "data stats", "data split", "data sample", "data prepare",
    "models list", "models show", "models base", "runs list", "runs show", "runs logs", "runs plot", "runs compare",
    "eval compare", "models alias", "serve status", "serve stop", "serve logs", "keys create", "keys list",
    "keys revoke",
]  # fmt: skip


def tunery(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "100"}
    return subprocess.run([TUNERY, *args], capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_json(verb):
    done = tunery(*verb.split(), "--help")
    assert done.returncode == 0
    assert f"Usage: tunery {verb} [OPTIONS]" in done.stdout
    assert "Example:" in done.stdout
    assert "--json" in done.stdout
    if verb in ("train", "eval", "batch", "serve", "data prepare"):
        assert "--dry-run" in done.stdout
    if verb in ("train", "eval", "batch", "serve"):
        assert "--set" in done.stdout


@pytest.mark.parametrize(
    ("args", "status", "message", "hint"),
    [
        (["trian"], 2, "trian", "--help"),
        (["train", "nowhere.yaml"], 2, "no such file", "tunery init"),
        (["train", "--set", "lora_ranc=3"], 2, "lora_ranc", "lora_rank"),
        (["train"], 2, "no training dataset", "train.dataset"),
        (["eval", "ghost"], 1, 'no model "ghost"', "tunery models list"),
        (["eval", "--gate", "slot_f2>=1"], 2, "slot_f2", "slot_f1"),
        (["eval", "--gaet", "x"], 2, "--gaet", "`tunery eval --help`"),
        (["eval", "compare", "ghost@1", "ghost@2"], 1, 'no model "ghost"', "tunery models list"),
        (["runs", "show", "x"], 1, 'no run "x"', "tunery runs list"),
        (["data", "check", "no.jsonl"], 1, "no.jsonl", ""),
        (["batch", "in.jsonl", "out.jsonl"], 1, "no model", "tunery train"),
    ],
)
def test_errors_are_one_message_one_hint_and_a_status(tmp_path, args, status, message, hint):
    done = tunery(*args, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    machine = tunery(*args, "--json", cwd=tmp_path)
    assert machine.returncode == status
    assert message in json.loads(machine.stdout)["error"]["message"]


def test_a_project_from_init_to_dry_run(tmp_path):
    made = json.loads(tunery("init", "shop", "--json", cwd=tmp_path).stdout)
    assert made == {"project": "shop/tunery.yaml"}
    shop = tmp_path / "shop"
    checked = json.loads(tunery("data", "check", "--json", cwd=shop).stdout)
    assert [s["rows"] for s in checked["splits"]] == [1500, 250, 250]
    shown = tunery("data", "show", "bikeshop-val", "-n", "2", cwd=shop)
    assert shown.stdout.count("→") == 2
    plan = json.loads(tunery("train", "--dry-run", "--json", cwd=shop).stdout)
    assert plan["train_rows"] == 1500
    assert plan["shared_prefix_tokens"] > 100
    assert plan["train"]["lora_alpha"] == 2 * plan["train"]["lora_rank"]
    assert json.loads(tunery("runs", "list", "--json", cwd=shop).stdout) == {"runs": []}
    assert "no models yet" in tunery("models", "list", cwd=shop).stdout
    served = json.loads(tunery("serve", "--dry-run", "--json", "--set", "port=8123", cwd=shop).stdout)
    assert served["url"] == "http://127.0.0.1:8123/v1"


def test_llama_factorys_yaml_names_what_has_no_effect(tmp_path):
    tunery("init", ".", cwd=tmp_path)
    (tmp_path / "lora_sft_ray.yaml").write_text(
        "model_name_or_path: tunery-base\ndataset: bikeshop-train\ndataset_dir: data\ntemplate: qwen\n"
        "ddp_timeout: 180000000\nray_run_name: lora\nmax_samples: 50\n"
    )
    done = tunery("train", "lora_sft_ray.yaml", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "without effect here: ddp_timeout" in done.stdout
    assert "50" in done.stdout


def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(tmp_path):
    """Interrupted while the workers start, where the most is running that could be left behind."""
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler); "
               "import sys; sys.argv[:] = ['tunery', 'quickstart']; from tunery.cli import main; main()"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        me = psutil.Process(started.pid)
        for _ in range(300):
            if any(c.name().startswith("ray::") for c in me.children(recursive=True)):
                break
            time.sleep(0.2)
        children = me.children(recursive=True)
        assert children
        started.send_signal(signal.SIGINT)
        assert started.stdout
        said = started.stdout.read()
        assert started.wait(60) == 130
    assert "stopped. `tunery quickstart` goes on where it stopped" in said
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert gone
    assert not alive


def test_what_is_found_wrong_is_in_the_status(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "x", "input": "y", "output": ""}\n')
    assert tunery("data", "check", "a.jsonl", cwd=tmp_path).returncode == 1


def test_the_bundled_base_is_where_it_is_said_to_be():
    found = json.loads(tunery("models", "base", "--json").stdout)
    assert (Path(found["path"]) / "model.safetensors").stat().st_size < 16 << 20
    assert found["context"] >= 2048
    assert tunery("models", "base").stdout.strip() == found["path"]


def test_a_key_is_shown_once(tmp_path):
    made = json.loads(tunery("keys", "create", "crm", "--rpm", "60", "--expires", "30d", "--json", cwd=tmp_path).stdout)
    assert made["key"].startswith("tnr-")
    shown = tunery("keys", "list", cwd=tmp_path).stdout
    assert "rpm=60" in shown
    assert made["key"] not in shown
    assert made["key"] not in (tmp_path / "keys.json").read_text()
    assert json.loads(tunery("keys", "revoke", "crm", "--json", cwd=tmp_path).stdout)["state"] == "revoked"


def test_aliases_are_listed_with_the_versions_they_stand_for(tmp_path):
    for number in (3, 4):
        registered(tmp_path, f"shop@{number}")
    made = tunery("models", "alias", "prod", "shop@3=90", "shop@4=10", cwd=tmp_path)
    assert made.stdout == "prod stands for shop@3 90%, shop@4 10%\n"
    twice = tunery("models", "alias", "prod", "shop@3=90", "shop@3=10", cwd=tmp_path)
    assert "a version is named twice" in twice.stderr
    assert "shop@3 90%, shop@4 10%" in tunery("models", "list", cwd=tmp_path).stdout
    listed = json.loads(tunery("models", "list", "--json", cwd=tmp_path).stdout)
    assert listed["aliases"] == {"prod": {"versions": {"shop@3": 90.0, "shop@4": 10.0}, "shadow": None}}


def test_annotated_text_to_parts_to_spans(tmp_path):
    rows = [
        {"text": f"Zoë 🚲 met Ann{i} in Łódź", "label": [[0, 3, "PER"], [10, 13 + len(str(i)), "PER"]]}
        for i in range(40)
    ]
    rows.append({"text": "x", "label": [[0, 9, "PER"]]})
    (tmp_path / "ner.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = tunery("data", "import", "ner.jsonl", "--into", "data", "--as", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "read 41 = 40 kept + 1 dropped" in done.stdout
    assert "ner.jsonl:41: the span 0-9 lies outside the text" in (tmp_path / "data" / "ner.dropped.log").read_text()
    parts = json.loads(tunery("data", "split", "data/ner.jsonl", "--into", "parts", "--json", cwd=tmp_path).stdout)
    assert sum(parts["files"].values()) == parts["read"] == 40
    checked = tunery("data", "check", "--dataset-dir", "parts", "--html", "c.html", cwd=tmp_path)
    assert "PER" in checked.stdout
    assert "cutoff" in (tmp_path / "c.html").read_text()
    out = tunery("data", "export", "ner-train", "back.jsonl", "--to", "doccano", "--dataset-dir", "parts", cwd=tmp_path)
    assert "64 spans" in out.stdout
    row = json.loads((tmp_path / "back.jsonl").read_text().splitlines()[0])
    assert row["text"][slice(*row["label"][0][:2])] == "Zoë"
    stats = json.loads(tunery("data", "stats", "ner", "--dataset-dir", "data", "--json", cwd=tmp_path).stdout)
    assert sum(n for _, _, n in stats["splits"][0]["histogram"]) == 40
    few = tunery("data", "sample", "data/ner.jsonl", "few.csv", "-n", "3", cwd=tmp_path)
    assert "read 40 = 3 kept + 37 left + 0 dropped" in few.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data", "import", "a.jsonl", "--format", "brat"], 'unknown format "brat"'),
        (["data", "import", "a.jsonl", "--as", "xml"], 'unknown form "xml"'),
        (["data", "export", "a.jsonl", "b.jsonl", "--to", "alpacca"], 'unknown format "alpacca"'),
        (["data", "export", "a.jsonl", "a.jsonl"], "exists already"),
        (["data", "export", "a.jsonl", "b.csv", "--to", "openai"], "cannot hold the lists"),
        (["data", "sample", "a.jsonl", "b.jsonl", "-n", "9"], "cannot choose 9 of 1 rows"),
        (["data", "split", "a.jsonl"], "too few"),
    ],
)
def test_data_verbs_say_what_is_wrong(tmp_path, args, message):
    (tmp_path / "a.jsonl").write_text('{"input": "x", "output": "f(y[z])"}\n')
    done = tunery(*args, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
