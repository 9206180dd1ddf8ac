"""Big datasets: parts that end with lines, places that are true in every part, counts that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunery import preparing
from tunery.bases import find_base
from tunery.config import BUNDLED_BASE
from tunery.data.template import Template
from tunery.errors import DataError, StorageError


def write(path: Path, n: int = 300) -> Path:
    with path.open("wb") as file:
        for i in range(n):
            row = {"instruction": "Extract.", "input": f"Łódź {i % 250} 🚲", "output": f"f(x[{i % 50}])"}
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            file.write(b'{"cut": \n' if i % 100 == 7 else b"\xff\n" if i % 100 == 8 else line)
    return path


def test_parts_are_all_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "a.jsonl")
    monkeypatch.setattr(preparing, "PART", 1000)
    parts = list(preparing._cut(str(path)))
    assert len(parts) > 10
    assert sum(p["bytes"] for p in parts) == path.stat().st_size
    faults: list[DataError] = []
    rows = [row for part in parts for row in preparing._lines(part, faults.append)]
    assert [line for line, _ in rows] == [i + 1 for i in range(300) if i % 100 not in (7, 8)]
    assert [f.where for f in faults] == [f"a.jsonl:{n}" for n in (8, 9, 108, 109, 208, 209)]


def test_what_is_prepared_is_what_training_would_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The work of the workers, here in this process; bench/data_scale.py runs it through Ray Data."""
    import pyarrow.parquet as pq

    from tunery.bases import load_tokenizer
    from tunery.data import load

    path, base = write(tmp_path / "a.jsonl"), find_base(BUNDLED_BASE)
    monkeypatch.setattr(preparing, "PART", 4000)
    entry = preparing._entry([str(path)])
    job = preparing._Job(base, "chatml", 2048, entry, (0.2, 0.1), 42, tmp_path / "out")
    for name in ("train", "val", "test", "dropped"):
        (tmp_path / "out" / name).mkdir(parents=True)
    totals = preparing._Totals()
    for number, part in enumerate(preparing._cut(str(path))):
        totals.add(preparing._prepare_part({"number": number, **part}, job))
    done = totals.result(tmp_path / "out", 1.0)
    assert done.read == 300 == sum(done.rows.values()) + sum(done.dropped.values())
    assert sum(done.dropped.values()) == 6
    # 250 distinct inputs; the last 50 rows repeat the first 50, outputs too, but for the damaged ones.
    assert (done.duplicates, done.contradictions, done.leakage) == (48, 0, 0)
    assert sum(n for _, _, n in done.histogram) == 294
    found = {s: [r for p in sorted((done.folder / s).glob("*.parquet")) for r in pq.read_table(p).to_pylist()]
             for s in ("train", "val", "test")}  # fmt: skip
    assert {s: len(rows) for s, rows in found.items()} == done.rows
    examples = load(str(path), quarantine=[]).examples
    rows = {f"a.jsonl:{e.meta['row']}": r for e, r in
            zip(examples, Template("chatml", load_tokenizer(base)).rows(examples), strict=True)}  # fmt: skip
    for split in found.values():
        for row in split:
            assert (row["prompt"], row["target"]) == (rows[row["id"]].prompt, rows[row["id"]].target)
    outputs = [{tuple(r["target"]) for r in split} for split in found.values()]
    assert sum(map(len, outputs)) == len(set.union(*outputs)) == 50
    assert len("".join(p.read_text() for p in (done.folder / "dropped").iterdir()).splitlines()) == 6


def test_what_cannot_be_prepared(tmp_path: Path):
    base = find_base(BUNDLED_BASE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(StorageError, match="is not empty"):
        preparing.prepare(tmp_path, tmp_path / "full", base=base, template="chatml")
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="no readable row"):
        preparing.prepare(tmp_path / "bad.jsonl", tmp_path / "out", base=base, template="chatml")
    with pytest.raises(DataError, match=r"holds no \.jsonl files"):
        preparing.prepare(tmp_path / "none", tmp_path / "out", base=base, template="chatml")
