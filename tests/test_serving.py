"""The service as an application meets it: through the openai client, against one real engine."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from conftest import make_version
from prometheus_client.parser import text_string_to_metric_families as families

import tunery
from tunery import versions
from tunery.bases import find_base, load_tokenizer
from tunery.config import Project, ServedBase, ServeSpec, parse
from tunery.data.template import Template, prompt_samples
from tunery.engine.cluster import free_port
from tunery.errors import ConfigError, EngineError, ModelError, ResourceError, RunError
from tunery.ops import runs
from tunery.ops.access import create_key, remove_alias, revoke_key, set_alias
from tunery.ops.services import describe
from tunery.tasks import learn, task_by_name
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
    make_version(folder, tiny_base, "colour@1", rank=4, task="label", instruction="Name the colour.")
    profile = learn(task_by_name("label"), [("a red bike", "red"), ("a blue bike", "blue")] * 12).to_dict()
    (folder / "models" / "colour" / "1" / "profile.json").write_text(json.dumps(profile))
    example = Example("1", (Message("user", f"{instruction}\na red bike for Ada"),), "give(colour[red], name[Ada])")
    template = Template("chatml", load_tokenizer(find_base(str(tiny_base))))
    samples = prompt_samples([example], template.rows([example]))
    (folder / "models" / "bikeshop" / "3" / "prompts.json").write_text(json.dumps(samples))
    samples[0]["prompt_token_ids"][3] += 1  # as another layout would have written it
    (folder / "models" / "viggo" / "1" / "prompts.json").write_text("[]")
    make_version(folder, tiny_base, "twisted@1", rank=4)
    (folder / "models" / "twisted" / "1" / "prompts.json").write_text(json.dumps(samples))
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


def test_keys_that_are_all_revoked_are_none(base, tmp_path):
    create_key("crm", project={"home": str(tmp_path)})
    revoke_key("crm", project={"home": str(tmp_path)})
    with pytest.raises(ConfigError, match="no API keys"):
        refused(project(tmp_path, base, host="0.0.0.0"))


def test_what_is_not_there_or_of_another_base_is_named(home, base, tmp_path):
    with pytest.raises(RunError, match='no version "bikeshop@2"'):
        refused(project(home, base, models=["bikeshop@2"]))
    shutil.copytree(home, tmp_path / "home")
    make_version(tmp_path / "home", base.path, "other@1", base_digest="another")
    with pytest.raises(ModelError, match="other@1: not served") as caught:
        refused(project(tmp_path / "home", base, base=str(base.path), models=["bikeshop", "other"]))
    assert "serve.bases" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="bases stands instead of base, models"):
        parse(ServeSpec, {"bases": [{}], "base": "x", "models": ["y"]})
    several = ServeSpec(bases=[ServedBase(base="x"), ServedBase(base="y")])
    assert ServeSpec.model_validate(several.model_dump()) == several  # as it comes to the gateway
    bases = [{"base": str(base.path)}, {"base": str(base.path)}]
    with pytest.raises(ConfigError, match="served twice"):
        refused(Project.model_validate({"home": str(home), "serve": {"bases": bases}}))


def test_an_incomplete_adapter_is_refused(home, base, tmp_path):
    shutil.copytree(home, tmp_path / "home")
    (tmp_path / "home" / "models" / "viggo" / "1" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        refused(project(tmp_path / "home", base))


def test_the_same_service_as_a_file_for_serve_deploy(home, base, tmp_path):
    """What Ray's own command reads: its schema holds, and its builders make the applications."""
    import yaml
    from ray.serve.schema import ServeDeploySchema

    scale = {"min_replicas": 1, "max_replicas": 4}
    facts = describe(project(home, base, autoscaling=scale), tmp_path / "serve.yaml")
    assert facts["models"] == ["bikeshop@3", "colour@1", "twisted@1", "viggo@1"]
    config = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    assert [a.name for a in schema.applications] == ["engine", "gateway"]
    for application in schema.applications:
        module, _, builder = application.import_path.partition(":")
        built = getattr(importlib.import_module(module), builder)(application.args)
        assert built._bound_deployment.name == application.name


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
        service = stack.enter_context(tunery.serve(project(home, base, replicas=2)))
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
    assert set(models) > {"tiny", "bikeshop@3", "viggo@1", "bikeshop", "viggo", *ids.values()}
    assert set(service.models) > {"tiny", "bikeshop@3", "viggo@1", "bikeshop", "viggo"}
    assert not set(service.models) & set(ids.values())
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


def test_responses_are_vllms_own(client):
    one = client.responses.create(model="bikeshop", input=MESSAGES[0]["content"], max_output_tokens=8, temperature=0)
    assert one.usage.output_tokens == 8
    events = list(
        client.responses.create(
            model="bikeshop", input=MESSAGES[0]["content"], max_output_tokens=8, temperature=0, stream=True
        )
    )
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == one.output_text


def test_a_model_that_cannot_embed_says_so(client):
    with pytest.raises(openai.NotFoundError, match="does not offer that endpoint"):
        client.embeddings.create(model="tiny", input="a red bike")


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
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert httpx.get(root + path, trust_env=False).status_code == 200


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


# -- extraction -------------------------------------------------------------------------------------------


def test_extract_reads_values_with_places_and_confidences(service):
    text = "a red and a blue bike for Ada"
    answer = post(service, "/extract", json={"model": "colour", "text": text})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["version"] == "colour@1"
    assert found["finish_reason"] == "stop"  # the grammar ends what a random model would go on with
    assert found["output"] == found["parsed"] == found["value"]["label"]
    assert 0 < found["probability"] <= 1
    (span,) = found["spans"]
    assert span["value"] in ("red", "blue")
    assert (span["kind"], text[span["start"] : span["end"]]) == ("verbatim", span["value"])
    assert found["usage"]["prompt_tokens"] > 0


def test_extract_is_what_the_chat_with_the_trained_prompt_says(service, client):
    """One layout for training, batch and extract: the instruction of the training rows stands before the text."""
    text = "a red bike for Ada"
    found = post(
        service, "/extract", json={"model": "bikeshop", "text": text, "grammar": False, "max_tokens": 8}
    ).json()
    turn = {"role": "user", "content": f"Turn it into one function call.\n{text}"}
    said = client.chat.completions.create(model="bikeshop", messages=[turn], max_tokens=8, temperature=0)
    assert found["output"] == said.choices[0].message.content.strip()


def test_extract_takes_many_texts_and_keeps_their_order(service):
    texts = [f"a {c} bike for {n}" for c in ("red", "blue") for n in ("Ada", "Bo", "Cy")]
    many = post(service, "/extract", json={"model": "colour", "texts": texts}).json()["results"]
    one = post(service, "/extract", json={"model": "colour", "text": texts[4]}).json()
    assert len(many) == len(texts)
    assert many[4]["output"] == one["output"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "bikeshop"}, 400, '"text" or "texts"'),
        ({"model": "bikeshop", "text": ""}, 400, "not empty"),
        ({"model": "bikeshop", "texts": []}, 400, "not empty"),
        ({"model": "bikeshop", "texts": ["x"] * 257}, 400, "257 texts are too many"),
        ({"model": "bikeshop", "text": "x", "tempo": 1}, 400, "Unknown: tempo"),
        ({"model": "bikeshop", "text": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "bikeshop", "text": "x" * 3000}, 400, "context length"),
        ({"model": "tiny", "text": "x"}, 400, "no trained prompt"),
        ({"model": "ghost", "text": "x"}, 404, "does not exist"),
    ],
)
def test_a_bad_extraction_says_what_is_wrong(service, body, status, said):
    answer = post(service, "/extract", json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


# -- versions and names while it runs ---------------------------------------------------------------------


def test_a_version_that_is_registered_now_answers_now(client, home, base):
    with pytest.raises(openai.NotFoundError):
        ask(client, "fresh")
    version = make_version(home, base.path, "fresh@1", rank=8, seed=5)
    time.sleep(0.6)
    assert ask(client, "fresh").model == versions.served_id(version)


def test_versions_that_cannot_be_asked_say_why(client, home, base):
    """Of higher rank than the engine was started for; with prompts that the engine would write otherwise."""
    make_version(home, base.path, "huge@1", rank=64)
    time.sleep(0.6)
    with pytest.raises(openai.NotFoundError, match=r"its rank is 64, this engine takes up to 8; .*max_lora_rank=64"):
        ask(client, "huge")
    with pytest.raises(openai.InternalServerError, match=r"twisted@1 was trained on prompts other than"):
        ask(client, "twisted")


def test_a_hundred_adapters_over_one_base(client, home, base):
    """Far more than the engine keeps at once: each is loaded when it is asked, and each has its own weights."""
    first = make_version(home, base.path, "many@1", rank=8, seed=1).adapter
    for i in range(2, 101):
        shutil.copytree(first, first.parent / str(i))
        entry = json.loads((first / "version.json").read_text()) | {"version": i, "run_id": f"run-{i}"}
        (first.parent / str(i) / "version.json").write_text(json.dumps(entry))
    make_version(home, base.path, "many@50", rank=8, seed=50)
    time.sleep(0.6)
    answers = {i: ask(client, f"many@{i}", max_tokens=4) for i in range(1, 101)}
    assert len({a.model for a in answers.values()}) == 100
    assert len({str(a.choices[0].token_ids) for a in answers.values()}) == 2
    assert answers[1].choices[0].token_ids == ask(client, "many@1", max_tokens=4).choices[0].token_ids  # loaded again


def test_an_alias_splits_and_shadows(service, client, home):
    set_alias("prod", {"bikeshop@3": 50, "viggo@1": 50}, shadow="fresh@1", project={"home": str(home)})
    time.sleep(1)
    answers = {u: ask(client, "prod", user=f"user-{u}", max_tokens=2).model for u in range(20)}
    assert len(set(answers.values())) == 2
    assert ask(client, "prod", user="user-3", max_tokens=2).model == answers[3]
    assert "prod" in {m.id for m in client.models.list()}
    wait_for(lambda: any(s.labels["shadow"] == "fresh@1" for s in samples(service, "tunery_shadow_total")))
    remove_alias("prod", project={"home": str(home)})
    time.sleep(1)
    with pytest.raises(openai.NotFoundError):
        ask(client, "prod")


def samples(service, name: str | None = None) -> list[Any]:
    """The samples of /metrics, or those of one name."""
    text = httpx.get(service.url.removesuffix("/v1") + "/metrics", trust_env=False).text
    return [s for family in families(text) for s in family.samples if name in (None, s.name)]


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


# -- files and batches ------------------------------------------------------------------------------------


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


def test_a_batch_answers_every_request_as_the_chat_does(client, tmp_path):
    path = requests_file(tmp_path, 20)
    with path.open("a") as file:
        file.write(json.dumps({"custom_id": "bad", "url": "/v1/chat/completions", "body": {"model": "ghost"}}) + "\n")
    done = ended(client, batched(client, path))
    assert done.status == "completed"
    assert done.metadata == {"from": "a test"}
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (21, 20, 1)
    lines = [json.loads(x) for x in client.files.content(done.output_file_id).text.splitlines()]
    assert [line["custom_id"] for line in lines] == [f"row-{i}" for i in range(20)]
    expected = ask(client, "bikeshop", max_tokens=4).choices[0].message.content
    assert all(x["response"]["body"]["choices"][0]["message"]["content"] == expected for x in lines)
    (failed,) = [json.loads(x) for x in client.files.content(done.error_file_id).text.splitlines()]
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("bad", 404)
    assert done.id in {b.id for b in client.batches.list()}
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"


def test_a_broken_input_file_is_told_line_by_line(client, tmp_path):
    path = requests_file(tmp_path, 2)
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n{\n[]\n")
    done = ended(client, batched(client, path))
    assert done.status == "failed"
    assert [(e.line, e.message) for e in done.errors.data] == [
        (3, '"custom_id" row-0 was there before'),
        (4, "not valid JSON"),
        (5, 'a line is {"custom_id", "method", "url", "body"}'),
    ]


def test_files_that_cannot_be(client, service, tmp_path):
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-../../keys")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=requests_file(tmp_path, 1), purpose="fine-tune")
    assert post(service, "/files", content=b"x").status_code == 400
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-0", endpoint="/v1/chat/completions", completion_window="24h")
    file = client.files.create(file=requests_file(tmp_path, 1), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/moderations", completion_window="24h")
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_a_cancelled_batch_keeps_what_is_answered(client, tmp_path):
    batch = batched(client, requests_file(tmp_path, 2000))
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0)
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = ended(client, batch)
    assert done.status == "cancelled"
    kept = client.files.content(done.output_file_id).text.splitlines()
    assert 0 < len(kept) == done.request_counts.completed < 2000


def test_files_are_their_keys_own(service, keys, tmp_path):
    mine, other = (openai.OpenAI(base_url=service.url, api_key=keys(name), max_retries=0) for name in ("mine", "other"))
    time.sleep(1)
    file = mine.files.create(file=requests_file(tmp_path, 1), purpose="batch")
    assert [f.id for f in mine.files.list()] == [file.id]
    assert not list(other.files.list())
    with pytest.raises(openai.NotFoundError):
        other.files.content(file.id)


# -- what is seen -----------------------------------------------------------------------------------------


def test_metrics_tell_models_apart_and_replicas(service, client):
    ask(client, "bikeshop", max_tokens=3)
    list(ask(client, "bikeshop", max_tokens=5, stream=True))
    (requests,) = (
        s for s in samples(service, "tunery_requests_total")
        if (s.labels["model"], s.labels["route"], s.labels["status"]) == ("bikeshop", "/v1/chat/completions", "200")
    )  # fmt: skip
    assert requests.labels["version"] == "bikeshop@3"
    assert requests.value >= 2
    assert any(s.value > 0 for s in samples(service, "tunery_tpot_seconds_count"))
    assert [s.value for s in samples(service, "tunery_replicas")] == [2]
    assert len({s.labels["replica"] for s in samples(service, "vllm:generation_tokens_total")}) == 2


def test_the_access_log_has_all_but_contents(service, client, home):
    secret = "unspeakable"
    client.chat.completions.create(
        model="bikeshop",
        messages=[{"role": "user", "content": secret}],
        max_tokens=3,
        extra_headers={"x-request-id": "mine-1"},
    )
    (log,) = (runs.list_runs(home)[0].path / "logs").glob("access.jsonl")
    wait_for(lambda: "mine-1" in log.read_text())
    line = next(line for line in map(json.loads, log.read_text().splitlines()) if line["request"] == "mine-1")
    assert (line["model"], line["version"], line["status"], line["completion_tokens"]) == (
        "bikeshop",
        "bikeshop@3",
        200,
        3,
    )
    assert secret not in log.read_text()


# -- keys -------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(home):
    """Keys for the length of a test; without any, the service is open to this machine again."""
    yield lambda name, **settings: create_key(name, project={"home": str(home)}, **settings)[1]
    (home / "keys.json").write_text('{"keys": []}')  # were it gone, the keys would stay
    time.sleep(1)


def test_keys_scopes_and_limits(service, keys, home):
    crm = keys("crm", models=["bikeshop*"], endpoints=["chat", "models"], requests_per_minute=3)
    other = keys("other")
    time.sleep(1)

    def status(secret: str | None, path: str = "/chat/completions", model: str = "bikeshop") -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        body = {"model": model, "messages": MESSAGES, "prompt": "x", "max_tokens": 2}
        return post(service, path, json=body, headers=headers)

    assert (status(None).status_code, status("tnr-wrong").status_code) == (401, 401)
    assert status(None).headers["www-authenticate"] == "Bearer"
    first = status(crm)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert status(crm, "/completions").json()["error"]["code"] == "endpoint_not_allowed"
    assert status(crm, model="viggo").json()["error"]["code"] == "model_not_allowed"
    assert status(crm).status_code == 200
    over = status(crm)
    assert over.status_code == 429
    assert 1 <= int(over.headers["retry-after"]) <= 60
    assert status(other).status_code == 200
    revoke_key("other", project={"home": str(home)})
    time.sleep(1)
    assert "revoked" in status(other).json()["error"]["message"]


def test_what_is_too_large_is_not_read(service):
    body = json.dumps({"model": "bikeshop", "messages": MESSAGES, "user": "x" * (5 << 20)})
    assert post(service, "/chat/completions", content=body).json()["error"]["code"] == "request_too_large"
    chunked = (part.encode() for part in (body[: 1 << 20], body[1 << 20 :]))
    assert post(service, "/chat/completions", content=chunked).status_code == 413


# -- faults -----------------------------------------------------------------------------------------------


def processes(title: str) -> set[int]:
    """The ids of the processes that Ray has given this title."""
    named = {p.pid: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
    return {pid for pid, name in named.items() if name.startswith(title)}


def test_a_killed_replica_costs_no_request(service, client):
    """Requests under way are asked again; a stream that has begun ends with an error event."""
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, client, "bikeshop", max_tokens=40, seed=i) for i in range(40)]
        wait_for(lambda: sum(f.done() for f in asked) > 4)
        victim = min(processes("ray::ServeReplica:engine"))
        os.kill(victim, signal.SIGKILL)
        answers = [f.result() for f in asked]
    expected = ask(client, "bikeshop", max_tokens=40).choices[0].token_ids
    assert all(a.choices[0].token_ids == expected for a in answers)
    wait_for(lambda: victim not in (there := processes("ray::ServeReplica:engine")) and len(there) == 2, 90)
    wait_for(lambda: [s.value for s in samples(service, "tunery_replicas")] == [2], 90)


def test_a_killed_gateway_comes_back_and_its_batch_goes_on(client, tmp_path):
    """The client's connection breaks; after that all is as before, and no line of the batch is there twice."""
    batch = batched(client, requests_file(tmp_path, 300))
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 20)
    (gateway,) = processes("ray::ServeReplica:gateway")
    os.kill(gateway, signal.SIGKILL)
    with pytest.raises(openai.APIConnectionError):
        ask(client, "bikeshop")
    wait_for(lambda: answers(client), 60)
    done = ended(client, batch)
    lines = client.files.content(done.output_file_id).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [f"row-{i}" for i in range(300)]


def test_a_killed_directory_costs_nothing(client, service):
    (place,) = processes("ray::Directory")
    os.kill(place, signal.SIGKILL)
    assert answers(client)
    wait_for(lambda: processes("ray::Directory") not in (set(), {place}), 60)
    wait_for(lambda: [s.value for s in samples(service, "tunery_replicas")] == [2], 30)
    assert answers(client)


def answers(client) -> bool:
    try:
        return bool(ask(client, "bikeshop", max_tokens=1).choices)
    except openai.APIError:
        return False


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
