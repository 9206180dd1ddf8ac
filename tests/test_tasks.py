"""What outputs mean: parsing, canonical forms, scores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.errors import ConfigError
from tunery.tasks import infer_task, score_rows, task_by_name
from tunery.tasks.functions import Call, parse_calls, render_calls

FUNCTION = task_by_name("function")


def test_function_form_is_parsed_with_brackets_and_commas_in_values():
    calls = parse_calls("inform(name[Ori (2, the [Wisp])], genres[a, b], price[])")
    assert calls == [
        Call("inform", (("name", ("Ori (2, the [Wisp])",)), ("genres", ("a", "b")), ("price", ()))),
    ]


def test_several_calls_and_bare_attributes():
    calls = parse_calls("Hotel-Request(Area, Price[?]), Hotel-Inform(Choice[many])")
    assert calls is not None
    assert [c.name for c in calls] == ["Hotel-Request", "Hotel-Inform"]
    assert calls[0].attributes == (("Area", ()), ("Price", ("?",)))


@pytest.mark.parametrize(
    "text", ["", "inform", "inform(", "inform(a[b)", "inform(a[b]", "inform(a[b]) and more", "(a[b])"]
)
def test_what_is_not_of_the_form_does_not_parse(text):
    assert FUNCTION.parse(text) is None


def test_canonical_form_ignores_attribute_order_list_order_and_spacing():
    one = FUNCTION.parse("f(b[y, x],  a[1])")
    two = FUNCTION.parse("f(a[1], b[x,y])")
    assert one and two and one.canonical == two.canonical == "f(a[1], b[x, y])"


names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
values = st.text(st.characters(codec="utf-8", exclude_characters="[](),", exclude_categories=("Z", "C")), min_size=1)
calls_strategy = st.lists(
    st.builds(
        Call,
        names,
        st.lists(st.tuples(names, st.lists(values, max_size=3).map(tuple)), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=3,
)


@given(calls_strategy)
def test_parsing_undoes_rendering_and_canonical_is_idempotent(calls):
    assert parse_calls(render_calls(calls)) == calls
    canonical = render_calls(calls, canonical=True)
    again = parse_calls(canonical)
    assert again is not None
    assert render_calls(again, canonical=True) == canonical


@given(st.text(alphabet="af([]), ", max_size=60))
def test_any_text_is_parsed_or_refused_without_an_exception(text):
    FUNCTION.parse(text)


def test_json_slots_are_leaves_and_key_order_does_not_count():
    task = task_by_name("json")
    one, two = task.parse('{"a": [1, 2], "b": {"c": null}}'), task.parse('{"b":{"c":null},"a":[1,2]}')
    assert one and two and one.canonical == two.canonical
    assert one.slots == (("a[]", "1"), ("a[]", "2"), ("b.c", "null"))
    assert task.parse("3") is None
    assert task.parse("{") is None


def test_the_task_is_inferred_from_the_rows():
    assert infer_task(["f(a[b])", "g()"]).name == "function"
    assert infer_task(['{"a": 1}', "[1]"]).name == "json"
    assert infer_task(["positive", "negative"]).name == "text"
    with pytest.raises(ConfigError, match="unknown task"):
        task_by_name("nope")


def test_scores_say_what_they_mean():
    pairs = [
        ("f(a[1], b[2])", "f(a[1], b[2])"),  # exact
        ("f(b[2], a[1])", "f(a[1], b[2])"),  # canonical only
        ("f(a[1])", "f(a[1], b[2])"),  # one slot missed
        ("broken(", "f(a[1], b[2])"),  # not parsed
    ]
    metrics, rows = score_rows(FUNCTION, pairs)
    assert metrics["exact_match"].value == 0.25
    assert metrics["canonical_match"].value == 0.5
    assert metrics["parse_rate"].value == 0.75
    # slots incl. the function: hits 3+3+2+0, predicted 3+3+2+0, gold 3 each
    assert metrics["slot_f1"].value == pytest.approx(2 * 8 / (8 + 12))
    assert [r.slot_errors for r in rows] == [0, 0, 1, 3]
    low, high = metrics["exact_match"].low, metrics["exact_match"].high
    assert low is not None and high is not None and 0 <= low < 0.25 < high <= 1


def test_no_rows_is_unscored_and_not_a_perfect_score():
    metrics, rows = score_rows(FUNCTION, [])
    assert rows == []
    assert all(m.value is None and m.n == 0 for m in metrics.values())
