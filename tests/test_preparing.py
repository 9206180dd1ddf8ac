"""Big datasets: parts that end with lines, places that are true in every part, counts that add up."""

from __future__ import annotations

import csv
import dataclasses
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunery import preparing, storage
from tunery.bases import find_base
from tunery.config import BUNDLED_BASE
from tunery.data.template import Template
from tunery.errors import ConfigError, DataError, StorageError
from tunery.preparing import Prepared, plan, prepare

BASE = find_base(BUNDLED_BASE)


def write(path: Path, n: int = 300) -> Path:
    with path.open("wb") as file:
        for i in range(n):
            row = {"instruction": "Extract.", "input": f"Łódź {i % 250} 🚲", "output": f"f(x[{i % 50}])"}
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            file.write(b'{"cut": \n' if i % 100 == 7 else b"\xff\n" if i % 100 == 8 else line)
    return path


def here(job: preparing.Job) -> Prepared:
    """The work of the workers, in this process."""
    totals = preparing._Totals()
    for number, part in enumerate(p for file in job.files for p in preparing._cut(file)):
        for report in preparing._prepare_part({"number": number, **part}, job):
            totals.add(report)
    return totals.result(job.folder, 1.0)


def rows_in(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    return {s: [r for p in sorted((Path(folder) / s).glob("*.parquet")) for r in pq.read_table(p).to_pylist()]
            for s in ("train", "val", "test")}  # fmt: skip


def test_parts_are_all_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "a.jsonl")
    monkeypatch.setattr(preparing, "PART", 1000)
    parts = list(preparing._cut(str(path)))
    assert len(parts) > 10
    assert sum(p["size"] for p in parts) == path.stat().st_size
    faults: list[DataError] = []
    rows = [row for part in parts for row in preparing._rows(part, faults.append)]
    assert [line for line, _ in rows] == [i + 1 for i in range(300) if i % 100 not in (7, 8)]
    assert [f.where for f in faults] == [f"a.jsonl:{n}" for n in (8, 9, 108, 109, 208, 209)]


def test_what_is_prepared_is_what_training_would_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tunery.bases import load_tokenizer
    from tunery.data import load

    path = write(tmp_path / "a.jsonl")
    monkeypatch.setattr(preparing, "PART", 4000)
    done = here(plan(path, tmp_path / "out", base=BASE, template="chatml", val=0.2, test=0.1))
    assert done.read == 300 == sum(done.rows.values()) + sum(done.dropped.values())
    assert sum(done.dropped.values()) == 6
    # 250 distinct inputs; the last 50 rows repeat the first 50, outputs too, but for the damaged ones.
    assert (done.duplicates, done.contradictions, done.leakage) == (48, 0, 0)
    assert sum(n for _, _, n in done.histogram) == 294
    found = rows_in(done.folder)
    assert {s: len(rows) for s, rows in found.items()} == done.rows
    examples = load(str(path), quarantine=[]).examples
    rows = {f"a.jsonl:{e.meta['row']}": r for e, r in
            zip(examples, Template("chatml", load_tokenizer(BASE)).rows(examples), strict=True)}  # fmt: skip
    for split in found.values():
        for row in split:
            assert (row["prompt"], row["target"]) == (rows[row["id"]].prompt, rows[row["id"]].target)
    outputs = [{tuple(r["target"]) for r in split} for split in found.values()]
    assert sum(map(len, outputs)) == len(set.union(*outputs)) == 50
    assert len("".join(p.read_text() for p in (tmp_path / "out" / "dropped").iterdir()).splitlines()) == 6


def good_rows(n: int = 120) -> list[dict[str, str]]:
    return [
        {"instruction": "Extract.", "input": f"Łódź, {i}\n“2nd” line 🚲", "output": f"f(x[{i % 40}])"} for i in range(n)
    ]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_csv_and_parquet_give_what_jsonl_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = good_rows()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = tmp_path / f"b.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), other, row_group_size=50)
    else:
        with other.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    monkeypatch.setattr(preparing, "PART", 1000)  # a worker holds no more: the one part of a CSV makes several files
    one, two = (here(plan(p, tmp_path / p.stem, base=BASE, template="chatml")) for p in (tmp_path / "a.jsonl", other))
    assert dataclasses.replace(one, folder="", seconds=0) == dataclasses.replace(two, folder="", seconds=0)
    assert len(list((tmp_path / "b" / "train").iterdir())) > 3
    for a, b in zip(rows_in(one.folder).values(), rows_in(two.folder).values(), strict=True):
        assert [(r["prompt"], r["target"]) for r in a] == [(r["prompt"], r["target"]) for r in b]


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_happened(
    ray_session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Through Ray Data. A part is lost between its rows and its report, as a kill would leave it."""
    monkeypatch.setattr(preparing, "PART", 4000)
    path = write(tmp_path / "a.jsonl")
    go = partial(plan, path, base=BASE, template="chatml", val=0.2)
    straight = prepare(go(tmp_path / "straight"))
    assert not go(tmp_path / "out").begun
    prepare(go(tmp_path / "out"))
    reports = sorted((tmp_path / "out" / "reports").iterdir())
    assert len(reports) > 3
    (tmp_path / "out" / "prepared.json").unlink()
    reports[1].unlink()
    kept = reports[0].stat().st_mtime_ns
    with pytest.raises(StorageError, match="begun with other settings: val"):
        go(tmp_path / "out", val=0.1)
    job = go(tmp_path / "out")
    assert job.begun
    seen: list[int] = []
    again = prepare(job, on_progress=seen.append)
    assert 0 < seen[0] < seen[-1] == 300
    assert reports[0].stat().st_mtime_ns == kept
    assert dataclasses.replace(again, folder="", seconds=0) == dataclasses.replace(straight, folder="", seconds=0)
    assert rows_in(again.folder) == rows_in(straight.folder)
    saved = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert saved["prepared"]["rows"] == again.rows
    assert saved["settings"]["template"] == "chatml"
    with pytest.raises(StorageError, match="is prepared already"):
        go(tmp_path / "out")


class Ranges(SimpleHTTPRequestHandler):
    """A web server that answers requests for a part of a file, as object stores do."""

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_source_and_folder_may_be_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "a.jsonl")
    monkeypatch.setattr(preparing, "PART", 4000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl"
        job = plan(url, "memory://bucket/out", base=BASE, template="chatml")
        done = here(job)
    finally:
        server.shutdown()
    local = here(plan(path, tmp_path / "out", base=BASE, template="chatml"))
    assert dataclasses.replace(done, folder="", seconds=0) == dataclasses.replace(local, folder="", seconds=0)
    for folder in ("train", "val", "dropped", "reports"):
        for name in sorted(p.name for p in (tmp_path / "out" / folder).iterdir()):
            there = storage.read_bytes(f"memory://bucket/out/{folder}/{name}")
            assert there == (tmp_path / "out" / folder / name).read_bytes()


def test_what_cannot_be_prepared(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "bad.parquet").write_text("PAR")
    write(tmp_path / "good.jsonl")
    go = partial(plan, base=BASE, template="chatml")
    with pytest.raises(StorageError, match="is not empty"):
        go(tmp_path / "good.jsonl", tmp_path / "full")
    with pytest.raises(DataError, match="no readable row"):
        go(tmp_path / "bad.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        go(tmp_path / "bad.parquet", tmp_path / "out")
    with pytest.raises(DataError, match="holds no files of rows"):
        go(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ConfigError, match="leave some rows for train"):
        go(tmp_path / "good.jsonl", tmp_path / "out", val=0.6, test=0.4)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_cannot_write_says_so(ray_session, tmp_path: Path):
    job = plan(write(tmp_path / "a.jsonl"), tmp_path / "out", base=BASE, template="chatml")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").write_text("a file where a folder has to be")
    with pytest.raises(StorageError, match="train"):
        prepare(job)
    assert not (tmp_path / "out" / "prepared.json").exists()
