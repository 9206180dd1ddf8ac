"""Batches: rows in, each with its answer out, exactly once. Real Ray and vLLM, real files, a real S3 server.

(What happens when something is killed: tests/test_batch_kills.py.)
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunery import storage
from tunery.bases import find_base
from tunery.batching import Model, perform, prepare
from tunery.config import BatchSpec
from tunery.engine.merging import merged, obstacle
from tunery.engine.rows import EngineRows
from tunery.engine.vllm import Adapter
from tunery.errors import ConfigError, DataError, RunError
from tunery.tasks import learn, task_by_name

WORDS = ["red", "green", "blue", "black"]
TRAINED = [(f"a {w} bike", f"colour(name[{w}])") for w in WORDS * 6]


@pytest.fixture(scope="module")
def models(tiny_base, tiny_adapter) -> dict[str, Any]:
    """What `prepare` is told of models: the base, and an adapter that extracts colours."""
    base = find_base(str(tiny_base))
    profile = learn(task_by_name("function"), TRAINED)
    tuned = Model("shop@1", base, "chatml", "function", "shop@1", None, "Name the colour.", profile)
    return {
        "models": {"base": Model("base", base, "chatml", "text"), "shop": tuned, "shop@1": tuned},
        "default": "shop@1",
        "adapters": [Adapter("shop@1", tiny_adapter, 8)],
        "log_dir": None,
    }


@pytest.fixture(scope="module")
def spec():
    def make(source: Path, output: Path | str, **settings: Any) -> BatchSpec:
        engine = {"engine_kwargs": {"max_model_len": 256}, "batch_size": 4} | settings.pop("engine", {})
        sampling = {"max_tokens": 24} | settings.pop("sampling", {})
        return BatchSpec(input=str(source), output=str(output), engine=engine, sampling=sampling, **settings)

    return make


def rows_of(n: int) -> list[dict[str, Any]]:
    return [{"id": i, "text": f"a {WORDS[i % 4]} bike, number {i}"} for i in range(n)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def silent(event: Any) -> None:
    pass


def echo(failing: Any = lambda row_id: False):
    """In the engine's place, for what is not about it: each prompt's length as the answer."""

    def answer(dataset: Any) -> Any:
        def echoed(table: pa.Table) -> pa.Table:
            from tunery.engine.rows import OUTPUT, completion_type

            asked = zip(table["id"].to_pylist(), table["prompt_token_ids"].to_pylist(), strict=True)
            answers = [
                prompt
                and {
                    "text": f"colour(name[{len(prompt)}])", "finish_reason": "stop", "prompt_tokens": len(prompt),
                    "completion_tokens": 3, "error": "out of luck" if failing(row_id) else None,
                }
                for row_id, prompt in asked
            ]  # fmt: skip
            return table.append_column(OUTPUT, pa.array(answers, type=completion_type()))

        return dataset.map_batches(echoed, batch_size=None, batch_format="pyarrow", num_cpus=0.5)

    return answer


# -- answers --


def test_an_adapter_merged_into_its_base_is_pefts_merge(tiny_base, tiny_adapter, tmp_path, monkeypatch):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert obstacle(tiny_base, tiny_adapter) is None
    folder = merged(tiny_base, tiny_adapter, "float32")
    assert merged(tiny_base, tiny_adapter, "float32") == folder != merged(tiny_base, tiny_adapter, "bfloat16")
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(tiny_adapter)).merge_and_unload().state_dict()  # type: ignore[operator]
    for name, ours in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(ours.float(), theirs[name], rtol=1e-5, atol=1e-6)

    other = tmp_path / "other"
    shutil.copytree(tiny_adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    assert obstacle(tiny_base, other) == "it is not plain LoRA: use_dora"


@pytest.mark.long
def test_the_one_adapter_of_a_batch_is_merged_and_answers_stay(ray_session, models, spec, tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of(16))
    alone = models | {"models": {"shop@1": models["models"]["shop@1"]}}
    outputs = {}
    for merge in (True, False):
        batch = prepare(spec(source, tmp_path / f"{merge}.jsonl", merge=merge), **alone)
        assert batch.setup.merge is merge and ("enable_lora" in batch.setup.engine_kwargs()) is not merge
        outputs[merge] = {row["id"]: row["output"] for row in read_jsonl(perform(batch, silent).output)}
    assert outputs[True] == outputs[False] and len(outputs[True]) == 16
    both = prepare(spec(source, tmp_path / "both.jsonl"), **models)
    assert not both.setup.merge  # some rows may ask the base


def test_a_batch_answers_every_row_under_the_grammar_and_says_how_sure_it_is(ray_session, models, spec, tmp_path):
    given = [*rows_of(9), {"id": 9, "text": 7}, {"id": 10, "text": "long " * 300}]
    source = write_jsonl(tmp_path / "rows.jsonl", given)
    with source.open("a") as file:
        file.write('{"id": 11, "text": "torn')
    events: list[Any] = []
    batch = prepare(spec(source, tmp_path / "answers.jsonl", price_per_hour=3.6, max_error_rate=1), **models)
    result = perform(batch, events.append)
    assert (result.rows, result.answered, result.failed, result.parsed) == (12, 9, 3, 9)
    rows = read_jsonl(result.output)
    assert [row["id"] for row in rows] == list(range(9))
    for row in rows:
        assert row["parsed"] is not None and row["output"].startswith("colour(")
        assert row["value"]["function"] == "colour"
        assert {span["attribute"] for span in row["spans"]} == set(row["value"])
        for span in row["spans"][1:]:
            assert span["value"] in WORDS
            assert (span["flag"] is None) == (span["value"] in row["text"])
        assert 0 < row["probability"] <= 1 and row["confidence"] is None  # no evaluation has calibrated it
        assert (row["model"], row["finish_reason"]) == ("shop@1", "stop")
        assert row["prompt_tokens"] > 0 and row["completion_tokens"] > 0
    assert len({row["row_id"] for row in rows}) == 9
    reasons = {row["where"]: row["reason"] for row in read_jsonl(result.errors or "")}
    assert reasons["rows.jsonl:10"] == 'column "text" holds a number, not text'
    assert "the model's context is 256" in reasons["rows.jsonl:11"]
    assert "malformed JSON" in reasons["rows.jsonl:12"]
    assert [e["done"] for e in events if e["event"] == "batch"][-1] == 12
    summary = result.summary
    assert summary["quality"]["parse_rate"] == 1
    assert summary["cost_per_1000_rows"] > 0
    assert set(summary["seconds"]) >= {"start", "compute", "write"}

    assert prepare(batch.spec, **models).finished() == result  # again: nothing is left to do
    with source.open("a") as file:
        file.write('"}\n')
    with pytest.raises(RunError, match=r"another batch: input\.0 rows\.jsonl\.bytes"):
        prepare(batch.spec, **models).finished()


def test_a_row_chooses_its_model_and_its_sampling_and_may_hold_messages(ray_session, models, spec, tmp_path):
    turns = [{"role": "user", "content": "Name the colour.\na red bike"}]
    given = [
        {"key": "a", "messages": turns, "by": "shop", "how": {"max_tokens": 60}},
        {"key": "b", "messages": turns, "by": "base", "how": {"max_tokens": 2}},
        {"key": "c", "messages": turns, "by": None, "how": None},
        {"key": "d", "messages": turns, "by": "ghost", "how": None},
        {"key": "e", "messages": turns, "by": None, "how": {"beams": 4}},
    ]
    settings = {"column": "messages", "id_column": "key", "model_column": "by", "sampling_column": "how"}
    source = write_jsonl(tmp_path / "rows.jsonl", given)
    result = perform(prepare(spec(source, tmp_path / "out.parquet", **settings), **models), silent)
    rows = {row["key"]: row for row in pq.read_table(result.output).to_pylist()}
    assert {key: row["model"] for key, row in rows.items()} == {"a": "shop@1", "b": "base", "c": "shop@1"}
    assert rows["a"]["parsed"] == rows["c"]["parsed"] is not None
    assert (rows["b"]["completion_tokens"], rows["b"]["finish_reason"]) == (2, "length")
    assert json.loads(rows["a"]["messages"]) == turns
    reasons = {row["row_id"]: row["reason"] for row in read_jsonl(result.errors or "")}
    assert reasons["d"] == 'no model "ghost" in this batch'
    assert reasons["e"].startswith("a row cannot set beams")


def test_equal_prompts_are_computed_once_unless_sampled(ray_session, models, spec, tmp_path, monkeypatch):
    log = tmp_path / "computed"

    class Counting(EngineRows):
        async def _generate(self, request):
            with log.open("a") as file:
                file.write(f"{request['sampling']}\n")
            return await super()._generate(request)

    monkeypatch.setattr("tunery.engine.rows.EngineRows", Counting)
    sampled = {"temperature": 1.0}
    rows = [{"id": i, "text": f"bike {i % 2}", "sampling": sampled if i >= 20 else None} for i in range(24)]
    settings = spec(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "a.jsonl", sampling_column="sampling")
    result = perform(prepare(settings, **models), silent)
    monkeypatch.undo()
    answers = [row["output"] for row in read_jsonl(result.output)]
    assert answers[:20] == answers[:2] * 10
    assert Counter(log.read_text().splitlines()) == {"None": 2, '{"temperature": 1.0}': 4}


def test_openais_batch_files(ray_session, models, spec, tmp_path):
    chat = {"model": "shop", "messages": [{"role": "user", "content": "a red bike"}], "max_tokens": 4, "temperature": 0}
    text = {"model": "base", "prompt": "a red bike", "max_tokens": 3, "temperature": 0}

    def line(custom_id: str, url: str, body: Any) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}

    given = [
        line("one", "/v1/chat/completions", chat),
        line("two", "/v1/completions", text),
        line("three", "/v1/embeddings", {}),
        line("four", "/v1/chat/completions", chat | {"model": "ghost"}),
        line("five", "/v1/chat/completions", chat | {"logit_bias": {"1": 2}}),
    ]
    source = write_jsonl(tmp_path / "requests.jsonl", given)
    result = perform(prepare(spec(source, tmp_path / "results.jsonl", openai=True), **models), silent)
    one, two = read_jsonl(result.output)
    assert (one["custom_id"], one["response"]["status_code"], one["error"]) == ("one", 200, None)
    body = one["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "shop")
    assert body["usage"]["completion_tokens"] == 4
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert two["response"]["body"]["object"] == "text_completion"
    assert two["response"]["body"]["choices"][0]["finish_reason"] == "length"
    failed = {row["custom_id"]: row for row in read_jsonl(result.errors or "")}
    assert set(failed) == {"three", "four", "five"}
    assert failed["four"]["response"]["body"]["error"]["message"] == 'The model "ghost" does not exist.'
    assert "logit_bias" in failed["five"]["error"]["message"]


# -- exactly once --


@pytest.mark.parametrize(
    "ending",
    [".jsonl", ".parquet", pytest.param(".csv", marks=pytest.mark.long), pytest.param("", marks=pytest.mark.long)],
)
def test_failed_rows_are_asked_again_alone_and_find_their_place(ray_session, models, spec, tmp_path, ending):
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of(21))
    settings = spec(source, tmp_path / f"answers{ending}", id_column="id")
    unlucky = perform(prepare(settings, **models), silent, answer=echo(lambda i: int(i) % 5 == 0))
    assert (unlucky.answered, unlucky.failed) == (16, 5)
    assert ids(settings) == [i for i in range(21) if i % 5]

    asked: list[int] = []
    again = prepare(settings, **models)
    retried = perform(again, lambda e: asked.append(e["done"]), retry=True, answer=echo(lambda i: i == "10"))
    assert (retried.rows, retried.answered, retried.failed) == (21, 20, 1)
    assert ids(settings) == [i for i in range(21) if i != 10]

    whole = perform(prepare(settings, **models), silent, retry=True, answer=echo())
    assert (whole.answered, whole.failed, whole.errors) == (21, 0, None)
    assert ids(settings) == list(range(21))
    straight = spec(source, tmp_path / f"straight{ending}", id_column="id")
    perform(prepare(straight, **models), silent, answer=echo())
    assert contents(settings) == contents(straight)


def parts(settings: BatchSpec) -> list[Path]:
    output = Path(settings.output or "")
    return sorted(output.glob("part-*")) if output.is_dir() else [output]


def contents(settings: BatchSpec) -> list[bytes]:
    return [path.read_bytes() for path in parts(settings)]


def ids(settings: BatchSpec) -> list[int]:
    found: list[int] = []
    for path in parts(settings):
        if path.suffix == ".parquet":
            found += pq.read_table(path)["id"].to_pylist()
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                found += [int(row["id"]) for row in csv.DictReader(file)]
        else:
            found += [row["id"] for row in read_jsonl(path)]
    return found


def test_a_batch_that_goes_wrong_stops_early_and_goes_on_from_there(ray_session, models, spec, tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of(400))
    settings = spec(source, tmp_path / "answers.jsonl", id_column="id", engine={"batch_size": 8}, max_error_rate=0.2)
    with pytest.raises(
        DataError, match=r"of \d+ rows failed, more than max_error_rate 0\.2 allows: rows\.jsonl:\d+: out"
    ):
        perform(prepare(settings, **models), silent, answer=echo(lambda i: int(i) % 3 == 0))
    assert not Path(settings.output or "").exists()
    events: list[Any] = []
    settings.max_error_rate = 1  # is no part of what the batch is made of
    result = perform(prepare(settings, **models), events.append, answer=echo())
    assert events[0]["event"] == "resumed" and events[0]["done"] >= 100
    assert sorted(ids(settings) + [int(r["row_id"]) for r in read_jsonl(result.errors or "")]) == list(range(400))


def test_two_runs_into_one_output_are_refused_and_so_is_what_is_not_a_batchs(models, spec, tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of(3))
    batch = prepare(spec(source, tmp_path / "answers"), **models)
    with batch.output.lock(), pytest.raises(RunError, match="in use by pid"):
        perform(batch, silent)
    (tmp_path / "mine.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        prepare(spec(source, tmp_path / "mine.jsonl"), **models).finished()


def test_another_setting_or_model_is_another_batch(models, spec, tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", rows_of(3))
    begun = prepare(spec(source, tmp_path / "answers.jsonl"), **models)
    begun.output.begin(begun.manifest)
    hotter = spec(source, tmp_path / "answers.jsonl", sampling={"temperature": 0.5})
    with pytest.raises(RunError, match=r"settings\.sampling\.temperature 0\.0 there, 0\.5 here"):
        prepare(hotter, **models).finished()
    with pytest.raises(RunError, match=r"models\.shop@1"):
        prepare(begun.spec, **models | {"default": "base", "models": {"base": models["models"]["base"]}}).finished()
    wider = spec(source, tmp_path / "answers.jsonl", engine={"concurrency": 2})
    assert prepare(wider, **models).finished() is None  # goes on


def test_a_remote_output_is_locked_by_a_sign_of_life(models, spec, store, tmp_path):
    source = f"{store}/in/rows.jsonl"
    storage.write_atomic(source, "".join(json.dumps(row) + "\n" for row in rows_of(10)))
    batch = prepare(spec(source, f"{store}/out/answers.jsonl"), **models)
    sign = {"host": "elsewhere", "pid": 1, "at": time.time() - 30}
    storage.write_json_atomic(f"{batch.output.folder}/_tunery/lock.json", sign)
    with pytest.raises(RunError, match="in use by pid 1 on elsewhere"):
        perform(batch, silent)
    sign |= {"at": time.time() - 3600}
    storage.write_json_atomic(f"{batch.output.folder}/_tunery/lock.json", sign)
    with batch.output.lock():
        assert storage.read_json(f"{batch.output.folder}/_tunery/lock.json")["pid"] == os.getpid()
    assert not storage.exists(f"{batch.output.folder}/_tunery/lock.json")


def test_from_a_bucket_to_a_bucket(ray_session, models, spec, store):
    source = f"{store}/rows/*.jsonl"
    for i in range(3):
        lines = "".join(json.dumps(row) + "\n" for row in rows_of(300)[100 * i :][:100])
        storage.write_atomic(f"{store}/rows/{i}.jsonl", lines)
    batch = prepare(spec(source, f"{store}/done/answers.jsonl", id_column="id"), **models)
    result = perform(batch, silent, answer=echo())
    lines = storage.read_bytes(result.output).decode().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(300))
    assert prepare(batch.spec, **models).finished() is not None


# -- input --


def test_ids_that_repeat_and_columns_that_clash_are_said_before_anything_starts(models, spec, tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", [*rows_of(5), {"id": 2, "text": "again"}])
    with pytest.raises(DataError, match=r'1 ids in column "id" .*"2" \(rows\.jsonl:3, rows\.jsonl:6\)'):
        prepare(spec(source, tmp_path / "a.jsonl", id_column="id"), **models)
    gold = write_jsonl(tmp_path / "gold.jsonl", [row | {"output": "x"} for row in rows_of(5)])
    with pytest.raises(DataError, match="already has the column") as caught:
        prepare(spec(gold, tmp_path / "a.jsonl"), **models)
    assert "answer_prefix" in (caught.value.hint or "")
    with pytest.raises(DataError, match='no column "body"'):
        prepare(spec(source, tmp_path / "a.jsonl", column="body"), **models)


def test_gold_answers_are_scored(ray_session, models, spec, tmp_path):
    given = [row | {"output": "colour(name[x])"} for row in rows_of(4)]
    source = write_jsonl(tmp_path / "rows.jsonl", given)
    settings = spec(source, tmp_path / "a.csv", gold="output", answer_prefix="our_")
    result = perform(prepare(settings, **models), silent, answer=echo())
    assert result.summary["gold"] == {"n": 4, "exact_match": 0, "canonical_match": 0, "slot_f1": 0.5}
    with Path(result.output).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["output"] == "colour(name[x])" and rows[0]["our_output"].startswith("colour(name[")


def test_chunks_are_a_function_of_the_files(tmp_path):
    from tunery.batching.source import find

    write_jsonl(tmp_path / "a.jsonl", rows_of(1000))
    with (tmp_path / "b.csv").open("w", newline="") as file:
        file.write('id,text\n1,"two\nlines"\n\n2,plain\n3,one,too many\n4,last')
    pq.write_table(pa.Table.from_pylist(rows_of(100)), tmp_path / "c.parquet", row_group_size=40)
    (tmp_path / "d.json").write_text(json.dumps(rows_of(3)))
    source = find(str(tmp_path))
    assert source == find(str(tmp_path))
    assert source.rows == 1000 + 4 + 100 + 3
    entries = [entry for chunk in source.chunks for entry in source.read(chunk)]
    assert len(entries) == source.rows
    assert [e.row["id"] for e in entries[:1000] if e.row] == list(range(1000))
    assert [(e.line, e.row and e.row["text"]) for e in entries[1000:1004]] == [
        (2, "two\nlines"), (5, "plain"), (6, None), (7, "last"),
    ]  # fmt: skip
    assert entries[1002].fault == "3 cells, but the header has 2" and entries[1002].raw == "3,one,too many"


def test_columns_of_json_that_differ_from_row_to_row_still_make_one_table(ray_session, models, spec, tmp_path):
    given = [{"text": "a", "n": 1}, {"text": "b", "n": 1.5, "tags": ["x"]}, {"text": "c", "tags": "y", "ok": True}]
    source = write_jsonl(tmp_path / "rows.jsonl", given)
    settings = spec(source, tmp_path / "out", engine={"batch_size": 1})
    perform(prepare(settings, **models), silent, answer=echo())
    tables = [pq.read_table(path) for path in parts(settings)]
    assert len(tables) == 3 and all(table.schema == tables[0].schema for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["n"] for row in rows] == [1.0, 1.5, None]
    assert [row["tags"] for row in rows] == [None, '["x"]', "y"]
    assert [row["ok"] for row in rows] == [None, None, True]
