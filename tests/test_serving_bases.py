"""Two bases in one service, with a registry in a bucket, and an application that takes too long."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import openai
import pytest
from making import make_version
from serving.asking import FLOAT32, ask, generated, wait_for

import tunery
from tunery import storage, versions
from tunery.config import Project
from tunery.engine.cluster import free_port

SLEEPY = """
import asyncio
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Sleepy:
    async def __call__(self, request):
        await asyncio.sleep(float(request.query_params["s"]))
        return "awake"

def app(args):
    return Sleepy.bind()
"""


@pytest.fixture(scope="module")
def other_base(tiny_base, tmp_path_factory) -> Path:
    """The same kind of base with other weights."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("base") / "other"
    shutil.copytree(tiny_base, folder)
    torch.manual_seed(1)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_each_version_is_answered_by_its_base(bucket, ray_session, tiny_base, other_base, tmp_path):
    """Also one that comes into the bucket while the service runs."""
    registry = tmp_path / "elsewhere"

    def registered(ref: str, base: Path) -> list[int]:
        version = make_version(registry, base, ref)
        storage.copy_tree(version.adapter, f"{bucket}/registry/models/{ref.replace('@', '/')}")
        return generated(base, version.adapter)

    expected = {"shop@1": registered("shop@1", tiny_base), "mail@1": registered("mail@1", other_base)}
    bases = [{"base": str(base), "engine": FLOAT32} for base in (tiny_base, other_base)]
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    sleepy = {"name": "sleepy", "import_path": "sleepy:app", "route_prefix": "/sleepy"}
    serve = {
        "port": free_port("127.0.0.1", 0), "proxy_port": free_port("127.0.0.1", 0), "bases": bases,
        "registry": f"{bucket}/registry", "applications": [sleepy], "request_timeout_s": 10,
    }  # fmt: skip
    spec = Project.model_validate({"home": str(tmp_path), "serve": serve})
    with (
        tunery.serve(spec) as service,
        openai.OpenAI(base_url=service.url, api_key="unused", max_retries=0, timeout=60) as client,
    ):
        parents = {m.id: m.model_dump()["parent"] for m in client.models.list()}
        assert (parents["shop@1"], parents["mail@1"]) == ("tiny", "other")
        assert ask(client, "tiny").choices[0].token_ids == generated(tiny_base, None)
        assert ask(client, "other").choices[0].token_ids == generated(other_base, None)
        for ref, ids in expected.items():
            assert ask(client, ref).choices[0].token_ids == ids

        with pytest.raises(openai.NotFoundError):
            ask(client, "mail@2")
        ids = registered("mail@2", other_base)
        wait_for(lambda: "mail@2" in {m.id for m in client.models.list()})
        assert ask(client, "mail").choices[0].token_ids == ids
        assert ask(client, "mail").model == versions.served_id(versions.get(registry, "mail@2"))

        asleep = service.url.removesuffix("/v1") + "/sleepy"
        assert httpx.get(asleep, params={"s": 0}, trust_env=False, timeout=60).text == "awake"
        late = httpx.get(asleep, params={"s": 60}, trust_env=False, timeout=60)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
