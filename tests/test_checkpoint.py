"""Checkpoints in a folder, in S3 (moto's server) and in GCS (an emulator): complete or not there, and of one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunery import storage
from tunery.errors import StorageError, TrainError, UnreachableError
from tunery.training.checkpoint import MANIFEST, Checkpoints, files_of

FILES = {"adapter_model.safetensors": b"weights", "trainer_state.pt": b"state"}
ORIGIN = {"base": "abc", "learning_rate": 0.1}


def test_the_newest_complete_checkpoint_is_the_last(tmp_path: Path):
    kept = Checkpoints(tmp_path, None, ORIGIN)
    assert kept.last() is None
    for step in (4, 8, 12, 16):
        kept.write(step, FILES)
    assert files_of(tmp_path / "checkpoint-16") == FILES
    (tmp_path / "checkpoint-16" / MANIFEST).unlink()  # killed before the manifest
    (tmp_path / "checkpoint-12" / "trainer_state.pt").write_bytes(b"st")  # a file cut short
    assert kept.last() == tmp_path / "checkpoint-8"
    (tmp_path / "checkpoint-8" / MANIFEST).write_bytes(b'{"step"')
    assert kept.last() == tmp_path / "checkpoint-4"
    kept.write(8, FILES)  # what a crash has left is replaced
    assert kept.last() == tmp_path / "checkpoint-8"


def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path: Path):
    Checkpoints(tmp_path, None, ORIGIN).write(4, FILES)
    other = Checkpoints(tmp_path, None, ORIGIN | {"learning_rate": 0.2})
    with pytest.raises(TrainError, match=r"another training: learning_rate 0\.1 there, 0\.2 here"):
        other.last()
    with pytest.raises(TrainError, match="another training"):
        Checkpoints(tmp_path / "new", None, {}).fetch(str(tmp_path / "checkpoint-4"))
    with pytest.raises(TrainError, match="no complete checkpoint"):
        other.fetch(str(tmp_path / "nowhere"))


def test_a_mirror_has_all_and_gives_it_back(store: str, tmp_path: Path):
    mirror = f"{store}/run"
    kept = Checkpoints(tmp_path / "here", mirror, ORIGIN)
    kept.check_writable()
    kept.write(4, FILES)
    kept.write(8, FILES)
    storage.remove(f"{mirror}/checkpoint-8/{MANIFEST}")  # the driver died while it was sent
    shutil.rmtree(tmp_path / "here")
    assert kept.last() == tmp_path / "here" / "checkpoint-4"
    assert files_of(tmp_path / "here" / "checkpoint-4") == FILES
    elsewhere = Checkpoints(tmp_path / "there", None, ORIGIN)
    assert elsewhere.fetch(mirror) == tmp_path / "there" / "checkpoint-4"
    shutil.rmtree(tmp_path / "here" / "checkpoint-4")
    kept.write(12, FILES)
    assert json.loads(storage.read_bytes(f"{mirror}/checkpoint-12/{MANIFEST}"))["step"] == 12


def test_only_the_newest_and_the_best_are_kept_in_both_places(store: str, tmp_path: Path):
    kept = Checkpoints(tmp_path, f"{store}/few", ORIGIN)
    for step in (4, 8, 12, 16):
        kept.write(step, FILES)
        kept.keep(2, best=4)
    wanted = ["checkpoint-12", "checkpoint-16", "checkpoint-4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == wanted
    there = storage.list_files(f"{store}/few/*/*")
    assert [path.split("/")[-2] for path in there] == [name for name in wanted for _ in range(3)]


def test_places_that_cannot_be_written_are_refused(store: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        Checkpoints(tmp_path / "file" / "x", None, ORIGIN).check_writable()
    with pytest.raises(StorageError, match="no-such-bucket"):
        Checkpoints(tmp_path / "a", f"{store[:2]}://no-such-bucket/x", ORIGIN).check_writable()


def test_patience_ends(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_PAUSES", (0.01, 0.01))
    tries = []

    def work():
        tries.append(1)
        if len(tries) < wanted:
            raise UnreachableError("gone")
        return "done"

    wanted = 3
    assert storage.patiently(work) == "done"
    tries, wanted = [], 9
    with pytest.raises(UnreachableError):
        storage.patiently(work)
    assert len(tries) == 3
