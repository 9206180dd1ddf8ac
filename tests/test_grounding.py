"""Where values stand in their texts, and what training rows teach about their attributes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.tasks import task_by_name
from tunery.tasks.grounding import ground
from tunery.tasks.profile import Profile, learn

FUNCTION = task_by_name("function")


@pytest.mark.parametrize(
    ("value", "text", "kind", "rule", "span"),
    [
        ("The Witcher 3", "I love The Witcher 3!", "verbatim", None, "The Witcher 3"),
        ("art", "a party, then art", "verbatim", None, "art"),
        ("art", "a party", "inferred", None, None),
        ("E 10+ (for Everyone)", "rated E 10+ (for Everyone).", "verbatim", None, "E 10+ (for Everyone)"),
        ("pc", "on PC only", "normalised", "case", "PC"),
        ("PlayStation", "for the Play Station", "normalised", "spacing", "Play Station"),
        ("hack-and-slash", "a hack and slash game", "normalised", "punctuation", "hack and slash"),
        ("Pokémon", "the Pokemon series", "normalised", "accent", "Pokemon"),
        ("shooter", "two shooters", "normalised", "plural", "shooters"),
        ("strategies", "one strategy", "normalised", "plural", "strategy"),
        ("21", "twenty-one of them", "normalised", "number", "twenty-one"),
        ("1250", "for 1,250 euros", "normalised", "punctuation", "1,250"),
        ("305", "three hundred and five", "normalised", "number", "three hundred and five"),
        ("two", "seats 2 people", "normalised", "number", "2"),
        ("2.5", "about 2.50 each", "normalised", "number", "2.50"),
        ("2019-11-22", "out on November 22nd, 2019", "normalised", "date", "November 22nd, 2019"),
        ("04/03/2020", "on 4 March 2020", "normalised", "date", "4 March 2020"),
        ("東京", "東京都に住む", "verbatim", None, "東京"),  # no spaces, so words begin anywhere
        ("ｉＰｈｏｎｅ", "新しいiPhoneが欲しい", "normalised", "accent", "iPhone"),
        ("2", "room 21", "inferred", None, None),
        ("no", "it isn't", "inferred", None, None),
        ("", "anything", "inferred", None, None),
        ("...", "well", "inferred", None, None),
        ("ß", "STRASSE", "inferred", None, None),
    ],
)
def test_a_value_is_found_by_the_least_rewriting(value, text, kind, rule, span):
    found = ground(value, text)
    assert (found.kind, found.rule) == (kind, rule)
    assert (text[found.start : found.end] if found.start is not None else None) == span


@given(st.text(max_size=12), st.text(max_size=40))
def test_any_value_in_any_text_has_a_span_within_it_or_none(value, text):
    found = ground(value, text)
    if found.kind == "inferred":
        assert found.start is None
        assert found.rule is None
    else:
        assert found.start is not None
        assert found.end is not None
        assert 0 <= found.start < found.end <= len(text)


words = st.lists(st.from_regex(r"[A-Za-z0-9]{1,6}", fullmatch=True), max_size=5).map(" ".join)


@given(words, st.from_regex(r"[A-Za-z0-9 .:'-]{0,12}[A-Za-z0-9]", fullmatch=True), words)
def test_a_value_put_into_a_text_is_found_there(before, value, after):
    assert ground(value.strip(), f"{before} {value} {after}").kind == "verbatim"


def test_rows_teach_closed_sets_and_copied_text(viggo):
    rows = [json.loads(line) for line in (viggo / "train.jsonl").read_text().splitlines()]
    profile = learn(FUNCTION, [(row["input"], row["output"]) for row in rows])
    assert (profile.rows, profile.unparsed) == (len(rows), 0)
    of = profile.attributes
    copied = {path for path, attribute in of.items() if attribute.kind == "copied"}
    assert copied >= {"name", "developer", "release_year"}
    assert {"function", "esrb", "rating", "genres", "has_multiplayer", "player_perspective"} <= {
        path for path, attribute in of.items() if attribute.kind == "closed"
    }
    assert of["name"].expected == "verbatim"
    assert of["available_on_steam"].expected == "inferred"
    assert of["name"].deviates("Half-Life 7", "inferred") == "ungrounded"
    assert of["name"].deviates("Half-Life 7", "verbatim") is None
    assert of["esrb"].deviates("X (for Nobody)", "verbatim") == "outside"
    assert of["available_on_steam"].deviates("no", "inferred") is None
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_rows_that_do_not_parse_are_counted_and_teach_nothing():
    profile = learn(FUNCTION, [("a", "f(x[a])"), ("b", "broken(")])
    assert (profile.rows, profile.unparsed) == (2, 1)
    assert profile.attributes["x"].values == {"a": 1}
    assert learn(FUNCTION, []).attributes == {}
