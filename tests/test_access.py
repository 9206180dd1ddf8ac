"""API keys, their limits, and names that stand for versions: as the gateway uses them."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from conftest import registered
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tunery.errors import ConfigError, RunError
from tunery.ops.access import create_key, set_alias
from tunery.serving.aliases import Alias, Aliases
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


def test_a_store_whose_file_is_gone_keeps_its_keys(tmp_path):
    """A service without keys is open; it must not become so because somebody moved a file."""
    keys = KeyStore(tmp_path / "keys.json")
    _, secret = keys.create("crm")
    (tmp_path / "keys.json").rename(tmp_path / "moved.json")
    time.sleep(0.6)
    assert keys.list()
    assert keys.find(secret)
    (tmp_path / "moved.json").rename(tmp_path / "keys.json")
    KeyStore(tmp_path / "keys.json").revoke("crm")
    time.sleep(0.6)
    assert found(keys, secret).revoked


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
    ("asked", "message", "hint"),
    [
        ({"endpoints": ["chatt"]}, 'no endpoint "chatt"', 'did you mean "chat"?'),
        ({"expires": "soon"}, '"soon" is no time', "30d"),
        ({"expires": "2020-01-01"}, "over already", "to come"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0", ""),
        ({"requests_per_hour": 9}, 'no limit "requests_per_hour"', "requests_per_minute"),
        ({"name": ""}, "cannot name a key", "printable"),
        ({"name": "a\nb"}, "cannot name a key", "printable"),
        ({"name": "key-0123abcd"}, "cannot name a key", "an id's form"),  # or `revoke` would have a choice
    ],
)
def test_a_key_that_cannot_be_made(tmp_path, asked, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        create_key(**{"name": "crm", "project": {"home": str(tmp_path)}} | asked)
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
        "x-ratelimit-reset-requests": "60.000s",  # until all of the limit is there again
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


def test_tokens_over_the_limit_are_paid_by_the_minutes_that_follow():
    clock = Clock()
    limits, key = Limits(clock), limited(tokens_per_minute=100)
    limits.admit(key).settle(250)
    with pytest.raises(OverLimit) as caught:
        limits.admit(key)
    assert caught.value.retry_after == pytest.approx(120)  # 100 count now, 100 in a minute, and 50 in two
    assert caught.value.headers["x-ratelimit-reset-tokens"] == "180.000s"
    clock.now += 120
    assert limits.headers(key)["x-ratelimit-remaining-tokens"] == "50"
    limits.admit(key)


def test_an_answer_that_took_minutes_is_charged():
    clock = Clock()
    limits, key = Limits(clock), limited(tokens_per_minute=100)
    grant = limits.admit(key)
    clock.now += 300
    grant.settle(100)
    grant.release()
    limits.admit(Key("key-2", "new", ""))  # when a key comes, those that are gone are forgotten; this one is not
    with pytest.raises(OverLimit):
        limits.admit(key)


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 400), st.integers(0, 3)), max_size=40))
def test_tokens_keep_to_the_limit_in_the_long_run(requests):
    """At no admission have more been answered than so many minutes allow; answers still under way come on top."""
    clock = Clock()
    limits, key, start, settled, under_way = Limits(clock), limited(tokens_per_minute=100), Clock.now, 0, []
    for pause, tokens, later in requests:
        clock.now += pause
        for ending in [u for u in under_way if u[2] <= 0]:
            ending[0].settle(ending[1])
            ending[0].release()
            settled += ending[1]
        under_way = [(grant, cost, left - 1) for grant, cost, left in under_way if left > 0]
        try:
            under_way.append((limits.admit(key), tokens, later))
        except OverLimit:
            continue
        assert settled < 100 * ((clock.now - start) // 60 + 1)


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


eighths = st.integers(0, 320).map(lambda n: n / 8)  # seconds that floats add without rounding


@given(st.lists(eighths, max_size=60), st.integers(1, 5))
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


def test_the_size_of_weights_does_not_matter(tmp_path):
    aliases = Aliases(tmp_path / "aliases.json")
    users = [f"user-{i}" for i in range(500)]
    picked = []
    for scale in (1e-6, 1, 1e6):
        aliases.set("prod", {"shop@3": 3 * scale, "shop@4": scale})
        picked.append([aliases.pick("prod", u) for u in users])
    assert picked[0] == picked[1] == picked[2]
    assert 0.68 < picked[0].count("shop@3") / len(users) < 0.82
    aliases.pick("prod", "\ud800")  # JSON can name such a user


@given(st.lists(st.integers(0, 100), min_size=3, max_size=3), st.lists(st.integers(0, 100), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_request_moves_only_to_a_version_that_has_grown_more(tmp_path, before, after):
    assume(sum(before) and sum(after))
    aliases = Aliases(tmp_path / "aliases.json")
    was = {f"shop@{i}": float(weight) for i, weight in enumerate(before)}
    now = {f"shop@{i}": float(weight) for i, weight in enumerate(after)}
    users = [f"user-{i}" for i in range(60)]
    aliases.set("prod", was)
    first = [aliases.pick("prod", u) for u in users]
    aliases.set("prod", now)
    for old, user in zip(first, users, strict=True):
        new = aliases.pick("prod", user)
        assert old == new or now[new] * was[old] > now[old] * was[new]  # now/was, without a division by 0


@pytest.mark.parametrize(
    ("name", "weights", "shadow", "message"),
    [
        ("shop@3", {"shop@4": 1}, None, "cannot be an alias"),
        ("shop@latest", {"shop@4": 1}, None, "cannot be an alias"),
        ("a b", {"shop@4": 1}, None, "cannot be an alias"),
        ("prod", {}, None, "weights"),
        ("prod", {"shop@3": 0}, None, "weights"),
        ("prod", {"shop@3": -1, "shop@4": 2}, None, "weights"),
        ("prod", {"shop@3": math.nan, "shop@4": 2}, None, "weights"),
        ("prod", {"shop@3": math.inf}, None, "weights"),
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
    assert aliases.pick("prod") == "prod"  # a request that came with the change meets an unknown model
    assert aliases.shadow("prod") is None
    aliases.set("beta", {"shop@3": 1})
    with pytest.raises(RunError, match='no alias "bata"') as caught:
        aliases.remove("bata")
    assert caught.value.hint == 'did you mean "beta"?'


def test_aliases_written_by_hand(tmp_path):
    file = tmp_path / "aliases.json"
    file.write_text('{"prod": {"versions": {"shop@3": 90, "shop@4": 10}}}')
    assert Aliases(file).all() == {"prod": Alias({"shop@3": 90, "shop@4": 10})}
    file.write_text('{"prod": {"versions": {"shop@3": "90"}}}')
    with pytest.raises(RunError, match=r"aliases\.json: the weights of prod"):
        Aliases(file)


def test_an_alias_names_versions_that_there_are(tmp_path):
    for number in (3, 4):
        registered(tmp_path, f"shop@{number}")
    project = {"home": str(tmp_path)}
    assert set_alias("prod", {"shop": 1}, project=project).versions == {"shop@4": 1}  # the latest of now, for good
    with pytest.raises(RunError, match='no model "shpo"') as caught:
        set_alias("prod", {"shpo@3": 1}, project=project)
    assert caught.value.hint == "did you mean shop?"
    with pytest.raises(ConfigError, match="named twice"):
        set_alias("prod", {"shop": 1, "shop@4": 1}, project=project)
    with pytest.raises(ConfigError, match="own name for good"):
        set_alias("shop@beef3", {"shop@4": 1}, project=project)  # what a service calls it
