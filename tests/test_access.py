"""API keys, their limits, and names that stand for versions: as the gateway uses them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.errors import ConfigError, RunError
from tunery.ops.access import create_key
from tunery.serving.aliases import Aliases
from tunery.serving.keys import Key, KeyStore
from tunery.serving.limits import Limits, OverLimit

# -- keys -------------------------------------------------------------------------------------------------


def test_a_key_is_found_by_its_secret_which_is_not_kept(tmp_path):
    keys = KeyStore(tmp_path / "keys.json")
    key, secret = keys.create("crm", models=["shop*"], endpoints=["chat"], limits={"requests_per_minute": 60})
    assert keys.find(secret) == key
    assert keys.find(secret + "x") is None
    text = (tmp_path / "keys.json").read_text()
    assert secret not in text
    assert secret not in repr(key)
    assert secret.startswith(key.prefix)
    assert stat.S_IMODE(os.stat(tmp_path / "keys.json").st_mode) == 0o600
    assert key.allows_model("shop@3")
    assert not key.allows_model("viggo")
    assert key.allows_endpoint("chat")
    assert not key.allows_endpoint("extract")


def found(keys: KeyStore, secret: str) -> Key:
    key = keys.find(secret)
    assert key
    return key


def test_a_store_that_is_open_hears_of_changes(tmp_path):
    reader, writer = KeyStore(tmp_path / "keys.json"), KeyStore(tmp_path / "keys.json")
    _, secret = writer.create("crm")
    time.sleep(0.6)
    assert reader.find(secret)
    writer.revoke("crm")
    time.sleep(0.6)
    assert found(reader, secret).revoked
    (tmp_path / "keys.json").write_text("{")  # what it said before stays
    time.sleep(0.6)
    assert found(reader, secret).revoked


def test_two_writers_at_once_lose_nothing(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tunery.serving.keys import KeyStore\n"
        "store = KeyStore(Path(sys.argv[1]))\n"
        "for i in range(10): store.create(f'{sys.argv[2]}-{i}')"
    )
    path = str(tmp_path / "keys.json")
    writers = [subprocess.Popen([sys.executable, "-c", script, path, name]) for name in "ab"]
    assert [w.wait(60) for w in writers] == [0, 0]
    assert len(KeyStore(tmp_path / "keys.json").list()) == 20


def test_times_of_expiry(tmp_path):
    key, _ = create_key("crm", project={"home": str(tmp_path)}, expires="30d")
    assert not key.expired
    assert datetime.fromisoformat(key.expires or "") - datetime.now(UTC) > timedelta(days=29)
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    assert Key("key-1", "old", "", expires=past).expired


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"endpoints": ["chatt"]}, 'no endpoint "chatt"', 'did you mean "chat"?'),
        ({"expires": "soon"}, '"soon" is no time', "30d"),
        ({"expires": "2020-01-01"}, "over already", "to come"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0", ""),
    ],
)
def test_a_key_that_cannot_be_made(tmp_path, settings, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        create_key("crm", project={"home": str(tmp_path)}, **settings)
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "keys.json").exists()


def test_names_of_keys(tmp_path):
    keys = KeyStore(tmp_path / "keys.json")
    keys.create("crm")
    with pytest.raises(ConfigError, match="already"):
        keys.create("crm")
    with pytest.raises(RunError, match='no key "crmm"') as caught:
        keys.revoke("crmm")
    assert caught.value.hint == 'did you mean "crm"?'
    keys.revoke("crm")
    keys.create("crm")  # the name is free again


def test_a_damaged_file_says_where(tmp_path):
    (tmp_path / "keys.json").write_text('{"keys": [{"no": 1}]}')
    with pytest.raises(RunError, match=r"keys\.json"):
        KeyStore(tmp_path / "keys.json")


# -- limits -----------------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def limited(**limits) -> Key:
    return Key("key-1", "crm", "", **limits)


def test_requests_a_minute():
    clock = Clock()
    limits, key = Limits(clock), limited(requests_per_minute=2)
    first = limits.admit(key)
    clock.now += 20
    limits.admit(key)
    assert first.headers() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "40.000s",
    }
    with pytest.raises(OverLimit, match="2 requests a minute") as caught:
        limits.admit(key)
    assert caught.value.retry_after == pytest.approx(40)
    clock.now += 40
    limits.admit(key)  # the refused one has cost nothing
    limits.admit(limited(requests_per_minute=5))  # a key's new limit counts at once


def test_tokens_a_minute_are_charged_when_they_are_known():
    clock = Clock()
    limits, key = Limits(clock), limited(tokens_per_minute=100)
    grant = limits.admit(key)
    limits.admit(key)
    grant.settle(90)
    clock.now += 10
    limits.admit(key).settle(60)
    with pytest.raises(OverLimit, match="100 tokens a minute") as caught:
        limits.admit(key)
    assert caught.value.retry_after == pytest.approx(50)  # until the 90 are a minute old
    assert caught.value.headers["x-ratelimit-remaining-tokens"] == "0"
    clock.now += 50
    limits.admit(key)


def test_requests_at_once():
    limits, key = Limits(), limited(concurrent_requests=1)
    grant = limits.admit(key)
    with pytest.raises(OverLimit, match="1 requests at once"):
        limits.admit(key)
    grant.release()
    grant.release()
    limits.admit(key)
    with pytest.raises(OverLimit):
        limits.admit(key)


@given(st.lists(st.floats(0, 40), max_size=60), st.integers(1, 5))
def test_never_more_than_the_limit_within_any_minute(pauses, most):
    clock = Clock()
    limits, key, admitted, waits = Limits(clock), limited(requests_per_minute=most), [], []
    for pause in pauses:
        clock.now += pause
        try:
            limits.admit(key).release()
            admitted.append(clock.now)
        except OverLimit as over:
            waits.append(over.retry_after)
    assert all(0 < wait <= 60 for wait in waits)
    for start in admitted:
        assert sum(start <= at < start + 60 for at in admitted) <= most


# -- aliases ----------------------------------------------------------------------------------------------


def test_an_alias_shares_its_requests_by_weight(tmp_path):
    aliases = Aliases(tmp_path / "aliases.json")
    aliases.set("prod", {"shop@3": 90, "shop@4": 10}, shadow="shop@5")
    picked = Counter(aliases.pick("prod", f"user-{i}") for i in range(4000))
    assert 300 < picked["shop@4"] < 500
    assert aliases.shadow("prod") == "shop@5"
    assert {aliases.pick("prod", "ada") for _ in range(20)} == {aliases.pick("prod", "ada")}
    assert {aliases.pick("prod") for _ in range(500)} == {"shop@3", "shop@4"}


def test_when_weights_change_only_as_many_move_as_must(tmp_path):
    aliases = Aliases(tmp_path / "aliases.json")
    users = [f"user-{i}" for i in range(2000)]
    aliases.set("prod", {"shop@3": 90, "shop@4": 10})
    before = {u: aliases.pick("prod", u) for u in users}
    aliases.set("prod", {"shop@3": 50, "shop@4": 50})
    after = {u: aliases.pick("prod", u) for u in users}
    assert not [u for u in users if before[u] == "shop@4" and after[u] == "shop@3"]
    assert 0.45 < sum(v == "shop@4" for v in after.values()) / len(users) < 0.55


@pytest.mark.parametrize(
    ("name", "weights", "shadow", "message"),
    [
        ("shop@3", {"shop@4": 1}, None, "cannot be an alias"),
        ("a b", {"shop@4": 1}, None, "cannot be an alias"),
        ("prod", {}, None, "weights"),
        ("prod", {"shop@3": 0}, None, "weights"),
        ("prod", {"shop@3": -1, "shop@4": 2}, None, "weights"),
        ("prod", {"stable": 1}, None, "stands for versions"),
        ("prod", {"shop@3": 1}, "shop@3", "its own shadow"),
    ],
)
def test_an_alias_that_cannot_be(tmp_path, name, weights, shadow, message):
    aliases = Aliases(tmp_path / "aliases.json")
    with pytest.raises(ConfigError, match=message):
        aliases.set(name, weights, shadow)
    assert not (tmp_path / "aliases.json").exists()


def test_an_alias_that_is_gone(tmp_path):
    aliases = Aliases(tmp_path / "aliases.json")
    aliases.set("prod", {"shop@3": 1})
    aliases.remove("prod")
    assert json.loads((tmp_path / "aliases.json").read_text()) == {}
    with pytest.raises(RunError, match='no alias "prod"'):
        aliases.remove("prod")
