"""Confidence from log-probabilities: per row and slot, calibrated, with what it costs to trust it."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.tasks import task_by_name
from tunery.tasks.confidence import (
    Calibrator,
    calibrate,
    expected_calibration_error,
    reliability,
    risk_coverage,
    row_confidence,
    slot_confidences,
    tokens_of,
)


def test_a_slot_is_as_sure_as_the_tokens_of_its_value_and_of_its_end():
    pieces = ["inform", "(name", "[", "The ", "Witcher", "], ", "year", "[20", "15", "])", ""]
    probabilities = [0.9, 1, 1, 0.5, 0.8, 0.9, 1, 0.7, 0.6, 1, 0.99]
    tokens = tokens_of(pieces, [math.log(p) for p in probabilities])
    structure = task_by_name("function").parse("".join(pieces))
    assert structure is not None
    assert slot_confidences(structure, "".join(pieces), tokens) == pytest.approx(
        [0.9 * 1, 0.5 * 0.8 * 0.9, 0.7 * 0.6 * 1]
    )
    assert row_confidence(tokens) == pytest.approx(math.prod(probabilities))


def test_values_that_repeat_and_names_that_hold_values_are_told_apart():
    text = "f(no_ads[no], tags[no, ads], price[])"
    tokens = tokens_of(list(text), [-0.01 * i for i in range(len(text))])
    structure = task_by_name("function").parse(text)
    assert structure is not None
    found = slot_confidences(structure, text, tokens)
    starts = [text.index("f("), text.index("no]"), text.index("no,"), text.index("ads]"), text.index("price[")]
    lengths = [2, 3, 3, 4, 7]
    assert found == pytest.approx(
        [math.exp(sum(-0.01 * i for i in range(s, s + n))) for s, n in zip(starts, lengths, strict=True)]
    )


def test_json_keys_inside_other_words_are_told_apart():
    text = '{"data": {"a": "t", "n": 1}, "tags": ["a", "t"]}'
    tokens = tokens_of(list(text), [-0.01 * i for i in range(len(text))])
    structure = task_by_name("json").parse(text)
    assert structure is not None
    spans = [text.index(part) for part in ('t", "n"', "1}", 'a", "t"]', 't"]')]
    wanted = [math.exp(-0.01 * (s + s + 1)) for s in spans]
    assert slot_confidences(structure, text, tokens) == pytest.approx(wanted)


def test_unknown_is_none_and_never_certain():
    structure = task_by_name("json").parse('{"a": "caf\\u00e9", "b": 1}')
    assert structure is not None
    text = '{"a": "caf\\u00e9", "b": 1}'
    first, second = slot_confidences(structure, text, tokens_of(list(text), [-0.1] * len(text)))
    assert first is None  # written with an escape, so not found in the text
    assert second is not None
    assert slot_confidences(structure, text, []) == [None, None]
    assert row_confidence([]) is None
    assert row_confidence(tokens_of(["a"], [math.nan])) is None
    calibrator = Calibrator("isotonic", (0.0, 1.0), (0.0, 1.0), 98)
    assert calibrator(None) is None
    assert calibrator(1.0) == 0.99
    assert calibrator(0.0) == 0.01
    with pytest.raises(ValueError, match="argument"):
        tokens_of(["a"], [])


@pytest.mark.parametrize("n", [60, 5000])
def test_calibration_mends_an_overconfident_model(n):
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.02, 0.98, 2 * n)
    correct = (rng.uniform(size=2 * n) < truth).astype(int)
    stated = 1 / (1 + np.exp(-3 * np.log(truth / (1 - truth))))  # three times too sure, in logits
    calibrator = calibrate(list(stated[:n]), list(correct[:n]))
    assert calibrator is not None
    assert calibrator.kind == ("platt" if n < 200 else "isotonic")
    mended = [calibrator(float(p)) for p in stated[n:]]
    if n > 200:
        before = expected_calibration_error(list(stated[n:]), list(correct[n:]))
        after = expected_calibration_error(mended, list(correct[n:]))
        assert before is not None
        assert after is not None
        assert before > 0.1
        assert after < 0.03
    else:
        assert 0.15 < calibrator.x[0] < 0.6  # the true slope is 1/3
    assert Calibrator.from_dict(json.loads(json.dumps(calibrator.to_dict()))) == calibrator


def test_too_little_calibrates_nothing():
    assert calibrate([0.5] * 10, [0, 1] * 5) is None
    assert calibrate([0.5] * 100, [1] * 100) is None
    assert calibrate([None] * 100, [0, 1] * 50) is None
    assert expected_calibration_error([None], [1]) is None
    assert risk_coverage([], []) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=20, max_size=300))
def test_a_calibrator_never_reverses_an_order(pairs):
    calibrator = calibrate([p for p, _ in pairs], [r for _, r in pairs])
    if calibrator is not None:
        mended = [calibrator(x / 50) for x in range(51)]
        assert all(m is not None and 0 < m < 1 for m in mended)
        assert mended == sorted(mended, key=lambda m: m or 0)


def test_curves_are_what_their_names_say():
    confidences, correct = [0.95, 0.95, 0.55, 0.15, None], [1, 0, 1, 0, 1]
    curve = reliability(confidences, correct)
    assert [(b["n"], b["accuracy"]) for b in curve] == [(1, 0.0), (1, 1.0), (2, 0.5)]
    assert expected_calibration_error(confidences, correct) == pytest.approx((0.15 + 0.45 + 2 * 0.45) / 4)
    assert risk_coverage(confidences, correct) == [
        (0.95, pytest.approx(0.4), pytest.approx(0.5)),
        (0.55, pytest.approx(0.6), pytest.approx(1 / 3)),
        (0.15, pytest.approx(0.8), pytest.approx(0.5)),
    ]
