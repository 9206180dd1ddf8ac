"""From answers to reports: what is scored, compared, gated and written, on the embedded data's rows."""

import dataclasses
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import dom

import tunery
from tunery.errors import ConfigError, DataError, RunError
from tunery.evaluation import analyse, check_gate, compare, parse_gate, write_report
from tunery.evaluation.comparison import mcnemar
from tunery.evaluation.details import span_scores
from tunery.evaluation.robustness import with_unseen_names
from tunery.evaluation.run import Answered, swapped_metrics
from tunery.ops.verbs import find_report
from tunery.tasks import learn, task_by_name
from tunery.tasks.confidence import tokens_of
from tunery.tasks.grounding import Grounding
from tunery.tasks.score import Value
from tunery.types import Example, Metric

FUNCTION = task_by_name("function")
EMBEDDED = Path(__file__).parents[1] / "src" / "tunery" / "data" / "bikeshop"


@pytest.fixture(scope="module")
def split():
    """Examples of a split of the embedded data, and their common instruction."""
    from tunery.data.template import common_turns

    def load(name: str) -> tuple[list[Example], str | None]:
        data = tunery.load(str(EMBEDDED / f"{name}.jsonl"), str(EMBEDDED))
        return list(data.examples), common_turns(data.examples)[1]

    return load


@pytest.fixture(scope="module")
def profile(split):
    examples, instruction = split("train")
    return learn(FUNCTION, [(e.text.removeprefix(f"{instruction}\n"), e.target or "") for e in examples])


def answers(examples: list[Example], wrong: float, seed: int = 0, *, sure: bool = True) -> list[Answered]:
    """Gold outputs, a share of them spoilt in one value; the model knows somewhat when it is wrong."""
    rng = random.Random(seed)
    found = []
    for example in examples:
        gold = text = example.target or ""
        if rng.random() < wrong:
            text = re.sub(r"\[[^\[\]]+\]", f"[value {rng.randrange(9)} never seen]", gold, count=1)
        pieces = re.findall(r"\w+|\W", text)
        doubt = 0.5 if text != gold and rng.random() < 0.8 else 0.02
        logprobs = [-doubt * rng.random() for _ in pieces]
        found.append(Answered(text, "stop", None, tokens_of(pieces, logprobs) if sure else None))
    return found


@pytest.fixture(scope="module")
def report(split, profile):
    examples, instruction = split("test")
    judged, _ = split("val")
    return analyse(
        FUNCTION,
        examples,
        {"base": [Answered("no", "stop")] * len(examples), "shop@1": answers(examples, 0.3)},
        profile=profile,
        instruction=instruction,
        judged=(judged, {"shop@1": answers(judged, 0.3, seed=1)}),
    )


def test_every_metric_has_a_definition_an_interval_and_n(report):
    found = report.metrics["shop@1"]
    assert list(found) == list(report.definitions)
    for name, metric in found.items():
        assert metric.n == 250
        assert metric.value is not None, name
        assert metric.low <= metric.value <= metric.high
    assert 0.6 < found["exact_match"].value < 0.8
    assert found["exact_match"].value == found["canonical_match"].value
    assert found["parse_rate"].value == 1
    assert found["hallucination_rate"].value > 0
    assert report.metrics["base"]["parse_rate"].value == 0
    assert report.metrics["base"]["slot_precision"].value is None  # it predicted no slot at all


def test_gold_answers_are_perfect_and_hardly_flagged(split, profile):
    examples, instruction = split("test")
    gold = [Answered(e.target or "") for e in examples]
    report = analyse(FUNCTION, examples, {"gold": gold}, profile=profile, instruction=instruction)
    found = report.metrics["gold"]
    for name in ("exact_match", "slot_f1", "slot_f1_macro", "attribute_order", "grounding_rate"):
        assert found[name].value == 1, name
    assert (found["hallucination_rate"].value or 0) < 0.002
    assert report.details["gold"]["confusions"] == []
    assert report.details["gold"]["spans"]["strict"]["f1"] == 1
    assert report.details["gold"]["confidence"]["row"]["unknown"] == 250
    assert {s["answers"]["gold"]["confidence"] for s in report.samples} == {None}


def entities(*tags: str) -> list[Value]:
    """IOB2 tags of one sentence, each token one character long, as located values."""
    found: list[list[Any]] = []
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append([tag[2:], i, i + 1])
        elif tag.startswith("I-"):
            found[-1][2] = i + 1
    return [Value(label, "x", Grounding("verbatim", None, start, end), None) for label, start, end in found]


def test_entity_scores_are_seqevals():
    """The example of seqeval's own README (1.2.2), whose strict mode and IOB2 give 0.50 for all three."""
    gold = [entities("O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"), entities("B-PER", "I-PER", "O")]
    said = [entities("O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"), entities("B-PER", "I-PER", "O")]
    scores = span_scores(gold, said)
    for schema in ("seqeval", "strict"):
        assert [scores[schema][k] for k in ("precision", "recall", "f1")] == [0.5, 0.5, 0.5]
    assert [scores["seqeval"][k] for k in ("correct", "missed", "spurious")] == [1, 1, 1]
    assert scores["partial"]["f1"] == 0.75  # half a hit
    assert scores["ent_type"]["f1"] == 1
    assert span_scores([[]], [[]]) == {}
    assert span_scores([entities("B-PER")], [[]])["seqeval"]["f1"] == 0


def test_strict_scores_are_entity_scores_wherever_spans_do_not_overlap():
    """nervaluate pairs overlapping spans greedily, seqeval has none: only there may the two differ."""
    rng = random.Random(0)
    for _ in range(300):
        rows = [[], []]
        for row in rows:
            for _ in range(rng.randint(1, 3)):
                tags: list[str] = []
                while len(tags) < 9:
                    label = rng.choice(["PER", "LOC"])
                    tags += rng.choice([["O"], ["B-" + label], ["B-" + label, "I-" + label]])
                row.append(entities(*tags))
        n = min(map(len, rows))
        scores = span_scores(rows[0][:n], rows[1][:n])
        for name in ("precision", "recall", "f1", "correct") if scores else ():
            assert scores["seqeval"][name] == pytest.approx(scores["strict"][name])
    nested = entities("B-PER") + entities("B-LOC", "I-LOC")
    assert span_scores([nested], [nested])["seqeval"]["f1"] == 1


def test_details_lead_back_to_the_rows(report):
    details = report.details["shop@1"]
    for confusion in details["confusions"]:
        assert confusion["rows"]
        for i in confusion["rows"]:
            wrong = [confusion["attribute"], confusion["gold"], confusion["predicted"]]
            assert wrong in report.samples[i]["answers"]["shop@1"]["wrong"]
    assert set(details["slices"]) == {"names", "length", "function"}
    assert set(details["slices"]["names"]) == {"no names", "seen", "unseen"}
    for values in details["slices"].values():
        assert sum(v["n"] for v in values.values()) == 250
    for sample in report.samples:
        for value in sample["answers"]["shop@1"]["values"]:
            if value["kind"] == "verbatim":
                assert sample["text"][value["start"] : value["end"]] == value["value"]
    assert not any("Functions:" in s["text"] for s in report.samples)  # the instruction grounds nothing


def test_confidence_is_calibrated_on_other_rows_or_unknown(split, report, profile):
    trust = report.details["shop@1"]["confidence"]["row"]
    assert trust["unknown"] == 0
    assert trust["ece"] < trust["ece_raw"]
    assert trust["risk_coverage"][0][2] < trust["risk_coverage"][-1][2]
    assert all(0 < s["answers"]["shop@1"]["confidence"] < 1 for s in report.samples)
    assert all(s["answers"]["base"]["confidence"] is None for s in report.samples)
    examples, _ = split("test")
    raw = analyse(FUNCTION, examples, {"m": answers(examples, 0.3)}).details["m"]["confidence"]["row"]
    assert raw["calibrator"] is None
    assert raw["ece"] is None
    assert raw["ece_raw"] > 0


def test_rows_are_sliced_by_columns_of_the_users_own(split):
    examples, _ = split("test")
    tagged = [dataclasses.replace(e, meta={"source": "web" if i % 2 else "shop"}) for i, e in enumerate(examples)]
    found = analyse(FUNCTION, tagged, {"m": answers(examples, 0.5)}, slice_columns=["source"])
    assert {v: m["n"] for v, m in found.details["m"]["slices"]["source"].items()} == {"shop": 125, "web": 125}
    with pytest.raises(ConfigError, match='no column "sauce"') as caught:
        analyse(FUNCTION, tagged, {"m": answers(examples, 0.5)}, slice_columns=["sauce"])
    assert "source" in (caught.value.hint or "")


def test_two_models_are_compared_in_pairs(split, profile):
    examples, instruction = split("test")

    def one(label: str, wrong: float, seed: int):
        found = analyse(FUNCTION, examples, {label: answers(examples, wrong, seed)}, instruction=instruction)
        return json.loads(json.dumps(found.to_dict()))

    good, bad, alike = one("a", 0.1, 1), one("b", 0.5, 2), one("c", 0.1, 3)
    worse = compare(FUNCTION, good, bad, label_a="a", label_b="b", profile=profile)
    exact = worse.metrics["exact_match"]
    assert exact.test == "mcnemar"
    assert exact.difference == pytest.approx(exact.b - exact.a)
    assert exact.high < 0
    assert exact.p < 1e-6
    assert worse.metrics["slot_f1"].p < 0.01
    assert len(worse.only_a) - len(worse.only_b) == round(-250 * exact.difference)
    same = compare(FUNCTION, good, good, label_a="a", label_b="a")
    assert {m.p for m in same.metrics.values()} == {1.0}
    assert compare(FUNCTION, good, alike, label_a="a", label_b="c").metrics["exact_match"].p > 0.05
    part = {**alike, "samples": alike["samples"][:100]}
    assert compare(FUNCTION, good, part, label_a="a", label_b="c").left_out == 150
    with pytest.raises(DataError, match="no row in common"):
        compare(FUNCTION, good, {**alike, "samples": []}, label_a="a", label_b="c")


def test_mcnemar_is_the_exact_binomial():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 10) == pytest.approx(2 / 2**10)
    assert mcnemar(3, 9) == pytest.approx(0.14599609375)
    assert 0 < mcnemar(2000, 2500) < 1e-10


def test_a_gate_is_read_and_judged():
    conditions = parse_gate("slot_f1>=0.9, exact_match >= baseline - 0.01,parse_rate>baseline, hallucination_rate<=.05")
    assert list(map(str, conditions)) == [
        "slot_f1>=0.9", "exact_match>=baseline-0.01", "parse_rate>baseline", "hallucination_rate<=0.05",
    ]  # fmt: skip

    def metrics(**values: float | None) -> dict[str, Metric]:
        return {name: Metric(v, v, v, 10) for name, v in values.items()}

    now = metrics(slot_f1=0.9, exact_match=0.79, parse_rate=1.0, hallucination_rate=None)
    baseline = metrics(exact_match=0.8, parse_rate=1.0)
    verdicts = check_gate(conditions, now, baseline)
    assert [v.passed for v in verdicts] == [True, True, False, False]  # unscored is not met
    assert verdicts[1].bound == pytest.approx(0.79)
    with pytest.raises(ConfigError, match="no baseline"):
        check_gate(conditions, now, None)


@pytest.mark.parametrize(
    "gate", ["", "slot_f1", "slot_f1>=", "slot_f1=>0.9", "slot_f1>=baseline*2", "slotf1>=0.9", "a b>=1"]
)
def test_a_gate_that_cannot_be_read_is_refused(gate):
    with pytest.raises(ConfigError, match="gate"):
        parse_gate(gate)


def test_the_record_is_three_files(report, tmp_path):
    paths = write_report(report, tmp_path)
    saved = json.loads(paths["json"].read_text())
    assert saved["metrics"]["shop@1"]["slot_f1"]["n"] == 250
    assert len(saved["samples"]) == 250
    text = paths["md"].read_text()
    assert "| exact_match | 0.000 [0.000, 0.000] | 0." in text
    for name, meaning in report.definitions.items():
        if report.metrics["shop@1"][name].value is not None:
            assert f"| {name} |" in text
            assert meaning in text
    page = paths["html"].read_text()
    assert 'name="viewport"' in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|fetch\(", page)  # self-contained
    found, label = find_report(None, str(paths["json"]))
    assert (found["n"], label) == (250, "shop@1")
    assert find_report(None, f"{tmp_path}:base")[1] == "base"
    with pytest.raises(RunError, match='no column "x"'):
        find_report(None, f"{tmp_path}:x")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(RunError, match="not a report"):
        find_report(None, str(tmp_path / "other.json"))


def test_two_columns_are_compared_on_the_command_line(report, tmp_path):
    write_report(report, tmp_path)
    done = subprocess.run(
        [Path(sys.executable).with_name("tunery"), "eval", "compare", f"{tmp_path}:base", tmp_path],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "250 rows of both" in done.stdout
    right = round(report.metrics["shop@1"]["exact_match"].value * 250)
    assert f"exactly right by A alone: 0 rows, by B alone: {right}" in done.stdout
    assert re.search(r"exact_match +0\.000 +0\.\d+ +\+0\.\d+ .*<0\.001", done.stdout)
    assert "McNemar's test" in done.stdout


HOSTILE = '</script><script>document.title="broken"</script><!--<b onload=x> \u2028 \ud800 \U0001f6b2 [Café] & "quotes"'


def test_the_page_works_in_a_browser(report, tmp_path):
    paths = write_report(report, tmp_path)
    html = dom(paths["html"])
    assert html.count('class="card"') >= 15
    assert html.count("<svg") == 4
    wrong = sum(not s["answers"]["shop@1"]["canonical"] for s in report.samples)
    assert f"{wrong} of 250 rows" in html
    assert "<del>" in html
    assert "<ins>" in html
    clicked = dom(paths["html"], 'document.querySelector("#confusions button.cell").click();')
    assert f"{len(report.details['shop@1']['confusions'][0]['rows'])} of 250 rows" in clicked
    matrix = dom(paths["html"], 'state.attribute="bike_type"; confusions();')
    assert "predicted →" in matrix
    base = dom(paths["html"], '$("model").value="base";$("model").dispatchEvent(new Event("change"));')
    assert "250 of 250 rows" in base
    assert "the answers have no log-probabilities" in base
    opened = 'document.querySelector(".row details").open = true;'
    whole = '[...document.querySelectorAll(".row th")].every(e => e.offsetHeight < 40)'  # their words in one line
    fits = "document.documentElement.scrollWidth <= innerWidth"
    width = dom(paths["html"], f"{opened} document.title = `${{innerWidth}} ${{{fits}}} ${{{whole}}}`;")
    assert "<title>390 true true" in width


def test_hostile_rows_are_shown_as_text(tmp_path):
    gold = f"f(name[{HOSTILE.replace('[', '').replace(']', '')}])"
    examples = [Example(HOSTILE, (), gold), Example("2", (), '{"a": "\\ud800"}')]
    said = [Answered(HOSTILE), Answered("", error="boom " + HOSTILE)]
    report = analyse(FUNCTION, examples, {HOSTILE: said})
    paths = write_report(report, tmp_path)
    assert json.loads(paths["json"].read_text())["n"] == 2
    html = dom(paths["html"])
    assert "<title>broken" not in html
    assert "2 of 2 rows" in html


def test_no_rows_and_one_row_make_a_report(tmp_path):
    empty = analyse(FUNCTION, [], {"m": []})
    assert empty.n == 0
    assert all(m.value is None for m in empty.metrics["m"].values())
    write_report(empty, tmp_path)
    one = analyse(FUNCTION, [Example("1", (), "f(a[1])")], {"m": [Answered("f(a[1])")]})
    assert one.metrics["m"]["exact_match"].value == 1
    assert not any(math.isnan(m.value) for m in one.metrics["m"].values() if m.value is not None)
    write_report(one, tmp_path)


def test_copied_names_are_swapped_for_unseen_ones_in_text_and_gold(split, profile):
    examples, instruction = split("test")
    swapped = with_unseen_names(FUNCTION, examples, profile, instruction)
    assert len(swapped) > 100
    for i, example in swapped.items():
        before, after = FUNCTION.parse(examples[i].target or ""), FUNCTION.parse(example.target or "")
        assert before is not None
        assert after is not None
        assert [p for p, _ in before.slots] == [p for p, _ in after.slots]
        text = example.text.removeprefix(f"{instruction}\n")
        changed = [(p, v) for (p, v), old in zip(after.slots, before.slots, strict=True) if (p, v) != old]
        assert changed
        for path, value in changed:
            attribute = profile.attributes[FUNCTION.attribute(path)]
            assert attribute.kind == "copied"
            assert value not in attribute.values
            assert value in text
    assert with_unseen_names(FUNCTION, examples, profile, instruction) == swapped  # the same every time


def test_a_model_that_knows_names_by_heart_is_found_out(split, profile):
    examples, instruction = split("test")
    swapped = with_unseen_names(FUNCTION, examples, profile, instruction)
    by_heart = [Answered(e.target or "") for e in examples]
    found = swapped_metrics(FUNCTION, examples, by_heart, swapped, [by_heart[i] for i in swapped])
    assert found["before"]["exact_match"].value == 1
    assert found["after"]["exact_match"].value == 0
    assert found["n"] == len(found["rows"]) == len(swapped)
