"""What dies, and what the clients see of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from ray import serve as ray_serve

import tunery
from tunery.errors import ResourceError

from .asking import (
    answers,
    ask,
    batched,
    ended,
    processes,
    project,
    requests_file,
    samples,
    wait_for,
)


def test_a_killed_directory_costs_nothing(client, service):
    (place,) = processes("ray::Directory")
    os.kill(place, signal.SIGKILL)
    assert answers(client)
    wait_for(lambda: processes("ray::Directory") not in (set(), {place}), 60)
    wait_for(lambda: [s.value for s in samples(service, "tunery_replicas")] == [2], 30)
    assert answers(client)


def test_a_killed_controller_finds_everything_again(client, service):
    """Serve's controller comes back and goes on with the same replicas."""
    replicas = processes("ray::ServeReplica")
    (controller,) = processes("ray::ServeController")
    os.kill(controller, signal.SIGKILL)
    assert answers(client)
    wait_for(lambda: len(processes("ray::ServeController") - {controller}) == 1)
    wait_for(lambda: {a.status for a in ray_serve.status().applications.values()} == {"RUNNING"}, 60)
    assert processes("ray::ServeReplica") == replicas
    assert answers(client)


def test_a_killed_replica_costs_no_request(service, client):
    """Requests under way are asked again of the other; a stream that has begun ends with an error event."""
    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask, client, "bikeshop", max_tokens=40, seed=i) for i in range(40)]
        streams = [pool.submit(streamed, client) for _ in range(8)]
        wait_for(lambda: sum(f.done() for f in asked) > 4)
        victim = min(processes("ray::ServeReplica:engine"))
        os.kill(victim, signal.SIGKILL)
        answers = [f.result() for f in asked]
        ends = [f.result() for f in streams]
    expected = ask(client, "bikeshop", max_tokens=40).choices[0].token_ids
    assert all(a.choices[0].token_ids == expected for a in answers)
    assert {end for _, end in ends} <= {"length", "The replica that was answering is gone; ask again."}
    assert all(n == 600 for n, end in ends if end == "length")
    wait_for(lambda: victim not in (there := processes("ray::ServeReplica:engine")) and len(there) == 2, 90)
    wait_for(lambda: [s.value for s in samples(service, "tunery_replicas")] == [2], 90)


def test_requests_of_an_engine_that_dies_are_asked_again(service, client):
    """Its process dies, and its replica lives on until Serve replaces it."""
    expected = ask(client, "bikeshop", max_tokens=40).choices[0].token_ids
    cores = processes("VLLM::EngineCore")
    assert len(cores) == 2
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, client, "bikeshop", max_tokens=40, seed=i) for i in range(40)]
        wait_for(lambda: sum(f.done() for f in asked) > 4)
        os.kill(min(cores), signal.SIGKILL)
        assert all(f.result().choices[0].token_ids == expected for f in asked)
    wait_for(lambda: [s.value for s in samples(service, "tunery_replicas")] == [1], 60)
    wait_for(lambda: [s.value for s in samples(service, "tunery_replicas")] == [2], 120)
    assert ask(client, "bikeshop", max_tokens=40).choices[0].token_ids == expected


def streamed(client) -> tuple[int, str]:
    """How many tokens a stream says that it had, and how it ended: its finish reason, or an error's message."""
    tokens, end = 0, "cut"
    counted = {"stream_options": {"include_usage": True}, "extra_body": {"ignore_eos": True}}
    try:
        for chunk in ask(client, "bikeshop", max_tokens=600, stream=True, **counted):
            tokens = chunk.usage.completion_tokens if chunk.usage else 0
            end = chunk.choices[0].finish_reason or end if chunk.choices else end
    except openai.APIError as error:
        end = error.message
    return tokens, end


def test_what_is_too_much_at_once_is_told_to_come_again(service):
    """More than two replicas and the queue before them take: a few are refused, at once, and the rest answered."""
    body = {"model": "bikeshop", "prompt": "a red bike", "max_tokens": 16}

    async def flood():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as session:
            posts = (session.post(f"{service.url}/completions", json=body) for _ in range(150))
            return await asyncio.gather(*posts)

    answers = asyncio.run(flood())
    refused = [a for a in answers if a.status_code == 429]
    assert {a.status_code for a in answers} == {200, 429}
    assert {a.json()["error"]["code"] for a in refused} == {"overloaded"}
    assert all(int(a.headers["retry-after"]) >= 1 for a in refused)


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


def test_a_second_service_on_the_same_ray_is_refused(service, home, base):
    with pytest.raises(ResourceError, match="already runs"), tunery.serve(project(home, base)):
        pytest.fail("it was served")
