"""OpenAI's API: the answers are the model's, and mistakes are told."""

from __future__ import annotations

import time

import httpx
import openai
import pytest

from tunery import versions
from tunery.bases import load_tokenizer
from tunery.data.template import Template
from tunery.types import Example, Message

from .asking import (
    MESSAGES,
    ask,
    generated,
    post,
)


@pytest.mark.parametrize("name", ["tiny", "bikeshop@3", "viggo@1"])
def test_answers_are_those_of_transformers_and_peft(client, base, home, name):
    expected = generated(base.path, None if name == "tiny" else versions.get(home, name).adapter)
    answer = ask(client, name)
    assert answer.choices[0].token_ids == expected
    assert answer.model == (name if name == "tiny" else versions.served_id(versions.get(home, name)))
    assert answer.usage.completion_tokens == len(expected)


def test_the_prompt_is_that_of_training(client, base):

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
