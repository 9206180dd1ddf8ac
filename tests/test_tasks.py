"""What outputs mean: parsing, canonical forms, scores."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.errors import ConfigError, DataError
from tunery.tasks import Task, check_fit, infer_task, learn, score_rows, task_by_name
from tunery.tasks.functions import Call, _parse_prefix, parse_calls, render_calls
from tunery.tasks.score import score

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


@given(st.text(alphabet="af([]), ", max_size=60) | calls_strategy.map(render_calls))
def test_the_quick_way_of_parsing_equals_the_thorough_one(text):
    thorough = _parse_prefix(text, 0)
    whole = thorough[0] if thorough and not text[thorough[1] :].strip() else None
    assert parse_calls(text) == whole


@given(st.text(alphabet="af([]), ", max_size=60))
def test_any_text_is_parsed_or_refused_without_an_exception(text):
    FUNCTION.parse(text)


def test_json_slots_are_leaves_and_key_order_does_not_count():
    task = task_by_name("json")
    one, two = task.parse('{"a": [1, 2], "b": {"c": null}}'), task.parse('{"b":{"c":null},"a":[1,2]}')
    assert one and two and one.canonical == two.canonical
    turned = task.parse('{"a": [2, 1], "b": {"c": null}}')
    assert turned and turned.canonical == one.canonical
    assert one.slots == (("a[]", "1"), ("a[]", "2"), ("b.c", "null"))
    assert task.parse("3") is None
    assert task.parse("{") is None


def test_the_task_is_inferred_from_the_rows():
    assert infer_task(["f(a[b])", "g()"]).name == "function"
    assert infer_task(['{"a": 1}', "[1]"]).name == "json"
    assert infer_task(["positive", "negative"]).name == "text"
    with pytest.raises(ConfigError, match="unknown task"):
        task_by_name("nope")


def test_a_task_that_fits_no_row_is_refused_and_the_right_one_named():
    calls = ["f(a[b])", "g()"]
    check_fit(FUNCTION, [*calls, "no call"])  # a row or two may be odd
    with pytest.raises(DataError, match=r"can parse none of 2 outputs; the first: 'f\(a\[b\]\)'") as caught:
        check_fit(task_by_name("json"), calls)
    assert 'the task "function"' in (caught.value.hint or "")


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


@given(st.text(alphabet='{}[]":, a1\\\\nul', max_size=40), st.text(alphabet="af([]), `", max_size=40))
def test_any_text_is_read_tolerantly_or_refused(json_like, function_like):
    for task, text in (
        (task_by_name("json"), json_like),
        (FUNCTION, function_like),
        (task_by_name("label"), json_like),
    ):
        strict = task.parse(text)
        tolerant = task.parse_tolerant(text)
        assert strict is None or tolerant == strict


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_canonical_json_is_json_of_the_same_meaning_and_idempotent(value):
    task = task_by_name("json")
    structure = task.parse(json.dumps(value))
    assert structure is not None
    again = task.parse(structure.canonical)
    assert again is not None
    assert again.canonical == structure.canonical
    assert sorted(again.slots) == sorted(structure.slots)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4).map(",".join))
def test_canonical_labels_and_text_are_idempotent(text):
    for name in ("label", "text"):
        task = task_by_name(name)
        structure = task.parse(text)
        if structure is not None:
            again = task.parse(structure.canonical)
            assert again is not None
            assert again.canonical == structure.canonical


@pytest.mark.parametrize(
    ("name", "text", "canonical"),
    [
        ("function", "Sure! ```\ninform(name[X])\n``` Done.", "inform(name[X])"),
        ("function", "inform(name[X], year[2012", "inform(name[X], year[2012])"),
        ("function", "inform(name[X], ye", "inform(name[X], ye[])"),
        ("function", "The function is: f(a[1])", "f(a[1])"),
        ("json", 'Here: ```json\n{"a": 1,}\n```', '{"a":1}'),
        ("json", '{"a": [1, 2', '{"a":[1,2]}'),
        ("json", '{"a": "x", "b": "unfin', '{"a":"x","b":"unfin"}'),
        ("json", 'It is {"a": 1}, as you said.', '{"a":1}'),
        ("label", "```\nred\n```", "red"),
    ],
)
def test_what_a_person_could_still_read_is_read_tolerantly_only(name, text, canonical):
    task = task_by_name(name)
    tolerant = task.parse_tolerant(text)
    assert tolerant is not None
    assert tolerant.canonical == canonical
    if name != "label":
        assert task.parse(text) is None


def test_json_that_means_two_things_or_nothing_is_refused():
    task = task_by_name("json")
    for text in ('{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, '"text"', ""):
        assert task.parse(text) is None


def test_a_task_of_ones_own_is_named_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from tunery.tasks import Structure, Task\n"
        "class Pairs(Task):\n"
        "    def parse(self, text):\n"
        "        pairs = [p.partition('=') for p in text.split(';')]\n"
        "        if not all(eq for _, eq, _ in pairs):\n"
        "            return None\n"
        "        return Structure(';'.join(sorted(text.split(';'))), tuple((k, v) for k, _, v in pairs))\n"
        "class Other: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = task_by_name("mine:Pairs")
    assert isinstance(task, Task)
    assert task.name == "mine:Pairs"
    metrics, _ = score_rows(task, [("b=2;a=1", "a=1;b=2"), ("b", "b=2")])
    assert metrics["canonical_match"].value == 0.5
    assert metrics["function_accuracy"].value is None
    for wrong in ("mine:Nothing", "nowhere:Class", "mine:Other"):
        with pytest.raises(ConfigError, match="task"):
            task_by_name(wrong)


def test_metrics_of_attributes_and_of_grounding():
    rows = [("the red bike", "f(colour[red], new[yes])"), ("a blue bike", "f(colour[blue], new[no])")] * 30
    profile = learn(FUNCTION, [(f"{text} {i}", gold + f", g(no[{i}])") for i, (text, gold) in enumerate(rows)])
    assert profile.attributes["colour"].expected == "verbatim"
    pairs = [
        ("f(new[yes], colour[red])", "f(colour[red], new[yes])"),  # another order
        ("g(colour[green], new[perhaps])", "f(colour[red], new[yes])"),  # all wrong: two values made up
        ("f(colour[red])", "f(colour[red], new[yes])"),  # an attribute missing
    ]
    scores = score(FUNCTION, pairs, texts=["the red bike"] * 3, profile=profile)
    found = {name: metric.value for name, metric in scores.metrics.items()}
    assert found["function_accuracy"] == pytest.approx(2 / 3)
    assert found["attribute_set"] == pytest.approx(2 / 3)
    assert found["attribute_order"] == pytest.approx(1 / 3)
    assert found["slot_precision"] == pytest.approx(5 / 8)
    assert found["slot_recall"] == pytest.approx(5 / 9)
    assert found["slot_precision_macro"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)  # function, new, colour
    assert found["slot_recall_macro"] == pytest.approx((2 / 3 + 1 / 3 + 2 / 3) / 3)
    assert found["slot_f1_macro"] == pytest.approx((2 / 3 + 2 * 1 / (2 + 3) + 2 / 3) / 3)
    assert found["grounding_rate"] == pytest.approx(2 / 3)
    assert found["hallucination_closed"] == found["hallucination_rate"] == pytest.approx(2 / 8)  # green and perhaps
    assert found["hallucination_copied"] is None  # no value of such an attribute was predicted
    assert scores.attributes["new"]["gold"] == 3
    assert scores.confusions()["colour", "red", "green"] == 1
    assert scores.confusions()["new", "yes", None] == 1
    assert [v.flag for v in scores.values[1]] == [None, "outside", "outside"]
