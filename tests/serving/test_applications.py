"""An application of the user's beside the engines: the one in examples/orders."""

from __future__ import annotations

import time

import httpx
import pytest

from tunery.config import ServeSpec, parse
from tunery.errors import ConfigError

from .asking import samples


@pytest.fixture
def orders(service):
    return service.url.removesuffix("/v1") + "/orders"


def ask(url, **options):
    return httpx.post(url, timeout=60, trust_env=False, **options)


def test_it_extracts_and_then_validates(orders):
    answer = ask(orders, json={"text": "Is the road bike light?"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    model = found["value"]["model"]
    assert model in ("Sorrel C42", "Heron E2")
    assert found["faults"] == [f"there is no {model}"]


def test_it_hears_of_what_cannot_be_extracted(orders):
    answer = ask(orders, json={"text": "x" * 3000})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_its_faults_are_its_own(orders, service):
    assert ask(orders, content=b"{").status_code == 500
    assert ask(orders + "s", json={}).status_code == 404
    assert ask(orders, content=b"x" * (5 << 20)).status_code == 413
    assert ask(orders + "/../v1/models", json={}).status_code == 405  # what is not below it is not its
    routes = {s.labels["route"] for s in samples(service, "tunery_requests_total")}
    assert "applications" in routes


def test_it_is_behind_the_keys(orders, keys):
    chats, all_of_it = keys("chats", endpoints=["chat"]), keys("all")
    time.sleep(1)
    body = {"text": "Is the road bike light?"}
    assert ask(orders, json=body).status_code == 401
    assert ask(orders, json=body, headers={"Authorization": f"Bearer {chats}"}).status_code == 403
    assert ask(orders, json=body, headers={"Authorization": f"Bearer {all_of_it}"}).status_code == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "engine"}, "a part of the service"),
        ({"route_prefix": "/v1/orders"}, "the service's own"),
        ({"route_prefix": "/"}, "route_prefix"),
        ({"import_path": "orders"}, "import_path"),
    ],
)
def test_what_an_application_cannot_be(changes, said):
    good = {"name": "orders", "import_path": "orders:app", "route_prefix": "/orders"}
    with pytest.raises(ConfigError, match=said):
        parse(ServeSpec, {"applications": [good | changes]})
    with pytest.raises(ConfigError, match="there twice"):
        parse(ServeSpec, {"applications": [good, good]})
