"""The service as an application meets it: through the openai client, against one real engine."""

from __future__ import annotations

import shutil
import socket
import time
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from conftest import make_version

import tunery
from tunery import versions
from tunery.bases import find_base
from tunery.config import Project
from tunery.data.template import Template
from tunery.engine.cluster import free_port
from tunery.errors import ConfigError, EngineError, ModelError, ResourceError, RunError
from tunery.ops import runs
from tunery.types import Example, Message

MESSAGES = [{"role": "user", "content": "Do you have a red bike for my niece?"}]
FLOAT32 = {"engine_kwargs": {"dtype": "float32"}}  # bfloat16 ties would make exact comparisons a matter of luck


@pytest.fixture(scope="module")
def base(tiny_base):
    return find_base(str(tiny_base))


@pytest.fixture(scope="module")
def home(tiny_base, tmp_path_factory):
    """A project's home with versions of two names."""
    folder = tmp_path_factory.mktemp("home")
    instruction = "Turn it into one function call."
    for ref, rank in (("bikeshop@3", 8), ("viggo@1", 4)):
        make_version(folder, tiny_base, ref, rank=rank, instruction=instruction)
    rows = [(f"a {c} bike for {n}", f"give(colour[{c}], name[{n}])") for c in ("red", "blue") for n in ("Ada", "Bo", "Cy")]
    (folder / "models" / "bikeshop" / "3" / "profile.json").write_text(json.dumps(learn(task_by_name("function"), rows).to_dict()))
    example = Example("1", (Message("user", f"{instruction}\na red bike for Ada"),), "give(colour[red], name[Ada])")
    template = Template("chatml", load_tokenizer(find_base(str(tiny_base))))
    samples = prompt_samples([example], template.rows([example]))
    (folder / "models" / "bikeshop" / "3" / "prompts.json").write_text(json.dumps(samples))
    samples[0]["prompt_token_ids"][3] += 1  # as another layout would have written it
    (folder / "models" / "viggo" / "1" / "prompts.json").write_text("[]")
    make_version(folder, tiny_base, "twisted@1", rank=4)
    (folder / "models" / "twisted" / "1" / "prompts.json").write_text(json.dumps(samples))
    make_version(folder, tiny_base, "wide@1", rank=8, seed=3)
    return folder


def project(home, base, /, **serve) -> Project:
    settings = {"port": free_port("127.0.0.1", 0), "engine": FLOAT32, **serve}
    train = {"model_name_or_path": str(base.path)}
    return Project.model_validate({"home": str(home), "train": train, "serve": settings})


# -- what is refused before anything starts ---------------------------------------------------------------


def refused(spec):
    with tunery.serve(spec):
        pytest.fail("it was served")


def test_a_port_in_use_is_named_and_a_free_one_offered(home, base):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=str(port)) as caught:
            refused(project(home, base, port=port))
    assert "--set serve.port=" in (caught.value.hint or "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_keys_it_binds_to_this_machine_only(home, base, host):
    with pytest.raises(ConfigError, match="no API keys") as caught:
        refused(project(home, base, host=host))
    assert "tunery keys create" in (caught.value.hint or "")


def test_what_is_not_there_or_of_another_base_is_named(home, base, tmp_path):
    with pytest.raises(RunError, match='no version "bikeshop@2"'):
        refused(project(home, base, models=["bikeshop@2"]))
    shutil.copytree(home, tmp_path / "home")
    make_version(tmp_path / "home", base.path, "other@1", base_digest="another")
    with pytest.raises(ModelError, match="other@1: not served") as caught:
        refused(project(tmp_path / "home", base, base=str(base.path), models=["bikeshop", "other"]))
    assert "serve.bases" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="served twice"):
        refused(project(home, base, bases=[{"base": str(base.path)}, {"base": str(base.path)}]))


def test_an_incomplete_adapter_is_refused(home, base, tmp_path):
    shutil.copytree(home, tmp_path / "home")
    (tmp_path / "home" / "models" / "viggo" / "1" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        refused(project(tmp_path / "home", base))


def test_a_failed_start_says_why_and_leaves_nothing(ray_session, home, base):
    from ray import serve as ray_serve

    spec = project(home, base, engine={"engine_kwargs": {"max_model_len": 99_999}})
    with pytest.raises(EngineError, match=r"max_model_len \(99999\) is greater") as caught, tunery.serve(spec):
        pytest.fail("it was served")
    assert "\n" not in caught.value.message
    run = runs.list_runs(home)[0]
    assert run.state == "failed"
    assert "Traceback" in (run.path / "logs" / "failure.log").read_text()
    assert "failure.log" in (caught.value.hint or "")
    assert free_port("127.0.0.1", spec.serve.port) == spec.serve.port
    assert not ray_serve.status().applications


# -- one service for the rest -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(ray_session, home, base):
    with ExitStack() as stack:
        service = stack.enter_context(tunery.serve(project(home, base)))
        yield service, stack


@pytest.fixture(scope="module")
def service(running):
    return running[0]


@pytest.fixture(scope="module")
def client(service):
    with openai.OpenAI(base_url=service.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def ask(client, model, **options):
    options = {"max_tokens": 16, "temperature": 0, "extra_body": {"return_token_ids": True}} | options
    return client.chat.completions.create(model=model, messages=MESSAGES, **options)


def post(service, path, **options):
    return httpx.post(service.url + path, timeout=60, trust_env=False, **options)


@pytest.mark.parametrize("name", ["tiny", "bikeshop@3", "viggo@1"])
def test_answers_are_those_of_transformers_and_peft(client, base, home, name):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    if name != "tiny":
        model = PeftModel.from_pretrained(model, versions.get(home, name).adapter)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = model.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :].tolist()

    answer = ask(client, name)
    assert answer.choices[0].token_ids == expected
    assert answer.model == (name if name == "tiny" else versions.served_id(versions.get(home, name)))
    assert answer.usage.completion_tokens == len(expected)


def test_the_prompt_is_that_of_training(client, base):
    from tunery.bases import load_tokenizer

    template = Template("chatml", load_tokenizer(base))
    example = Example("1", (Message("user", MESSAGES[0]["content"]),), None)
    assert ask(client, "bikeshop").prompt_token_ids == template.prompts([example])[0]


def test_every_model_has_an_answer_of_its_own(client):
    answers = {name: ask(client, name).choices[0].token_ids for name in ("tiny", "bikeshop@3", "viggo@1")}
    assert len({tuple(ids) for ids in answers.values()}) == 3


def test_the_bare_name_answers_as_the_latest_version(client, home):
    answer = ask(client, "bikeshop")
    assert answer.model == versions.served_id(versions.get(home, "bikeshop@3"))
    assert answer.choices[0].token_ids == ask(client, "bikeshop@3").choices[0].token_ids


def test_models_lists_bases_versions_and_names(service, client, home):
    models = {m.id: m for m in client.models.list()}
    ids = {ref: versions.served_id(versions.get(home, ref)) for ref in ("bikeshop@3", "viggo@1")}
    assert set(models) == {"tiny", "bikeshop@3", "viggo@1", "bikeshop", "viggo", *ids.values()}
    assert set(service.models) == set(models) - set(ids.values())
    assert models["tiny"].parent is None
    assert models["bikeshop@3"].parent == models["bikeshop"].parent == "tiny"
    assert models["bikeshop"].root == models["bikeshop@3"].root == ids["bikeshop@3"]
    assert client.models.retrieve("bikeshop@3").id == "bikeshop@3"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("bikeshop@4")


def test_a_stream_is_the_same_answer_in_pieces(client):
    whole = ask(client, "bikeshop")
    chunks = list(ask(client, "bikeshop", stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert {c.model for c in chunks} == {whole.model}
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_a_stream_is_sent_as_server_sent_events(service):
    body = {"model": "bikeshop", "messages": MESSAGES, "max_tokens": 3, "stream": True}
    answer = post(service, "/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event for event in answer.text.split("\n\n") if event]
    assert all(event.startswith("data: {") for event in events[:-1])
    assert events[-1] == "data: [DONE]"


def test_completions_take_plain_prompts(client):
    one = client.completions.create(model="viggo@1", prompt="name[", max_tokens=8, temperature=0)
    assert one.object == "text_completion"
    assert one.usage.completion_tokens == 8
    chunks = list(client.completions.create(model="viggo@1", prompt="name[", max_tokens=8, temperature=0, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == one.choices[0].text


def test_openais_options_pass_through(client):
    several = ask(client, "bikeshop", n=2, temperature=1.0, seed=7)
    assert [c.index for c in several.choices] == [0, 1]
    assert [c.token_ids for c in several.choices] == [
        c.token_ids for c in ask(client, "bikeshop", n=2, temperature=1.0, seed=7).choices
    ]
    with_logprobs = ask(client, "bikeshop", max_tokens=4, logprobs=True, top_logprobs=3)
    tokens = with_logprobs.choices[0].logprobs.content
    assert len(tokens) == 4
    assert all(len(t.top_logprobs) >= 3 and t.logprob <= 0 for t in tokens)
    stopped = ask(client, "bikeshop", extra_body={"return_token_ids": True, "stop_token_ids": [tokens_of(client)[2]]})
    assert stopped.choices[0].finish_reason == "stop"
    text = ask(client, "bikeshop", max_tokens=64).choices[0].message.content
    stop = next(c for c in text if c.isascii() and c.isprintable())
    assert ask(client, "bikeshop", max_tokens=64, stop=[stop]).choices[0].message.content == text.split(stop)[0]


def tokens_of(client):
    return ask(client, "bikeshop").choices[0].token_ids


def test_an_unknown_model_is_a_404_that_names_the_served_ones(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "bikeshop@4")
    error = caught.value.body
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "model_not_found"
    assert all(name in error["message"] for name in ("tiny", "bikeshop@3", "viggo@1"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"content": b"{"}, "not valid JSON"),
        ({"json": []}, "JSON object"),
        ({"json": {"messages": MESSAGES}}, "model"),
        ({"json": {"model": 3, "messages": MESSAGES}}, "model"),
        ({"json": {"model": "bikeshop"}}, "messages"),
        ({"json": {"model": "bikeshop", "messages": []}}, "message"),
        ({"json": {"model": "bikeshop", "messages": [{"content": "x"}]}}, "role"),
        ({"json": {"model": "bikeshop", "messages": MESSAGES, "temperature": -1}}, "temperature"),
        ({"json": {"model": "bikeshop", "messages": MESSAGES, "max_tokens": "many"}}, "max_tokens"),
        ({"json": {"model": "bikeshop", "messages": [{"role": "user", "content": "x" * 3000}]}}, "context length"),
    ],
)
def test_a_bad_request_is_a_400_in_one_line(service, options, said):
    answer = post(service, "/chat/completions", **options)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] is None or isinstance(error["code"], str)
    assert said in error["message"]
    assert not any(ugly in error["message"] for ugly in ("\n", "\x1b", "Traceback", "{'type'"))


def test_other_paths_methods_and_origins_are_refused_in_the_same_form(service):
    for answer, status in [
        (post(service, "/load_lora_adapter", json={}), 404),
        (httpx.get(service.url + "/chat/completions", trust_env=False), 405),
        (post(service, "/chat/completions", json={}, headers={"Origin": "https://example.com"}), 403),
    ]:
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_health_and_metrics_answer(service):
    root = service.url.removesuffix("/v1")
    assert httpx.get(root + "/health", trust_env=False).status_code == 200
    assert httpx.get(root + "/metrics", trust_env=False).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(service, client, stream):
    """The engine does not go on with an answer nobody waits for."""

    def generated():
        lines = httpx.get(service.url.removesuffix("/v1") + "/metrics", trust_env=False).text.splitlines()
        return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:generation_tokens_total{"))

    before = generated()
    long = {"max_tokens": 1900, "stream": stream, "extra_body": {"ignore_eos": True}}
    if stream:
        answer = ask(client, "bikeshop", **long)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            ask(client, "bikeshop", timeout=0.5, **long)
    last = -1.0
    while last != (last := generated()):
        time.sleep(1)
    assert last - before < 1900


def test_a_second_service_on_the_same_ray_is_refused(service, home, base):
    with pytest.raises(ResourceError, match="already runs"):
        refused(project(home, base))


def test_the_end_of_the_block_ends_everything(running):
    from ray import serve as ray_serve
    from ray.util import list_named_actors

    service, stack = running
    port = int(service.url.split(":")[-1].removesuffix("/v1"))
    stack.close()
    assert free_port("127.0.0.1", port) == port
    assert not ray_serve.status().applications
    assert not [a for a in list_named_actors(all_namespaces=True) if "SERVE" in str(a) or "directory" in str(a)]
