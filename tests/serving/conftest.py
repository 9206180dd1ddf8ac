"""One service for the tests of this folder: two replicas of one engine, versions of several names."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
from making import make_version

import tunery
from tunery.bases import find_base, load_tokenizer
from tunery.data.template import Template, prompt_samples
from tunery.engine.cluster import free_port
from tunery.ops.access import create_key
from tunery.tasks import learn, task_by_name
from tunery.types import Example, Message

from .asking import project

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="package")
def base(tiny_base):
    return find_base(str(tiny_base))


@pytest.fixture(scope="package")
def home(tiny_base, tmp_path_factory):
    """A project's home with versions of two names."""
    folder = tmp_path_factory.mktemp("home")
    instruction = "Turn it into one function call."
    for ref, rank in (("bikeshop@3", 8), ("viggo@1", 4)):
        make_version(folder, tiny_base, ref, rank=rank, instruction=instruction)
    make_version(folder, tiny_base, "colour@1", rank=4, task="label", instruction="Name the colour.")
    profile = learn(task_by_name("label"), [("a red bike", "red"), ("a blue bike", "blue")] * 12).to_dict()
    (folder / "models" / "colour" / "1" / "profile.json").write_text(json.dumps(profile))
    example = Example("1", (Message("user", f"{instruction}\na red bike for Ada"),), "give(colour[red], name[Ada])")
    template = Template("chatml", load_tokenizer(find_base(str(tiny_base))))
    samples = prompt_samples([example], template.rows([example]))
    (folder / "models" / "bikeshop" / "3" / "prompts.json").write_text(json.dumps(samples))
    samples[0]["prompt_token_ids"][3] += 1  # as another layout would have written it
    (folder / "models" / "viggo" / "1" / "prompts.json").write_text("[]")
    make_version(folder, tiny_base, "orders@1", rank=4, seed=5, instruction=instruction)  # whose answers end
    rows = [("Is the road bike light?", "ask(model[Sorrel C42])"), ("Is the other one?", "ask(model[Heron E2])")] * 12
    profile = learn(task_by_name("function"), rows).to_dict()
    (folder / "models" / "orders" / "1" / "profile.json").write_text(json.dumps(profile))
    shutil.copy(EXAMPLES / "orders" / "orders.py", folder)
    make_version(folder, tiny_base, "twisted@1", rank=4)
    (folder / "models" / "twisted" / "1" / "prompts.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture(scope="package")
def running(ray_session, home, base):
    with ExitStack() as stack:
        json_without_spaces = {"backend": "xgrammar", "disable_any_whitespace": True}  # which a random model loves
        settings = {"dtype": "float32", "max_num_seqs": 16, "structured_outputs_config": json_without_spaces}
        engine = {"engine_kwargs": settings}
        application = {
            "name": "orders", "import_path": "orders:app", "route_prefix": "/orders",
            "args": {"model": "orders", "models": ["Gull 7"]},
        }  # fmt: skip
        more = {"engine": engine, "max_queued_requests": 32, "applications": [application]}
        spec = project(home, base, replicas=2, proxy_port=free_port("127.0.0.1", 0), **more)
        service = stack.enter_context(tunery.serve(spec))
        yield service, stack


@pytest.fixture(scope="package")
def service(running):
    return running[0]


@pytest.fixture(scope="package")
def client(service):
    with openai.OpenAI(base_url=service.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def keys(home):
    """Keys for the length of a test; without any, the service is open to this machine again."""
    yield lambda name, **settings: create_key(name, project={"home": str(home)}, **settings)[1]
    (home / "keys.json").write_text('{"keys": []}')  # were it gone, the keys would stay
    time.sleep(1)
