"""Versions and names that come while the service runs."""

from __future__ import annotations

import json
import shutil
import time

import openai
import pytest
from making import make_version

from tunery import versions
from tunery.ops.access import remove_alias, set_alias

from .asking import (
    ask,
    samples,
    wait_for,
)


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
