"""Looking rows over, dividing them and choosing from them: what is found, and that counts always add up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import dom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.cli.page import page
from tunery.config import TrainSpec
from tunery.data import check, export_dataset, load, sampling
from tunery.data.annotations import read_annotations
from tunery.data.files import reasons
from tunery.data.near import Shingled, nearest_of
from tunery.errors import ConfigError, DataError, StorageError
from tunery.ops.datasets import check_data, export_data, sample_data, split_data
from tunery.types import Example, Message

GOOD = '{"instruction": "Extract.", "input": "in %d", "output": "f(x[%d])"}\n'


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def bikes(n: int) -> list[dict[str, Any]]:
    colours = ("red", "blue", "green")
    return [
        {
            "instruction": "One function call:",
            "input": f"Do you have the Sorrel C{i} in {colours[i % 3]} for customer {i * 7919 % 1000}?",
            "output": f"request(model[Sorrel C{i}], colour[{colours[i % 3]}])",
        }
        for i in range(n)
    ]


# --- rows with faults ---


def test_every_fault_is_found_at_once_with_its_place(tmp_path: Path):
    lines = [GOOD % (i, i) for i in range(8)]
    lines[1] = lines[1][:30] + "\n"
    lines[3] = '{"instruction": "Extract.", "input": "x"}\n'
    lines[4] = lines[4].replace("in 4", "in \\ud83d")
    data = "".join(lines).encode()
    data = data.replace(b"in 5", b"in \xfc\xfc").replace(b"in 6", b"in \0")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + data)
    result = check_data(["a.jsonl"], tmp_path)
    (split,) = result.splits
    assert (split.read, split.rows, sum(split.dropped.values())) == (8, 3, 5)
    faults = {f.where: f.message for f in result.findings if f.code == "fault"}
    assert [re.sub(r"^a.jsonl:", "", where) for where in sorted(faults)] == ["2", "4", "5", "6", "7"]
    assert "cut short" in faults["a.jsonl:2"]
    assert "byte 0xfc" in faults["a.jsonl:6"]
    assert not result.ok


def test_files_of_one_name_keep_their_faults_apart(tmp_path: Path):
    for folder, lines in (("a", [GOOD % (1, 1), "{cut\n"]), ("b", [GOOD % (1, 1)])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text("".join(lines))
    result = check_data([str(tmp_path / "a" / "rows.jsonl"), str(tmp_path / "b" / "rows.jsonl")], tmp_path)
    assert [(s.read, s.rows) for s in result.splits] == [(2, 1), (1, 1)]
    fault, leakage = result.findings
    assert (fault.code, fault.where, fault.count) == ("fault", "a/rows.jsonl:2", 1)
    assert (leakage.code, leakage.where) == ("leakage", f"{tmp_path}/b/rows.jsonl:1")


KINDS = {  # name: (a file's content from good and bad rows, by its ending)
    ".jsonl": lambda rows: b"".join(rows),
    ".csv": lambda rows: b"input,output\n" + b"".join(rows),
}
PIECES = {
    ".jsonl": (b'{"input": "x", "output": "y"}\n',
               [b'{"input": "x"\n', b"\xff\n", b'{"input": "\0"}\n', b"[1]\n", b'{"input": "\\udc00", "output": "y"}\n',
                b'{"input": "x", "output": " "}\n', b"[" * 99_999 + b"\n", b"7\n", b'{"input": 5, "output": "y"}\n']),
    ".csv": (b"x,y\n", [b"x,y,z\n", b"\xff,y\n", b"x,\n", b"x\n", b"\0,y\n", b'x,"y"z\n']),
}  # fmt: skip


@pytest.mark.parametrize("ending", PIECES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_read_is_kept_plus_dropped(tmp_path: Path, ending: str, data: st.DataObject):
    good, bad = PIECES[ending]
    rows = data.draw(st.lists(st.sampled_from([good, *bad]), min_size=1, max_size=12))
    path = tmp_path / f"a{ending}"
    path.write_bytes(KINDS[ending]([good, *rows]))
    faults: list[DataError] = []
    dataset = load(str(path), quarantine=faults)
    assert len(dataset) == 1 + rows.count(good)
    assert len(dataset) + len(faults) == 1 + len(rows)
    assert all(re.search(r"a\.\w+:\d+$", f.where or "") for f in faults)
    path.unlink()


@pytest.mark.parametrize("cut", [10, 60, 90, 100])
def test_a_list_that_is_cut_keeps_what_came_before(tmp_path: Path, cut: int):
    whole = json.dumps([{"input": f"{i}", "output": "y"} for i in range(4)], indent=1)
    (tmp_path / "a.json").write_text(whole[: len(whole) * cut // 100])
    faults: list[DataError] = []
    if cut == 10:
        with pytest.raises(DataError, match="malformed JSON"):
            load(str(tmp_path / "a.json"), quarantine=faults)
        return
    dataset = load(str(tmp_path / "a.json"), quarantine=faults)
    assert (len(dataset), len(faults)) == {60: (2, 1), 90: (3, 1), 100: (4, 0)}[cut]


def test_reasons_leave_out_what_differs_from_row_to_row():
    messages = [
        "byte 0xff at byte 11 of the line is not UTF-8",
        'no column "a"',
        "byte 0x9c at byte 2 of the line is not UTF-8",
    ]
    assert reasons(map(DataError, messages)) == {"byte … at byte … of the line is not UTF-8": 2, "no column …": 1}


def test_a_line_of_a_hundred_megabytes_is_one_fault(tmp_path: Path):
    huge = b'{"input": "' + b"x" * (100 << 20) + b'", "output": "y"}\n'
    (tmp_path / "a.jsonl").write_bytes(b'{"input": "a", "output": "b"}\n' + huge + b'{"input": "c", "output": "d"}\n')
    faults: list[DataError] = []
    assert len(load("a.jsonl", tmp_path, quarantine=faults)) == 2
    assert [f.where for f in faults] == ["a.jsonl:2"]
    assert "a line of 100 MiB" in faults[0].message


@pytest.mark.parametrize("ending", ["json", "csv", "parquet", "conll"])
def test_a_row_beyond_the_limit_is_one_fault_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tunery.data import annotations, files

    for module in (files, annotations):
        monkeypatch.setattr(module, "MAX_LINE", 1 << 20)
    path, huge = tmp_path / f"a.{ending}", "x" * (3 << 20)
    rows = [{"input": text, "output": "y"} for text in ("a", huge, "c")]
    if ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "csv":
        path.write_text("input,output\n" + "".join(f"{row['input']},y\n" for row in rows))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(f"Ann\tB-P\n\n{huge}\tB-P\n\nBo\tB-P\n")
    faults: list[DataError] = []
    read = (
        read_annotations(str(path), "conll", faults.append) if ending == "conll" else load(str(path), quarantine=faults)
    )
    assert (len(read), len(faults)) == (2, 1)
    assert "of 3 MiB (the limit is 1)" in faults[0].message or "field larger than" in faults[0].message


def test_a_quote_that_never_closes_is_one_fault_however_long_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tunery.data import files

    monkeypatch.setattr(files, "MAX_LINE", 1000)
    (tmp_path / "a.csv").write_text('input,output\nx,y\n"x,y\n' + "x,y\n" * 9999)
    faults: list[DataError] = []
    assert len(load("a.csv", tmp_path, quarantine=faults)) == 1
    assert [str(f) for f in faults] == [
        "a.csv:3: malformed CSV: a quote that opens here never closes: 10,000 lines are lost in it"
    ]


def test_a_parquet_file_of_billions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tunery.data import files

    monkeypatch.setattr(files, "MAX_CELLS", 1000)
    pq.write_table(pa.table({"input": ["x"] * 2000, "output": ["y"] * 2000}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="too many to read at once"):
        load(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_value_that_a_file_repeats_at_no_cost_is_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tunery.data import files

    monkeypatch.setattr(files, "MAX_INFLATED", 1 << 20)
    monkeypatch.setattr(files, "MAX_RATIO", 50)
    table = pa.table({"input": ["x" * 1000] * 9000, "output": ["y"] * 9000})
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        packed = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=packed) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match="grow to more than"):
        load(str(path))


# --- what is found in rows that can be read ---


def findings(*datasets: list[dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    names = ["train", "val", "test"][: len(datasets)]
    for name, rows in zip(names, datasets, strict=True):
        write(tmp_path / f"{name}.jsonl", rows)
    return {f.code: f for f in check_data([f"{n}.jsonl" for n in names], tmp_path).findings}


def test_values_outside_a_closed_set(tmp_path: Path):
    train = bikes(300)
    train[5]["output"] = train[5]["output"].replace("green", "greeen")
    val = [row | {"input": f"Is there a {row['input'][20:]}"} for row in bikes(320)[300:]]
    val[2]["output"] = "request(model[Sorrel C302], colour[magenta])"
    found = findings(train, val, tmp_path=tmp_path)
    assert found["outside"].count == 1
    assert found["outside"].where == "val.jsonl:3"
    assert "'magenta'" in found["outside"].examples[0]
    assert 'did they mean "green"?' in found["slip"].examples[0]
    assert found["slip"].where == "train.jsonl:6"


def test_near_leakage_is_not_exact_leakage(tmp_path: Path):
    text = "Could you tell me whether the {} with the carbon fork and the wide tyres is still in stock in Łódź?"
    train = [{"instruction": "Call:", "input": text.format(f"Sorrel {i}"), "output": f"f(x[{i}])"} for i in range(5)]
    train += [
        {"instruction": "Call:", "input": f"{i} unlike {i * i} others", "output": f"g(x[{i}])"} for i in range(40)
    ]
    val = [
        train[0],
        train[1] | {"input": text.format("Sorrel 9")},
        {"instruction": "Call:", "input": "Else", "output": "g()"},
    ]
    found = findings(train, val, tmp_path=tmp_path)
    assert (found["leakage"].count, found["leakage"].where) == (1, "val.jsonl:1")
    assert (found["near_leakage"].count, found["near_leakage"].where) == (1, "val.jsonl:2")


def test_near_repeats_are_those_that_comparing_all_finds():
    import random

    rng = random.Random(0)
    words = [f"w{i}" for i in range(300)]
    known = [" ".join(rng.choices(words, k=rng.randrange(1, 25))) for _ in range(300)]
    asked = []
    for text in known[:150]:
        parts = text.split()
        for _ in range(rng.randrange(4)):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        asked.append(" ".join(parts))
    a, b = Shingled(known), Shingled(asked)
    every = {
        j for j in range(len(b)) if any(len(a.of(i) & b.of(j)) >= 0.8 * len(a.of(i) | b.of(j)) for i in range(len(a)))
    }
    found = nearest_of(a, b, 0.8)
    assert {j for _, j, _ in found} <= every
    assert len(found) >= 0.98 * len(every) > 20
    assert nearest_of(Shingled([""]), Shingled(["", "x"]))[0][2] == 1.0


def test_characters_that_were_lost_or_encoded_twice(tmp_path: Path):
    rows = bikes(20)
    rows[3]["input"] += " caf\ufffd"
    rows[4]["input"] += " cafÃ©, itâ€™s"
    rows[5]["input"] += " a\x07b"
    rows[6]["input"] += " Ça va à São João, naïve – “fine” 🚲"
    found = findings(rows, tmp_path=tmp_path)
    places = {code: (f.where, f.count) for code, f in found.items()}
    assert places["lost_characters"] == ("train.jsonl:4", 1)
    assert places["encoded_twice"] == ("train.jsonl:5", 1)
    assert places["control_characters"] == ("train.jsonl:6", 1)


def test_outputs_that_the_task_cannot_parse_and_answers_to_avoid(tmp_path: Path):
    rows = [*bikes(30), {"instruction": "One function call:", "input": "odd", "output": "request(model[Sorrel"}]
    odd = findings(rows, tmp_path=tmp_path)["odd_output"]
    assert (odd.where, odd.severity) == ("train.jsonl:31", "warning")
    wrong = check_data(["train.jsonl"], tmp_path, task="json")
    assert [(f.code, f.severity, f.count) for f in wrong.findings] == [("odd_output", "error", 31)]
    rows = [row | {"kto_tag": i > 0} for i, row in enumerate(bikes(10))]
    assert findings(rows, tmp_path=tmp_path)["to_avoid"].count == 1


def test_counts_lengths_and_attributes(tmp_path: Path):
    write(tmp_path / "a.jsonl", bikes(90))
    result = check_data(["a.jsonl"], tmp_path, train=TrainSpec(cutoff_len=40))
    (split,) = result.splits
    assert split.unit == "tokens"
    assert sum(n for _, _, n in split.histogram) == 90
    assert all(low < high for low, high, _ in split.histogram)
    assert split.attributes["colour"] == {"red": 30, "blue": 30, "green": 30}
    assert [f.code for f in result.findings] == ["too_long"]
    assert result.cutoff_len == 40


def test_quick_tokens_are_the_real_ones(tiny_base: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    from tunery.bases import QuickTokenizer, find_base, load_tokenizer
    from tunery.config import BUNDLED_BASE
    from tunery.data.template import Template

    examples = [
        Example(
            str(i), (Message("user", f"{'Extract what is named. ' * 9}\n{' ' * (i % 3)}Łódź {i}🚲x"),), f"f(x[{i}])"
        )
        for i in range(400)
    ]
    for name in (str(tiny_base), BUNDLED_BASE):
        base = find_base(name)
        tokenizer = QuickTokenizer(base)
        quick = Template("chatml", tokenizer).rows(examples)
        assert quick == Template("chatml", load_tokenizer(base)).rows(examples)
        tokenizer.save_pretrained(tmp_path)
        written = AutoTokenizer.from_pretrained(tmp_path)
        assert Template("chatml", written).rows(examples) == quick
        assert written.chat_template == load_tokenizer(base).chat_template


# As Qwen2 and, but for digits, Llama 3 split.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module", params=["tunery-base", "qwen"])
def quick_and_core(request, tmp_path_factory):
    """The quick tokenizer and the tokenizers library's own: the bundled base's, and one that splits as Qwen2 does."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    from tunery.bases import Base, QuickTokenizer, bundled_path

    folder = bundled_path()
    if request.param == "qwen":
        folder = tmp_path_factory.mktemp("qwen")
        core = Tokenizer(models.BPE())
        core.normalizer = normalizers.NFC()
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator([str(row) for row in bikes(300)], trainer)
        core.save(str(folder / "tokenizer.json"))
    base = Base(request.param, folder, "", 2048, "")
    quick = QuickTokenizer(base)
    assert quick._words is not None
    return quick, Tokenizer.from_file(str(folder / "tokenizer.json"))


TEXTS = st.sampled_from(
    [
        "<|im_end|>", "<|im_", " \n\n ", "\r\n", "\t", "\x1c", "\x85", "\u00a0", "\u3000", "I'Ll", "¾ ２", "e\u0301",
        "🚲", "ǅ", "ſ", "the 12th bike", "Zoë’s—", "give(x[3 €], y[])",
    ]
)  # fmt: skip


@given(st.lists(TEXTS | st.text(max_size=12), max_size=9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_quick_tokens_of_any_text_are_the_real_ones(quick_and_core, parts):
    quick, core = quick_and_core
    text = "".join(parts)
    assert quick([text], add_special_tokens=False)["input_ids"] == [core.encode(text, add_special_tokens=False).ids]


def test_viggo_is_read_whole_and_has_no_faults(viggo: Path):
    result = check_data(["viggo-train"], str(viggo), train=TrainSpec())
    assert (result.splits[0].read, result.splits[0].rows) == (5103, 5103)
    assert result.ok


# --- the page ---


def test_the_page_needs_nothing_and_trusts_nothing(tmp_path: Path):
    rows = bikes(30)
    rows[0]["output"] = "<script>alert(1)</script>"
    rows[1] = rows[1] | {"input": "<img src=x onerror=alert(2)>"}
    rows.append(dict(rows[1]))
    write(tmp_path / "a.jsonl", rows)
    html = page(check_data(["a.jsonl"], tmp_path, train=TrainSpec()), "<b>Check</b>")
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert not re.search(r"(?:src|href|url)\s*[=(]|https?:|@import", html.replace("&lt;img src=x", ""))
    assert 'name="viewport"' in html
    assert "<svg" in html
    from html.parser import HTMLParser

    opened: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "rect", "line"):
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("rect", "line"):
                assert opened.pop() == tag

    Balance().feed(html)
    assert not opened


def test_the_page_fits_a_phone(tmp_path: Path):
    rows = bikes(30)
    rows[0] |= {"input": "w" * 300, "output": f"order({'very_' * 4}long_name[{'x' * 60}])"}
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "b.jsonl", rows[:9])
    (tmp_path / "check.html").write_text(page(check_data(["a.jsonl", "b.jsonl"], tmp_path, train=TrainSpec()), "Check"))
    measure = """document.title = ['width', innerWidth, document.documentElement.scrollWidth <= innerWidth,
      ...[...document.querySelectorAll('.wide')].map(e => e.scrollWidth <= e.clientWidth),
      [...document.querySelectorAll('svg text')].every(e => e.getBoundingClientRect().height >= 12)].join(' ');"""
    measured = re.search(r"<title>width (.*?)</title>", dom(tmp_path / "check.html", measure))
    assert measured
    assert measured[1] == "390 true true true true true"  # the page, three tables, the words of its plots


# --- dividing and choosing ---


def examples_of(pairs: list[tuple[str, str]]) -> list[Example]:
    return [Example(f"a-{i}", (Message("user", x),), y) for i, (x, y) in enumerate(pairs)]


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.sampled_from("abcdefghijklmnop"), st.sampled_from("ABCDEFGHIJKLMNOP")), min_size=1, max_size=60
    ),
    val=st.floats(0.05, 0.4),
    by=st.sampled_from(["output", "input", None]),
)
def test_no_row_has_its_like_in_another_part(pairs: list[tuple[str, str]], val: float, by: str | None):
    examples = examples_of(pairs)
    try:
        parts = sampling.split(examples, {"val": val, "test": 0.1}, by=by)
    except DataError as error:
        if "too few" in error.message:
            return
        raise
    assert sorted(e.id for rows in parts.values() for e in rows) == sorted(e.id for e in examples)
    for what in (lambda e: e.text, *([lambda e: e.target] if by == "output" else [])):
        groups = [{what(e) for e in rows} for rows in parts.values()]
        assert sum(map(len, groups)) == len(set.union(*groups))
    assert parts == sampling.split(examples, {"val": val, "test": 0.1}, by=by)


def test_split_writes_registered_parts_and_says_what_was_dropped(tmp_path: Path):
    rows = [row for row in bikes(60) for _ in range(2)]
    write(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"instruction": "cut')
    done = split_data("a.jsonl", tmp_path / "parts", tmp_path, val=0.2, test=0.1)
    assert (done.read, sum(done.files.values()), sum(done.dropped.values())) == (121, 120, 1)
    sizes = {Path(p).stem: n for p, n in done.files.items()}
    assert sizes == {"a-train": 84, "a-val": 24, "a-test": 12}
    parts = [load(name, tmp_path / "parts") for name in sizes]
    assert not [f for f in check(parts).findings if f.code in ("leakage", "contradictions")]
    assert {e.target for part in parts for e in part.examples} == {row["output"] for row in rows}
    assert parts[0].examples[0].meta["query_at"] == len("One function call:\n")
    with pytest.raises(StorageError, match="exists already"):
        split_data("a.jsonl", tmp_path / "parts", tmp_path)
    with pytest.raises(ConfigError, match="must be above 0 and leave"):
        split_data("a.jsonl", tmp_path / "more", tmp_path, val=0.9, test=0.1)
    with pytest.raises(ConfigError, match='no column "who"'):
        split_data("a.jsonl", tmp_path / "more", tmp_path, by="who")


def test_labels_are_split_by_their_inputs(tmp_path: Path):
    write(tmp_path / "a.jsonl", [{"input": f"text {i}", "output": "good" if i % 3 else "bad"} for i in range(50)])
    done = split_data("a.jsonl", tmp_path / "parts", tmp_path)
    assert done.by == "input"
    assert list(done.files.values()) == [40, 5, 5]


def test_a_sample_has_as_many_different_outputs_as_it_can(tmp_path: Path, viggo: Path):
    done = sample_data("viggo-train", tmp_path / "few.jsonl", 1000, viggo)
    assert list(done.groups.values()) == [1000]  # the first 1,000 rows have 321
    assert (done.read, done.left) == (5103, 4103)
    done = sample_data("viggo-train", tmp_path / "more.jsonl", 2000, viggo)
    assert list(done.groups.values()) == [1675]
    assert len(load(str(tmp_path / "more.jsonl"))) == 2000
    with pytest.raises(ConfigError, match="cannot choose"):
        sample_data("viggo-train", tmp_path / "x.jsonl", 9999, viggo)


def test_viggos_values_become_spans(tmp_path: Path, viggo: Path):
    done = export_data("viggo-val", tmp_path / "val.jsonl", "doccano", viggo)
    assert (done.read, done.kept, done.dropped) == (714, 714, {})
    rows = [json.loads(line) for line in (tmp_path / "val.jsonl").read_text().splitlines()]
    spans = [(row["text"][start:end], label) for row in rows for start, end, label in row["label"]]
    assert done.placed == len(spans)
    names = [s for s, label in spans if label == "name"]
    assert len(names) > 500
    assert done.unplaced["has_multiplayer"] > done.unplaced.get("name", 0)


def test_exports_say_how_their_counts_add_up(tmp_path: Path):
    write(tmp_path / "a.jsonl", bikes(3))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{}\n")
    faults: list[DataError] = []
    data = load("a.jsonl", tmp_path, quarantine=faults)
    done = export_dataset(data, tmp_path / "b.csv", faults=faults)
    assert (done.read, done.kept, sum(done.dropped.values())) == (4, 3, 1)
