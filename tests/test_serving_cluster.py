"""A service on a Ray cluster of two machines, put there by Ray's own `serve deploy`, which then lose one of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from making import make_version
from serving.asking import processes, project, wait_for

from tunery.bases import find_base
from tunery.engine.cluster import free_port
from tunery.ops.services import describe

pytestmark = pytest.mark.long
BIN = Path(sys.executable).parent
LOCAL = "127.0.0.1"
ENV = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"}


class Machine:
    """A Ray node in processes of its own, as `ray start` makes them."""

    def __init__(self, folder: Path, *options: str, cpus: int, **env: str) -> None:
        ports = {"min-worker-port": 0, "max-worker-port": 0, "dashboard-agent-listen-port": free_port(LOCAL, 0)}
        settings = {"node-ip-address": LOCAL, "num-cpus": cpus, "object-store-memory": 80 << 20, **ports}
        self._command = [str(BIN / "ray"), "start", "--block", *(f"--{k}={v}" for k, v in settings.items()), *options]
        self._env = {**ENV, **env}
        self._log = (folder / f"machine-{time.monotonic_ns()}.log").open("w")
        self.start()

    def start(self) -> None:
        self.process = psutil.Popen(self._command, env=self._env, stdout=self._log, stderr=self._log)

    def pids(self) -> set[int]:
        return {p.pid for p in self.process.children(recursive=True)}

    def kill(self) -> None:
        """As a power cut does it."""
        family = [self.process, *self.process.children(recursive=True)]
        for process in family:
            process.suspend()
        for process in family:
            process.kill()
        psutil.wait_procs(family)


@contextmanager
def asked(url: str) -> Iterator[list[int | str]]:
    """Clients that ask all the while; what became of each request."""
    seen: list[int | str] = []
    over = threading.Event()

    def client() -> None:
        body = {"model": "shop", "prompt": "a red bike", "max_tokens": 8}
        while not over.is_set():
            try:
                seen.append(httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=60).status_code)
            except httpx.HTTPError as error:
                seen.append(type(error).__name__)
            time.sleep(0.2)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in clients:
            thread.join()


def test_a_machine_and_then_the_head_are_lost(tiny_base, tmp_path):
    """One of two gone: no request fails. The head gone: the engine elsewhere is still there when it returns."""
    make_version(tmp_path, tiny_base, "shop@1")
    port, dashboard = free_port(LOCAL, 0), free_port(LOCAL, 0)
    spec = project(tmp_path, find_base(str(tiny_base)), replicas=2)
    describe(spec, tmp_path / "serve.yaml")
    config = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    config["applications"][0]["args"]["host"] = LOCAL  # both machines are this one
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    url = f"http://{LOCAL}:{spec.serve.port}"

    def replicas() -> int:
        try:
            answer = httpx.get(f"{url}/readyz", trust_env=False)
        except httpx.HTTPError:
            return 0
        return answer.json()["replicas"]["engine"] if answer.status_code == 200 else 0

    rocks = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path / "gcs")}
    to = ["--head", f"--port={port}", f"--dashboard-host={LOCAL}", f"--dashboard-port={dashboard}"]
    temp = Path(tempfile.mkdtemp())  # short, for sockets lie in it
    head = Machine(tmp_path, *to, f"--temp-dir={temp}", "--disable-usage-stats", cpus=1, **rocks)
    machines = [head]
    try:
        wait_for(lambda: alive(f"http://{LOCAL}:{dashboard}/api/version"), 60)
        machines.append(worker := Machine(tmp_path, f"--address={LOCAL}:{port}", cpus=1))
        deploy = [str(BIN / "serve"), "deploy", str(tmp_path / "serve.yaml"), "-a", f"http://{LOCAL}:{dashboard}"]
        done = subprocess.run(deploy, capture_output=True, text=True, env=ENV)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: replicas() == 2, 240)

        with asked(url) as seen:
            wait_for(lambda: len(seen) > 20)
            assert worker.pids() & processes("ray::ServeReplica:engine")
            worker.kill()
            wait_for(lambda: replicas() == 1, 120)
            machines.append(worker := Machine(tmp_path, f"--address={LOCAL}:{port}", cpus=1))
            wait_for(lambda: replicas() == 2, 240)
        assert set(seen) == {200}

        (engine,) = worker.pids() & processes("ray::ServeReplica:engine")
        head.kill()
        (temp / "ray_current_cluster").unlink()  # else Ray takes the other machine, which is here too, for this one
        head.start()
        wait_for(lambda: replicas() == 2, 240)
        with asked(url) as seen:
            wait_for(lambda: len(seen) > 40)
        assert set(seen) == {200}
        assert worker.pids() & processes("ray::ServeReplica:engine") == {engine}
    finally:
        for machine in machines:
            if machine.process.is_running():
                machine.kill()
        shutil.rmtree(temp, ignore_errors=True)


def alive(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
