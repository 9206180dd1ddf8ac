"""Files on this machine, over http, and in S3 (moto's server) and GCS (an emulator) behind the same functions."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery import storage
from tunery.errors import RunError, StorageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


# --- names ---


def test_paths_join_and_tell_where_they_lie(tmp_path: Path):
    assert storage.join("data", "a", "b.jsonl") == "data/a/b.jsonl"
    assert storage.join("s3://bucket/data/", "b.jsonl") == "s3://bucket/data/b.jsonl"
    assert storage.join("data", "s3://bucket/b.jsonl") == "s3://bucket/b.jsonl"
    assert storage.join("data", "/abs/b.jsonl") == "/abs/b.jsonl"
    assert storage.is_remote("gs://x/y")
    assert not storage.is_remote(tmp_path)
    assert not storage.is_remote(tmp_path.as_uri())
    assert storage.local(Path("/tmp/a b").as_uri()) == Path("/tmp/a b")


def test_messages_show_no_secrets():
    url = "https://user:secret@host/data.jsonl?X-Amz-Signature=abc"
    assert storage.shown(url) == "https://host/data.jsonl"
    with pytest.raises(StorageError) as caught:
        storage.local(url)
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_missing_parts_are_told_with_a_hint(tmp_path: Path):
    with pytest.raises(StorageError, match="does not exist") as caught:
        storage.read_bytes(tmp_path / "none.json")
    assert caught.value.hint
    with pytest.raises(StorageError, match="is a folder"):
        storage.read_bytes(tmp_path)
    with pytest.raises(StorageError, match="unknown scheme"):
        storage.read_bytes("ftpx://host/a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        storage.write_atomic(tmp_path / "file" / "below", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_is_told(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0)
    with pytest.raises(StorageError, match="not allowed to read"):
        storage.read_bytes(secret)


def test_vendor_errors_become_storage_errors():
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    assert "no credentials" in storage.translate(NoCredentialsError(), "s3://b/k").message
    assert "not allowed" in storage.translate(PermissionError("Access Denied"), "s3://b/k").message
    assert "cannot reach" in storage.translate(EndpointConnectionError(endpoint_url="http://x"), "s3://b/k").message
    full = storage.translate(OSError(errno.ENOSPC, "No space left on device"), "/data/a", "write")
    assert full.message == "no space left to write /data/a"
    missing = storage.translate(ImportError("install s3fs", name="s3fs"), "s3://b/k")
    assert missing.hint == "pip install s3fs"


def test_errors_about_other_files_pass_through(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(FileNotFoundError), storage.open_bytes(tmp_path / "a"):
        open(tmp_path / "b")  # noqa: SIM115


# --- whole files ---


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path):
    path = tmp_path / "new" / "a.txt"
    storage.write_atomic(path, "one")
    storage.write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_reader_never_sees_half_a_write(tmp_path: Path):
    path = tmp_path / "status.json"
    storage.write_json_atomic(path, {"n": 0})
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            storage.write_json_atomic(path, {"n": n, "fill": "x" * 10_000})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            assert "n" in storage.read_json(path)
    finally:
        stop.set()
        writer.join()


def test_json_is_readable_by_every_parser(tmp_path: Path):
    @dataclasses.dataclass
    class Point:
        x: float
        path: Path

    path = tmp_path / "a.json"
    storage.write_json_atomic(path, {"loss": float("nan"), "p": Point(float("inf"), Path("/x")), "s": {2, 1}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "loss": None,
        "p": {"x": None, "path": "/x"},
        "s": [1, 2],
    }


def test_broken_json_names_its_line(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n"b" 2}')
    with pytest.raises(StorageError) as caught:
        storage.read_json(path)
    assert caught.value.where == f"{path}:2"
    path.write_text("")
    with pytest.raises(StorageError, match="empty"):
        storage.read_json(path)
    path.write_bytes(b'{"a":\n"\xff"}')
    with pytest.raises(StorageError, match="UTF-8") as caught:
        storage.read_json(path)
    assert caught.value.where == f"{path}:2"


def test_text_keeps_its_line_ends(tmp_path: Path):
    with storage.open_text(tmp_path / "a.txt", "w") as file:
        file.write("é\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\r\nb\n".encode()
    with storage.open_text(tmp_path / "a.txt") as file:
        assert file.read() == "é\r\nb\n"


# --- rows ---


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(JSON, min_size=1, max_size=5), cut=st.integers(min_value=1, max_value=400))
def test_a_log_torn_anywhere_keeps_its_whole_rows(tmp_path_factory: pytest.TempPathFactory, rows: list, cut: int):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    for row in rows:
        storage.append_jsonl(path, row)
    whole = path.read_bytes()
    assert storage.read_jsonl_tolerant(path) == rows

    os.truncate(path, max(0, len(whole) - cut))
    kept = storage.read_jsonl_tolerant(path)
    complete = path.read_bytes().count(b"\n")
    assert kept[:complete] == rows[:complete]

    storage.append_jsonl(path, {"after": "the crash"})
    after = storage.read_jsonl_tolerant(path)
    assert after[:complete] == rows[:complete]
    assert after[-1] == {"after": "the crash"}


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    assert storage.read_jsonl_tolerant(path) == []
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(StorageError) as caught:
        storage.read_jsonl_tolerant(path)
    assert caught.value.where == f"{path}:2"


# --- folders ---


def test_files_are_listed_sorted_without_hidden_ones(tmp_path: Path):
    for name in ("b.jsonl", "a.jsonl", ".hidden", "sub/c.jsonl"):
        storage.write_atomic(tmp_path / name, "x")
    assert [Path(p).name for p in storage.list_files(tmp_path)] == ["a.jsonl", "b.jsonl"]
    assert [Path(p).name for p in storage.list_files(tmp_path / "*b*")] == ["b.jsonl"]
    assert storage.list_files(tmp_path / "none") == []
    odd = tmp_path / "data[1].jsonl"
    odd.write_text("x")
    assert storage.list_files(odd) == [str(odd)]


def test_copies_appear_complete_or_not_at_all(tmp_path: Path):
    storage.write_atomic(tmp_path / "a" / "x.txt", "12345")
    storage.write_atomic(tmp_path / "a" / "sub" / "y.txt", "678")
    assert storage.copy_tree(tmp_path / "a", tmp_path / "b") == 8
    assert (tmp_path / "b" / "sub" / "y.txt").read_text() == "678"
    with pytest.raises(StorageError, match="already there"):
        storage.copy_tree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(StorageError, match="does not exist"):
        storage.copy_tree(tmp_path / "none", tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path):
    free = storage.free_bytes(tmp_path / "not" / "yet")
    assert free is not None
    assert free > 0
    assert storage.free_bytes("s3://bucket") is None


def test_a_locked_folder_names_its_user(tmp_path: Path):
    with storage.FolderLock(tmp_path):
        code = "import sys; from tunery.storage import FolderLock; FolderLock(sys.argv[1]).__enter__()"
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert f"in use by pid {os.getpid()}" in other.stderr
        with pytest.raises(RunError, match=f"pid {os.getpid()}"), storage.FolderLock(tmp_path):
            pass
    with storage.FolderLock(tmp_path):
        pass  # free again


def _hold_and_die(folder: str, ready) -> None:
    storage.FolderLock(folder).__enter__()
    ready.set()
    os._exit(9)


def test_a_killed_owner_frees_the_lock(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    owner = context.Process(target=_hold_and_die, args=(str(tmp_path), ready))
    owner.start()
    owner.join()
    assert ready.is_set()
    with storage.FolderLock(tmp_path):
        pass


# --- object stores ---


def test_object_stores_read_write_list_and_copy(store: str, tmp_path: Path):
    path = f"{store}/runs/1/status.json"
    assert not storage.exists(path)
    storage.write_json_atomic(path, {"state": "running"})
    storage.write_json_atomic(path, {"state": "succeeded"})
    assert storage.exists(path)
    assert storage.read_json(path) == {"state": "succeeded"}
    assert storage.list_files(f"{store}/runs/1") == [path]
    assert storage.list_files(f"{store}/runs/*/*.json") == [path]

    storage.write_atomic(tmp_path / "adapter" / "a.bin", b"abc")
    assert storage.copy_tree(tmp_path / "adapter", f"{store}/adapter") == 3
    with pytest.raises(StorageError, match="already there"):
        storage.copy_tree(tmp_path / "adapter", f"{store}/adapter")
    assert storage.copy_tree(f"{store}/adapter", tmp_path / "back") == 3
    assert (tmp_path / "back" / "a.bin").read_bytes() == b"abc"

    with pytest.raises(StorageError, match="does not exist"):
        storage.read_bytes(f"{store}/none")
    with pytest.raises(StorageError, match="does not exist"):
        storage.read_bytes(f"{store[:2]}://no-such-bucket/none")


def test_s3_without_credentials_or_network_says_so(tmp_path: Path):
    code = (
        "import sys; from tunery import storage\n"
        "from tunery.errors import StorageError\n"
        "try: storage.read_bytes('s3://bucket/key')\n"
        "except StorageError as e: print(e.message, '|', e.hint)\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BOTO"))}
    clean |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path), "AWS_MAX_ATTEMPTS": "1"}
    clean |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}

    def message(**env: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], env=clean | env, capture_output=True, text=True)
        return done.stdout

    assert "no credentials" in message()
    assert "cannot reach" in message(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_DEFAULT_REGION="x")


def test_http_is_read_only():
    with pytest.raises(StorageError, match="read only"):
        storage.write_atomic("http://127.0.0.1:9/a", "x")
    for use in (storage.read_bytes, storage.exists):
        with pytest.raises(StorageError, match="cannot reach"):
            use("http://127.0.0.1:9/a")
