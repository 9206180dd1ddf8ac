"""Datasets in and out: every layout and container there and back, and spans with offsets that hold."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.data import How, export_dataset, import_dataset, load
from tunery.data.annotations import ANNOTATIONS, read_annotations, write_annotations
from tunery.data.spans import Annotated, Span, checked, place, render, tokens, wanted
from tunery.errors import ConfigError, DataError, StorageError, TuneryError
from tunery.tasks import task_by_name

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)


def slots_of(name: str):
    task = task_by_name(name)

    def slots(target: str) -> Sequence[tuple[str, str]] | None:
        found = task.parse(target)
        return found and found.slots

    return slots


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# --- layouts and containers ---

PLAIN = [
    {"instruction": "Extract.", "input": "Zoë paid 12,5 €\u2028in Łódź 🚲", "output": "pay(name[Zoë])", "source": "a"},
    {"instruction": "Extract.", "input": '"a, b"\r\n\tc', "output": "none()", "source": "b"},
    {"instruction": "Without an input", "input": "", "output": "x", "source": "ü"},
]
CHAT = [
    {"messages": [
        {"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"},
        {"role": "user", "content": "東京?"}, {"role": "assistant", "content": '{"LOC": ["東京"]}'},
    ]},
    {"messages": [{"role": "user", "content": "Q\nQ"}, {"role": "assistant", "content": "A"}]},
]  # fmt: skip


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ""])
def test_alpaca_goes_there_and_back_in_every_container(tmp_path: Path, ending: str):
    before = load(str(write(tmp_path / "a.jsonl", PLAIN)))
    done = export_dataset(before, tmp_path / f"out{ending}")
    assert (done.read, done.kept, done.dropped) == (3, 3, {})
    after = load(str(done.path))
    assert after.fingerprint == before.fingerprint
    assert [e.meta["source"] for e in after.examples] == ["a", "b", "ü"]
    again = export_dataset(after, tmp_path / "again.jsonl")
    assert lines(again.path) == PLAIN


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ""])
@pytest.mark.parametrize("layout", ["openai", "sharegpt", "alpaca"])
def test_conversations_go_from_layout_to_layout(tmp_path: Path, layout: str, ending: str):
    before = load(str(write(tmp_path / "a.jsonl", CHAT)))
    done = export_dataset(before, tmp_path / f"out{ending}", layout)
    assert load(str(done.path)).fingerprint == before.fingerprint
    assert export_dataset(before, tmp_path / "b.jsonl").format == "openai"
    with pytest.raises(ConfigError, match=r"a \.csv file cannot hold the lists"):
        export_dataset(before, tmp_path / "out.csv", layout)


def test_what_a_layout_cannot_say_is_dropped_and_counted(tmp_path: Path):
    tool = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "A"},
    ]
    before = load(str(write(tmp_path / "a.jsonl", [*CHAT, {"messages": tool}])))
    done = export_dataset(before, tmp_path / "out.jsonl", "alpaca")
    assert (done.read, done.kept) == (3, 2)
    assert done.dropped == {"its turns do not alternate between user and assistant": 1}
    assert load(str(export_dataset(before, tmp_path / "all.jsonl", "sharegpt").path)).fingerprint == before.fingerprint


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            TEXT,
            st.text(TEXT_ALPHABET := st.characters(exclude_categories=("Cs",), exclude_characters="\0")),
            TEXT.filter(str.strip),
        ),
        min_size=1,
        max_size=4,
    ),
    ending=st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ""]),
)
def test_any_text_goes_there_and_back(tmp_path: Path, rows: list[tuple[str, str, str]], ending: str):
    import shutil

    rows = [row for row in rows if (row[0] + row[1]).strip()]
    if not rows:
        return
    table = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in rows]
    before = load(str(write(tmp_path / "a.jsonl", table)))
    out = tmp_path / f"out{ending}"
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    export_dataset(before, out)
    assert load(str(out)).fingerprint == before.fingerprint


PAIRS = [{"instruction": "Do", "input": f"in {i}", "chosen": f"f(x[{i}])", "rejected": f"f(y[{i}])"} for i in range(3)]


def test_ranking_pairs_are_read_and_written(tmp_path: Path):
    pairs = load(str(write(tmp_path / "a.jsonl", PAIRS)))
    assert (pairs.examples[0].target, pairs.examples[0].meta["rejected"]) == ("f(x[0])", "f(y[0])")
    assert lines(export_dataset(pairs, tmp_path / "b.jsonl", "ranking").path) == PAIRS
    turns = [{"from": "human", "value": "Q"}]
    row = {"conversations": turns, "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}
    write(tmp_path / "c.jsonl", [row])
    entry = {"file_name": "c.jsonl", "formatting": "sharegpt", "ranking": True,
             "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}}  # fmt: skip
    (tmp_path / "dataset_info.json").write_text(json.dumps({"c": entry}))
    for name in ("c", "c.jsonl"):
        (example,) = load(name, tmp_path).examples
        assert (example.text, example.target, example.meta["rejected"]) == ("Q", "A", "B")
    judged = load(str(export_dataset(pairs, tmp_path / "kto.jsonl", "kto").path))
    assert [(e.target, e.meta["kto_tag"]) for e in judged.examples][:2] == [("f(x[0])", True), ("f(y[0])", False)]


def test_kto_tags_are_read_and_never_learnt_as_good_answers(tmp_path: Path):
    rows = [
        {"instruction": "Do", "output": "good", "kto_tag": True},
        {"instruction": "Do", "output": "bad", "kto_tag": False},
    ]
    judged = load(str(write(tmp_path / "a.jsonl", rows)))
    assert [e.meta["kto_tag"] for e in judged.examples] == [True, False]
    back = load(str(export_dataset(judged, tmp_path / "b.csv", "kto").path))
    assert [e.meta["kto_tag"] for e in back.examples] == [True, False]
    plain = export_dataset(judged, tmp_path / "c.jsonl", "alpaca")
    assert (plain.kept, plain.dropped) == (1, {"its answer is tagged as one to avoid": 1})
    write(tmp_path / "d.jsonl", [rows[0] | {"kto_tag": "maybe"}])
    with pytest.raises(DataError, match="neither true nor false"):
        load(str(tmp_path / "d.jsonl"))


def test_a_pair_without_its_other_half_says_so(tmp_path: Path):
    write(tmp_path / "a.jsonl", [PAIRS[0], {"instruction": "Do", "input": "x", "chosen": "y"}])
    with pytest.raises(DataError, match=r'a\.jsonl:2: missing field "rejected"'):
        load(str(tmp_path / "a.jsonl"))
    entry = {"file_name": "a.jsonl", "ranking": True}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": entry}))
    with pytest.raises(DataError, match=r"ranking needs columns\.chosen"):
        load("a", tmp_path)


# --- Hugging Face folders ---


def saved(folder: Path, rows: list[dict[str, Any]], shards: int = 1) -> None:
    """As `datasets.Dataset.save_to_disk` lays it out."""
    import pyarrow as pa

    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        table = pa.Table.from_pylist(rows[i::shards])
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {"input": {"dtype": "string"}}}))


def test_folders_of_hugging_faces_library_are_read(tmp_path: Path):
    saved(tmp_path / "one", PLAIN, shards=2)
    one = load(str(tmp_path / "one"))
    assert [e.meta["source"] for e in one.examples] == ["a", "ü", "b"]
    for split in ("train", "test"):
        saved(tmp_path / "many" / split, PLAIN)
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(load(str(tmp_path / "many" / "train"))) == 3
    with pytest.raises(DataError, match="holds several splits") as caught:
        load(str(tmp_path / "many"))
    assert "many/train" in (caught.value.hint or "")
    (tmp_path / "dataset_info.json").write_text('{"m": {"file_name": "many", "split": "test"}}')
    assert len(load("m", tmp_path)) == 3
    done = import_dataset(str(tmp_path / "many"), tmp_path / "in")
    assert done.files == {"train.jsonl": 3, "test.jsonl": 3}
    assert lines(tmp_path / "in" / "train.jsonl") == PLAIN
    assert load("test", tmp_path / "in").fingerprint == load("m", tmp_path).fingerprint


def test_damaged_folders_say_what_is_wrong(tmp_path: Path):
    saved(tmp_path / "a", PLAIN)
    whole = (tmp_path / "a" / "data-00000-of-00001.arrow").read_bytes()
    (tmp_path / "a" / "data-00000-of-00001.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable Arrow file"):
        load(str(tmp_path / "a"))
    (tmp_path / "a" / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(DataError, match="names no data files"):
        load(str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    for splits in ('["../../evil"]', "[]", "{}", '[".."]', "[7]"):
        (tmp_path / "b" / "dataset_dict.json").write_text(f'{{"splits": {splits}}}')
        with pytest.raises(DataError, match="names no splits"):
            import_dataset(str(tmp_path / "b"), tmp_path / "in")
    with pytest.raises(DataError, match="saved by Hugging Face's library"):
        load("train", tmp_path / "a")


# --- annotated text ---

TEXTS = [
    # combining accents, a family of emoji, CJK, a ligature, a skin tone; repeats and neighbours
    ("Zoë 👩‍👩‍👧 met Ann in New York, NY; Ann smiled 👍🏽.", [("Zoë", "PER"), ("Ann", "PER"), ("New York", "LOC")]),
    ("Cafe\u0301 Łódź — 東京タワーで会う", [("Cafe\u0301 Łódź", "ORG"), ("東京タワー", "LOC")]),
    ("🚲🚲 nothing here", []),
    ("ﬁve £5 notes (of [Bank])", [("£5", "MONEY"), ("(of [Bank])", "ORG")]),
]


def annotated() -> list[Annotated]:
    out = []
    for i, (text, found) in enumerate(TEXTS):
        spans = [(text.index(s), text.index(s) + len(s), label, s) for s, label in found]
        out.append(checked(text, spans, {"id": i}))
    return out


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_spans_go_there_and_back(tmp_path: Path, kind: str):
    ending = {"conll": ".conll", "docbin": ".spacy", "label-studio": ".json"}.get(kind, ".jsonl")
    path = tmp_path / f"ner{ending}"
    rows = annotated()
    assert write_annotations(path, kind, [(str(i), a) for i, a in enumerate(rows)]) == len(rows)
    back = [a for _, a in read_annotations(str(path), kind)]
    if kind == "conll":  # which keeps tokens, not the white space between them
        assert [[a.text[s.start : s.end].replace(" ", "") for s in a.spans] for a in back] == [
            [a.text[s.start : s.end].replace(" ", "") for s in a.spans] for a in rows
        ]
        write_annotations(tmp_path / "again.conll", kind, [(str(i), a) for i, a in enumerate(back)])
        assert (tmp_path / "again.conll").read_bytes() == path.read_bytes()
    else:
        assert [(a.text, a.spans) for a in back] == [(a.text, a.spans) for a in rows]


@pytest.mark.parametrize("form", ["function", "json"])
@pytest.mark.parametrize("kind", ["prodigy", "doccano", "label-studio"])
def test_from_annotations_to_rows_and_back(tmp_path: Path, kind: str, form: str):
    source = tmp_path / ("ner.json" if kind == "label-studio" else "ner.jsonl")
    rows = annotated()
    write_annotations(source, kind, [(str(i), a) for i, a in enumerate(rows)])
    done = import_dataset(str(source), tmp_path / "in", how=How(form=form))  # type: ignore[arg-type]
    assert done.files == {"ner.jsonl": 4}
    dataset = load("ner", tmp_path / "in")
    assert dataset.examples[0].text.endswith(TEXTS[0][0])
    expected = {
        "function": "extract(PER[Zoë, Ann], LOC[New York])",
        "json": '{"PER": ["Zoë", "Ann"], "LOC": ["New York"]}',
    }
    assert dataset.examples[0].target == expected[form]
    out = export_dataset(dataset, tmp_path / "out.jsonl", "doccano", slots=slots_of(form))
    assert (out.read, out.kept, out.placed, out.unplaced) == (4, 4, 7, {})
    assert [(r["text"], r["label"]) for r in lines(out.path)] == [
        (a.text, [[s.start, s.end, s.label] for s in a.spans]) for a in rows
    ]


LABEL_STUDIO = {
    "id": 7,
    "data": {"text": "💩This is an annotation."},
    "annotations": [{"result": [
        {"type": "labels", "from_name": "label", "to_name": "text",
         "value": {"start": 13, "end": 23, "text": "annotation", "labels": ["X"]}},
    ]}],
}  # fmt: skip


def test_label_studios_utf16_offsets_are_recognised(tmp_path: Path):
    """As in its issue 1347: older versions count an emoji twice, as JavaScript does."""
    (tmp_path / "a.json").write_text(json.dumps([LABEL_STUDIO]))
    ((where, found),) = read_annotations(str(tmp_path / "a.json"), "label-studio")
    assert (where, found.spans) == ("a.json:1", (Span(12, 22, "X"),))
    LABEL_STUDIO["annotations"][0]["result"][0]["value"]["text"] = "annotatiom"
    (tmp_path / "a.json").write_text(json.dumps([LABEL_STUDIO]))
    with pytest.raises(DataError, match=r'holds "nnotation\.", not "annotatiom"'):
        read_annotations(str(tmp_path / "a.json"), "label-studio")


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

New NNP B-NP I-LOC
York NNP I-NP I-LOC
Paris NNP I-NP B-LOC
"""


def test_conll_2003_with_iob1_and_iob2(tmp_path: Path):
    (tmp_path / "eng.conll").write_text(CONLL)
    done = import_dataset(str(tmp_path / "eng.conll"), tmp_path / "in")
    assert done.files == {"eng.jsonl": 3}
    dataset = load("eng", tmp_path / "in")
    assert [e.target for e in dataset.examples] == [
        "extract(ORG[EU], MISC[German])", "extract(PER[Peter Blackburn])", "extract(LOC[New York, Paris])",
    ]  # fmt: skip
    out = export_dataset(dataset, tmp_path / "out.conll", "conll", slots=slots_of("function"))
    tags = [line.split("\t") for line in out.path.read_text().splitlines() if line]
    assert tags[-3:] == [["New", "B-LOC"], ["York", "I-LOC"], ["Paris", "B-LOC"]]


def test_predictions_become_spans(tmp_path: Path):
    """A batch's answers: the text in its own column, the model's output, no offsets."""
    rows = [
        {"text": "The Long Dark 🐺 is a survival game", "output": "inform(name[the long dark], genres[survival, rpg])"},
        {"text": "“Ōkami” for PS4", "output": 'inform(name["O\u0304kami"], platforms[PS4])'},
        {"text": "x", "output": "no form"},
        {"text": "y", "output": "", "error": "the engine ended without an answer"},
    ]
    faults: list[DataError] = []
    answers = load(str(write(tmp_path / "answers.jsonl", rows)), quarantine=faults)
    out = export_dataset(answers, tmp_path / "out.jsonl", "prodigy", slots=slots_of("function"), faults=faults)
    assert (out.read, out.kept, out.placed, out.unplaced) == (4, 2, 4, {"genres": 1})
    assert sum(out.dropped.values()) == 2
    first, second = lines(out.path)
    assert [(first["text"][s["start"] : s["end"]], s["label"]) for s in first["spans"]] == [
        ("The Long Dark", "name"), ("survival", "genres"),
    ]  # fmt: skip
    assert second["text"][second["spans"][0]["start"] : second["spans"][0]["end"]] == "“Ōkami”"


def test_values_that_the_function_form_cannot_hold_are_written_as_json(tmp_path: Path):
    text = "Paris, Texas by Wim Wenders :]"
    rows = [{"text": text, "label": [[0, 12, "film"], [16, 27, "by"]]}, {"text": "Ran", "label": [[0, 3, "film"]]}]
    write(tmp_path / "a.jsonl", rows)
    import_dataset(str(tmp_path / "a.jsonl"), tmp_path / "auto")
    assert load("a", tmp_path / "auto").examples[0].target == '{"film": ["Paris, Texas"], "by": ["Wim Wenders"]}'
    done = import_dataset(str(tmp_path / "a.jsonl"), tmp_path / "function", how=How(form="function"))
    assert done.files == {"a.jsonl": 1}
    assert done.dropped == {"the function form cannot hold the value …": 1}
    assert (tmp_path / "function" / "a.dropped.log").read_text() == (
        'a.jsonl:1: the function form cannot hold the value "Paris, Texas"\n'
    )
    again = import_dataset(str(tmp_path / "a.jsonl"), tmp_path / "function", how=How(form="function"))
    assert (again.unchanged, again.dropped) == (True, done.dropped)
    with pytest.raises(StorageError, match="another format, form or text"):
        import_dataset(str(tmp_path / "a.jsonl"), tmp_path / "function", how=How(form="json"))


BAD_ANNOTATIONS = [
    ("doccano", {"text": "abc", "label": [[0, 4, "X"]]}, "lies outside the text"),
    ("doccano", {"text": "abc", "label": [[2, 2, "X"]]}, "lies outside the text"),
    ("doccano", {"text": "abc", "label": [["0", 1, "X"]]}, "not whole numbers"),
    ("doccano", {"text": "abc", "label": [[0, 1, ""]]}, "without a label"),
    ("doccano", {"text": "abc", "label": ["X"]}, "not [start, end, label]"),
    ("doccano", {"text": " ", "label": []}, "holds no text"),
    ("doccano", {"text": "abc"}, 'no "label"'),
    ("doccano", {"text": "abc", "spans": 7, "meta": 1, "label": [[0, 9, "X"]]}, "lies outside the text"),
    ("prodigy", {"text": "abc", "spans": [{"start": 0, "end": 1, "label": "X"}], "answer": "reject"}, "reject"),
    ("prodigy", {"text": "abc", "spans": [{"start": -1, "end": 1, "label": "X"}]}, "lies outside"),
    ("prodigy", {"text": "abc", "spans": [{"start": True, "end": 1, "label": "X"}]}, "not whole numbers"),
    ("prodigy", {"text": "abc", "spans": ["X"]}, "not a list of objects"),
    ("label-studio", {"data": {"text": "abc"}, "annotations": []}, "not annotated"),
    ("label-studio", {"data": {"a": "x", "b": "y"}, "annotations": []}, "which of data's fields"),
    ("label-studio", {"data": {"text": "abc"}, "annotations": [{"result": []}, LABEL_STUDIO["annotations"][0]]}, ""),
]


@pytest.mark.parametrize(("kind", "row", "reason"), BAD_ANNOTATIONS)
def test_bad_annotations_are_put_aside_with_their_reason(tmp_path: Path, kind: str, row: dict[str, Any], reason: str):
    good = {"doccano": {"text": "abc", "label": [[0, 3, "X"]]}, "prodigy": {"text": "abc", "spans": []},
            "label-studio": {"data": {"text": "abc"}, "annotations": [{"result": []}]}}[kind]  # fmt: skip
    write(tmp_path / "a.jsonl", [good, row, good])
    faults: list[DataError] = []
    assert len(read_annotations(str(tmp_path / "a.jsonl"), kind, faults.append)) == 2
    (fault,) = faults
    assert fault.where == "a.jsonl:2"
    assert reason in fault.message


def test_a_damaged_conll_file_keeps_its_whole_sentences(tmp_path: Path):
    data = "\ufeffAnn\tB-PER\n\nBo\tB-PER\nran\tX-Y\n\nÜlo\tB-PER\n\nCy\tB-P".encode() + b"\n\n\xff\tO\n\nDi"
    (tmp_path / "a.conll").write_bytes(data)
    faults: list[DataError] = []
    found = read_annotations(str(tmp_path / "a.conll"), "conll", faults.append)
    assert [a.text for _, a in found] == ["Ann", "Ülo", "Cy"]
    assert [f.where for f in faults] == ["a.conll:4", "a.conll:10", "a.conll:12"]
    assert "one column" in faults[-1].message


def test_spans_that_iob2_cannot_say_are_dropped(tmp_path: Path):
    rows = [("a", checked("Bank of China", [(0, 13, "ORG", None), (8, 13, "LOC", None)])), ("b", checked("x", []))]
    faults: list[DataError] = []
    assert write_annotations(tmp_path / "a.conll", "conll", rows, faults.append) == 1
    assert "overlap" in faults[0].message


def test_a_docbin_that_spacy_wrote_is_read_and_a_damaged_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import zlib

    import spacy.tokens

    from tunery.data import files

    box = spacy.tokens.DocBin(store_user_data=True)
    for text, places in (("Zoë 🚲 rides in Łódź.", [4]), ("   ", []), ("No one", [])):
        doc = spacy.blank("en")(text)
        doc.ents = [spacy.tokens.Span(doc, i, i + 1, label="LOC") for i in places]
        box.add(doc)
    box.to_disk(path := tmp_path / "ner.spacy")
    done = import_dataset(str(path), tmp_path / "in")
    assert (done.files, done.dropped) == ({"ner.jsonl": 2}, {"field … holds no text": 1})
    assert [e.target for e in load("ner", tmp_path / "in").examples] == ["extract(LOC[Łódź])", "extract()"]
    whole = path.read_bytes()
    monkeypatch.setattr(files, "MAX_INFLATED", 1 << 20)
    for data, message in (
        (whole[:-9], "not a whole DocBin: it ends early"),
        (b"Zoe", "not a whole DocBin"),
        (zlib.compress(b"no msgpack"), "not a readable DocBin"),
        (zlib.compress(b" " * (20 << 20)), "grow to more than"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            import_dataset(str(path), tmp_path / "other")


def test_docbin_without_spacy_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    (tmp_path / "a.spacy").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        import_dataset(str(tmp_path / "a.spacy"), tmp_path / "in")
    assert "tunery[spacy]" in (caught.value.hint or "")


@settings(max_examples=150, deadline=None)
@given(text=TEXT, data=st.data())
def test_a_span_that_is_rendered_is_found_again(text: str, data: st.DataObject):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    one = checked(text, [(start, end, "X", None)])
    surface = text[start:end]
    (pair,) = wanted([("X[]", v) for v in json.loads(render(one, "json"))["X"]]) or [None]
    if pair is None:  # white space alone
        assert not surface.strip()
        return
    spans, lost = place(text, [pair])
    assert not lost or not surface.strip()
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
    cut = tokens(one)
    assert all(b[0] >= a[1] for a, b in pairwise(cut))


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab[](), \n-é東🚲", min_size=1, max_size=12), data=st.data())
def test_what_the_function_form_holds_is_read_back_as_it_was(text: str, data: st.DataObject):
    ends = data.draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, len(text))), min_size=1, max_size=3))
    spans = [(min(pair), max(pair), label, None) for pair, label in zip(ends, ("A", "B c", "d.e-f"), strict=False)]
    one = checked(text, [span for span in spans if span[0] < span[1]])
    values = [(s.label, " ".join(text[s.start : s.end].split())) for s in one.spans]
    try:
        target = render(one, "function")
    except DataError:  # it cannot hold everything, and says so
        return
    assert wanted(slots_of("function")(target) or ()) == values


def test_where_a_value_is_placed():
    def at(text: str, *pairs: tuple[str, str]) -> list[tuple[str, int]]:
        return [(text[s.start : s.end], s.start) for s in place(text, list(pairs))[0]]

    assert at("party art", ("X", "art")) == [("art", 6)]  # a whole word first
    assert at("ART art", ("X", "art")) == [("art", 4)]  # then the exact spelling
    assert at("New York Times, New York", ("L", "New York"), ("O", "New York Times")) == [
        ("New York Times", 0), ("New York", 16),
    ]  # fmt: skip
    assert at("a\n b", ("X", "a b")) == [("a\n b", 0)]
    assert at("STRASSE", ("X", "straße")) == [("STRASSE", 0)]
    assert place("Ann", [("P", "Ann"), ("P", "Ann")])[1] == [("P", "Ann")]  # twice wanted, once there


# --- archives, and what must not be written over ---


def test_a_zip_holds_one_data_file(tmp_path: Path):
    rows = "".join(json.dumps({"text": "Ann", "label": [[0, 3, "P"]]}) + "\n" for _ in range(2))
    with zipfile.ZipFile(tmp_path / "doccano.zip", "w") as archive:
        archive.writestr("../../all.jsonl", rows)
        archive.writestr("__MACOSX/._all.jsonl", "x")
    done = import_dataset(str(tmp_path / "doccano.zip"), tmp_path / "in")
    assert done.files == {"all.jsonl": 2}
    assert sorted(p.name for p in (tmp_path / "in").iterdir() if not p.name.startswith(".")) == [
        "all.jsonl", "dataset_info.json", "manifest.json",
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.jsonl", rows)
        archive.writestr("b.jsonl", rows)
    (tmp_path / "none.zip").write_bytes(b"PK no zip")
    for name, message in (("two", "one data file"), ("none", "not a readable zip")):
        with pytest.raises(DataError, match=message):
            import_dataset(str(tmp_path / f"{name}.zip"), tmp_path / name)


def test_bombs_do_not_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import gzip

    from tunery.data import files, intake

    for module in (files, intake):
        monkeypatch.setattr(module, "MAX_INFLATED", 1 << 20)
    bomb = b" " * (20 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(DataError, match="grow to more than"):
        load(str(tmp_path / "a.jsonl.gz"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", bomb)
    (tmp_path / "b.zip").write_bytes(packed.getvalue())
    with pytest.raises(DataError, match="grow to more than"):
        import_dataset(str(tmp_path / "b.zip"), tmp_path / "in")


def test_exports_write_over_nothing_and_know_their_formats(tmp_path: Path):
    data = load(str(write(tmp_path / "a.jsonl", PLAIN)))
    with pytest.raises(StorageError, match="exists already"):
        export_dataset(data, tmp_path / "a.jsonl")
    for path, to in (("b.xlsx", None), ("b.jsonl", "alpacka")):
        with pytest.raises(ConfigError):
            export_dataset(data, tmp_path / path, to)
    with pytest.raises(TuneryError, match="no row can be written"):
        export_dataset(data, tmp_path / "b.jsonl", "ranking")
    assert not (tmp_path / "b.jsonl").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 30) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "text label labels entities spans start end start_offset end_offset answer data annotations result "
                "value messages role content conversations from output instruction input chosen rejected kto_tag "
                "history system query_at id tokens file row was_cancelled ground_truth tool_calls".split()
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


COLUMNS = (
    "text label entities spans data annotations messages conversations output instruction input chosen rejected "
    "kto_tag history system id query_at"
).split()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.dictionaries(st.sampled_from(COLUMNS), JSON | st.sampled_from(["user", "x y"]), max_size=6))
def test_whatever_a_row_holds_it_is_read_or_refused_with_a_reason(tmp_path: Path, row: dict[str, Any]):
    path = write(tmp_path / "a.jsonl", [row])
    for kind in ("label-studio", "prodigy", "doccano"):
        faults: list[DataError] = []
        assert len(read_annotations(str(path), kind, faults.append)) + len(faults) == 1
    for labelled in (True, False):
        try:
            dataset = load(str(path), labelled=labelled)
        except DataError:
            continue
        out = tmp_path / "out.jsonl"
        for to in (None, "sharegpt", "kto", "prodigy", "conll", "label-studio"):
            out.unlink(missing_ok=True)
            try:
                done = export_dataset(dataset, out, to, slots=slots_of("json"))
            except DataError:
                continue
            assert done.read == done.kept + sum(done.dropped.values())
