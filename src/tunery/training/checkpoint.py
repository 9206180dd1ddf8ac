"""A training's state: what is tuned, the optimizer, the step. Rows, learning rate and random numbers follow from
seed and step.

A checkpoint is a folder `checkpoint-N` with a manifest that is written last. Without it, or with a file of another
size than it says, a folder is what a crash has left, and is never taken.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import storage
from tunery.errors import StorageError, TrainError

if TYPE_CHECKING:
    import torch

STATE_FILE, MANIFEST = "trainer_state.pt", "manifest.json"
Files = dict[str, bytes]  # a checkpoint as it travels: contents by file name


def write_checkpoint(
    model: Any, optimizer: torch.optim.Optimizer, state: Mapping[str, float], step: int, scratch: Path, rank: int
) -> Path:
    """`scratch`/checkpoint-`step`, filled by rank 0. `state` is the objective's."""
    import torch

    from tunery.training.keeping import save_tuned, tuned_state, weights_to_save
    from tunery.training.sharding import optimizer_state

    folder = scratch / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    # By all workers, since each has a share of a sharded model.
    weights = weights_to_save(model)
    own = {"step": step, "optimizer": optimizer_state(optimizer), "objective": dict(state)}
    if rank == 0:
        save_tuned(model, folder, weights)
        torch.save(tuned_state(model, weights) | own, folder / STATE_FILE)
    return folder


def read_checkpoint(
    folder: str, model: Any, optimizer: torch.optim.Optimizer, state: MutableMapping[str, float]
) -> int:
    """Bring model, optimizer and the objective's `state` to where a checkpoint left them; returns its step.

    Raises TrainError.
    """
    import torch

    from tunery.training.keeping import load_tuned
    from tunery.training.sharding import load_optimizer

    try:
        kept = torch.load(Path(folder) / STATE_FILE, weights_only=True, map_location="cpu")
        load_tuned(model, kept)
        load_optimizer(optimizer, kept["optimizer"])
        state.update(kept["objective"])
    except (OSError, KeyError, ValueError, RuntimeError) as exc:
        raise TrainError(f'cannot resume from "{folder}": {exc}', hint="start anew in another output_dir") from None
    return kept["step"]


def files_of(folder: Path) -> Files:
    """The contents of a checkpoint."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST}


def unpack(files: Mapping[str, bytes], folder: Path) -> Path:
    """The opposite of `files_of`, for `read_checkpoint`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.rpartition("-")[2])


class Checkpoints:
    """The checkpoints of one training: in its output folder and, where it has one, at a second address `mirror`.

    `origin` says what the training is made of; a checkpoint of another origin is refused by name of what differs.
    """

    def __init__(self, folder: Path, mirror: str | None, origin: Mapping[str, Any]) -> None:
        self.folder, self.mirror, self.origin = folder, mirror, origin

    def check_writable(self) -> None:
        """Raises StorageError when a file cannot be written to one of the two places."""
        for place in filter(None, (str(self.folder), self.mirror)):
            probe = storage.join(place, f".probe-{secrets.token_hex(4)}")
            storage.write_atomic(probe, b"")
            storage.remove(probe)

    def taken(self) -> str | None:
        """The place, if one of the two has a complete checkpoint already."""
        return next((place for place in (str(self.folder), self.mirror) if place and _steps(place)), None)

    def write(self, step: int, files: Files) -> Path:
        """Keep one checkpoint, here first. Raises StorageError; what was complete before stays so."""
        final = self.folder / f"checkpoint-{step}"
        if self._manifest(str(final)) is None:
            part = final.with_name(f"{final.name}.part")
            try:
                shutil.rmtree(part, ignore_errors=True)
                for name, content in files.items():
                    storage.write_atomic(part / name, content)
                sizes = {name: len(content) for name, content in files.items()}
                storage.write_json_atomic(part / MANIFEST, {"step": step, "files": sizes, "origin": self.origin})
                shutil.rmtree(final, ignore_errors=True)
                with storage.translating(final, "write"):
                    part.rename(final)
                    storage.sync_folder(self.folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        self._copy_to_mirror(final)
        return final

    def keep(self, newest: int, best: int | None) -> None:
        """Delete all but the `newest` and the `best`, in both places, as transformers does."""
        for place in filter(None, (str(self.folder), self.mirror)):
            for step in sorted(_steps(place))[:-newest]:
                if step != best:
                    folder = storage.join(place, f"checkpoint-{step}")
                    storage.remove(storage.join(folder, MANIFEST))  # first, as it was written last
                    for file in storage.list_files(folder):
                        storage.remove(file)
                    if not storage.is_remote(folder):
                        shutil.rmtree(storage.local(folder), ignore_errors=True)

    def last(self) -> Path | None:
        """The newest complete checkpoint, fetched when only the mirror has it; afterwards both places have it.

        Raises TrainError when it is of another training, StorageError when the mirror does not answer.
        """
        here = _steps(str(self.folder))
        there = _steps(self.mirror) if self.mirror else set()
        for step in sorted(here | there, reverse=True):
            if self._manifest(str(self.folder / f"checkpoint-{step}")) is not None:
                found = self.folder / f"checkpoint-{step}"
                self._check_origin(str(found))
                self._copy_to_mirror(found)
                return found
            if step in there and self.mirror:
                source = storage.join(self.mirror, f"checkpoint-{step}")
                if self._manifest(source) is not None:
                    return self.fetch(source)
        return None

    def fetch(self, source: str) -> Path:
        """Copy a complete checkpoint from elsewhere, or the newest of a folder of them, into the output folder.

        Raises TrainError when `source` is none, or one of another training.
        """
        if self._manifest(source) is None:
            steps = [n for n in sorted(_steps(source)) if self._manifest(storage.join(source, f"checkpoint-{n}"))]
            if not steps:
                raise TrainError(
                    f'resume_from_checkpoint: "{storage.shown(source)}" is no complete checkpoint and holds none',
                    hint=f"name a folder checkpoint-N with a {MANIFEST}, or a folder of them",
                )
            source = storage.join(source, f"checkpoint-{steps[-1]}")
        step = self._check_origin(source)
        final = self.folder / f"checkpoint-{step}"
        if self._manifest(str(final)) is None:
            shutil.rmtree(final, ignore_errors=True)
            storage.patiently(lambda: storage.copy_tree(source, final))
        self._copy_to_mirror(final)
        return final

    def _copy_to_mirror(self, folder: Path) -> None:
        if not self.mirror:
            return
        there = storage.join(self.mirror, folder.name)
        try:
            if self._manifest(there) is not None:
                return
            for name, data in [*files_of(folder).items(), (MANIFEST, (folder / MANIFEST).read_bytes())]:
                storage.patiently(lambda name=name, data=data: storage.write_atomic(storage.join(there, name), data))
        except StorageError as exc:
            raise type(exc)(
                exc.message,
                hint=f"all up to {folder} is kept; once the storage is back, `tunery train --resume` goes on from there"
                + (f" ({exc.hint})" if exc.hint else ""),
            ) from exc

    def _manifest(self, folder: str) -> dict[str, Any] | None:
        """The manifest of a complete checkpoint; None where it is missing, torn, or does not fit the files."""
        path = storage.join(folder, MANIFEST)
        try:
            if not storage.patiently(lambda: storage.exists(path)):
                return None
            found = storage.read_json(path)
        except StorageError as exc:
            if exc.where:  # it is there and is no JSON
                return None
            raise
        if not storage.is_remote(folder):
            root = storage.local(folder)
            for name, size in found["files"].items():
                with suppress(OSError):
                    if (root / name).stat().st_size == size:
                        continue
                return None
        return found

    def _check_origin(self, folder: str) -> int:
        found = self._manifest(folder) or {}
        theirs = found.get("origin", {})
        changed = [k for k in sorted({*theirs, *self.origin}) if theirs.get(k) != self.origin.get(k)]
        if changed:
            named = "; ".join(f"{k} {theirs.get(k)} there, {self.origin.get(k)} here" for k in changed[:4])
            raise TrainError(
                f"{storage.shown(folder)} is a checkpoint of another training: {named}",
                hint="resume with the model, rows and settings it was made with, or start anew in another output_dir",
            )
        return int(found["step"])


def _steps(place: str) -> set[int]:
    """Steps of which `place` has a manifest."""
    found = storage.patiently(lambda: storage.list_files(storage.join(place, f"checkpoint-*/{MANIFEST}")))
    hits = (re.search(r"checkpoint-(\d+)/[^/]+$", os.fspath(p)) for p in found)
    return {int(hit[1]) for hit in hits if hit}
