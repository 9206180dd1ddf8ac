"""OpenAI's files and batches."""

from __future__ import annotations

import json
import time

import openai
import pytest

from .asking import (
    ask,
    batched,
    ended,
    post,
    requests_file,
    wait_for,
)


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
