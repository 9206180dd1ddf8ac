"""Bringing datasets in, from servers that cut connections, change their files, or hold the wrong ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunery import storage
from tunery.data import check, download, import_dataset, importer, load, materialise_bikeshop
from tunery.errors import DataError, RunError, StorageError


class FileServer(ThreadingHTTPServer):
    """Serves `files` with Range, If-Range and ETag, as S3 does; can be told to misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []  # bytes after which the next connections are cut
        self.statuses: list[int] = []  # statuses the next requests get instead of a file
        self.asked: list[tuple[str, str | None]] = []  # (path, Range)
        self.tags = True
        self.ranges = True
        self.pause = 0.0  # seconds between blocks

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        asked = self.headers.get("Range")
        if self.command == "GET":
            self.server.asked.append((name, asked))
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        data = self.server.files.get(name)
        if data is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        start = 0
        if asked and self.server.ranges and self.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        if self.server.tags:
            self.send_header("ETag", tag)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = min(len(data), start + self.server.cuts.pop(0)) if self.server.cuts else len(data)
        for at in range(start, end, 65536):
            self.wfile.write(data[at : min(at + 65536, end)])
            time.sleep(self.server.pause)
        if end < len(data):
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    # The module behind the function of its name
    monkeypatch.setattr(sys.modules["tunery.data.download"], "BACKOFF", 0.01)


BIG = os.urandom(1_000_000)


# --- download ---


def test_a_download_goes_on_where_it_was_cut(server: FileServer, tmp_path: Path):
    server.files["big"] = BIG
    server.cuts = [300_000, 200_000]
    seen: list[tuple[int, int | None]] = []
    size = download(f"{server.url}/big", tmp_path / "sub" / "big", progress=lambda *p: seen.append(p))
    assert size == len(BIG)
    assert (tmp_path / "sub" / "big").read_bytes() == BIG
    assert [span for _, span in server.asked] == [None, "bytes=300000-", "bytes=500000-"]
    assert seen == sorted(seen)
    assert seen[-1] == (len(BIG), len(BIG))
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["big"]


def test_a_later_call_goes_on_too(server: FileServer, tmp_path: Path):
    server.files["big"] = BIG
    server.cuts = [400_000] + [0] * 10
    with pytest.raises(StorageError, match="cannot reach") as caught:
        download(f"{server.url}/big", tmp_path / "big")
    assert caught.value.hint == "run it again: 400,000 bytes are here already"
    assert not (tmp_path / "big").exists()
    server.cuts.clear()
    server.asked.clear()
    download(f"{server.url}/big", tmp_path / "big")
    assert server.asked == [("big", "bytes=400000-")]
    assert (tmp_path / "big").read_bytes() == BIG


def test_a_killed_download_goes_on(server: FileServer, tmp_path: Path):
    server.files["big"] = BIG
    server.pause = 0.05
    code = "import sys; from tunery.data import download; download(sys.argv[1], sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", code, f"{server.url}/big", str(tmp_path / "big")])
    part = tmp_path / "big.part"
    while not part.exists() or part.stat().st_size < 200_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "big").exists()
    server.pause = 0
    server.asked.clear()
    download(f"{server.url}/big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG
    assert server.asked[0][1] not in (None, "bytes=0-")


@pytest.mark.parametrize("how", ["other bytes", "shorter", "no ranges", "no tags"])
def test_what_cannot_be_resumed_starts_again(server: FileServer, tmp_path: Path, how: str):
    server.files["big"] = BIG
    server.tags = how != "no tags"
    server.ranges = how != "no ranges"
    server.cuts = [400_000] + [0] * 4
    with pytest.raises(StorageError):
        download(f"{server.url}/big", tmp_path / "big")
    server.cuts.clear()
    if how == "other bytes":
        server.files["big"] = BIG[::-1]
    elif how == "shorter":
        server.files["big"] = BIG[:1000]
    download(f"{server.url}/big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == server.files["big"]
    assert list(tmp_path.iterdir()) == [tmp_path / "big"]


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server: FileServer, tmp_path: Path):
    server.files["a"] = b"abc"
    server.statuses = [503, 429]
    assert download(f"{server.url}/a", tmp_path / "a") == 3
    server.asked.clear()
    server.statuses = [403]
    with pytest.raises(StorageError, match="not allowed to read"):
        download(f"{server.url}/a?sig=secret", tmp_path / "b")
    with pytest.raises(StorageError, match="does not exist") as caught:
        download(f"{server.url}/none?sig=secret", tmp_path / "b")
    assert "secret" not in str(caught.value)
    assert len(server.asked) == 2
    assert not (tmp_path / "b.part").exists()


def test_an_empty_file_is_a_file(server: FileServer, tmp_path: Path):
    server.files["empty"] = b""
    assert download(f"{server.url}/empty", tmp_path / "empty") == 0


# --- import ---


def rows(n: int, split: str) -> bytes:
    made = ({"instruction": "Extract.", "input": f"{split} {i}", "output": f"f(x[{i}])"} for i in range(n))
    return "".join(json.dumps(row) + "\n" for row in made).encode()


REGISTRY = {
    f"viggo-{split}": {
        "file_name": f"{split}.jsonl",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }
    for split in ("train", "val")
}


@pytest.fixture
def viggo(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A small stand-in for the public bucket: the same files, fewer rows."""
    sizes = {"train.jsonl": 51, "val.jsonl": 7, "test.jsonl": 10}
    known = dataclasses.replace(importer.KNOWN["viggo"], url=server.url, rows=sizes)
    monkeypatch.setitem(importer.KNOWN, "viggo", known)
    server.files = {name: rows(n, name) for name, n in sizes.items()}
    server.files["dataset_info.json"] = json.dumps(REGISTRY).encode()
    return server


def test_a_known_dataset_is_imported_by_name(viggo: FileServer, tmp_path: Path):
    seen: set[str] = set()
    got = import_dataset("viggo", tmp_path, progress=lambda name, done, total: seen.add(name))
    assert got.files == {"train.jsonl": 51, "val.jsonl": 7, "test.jsonl": 10}
    assert not got.missing
    assert seen == set(got.files)
    assert [len(load(name, tmp_path)) for name in got.datasets] == [51, 7, 10]
    assert got.datasets == ("viggo-train", "viggo-val", "viggo-test")

    viggo.asked.clear()
    again = import_dataset("viggo", tmp_path)
    assert again.unchanged
    assert again.files == got.files
    assert viggo.asked == []


def test_an_import_that_was_cut_goes_on(viggo: FileServer, tmp_path: Path):
    viggo.cuts = [10**9, 10**9, 100, 0, 0, 0, 0]  # registry, train, then val
    with pytest.raises(StorageError, match="cannot reach"):
        import_dataset("viggo", tmp_path)
    assert (tmp_path / "train.jsonl").exists()
    assert not (tmp_path / "val.jsonl").exists()
    assert not (tmp_path / "manifest.json").exists()
    viggo.asked.clear()
    assert len(import_dataset("viggo", tmp_path).files) == 3
    assert ("val.jsonl", "bytes=100-") in viggo.asked
    assert "train.jsonl" not in [name for name, _ in viggo.asked]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows(6, "val"), "6 rows, 7 expected"),
        (b"<html>Sign in</html>", "malformed JSON"),
        (rows(7, "val").replace(b"output", b"answer"), 'missing field "output"'),
    ],
)
def test_a_wrong_file_never_gets_into_place(viggo: FileServer, tmp_path: Path, content: bytes, message: str):
    right = viggo.files["val.jsonl"]
    viggo.files["val.jsonl"] = content
    with pytest.raises(DataError, match=message) as caught:
        import_dataset("viggo", tmp_path)
    assert (caught.value.where or "").startswith("val.jsonl")
    assert not (tmp_path / "val.jsonl").exists()
    viggo.files["val.jsonl"] = right
    assert import_dataset("viggo", tmp_path).files["val.jsonl"] == 7


def test_a_damaged_file_is_not_taken_for_complete(viggo: FileServer, tmp_path: Path):
    import_dataset("viggo", tmp_path)
    (tmp_path / "val.jsonl").unlink()
    viggo.asked.clear()
    assert not import_dataset("viggo", tmp_path).unchanged
    assert [name for name, _ in viggo.asked if name != "dataset_info.json"] == ["val.jsonl"]
    (tmp_path / "val.jsonl").write_text("my own notes")
    with pytest.raises(StorageError, match="not what an import wrote"):
        import_dataset("viggo", tmp_path)
    assert (tmp_path / "val.jsonl").read_text() == "my own notes"


def test_from_a_folder_files_may_be_missing(viggo: FileServer, tmp_path: Path):
    source = tmp_path / "given"
    for name in ("train.jsonl", "val.jsonl", "dataset_info.json"):
        storage.write_atomic(source / name, viggo.files[name])
    got = import_dataset("viggo", tmp_path / "data", from_folder=source)
    assert (got.missing, got.datasets) == (("test.jsonl",), ("viggo-train", "viggo-val"))
    assert viggo.asked == []
    storage.write_atomic(source / "test.jsonl", viggo.files["test.jsonl"])
    got = import_dataset("viggo", tmp_path / "data", from_folder=source)
    assert got.missing == ()
    assert len(load("viggo-test", tmp_path / "data")) == 10
    with pytest.raises(StorageError, match="has none of"):
        import_dataset("viggo", tmp_path / "other", from_folder=tmp_path / "empty")


def test_any_folder_with_a_registry_and_any_file_can_be_imported(server: FileServer, tmp_path: Path):
    server.files["sets/dataset_info.json"] = json.dumps(REGISTRY).encode()
    server.files |= {f"sets/{name}.jsonl": rows(3, name) for name in ("train", "val", "extra")}
    assert import_dataset(f"{server.url}/sets/", tmp_path).datasets == ("viggo-train", "viggo-val")
    assert import_dataset(f"{server.url}/sets/extra.jsonl?sig=secret", tmp_path).datasets == ("extra",)
    assert set(storage.read_json(tmp_path / "dataset_info.json")) == {"viggo-train", "viggo-val", "extra"}
    assert len(load("extra", tmp_path)) == 3
    assert "secret" not in (tmp_path / "manifest.json").read_text()
    assert import_dataset(f"{server.url}/sets/dataset_info.json", tmp_path).unchanged
    server.files["sets/dataset_info.json"] = json.dumps({"a": {"file_name": "../../secret.jsonl"}}).encode()
    with pytest.raises(DataError, match="only data files below"):
        import_dataset(f"{server.url}/sets", tmp_path / "new")


def test_other_peoples_entries_stay(server: FileServer, tmp_path: Path):
    server.files = {"dataset_info.json": json.dumps(REGISTRY).encode(), "train.jsonl": rows(3, "t")}
    server.files["val.jsonl"] = rows(2, "v")
    storage.write_json_atomic(tmp_path / "dataset_info.json", {"mine": {"file_name": "m.jsonl"}})
    import_dataset(server.url, tmp_path)
    assert set(storage.read_json(tmp_path / "dataset_info.json")) == {"mine", "viggo-train", "viggo-val"}
    storage.write_json_atomic(tmp_path / "b" / "dataset_info.json", {"viggo-val": {"file_name": "m.jsonl"}})
    with pytest.raises(DataError, match='another dataset "viggo-val"'):
        import_dataset(server.url, tmp_path / "b")


def test_two_sources_never_share_a_file(viggo: FileServer, tmp_path: Path):
    import_dataset("viggo", tmp_path)
    with pytest.raises(StorageError, match=r"train\.jsonl belongs to viggo"):
        materialise_bikeshop(tmp_path)
    assert import_dataset("viggo", tmp_path).unchanged


def test_unknown_names_show_the_known(tmp_path: Path):
    with pytest.raises(DataError, match='no known dataset "vigo"') as caught:
        import_dataset("vigo", tmp_path)
    assert 'did you mean "viggo"?' in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_one_import_at_a_time(viggo: FileServer, tmp_path: Path):
    with storage.FolderLock(tmp_path / ".import"), pytest.raises(RunError, match="in use by pid"):
        import_dataset("viggo", tmp_path)


def test_import_from_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()  # fsspec keeps clients, and their endpoint, for good
        client = boto3.client("s3")
        client.create_bucket(Bucket="sets")
        for name in ("train", "val"):
            client.put_object(Bucket="sets", Key=f"x/{name}.jsonl", Body=rows(5, name))
        client.put_object(Bucket="sets", Key="x/dataset_info.json", Body=json.dumps(REGISTRY).encode())
        client.put_object(Bucket="sets", Key="big", Body=BIG)

        assert import_dataset("s3://sets/x", tmp_path).files == {"train.jsonl": 5, "val.jsonl": 5}
        assert len(load("viggo-train", "s3://sets/x")) == 5  # and read in place

        tag = client.head_object(Bucket="sets", Key="big")["ETag"]
        storage.write_json_atomic(tmp_path / "big.part.json", {"url": "s3://sets/big", "version": tag})
        (tmp_path / "big.part").write_bytes(BIG[:600_000])
        seen: list[int] = []
        download("s3://sets/big", tmp_path / "big", progress=lambda done, total: seen.append(done))
        assert (tmp_path / "big").read_bytes() == BIG
        assert seen[0] > 600_000

        (tmp_path / "big.part").write_bytes(b"x" * 600_000)
        storage.write_json_atomic(tmp_path / "big.part.json", {"url": "s3://sets/big", "version": "old"})
        download("s3://sets/big", tmp_path / "big")
        assert (tmp_path / "big").read_bytes() == BIG
        with pytest.raises(StorageError, match="does not exist"):
            download("s3://sets/none", tmp_path / "none")
    finally:
        server.stop()


def test_the_packaged_dataset_is_there_and_clean(tmp_path: Path):
    got = materialise_bikeshop(tmp_path)
    assert got.datasets == ("bikeshop-train", "bikeshop-val", "bikeshop-test")
    assert materialise_bikeshop(tmp_path).unchanged
    result = check([load(name, tmp_path) for name in got.datasets])
    assert result.ok
    assert all(split.functions for split in result.splits)
