"""Values from texts."""

from __future__ import annotations

import pytest

from .asking import (
    post,
)


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
