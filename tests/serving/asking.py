"""How a test asks the running service, and looks at it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families as families

from tunery.config import Project
from tunery.engine.cluster import free_port

MESSAGES = [{"role": "user", "content": "Do you have a red bike for my niece?"}]
FLOAT32 = {"engine_kwargs": {"dtype": "float32"}}  # bfloat16 ties would make exact comparisons a matter of luck


def project(home, base, /, **serve) -> Project:
    settings = {"port": free_port("127.0.0.1", 0), "engine": FLOAT32, **serve}
    train = {"model_name_or_path": str(base.path)}
    return Project.model_validate({"home": str(home), "train": train, "serve": settings})


def generated(base: Path, adapter: Path | None) -> list[int]:
    """Transformers' and PEFT's answer to MESSAGES: sixteen tokens at most."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter))
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return model.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :].tolist()


def ask(client, model, **options):
    options = {"max_tokens": 16, "temperature": 0, "extra_body": {"return_token_ids": True}} | options
    return client.chat.completions.create(model=model, messages=MESSAGES, **options)


def post(service, path, **options):
    return httpx.post(service.url + path, timeout=60, trust_env=False, **options)


def answers(client) -> bool:
    try:
        return bool(ask(client, "bikeshop", max_tokens=1).choices)
    except openai.APIError:
        return False


def samples(service, name: str | None = None) -> list[Any]:
    """The samples of /metrics, or those of one name."""
    text = httpx.get(service.url.removesuffix("/v1") + "/metrics", trust_env=False).text
    return [s for family in families(text) for s in family.samples if name in (None, s.name)]


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def processes(title: str) -> set[int]:
    """The ids of the processes that Ray has given this title."""
    named = {p.pid: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
    return {pid for pid, name in named.items() if name.startswith(title)}


def requests_file(folder: Path, n: int, model: str = "bikeshop", **body: Any) -> Path:
    """`n` requests as OpenAI's batch files have them."""
    asked = {"model": model, "messages": MESSAGES, "max_tokens": 4, "temperature": 0, **body}
    lines = [
        {"custom_id": f"row-{i}", "method": "POST", "url": "/v1/chat/completions", "body": {**asked, "seed": i}}
        for i in range(n)
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "requests.jsonl"


def batched(client, path: Path):
    file = client.files.create(file=path, purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"from": "a test"}
    )


def ended(client, batch):
    wait_for(lambda: client.batches.retrieve(batch.id).status in ("completed", "failed", "cancelled"), 60)
    return client.batches.retrieve(batch.id)
