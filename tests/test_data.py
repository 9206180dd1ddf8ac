"""Datasets: the layouts they come in, what is wrong with bad ones, and looking them over."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.data import check, fingerprint, list_datasets, load, load_rows
from tunery.errors import ConfigError, DataError, TuneryError
from tunery.types import Example, Message

ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)


def rows_of(n: int, **other: Any) -> list[dict[str, Any]]:
    return [{"instruction": "Extract.", "input": f"in {i}", "output": f"f(x[{i}])", **other} for i in range(n)]


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def register(folder: Path, **entries: Any) -> Path:
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return folder


def failure(*args: Any, **kwargs: Any) -> TuneryError:
    with pytest.raises(TuneryError) as caught:
        load(*args, **kwargs)
    return caught.value


# --- layouts ---


def test_alpaca_rows_become_one_user_turn_and_a_target(tmp_path: Path):
    rows = [
        {"instruction": "Do:", "input": "x ", "output": "y\n", "source": "a"},
        {"instruction": "Do it", "input": "", "output": "y"},
        {"instruction": "", "input": "x", "output": "y"},
        {"instruction": "Do it", "input": None, "output": "y"},
    ]
    write(tmp_path / "train.jsonl", rows)
    register(tmp_path, mine={"file_name": "train.jsonl"})
    dataset = load("mine", tmp_path)
    assert [e.text for e in dataset.examples] == ["Do:\nx ", "Do it", "x", "Do it"]
    first = dataset.examples[0]
    assert first == Example("mine-0", (Message("user", "Do:\nx "),), "y\n", {"source": "a", "row": 1, "query_at": 4})
    assert (dataset.name, dataset.uri) == ("mine", str(tmp_path / "train.jsonl"))
    assert list_datasets(tmp_path) == ["mine"]


def test_columns_name_system_and_history(tmp_path: Path):
    write(
        tmp_path / "a.jsonl",
        [{"q": "Q2", "a": "A2", "sys": "S", "past": [["Q1", "A1"]], "input": "not read"}],
    )
    columns = {"prompt": "q", "response": "a", "system": "sys", "history": "past"}
    register(tmp_path, a={"file_name": "a.jsonl", "columns": columns})
    (example,) = load("a", tmp_path).examples
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "S"),
        ("user", "Q1"),
        ("assistant", "A1"),
        ("user", "Q2"),
    ]
    assert example.target == "A2"


def test_sharegpt_conversations_end_in_the_target(tmp_path: Path):
    turns = [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "Q"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "A"},
    ]
    write(tmp_path / "a.json", [{"conversations": turns, "tools": [{"name": "f"}]}])
    register(tmp_path, a={"file_name": "a.json", "formatting": "sharegpt", "columns": {"tools": "tools"}})
    (example,) = load("a", tmp_path).examples
    assert [m.role for m in example.messages] == ["system", "user", "assistant", "tool"]
    assert example.target == "A"
    assert example.meta["tools"] == '[{"name": "f"}]'


def test_openai_messages_and_own_tags(tmp_path: Path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        {"role": "tool", "content": "8"},
        {"role": "assistant", "content": "A"},
    ]
    write(tmp_path / "a.jsonl", [{"messages": turns}])
    write(tmp_path / "b.jsonl", [{"chat": [{"who": "me", "text": "Q"}, {"who": "bot", "text": "A"}]}])
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "bot"}
    register(
        tmp_path,
        a={"file_name": "a.jsonl", "formatting": "openai"},
        b={"file_name": "b.jsonl", "formatting": "sharegpt", "columns": {"messages": "chat"}, "tags": tags},
    )
    (a,) = load("a", tmp_path).examples
    assert [m.role for m in a.messages] == ["user", "assistant", "tool", "tool"]
    assert json.loads(a.messages[1].content) == [call["function"]]
    (b,) = load("b", tmp_path).examples
    assert (b.text, b.target) == ("Q", "A")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
def test_every_format_gives_the_same_examples(tmp_path: Path, kind: str):
    rows = [*rows_of(3), {"instruction": "Two\nlines", "input": 'a "quote", ü\u2028', "output": "z"}]
    path = tmp_path / f"a.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows, indent=2))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    dataset = load(str(path))
    assert [e.target for e in dataset.examples] == ["f(x[0])", "f(x[1])", "f(x[2])", "z"]
    assert dataset.examples[3].text == 'Two\nlines\na "quote", ü\u2028'
    lines = {"json": [2, 7, 12, 17], "csv": [2, 3, 4, 5]}.get(kind, [1, 2, 3, 4])
    assert [e.meta["row"] for e in dataset.examples] == lines
    assert load_rows(path) == rows


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT.filter(str.strip)), min_size=1, max_size=5))
def test_text_is_kept_exactly(tmp_path: Path, rows: list[tuple[str, str, str]]):
    table = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in rows]
    bad = any(not (i + q).strip() for i, q, _ in rows)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table), encoding="utf-8")
    if bad:
        assert "empty prompt" in failure(str(path)).message
        return
    dataset = load(str(path))
    assert [(e.text, e.target) for e in dataset.examples] == [(f"{i}\n{q}", o) for i, q, o in rows]
    path.write_text(json.dumps(table))
    assert load(str(path)).fingerprint == dataset.fingerprint


# --- which rows, and what they are called ---


def test_files_can_be_folders_globs_and_splits(tmp_path: Path):
    write(tmp_path / "parts" / "train-1.jsonl", rows_of(2))
    write(tmp_path / "parts" / "train-2.jsonl", rows_of(3))
    write(tmp_path / "parts" / "test.jsonl", rows_of(1))
    (tmp_path / "parts" / "README.md").write_text("not data")
    register(
        tmp_path,
        all={"file_name": "parts"},
        some={"file_name": "parts/train-*.jsonl"},
        test={"file_name": "parts", "split": "test"},
        none={"file_name": "parts", "split": "dev"},
        url={"cloud_file_name": (tmp_path / "parts" / "test.jsonl").as_uri()},
    )
    assert [len(load(name, tmp_path)) for name in ("all", "some", "test", "url")] == [6, 5, 1, 1]
    last = load("some", tmp_path).examples[-1]
    assert last.id == "some-4"
    assert last.meta == {"row": 3, "file": "parts/train-2.jsonl", "query_at": 9}
    assert 'no split "dev"' in failure("none", tmp_path).message


def test_own_ids_are_used_when_they_tell_rows_apart(tmp_path: Path):
    rows = rows_of(2)
    write(tmp_path / "a.jsonl", [row | {"id": i + 7} for i, row in enumerate(rows)])
    assert [e.id for e in load(str(tmp_path / "a.jsonl")).examples] == ["7", "8"]
    write(tmp_path / "a.jsonl", [row | {"id": 7} for row in rows])
    examples = load(str(tmp_path / "a.jsonl")).examples
    assert [e.id for e in examples] == ["a-0", "a-1"]
    assert examples[0].meta["id"] == 7


def test_max_samples_takes_the_first_and_num_samples_any(tmp_path: Path):
    write(tmp_path / "a.jsonl", rows_of(10))
    register(
        tmp_path,
        a={"file_name": "a.jsonl"},
        few={"file_name": "a.jsonl", "num_samples": 4},
        many={"file_name": "a.jsonl", "num_samples": 25},
    )
    assert [e.id for e in load("a", tmp_path, max_samples=2).examples] == ["a-0", "a-1"]
    assert len(load("a", tmp_path, max_samples=99)) == 10
    few = load("few", tmp_path)
    assert len(few) == 4
    assert few == load("few", tmp_path)
    assert few.examples != load("a", tmp_path, max_samples=4).examples
    ids = [e.id for e in load("many", tmp_path).examples]
    assert len(set(ids)) == 25
    assert isinstance(failure("a", tmp_path, max_samples=0), ConfigError)


def test_fingerprint_is_of_the_content_alone(tmp_path: Path):
    write(tmp_path / "a.jsonl", rows_of(3, note="x"))
    write(tmp_path / "b" / "c.jsonl", rows_of(3))
    a, c = load(str(tmp_path / "a.jsonl")), load(str(tmp_path / "b" / "c.jsonl"))
    assert a.fingerprint == c.fingerprint == fingerprint(a.examples)
    assert fingerprint(reversed(a.examples)) != a.fingerprint
    changed = dataclasses.replace(a.examples[0], target="f(x[9])")
    assert fingerprint((changed, *a.examples[1:])) != a.fingerprint
    for judged in ({"rejected": "f(x[9])"}, {"kto_tag": False}):
        (first, *others) = a.examples
        assert fingerprint([dataclasses.replace(first, meta={**first.meta, **judged}), *others]) != a.fingerprint


def test_unlabelled_rows_are_read_when_asked_for(tmp_path: Path):
    write(tmp_path / "a.jsonl", [{"input": "x"}, {"input": "y"}])
    assert failure(str(tmp_path / "a.jsonl")).message == 'missing field "output"'
    assert [e.target for e in load(str(tmp_path / "a.jsonl"), labelled=False).examples] == [None, None]
    write(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "Q"}]}])
    (example,) = load(str(tmp_path / "b.jsonl"), labelled=False).examples
    assert (example.text, example.target) == ("Q", None)


def test_a_path_is_looked_up_here_and_in_the_dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "data" / "a.jsonl", rows_of(2))
    monkeypatch.chdir(tmp_path)
    assert load("a.jsonl", "data").uri == "data/a.jsonl"
    assert load("data/a.jsonl").name == "a"
    assert len(load("data")) == 2
    assert failure("data/b.jsonl").message == "./data/b.jsonl does not exist or holds no data files"


# --- what is wrong ---


def test_unknown_names_and_keys_show_the_right_ones(tmp_path: Path):
    write(tmp_path / "train.jsonl", rows_of(1))
    good = {"file_name": "train.jsonl"}
    register(
        tmp_path,
        train=good,
        typo={"file_nam": "train.jsonl"},
        kind={**good, "formatting": "sharegtp"},
        column={**good, "columns": {"respnse": "output"}},
        tag={**good, "formatting": "sharegpt", "tags": {"rol_tag": "r"}},
        source={"formatting": "alpaca"},
        samples={**good, "num_samples": "5"},
        images={**good, "columns": {**ALPACA, "images": "images"}},
        script={"script_url": "load.py"},
        scope={"ms_hub_url": "a/b"},
        lost={"file_name": "trian.jsonl"},
        answerless={**good, "columns": {"prompt": "instruction"}},
        wrong="train.jsonl",
    )
    expected = {
        "trian": ('no dataset "trian"', 'did you mean "train"?'),
        "typo": ('unknown key "file_nam"', 'did you mean "file_name"?'),
        "kind": ('unknown formatting "sharegtp"', 'did you mean "sharegpt"?'),
        "column": ('unknown key "columns.respnse"', 'did you mean "response"?'),
        "tag": ('unknown key "tags.rol_tag"', 'did you mean "role_tag"?'),
        "source": ("no source", "file_name"),
        "samples": ('"num_samples" must be', ""),
        "images": ("columns.images is not supported", ""),
        "script": ("scripts are not run", "JSONL"),
        "scope": ("ModelScope is not supported", "file_name"),
        "lost": ("does not exist", 'did you mean "train.jsonl"?'),
        "answerless": ("columns has no response", "columns.response"),
        "wrong": ("must be an object", ""),
    }
    for name, (message, hint) in expected.items():
        error = failure(name, tmp_path)
        assert isinstance(error, DataError), name
        assert message in error.message, name
        assert hint in (error.hint or ""), name
    assert "There are: train, typo" in (failure("xyz", tmp_path).hint or "")
    assert "has no dataset_info.json" in failure("xyz", tmp_path / "nowhere").message


GOOD = b'{"instruction": "a", "input": "b", "output": "c"}\n'
BAD_FILES = {
    # name: (content, message, line)
    "cut.jsonl": (GOOD + GOOD[:30], "malformed JSON", ":2"),
    "list.jsonl": (GOOD + b"[1, 2]\n", "a row must be an object, not a list", ":2"),
    "latin.jsonl": (GOOD + GOOD.replace(b"b", b"\xfc"), "is not UTF-8", ":2"),
    "utf16.jsonl": (GOOD.decode().encode("utf-16"), "UTF-16", ":1"),
    "nul.jsonl": (GOOD + b"\0" * 50, "NUL byte", ":2"),
    "nul2.jsonl": (GOOD + GOOD.replace(b'"b"', b'"b\\u0000"'), 'NUL character in field "input"', ":2"),
    "half.jsonl": (GOOD + GOOD.replace(b'"b"', b'"\\ud83d"'), "half a character", ":2"),
    "empty.jsonl": (b"", "the file is empty", ""),
    "blank.jsonl": (b"\n \n", "the file is empty", ""),
    "none.json": (b"[]", "the file holds no rows", ""),
    "deep.jsonl": (GOOD + b'{"a":' + b"[" * 100_000 + b"\n", "nested too deeply", ":2"),
    "digits.jsonl": (GOOD + b'{"a":' + b"1" * 5000 + b"}\n", "malformed JSON", ":2"),
    "cut.json": (b"[\n" + GOOD + b",\n" + GOOD[:20], "malformed JSON", ":4"),
    "open.json": (b"[\n" + GOOD, "malformed JSON", ":3"),
    "comma.json": (b"[\n" + GOOD + b",\n]", "a comma too many", ":4"),
    "glued.json": (b"[\n" + GOOD + GOOD + b"]", "expected", ":3"),
    "after.json": (b"[\n" + GOOD + b"]\n{}", "text after the list", ":3"),
    "field.jsonl": (GOOD + b'\n{"instruction": "a", "input": "b"}\n', 'missing field "output"', ":3"),
    "number.jsonl": (GOOD + GOOD.replace(b'"b"', b"7"), 'field "input" is a number, not text', ":2"),
    "object.jsonl": (GOOD.replace(b'"c"', b'{"x": 1}'), 'field "output" is an object, not text', ":1"),
    "target.jsonl": (GOOD + GOOD.replace(b'"c"', b'" "'), "empty target", ":2"),
    "null.jsonl": (GOOD + GOOD.replace(b'"c"', b"null"), "empty target", ":2"),
    "prompt.jsonl": (GOOD.replace(b'"a"', b'""').replace(b'"b"', b'""'), "empty prompt", ":1"),
    "layout.jsonl": (b'{"question": "a", "answer": "b"}\n', "cannot tell the layout", ""),
    "wide.csv": (b"instruction,input,output\na,b,c\na,b,c,d\n", "4 cells, but the header has 3", ":3"),
    "twice.csv": (b"input,input\na,b\n", 'column "input" is there twice', ":1"),
    "quote.csv": (b'input,output\n"a,b\n', "malformed CSV", ":2"),
    "header.csv": (b"input,output\n", "the file holds no rows", ""),
    "bad.parquet": (GOOD, "not a readable Parquet file", ""),
    "bad.jsonl.gz": (GOOD, "not a whole gzip file", ""),
    "notes.txt": (b"hello", "unknown file type", ""),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_with_their_line(tmp_path: Path, name: str):
    content, message, line = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    error = failure(f"./{name}", tmp_path)
    assert isinstance(error, DataError)
    assert message in error.message
    assert error.where == f"{name}{line}"


def test_a_message_never_quotes_a_whole_damaged_row(tmp_path: Path):
    write(tmp_path / "a.jsonl", [{"messages": [{"role": "u" * 100_000, "content": "Q"}]}])
    error = failure("a.jsonl", tmp_path)
    assert error.message.startswith('message 1: unknown role "uuu')
    assert len(str(error)) < 2100


def turn(role: str, content: Any = "x") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([turn("user"), turn("user"), turn("assistant")], "message 2: user after user, expected assistant"),
        ([turn("user"), turn("assistant"), turn("assistant")], "message 3: assistant after assistant"),
        ([turn("assistant")], "message 1: assistant first, expected user"),
        ([turn("user"), turn("assistant"), turn("system")], "message 3: system after assistant"),
        ([turn("user"), turn("tool"), turn("assistant")], "message 2: tool after user"),
        ([turn("user"), turn("asistant")], 'message 2: unknown role "asistant"'),
        ([turn("user"), turn("assistant"), turn("user")], "the last message is from user"),
        ([turn("user"), turn("assistant", "")], "empty target"),
        ([turn("user"), turn("assistant", 5)], "is a number, not text"),
        ([turn("user"), {"role": "assistant"}], 'message 2: missing field "content"'),
        ([turn("user"), "assistant"], "message 2 is text, not an object"),
        ([], "must be a list of messages"),
        ("hello", "must be a list of messages"),
    ],
)
def test_conversations_that_are_none(tmp_path: Path, turns: Any, message: str):
    write(tmp_path / "a.jsonl", [{"messages": [turn("user"), turn("assistant")]}, {"messages": turns}])
    error = failure("./a.jsonl", tmp_path)
    assert message in error.message
    assert error.where == "a.jsonl:2"


def test_a_wrong_mapping_shows_the_columns_there_are(tmp_path: Path):
    write(tmp_path / "a.jsonl", [{"instruction": "a", "input": "b", "answer": "c"}])
    register(
        tmp_path,
        a={"file_name": "a.jsonl"},
        b={"file_name": "a.jsonl", "columns": {**ALPACA, "query": "inptu", "response": "answer"}},
    )
    error = failure("a", tmp_path)
    assert str(error) == 'a.jsonl:1: missing field "output"'
    assert "columns.response" in (error.hint or "")
    assert "instruction, input, answer" in (error.hint or "")
    assert failure("b", tmp_path).message == 'missing field "inptu"'


def test_bom_and_windows_line_ends_are_read(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 2)
    assert len(load(str(tmp_path / "a.jsonl"))) == 2
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfinstruction,output\r\na,b\r\n")
    assert load(str(tmp_path / "a.csv")).examples[0].text == "a"


def test_the_hub_asks_for_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    register(tmp_path, a={"hf_hub_url": "owner/data"})
    error = failure("a", tmp_path)
    assert "datasets library" in error.message
    assert "pip install datasets" in (error.hint or "")


def test_loading_and_checking_rows_imports_nothing_heavy(tmp_path: Path):
    long = "Given a sentence, construct its meaning representation as a single function. " * 9
    write(tmp_path / "a.jsonl", [row | {"instruction": long} for row in rows_of(5103)])
    code = (
        "import sys; from tunery.data import check, load\n"
        "print(check([load(sys.argv[1])]).splits[0].rows)\n"
        "heavy = {'torch', 'pandas', 'pyarrow', 'transformers', 'ray', 'fsspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.jsonl")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == 5103


# --- check ---


def test_check_finds_what_spoils_training(tmp_path: Path):
    train = rows_of(30)
    train += [
        train[3],
        train[4] | {"output": "g(y)"},
        {"instruction": "Extract.", "input": "odd", "output": "none"},
    ]
    val = [*rows_of(3), {"instruction": "Extract.", "input": "IN  3", "output": "f(x[3]) "}]
    a, b = (load(str(write(tmp_path / f"{n}.jsonl", rows))) for n, rows in (("train", train), ("val", val)))
    result = check([a, b])
    found = {(f.code, f.where): f for f in result.findings}
    assert found["duplicates", "train.jsonl:31"].count == 1
    assert found["contradictions", "train.jsonl:5"].examples == ("train.jsonl:5 f(x[4]) / train.jsonl:32 g(y)",)
    assert found["odd_output", "train.jsonl:33"].examples == ("train.jsonl:33: 'none'",)
    leak = found["leakage", "val.jsonl:1"]
    assert (leak.severity, leak.count) == ("warning", 4)
    assert leak.examples[0] == "train.jsonl:1 = val.jsonl:1: in 0"
    assert found["outer_space", "val.jsonl:4"].severity == "note"
    assert len(found) == 5
    assert result.ok
    stats = result.splits[0]
    assert (stats.rows, stats.distinct_inputs, stats.distinct_outputs) == (33, 31, 32)
    assert stats.functions == {"f": 31, "g": 1}
    assert stats.shared_prefix == len("Extract.\n")
    assert json.loads(json.dumps(result.to_dict()))["ok"] is True


def test_check_stops_for_empty_targets(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"input": "x", "output": ""}, {"input": "y", "output": "z"}])
    result = check([load(str(path), labelled=False)])
    assert not result.ok
    assert [(f.code, f.where) for f in result.findings] == [("empty_target", "a.jsonl:1")]


def test_check_counts_tokens_with_a_template(tmp_path: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tunery.data.template import Template

    words = {w: i for i, w in enumerate(["[UNK]", "<|im_start|>", "<|im_end|>"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})  # pyright: ignore
    template = Template("chatml", tokenizer)
    dataset = load(
        str(write(tmp_path / "a.jsonl", [*rows_of(2), {"instruction": "", "input": "w " * 50, "output": "f(x)"}]))
    )
    sizes = [len(row) for row in template.rows(dataset.examples)]
    result = check([dataset], template=template, cutoff_len=40)
    assert result.splits[0].unit == "tokens"
    assert result.splits[0].longest[0] == ("a.jsonl:3", max(sizes))
    assert [(f.code, f.where, f.count) for f in result.findings] == [("too_long", "a.jsonl:3", 1)]
    assert not result.ok
    bare = check([dataset], tokenizer=tokenizer).splits[0]
    assert (bare.unit, bare.longest[0]) == ("tokens", ("a.jsonl:3", 51))


def test_check_asks_the_task(tmp_path: Path):
    from tunery.tasks import task_by_name

    dataset = load(str(write(tmp_path / "a.jsonl", [{"input": "x", "output": "{}"}, {"input": "y", "output": "{"}])))
    (finding,) = check([dataset], task=task_by_name("json")).findings
    assert (finding.code, finding.where) == ("odd_output", "a.jsonl:2")
