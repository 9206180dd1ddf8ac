"""Shared by all tests: one Ray, one tiny base model, one tiny adapter."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import pytest
from making import make_adapter

from tunery.types import ModelVersion

# Before any test imports torch: two suites on one small machine must not spin against each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def viggo() -> Path:
    """The folder with ViGGO's train.jsonl and val.jsonl."""
    folder = SHARED / "data" / "viggo"
    if not folder.is_dir():
        pytest.skip("ViGGO is not on this machine")
    return folder


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory, s3_port, gs_port):
    """A local Ray for the whole suite."""
    from tunery.engine.cluster import connect

    with connect(num_cpus=4, log_dir=tmp_path_factory.mktemp("ray")):
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A random Qwen2 of 0.3 M parameters with a byte-level ChatML tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("base") / "tiny"
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {t: i for i, t in enumerate(specials + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=specials[0], eos_token=specials[2], model_max_length=2048
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base, tmp_path_factory) -> Path:
    """A random adapter of rank 8 on `tiny_base`."""
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapter") / "one")


def browser() -> str:
    found = next((b for b in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(b)), None)
    if not found:
        pytest.skip("no Chromium on this machine")
    return found


def dom(page: Path, script: str = "") -> str:
    """The page's DOM after `script` ran in it, at the width of a phone.

    It runs in a frame 390 pixels wide, since Chromium's own windows are never less than 500. A page's own policy, which
    would let no script run, is left out.
    """
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(errors="replace"))
    text += f"<script>{script}</script><script>parent.found = document.documentElement.outerHTML</script>"
    driven = page.with_name("driven.html")
    frame = f'<iframe width="390" height="844" style="border:0" srcdoc="{escape(text)}"></iframe>'
    show = "<script>onload = () => document.documentElement.innerHTML = window.found</script>"
    driven.write_text(f'<!doctype html><meta charset="utf-8">{frame}{show}')
    done = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--dump-dom", driven.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def registered(home: Path, ref: str, **known: Any) -> None:
    """An entry of the registry without any weights, for those who only look at names."""

    name, _, number = ref.partition("@")
    folder = home / "models" / name / number
    folder.mkdir(parents=True)
    known = {"digest": f"beef{number}", **known}
    version = ModelVersion(
        name, int(number), "b", "", folder, 8, "chatml", "", "", "function", "run", "2026-11-01", **known
    )
    values = {k: v for k, v in asdict(version).items() if k != "adapter"}
    (folder / "version.json").write_text(json.dumps(values))


def write_rows(folder: Path, n: int = 24) -> None:
    """A registry with "shop-train", `n` rows, and "shop-test", four."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["red", "green", "blue", "black"]
    for split, count in (("train", n), ("test", 4)):
        lines = [
            {"system": "You read bike orders.", "instruction": "Name the colour as colour(name[...]).",
             "input": f"{words[i % 4]} bike {i}", "output": f"colour(name[{words[i % 4]}])"}
            for i in range(count)
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}}
    registered = {f"shop-{s}": {"file_name": f"{s}.jsonl"} | entry for s in ("train", "test")}
    (folder / "dataset_info.json").write_text(json.dumps(registered))


class S3:
    """An S3 server (moto's) in a process of its own that can be killed and started again, empty but for a bucket."""

    address = "s3://tunery-test"

    def __init__(self, port: int) -> None:
        self.port = port

    def start(self) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = boto3.client("s3", config=Config(retries={"max_attempts": 0}))
        while True:
            try:
                client.create_bucket(Bucket="tunery-test")
                return
            except BotoCoreError:
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def s3_port():
    """Where `s3` is to listen: the environment points there, also that of Ray's workers."""
    from tunery.engine.cluster import free_port

    port = free_port("127.0.0.1", 0)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        yield port


@pytest.fixture(scope="module")
def s3(s3_port):
    """A running S3 server, to which this process's environment points."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # fsspec keeps clients, and their endpoint, for good
    server = S3(s3_port)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bucket(s3) -> str:
    """The address of a bucket in S3."""
    return s3.address


@pytest.fixture(scope="session")
def gs_port():
    """Where `gs` is to listen, as with `s3_port`."""
    from tunery.engine.cluster import free_port

    port = free_port("127.0.0.1", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        patch.setenv("NO_GCE_CHECK", "true")  # no machine of Google's to ask for credentials
        yield port


@pytest.fixture(scope="session")
def gs(gs_port):
    """The address of a bucket of an emulated Google Cloud Storage, in a process of its own."""
    name = "tunery-test"
    command = [Path(sys.executable).with_name("gcp-storage-emulator"), "start", "--in-memory"]
    command += ["--host=127.0.0.1", f"--port={gs_port}", f"--default-bucket={name}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while True:
            try:
                socket.create_connection(("127.0.0.1", gs_port)).close()
                break
            except ConnectionError:
                assert server.poll() is None
                time.sleep(0.1)
        yield f"gs://{name}"
        server.kill()


@pytest.fixture(params=["bucket", "gs"])
def store(request) -> str:
    """The address of a bucket, in S3 and in Google Cloud Storage."""
    return request.getfixturevalue(request.param)
