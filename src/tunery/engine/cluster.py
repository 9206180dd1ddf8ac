"""Ray: start it here or join a cluster, ask what it has, and keep its chatter off the terminal."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil

from tunery.errors import ResourceError

PROBE_SECONDS = 5.0


@contextmanager
def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    dashboard: bool = False,
    log_dir: Path | None = None,
) -> Iterator[None]:
    """Ray for the length of the block: the one in use already, the cluster at `address`, or one started here.

    Only what was started is shut down, also on Ctrl-C. `address` is "auto", "host:port" or "ray://host:port".
    `log_dir` gets a link `ray` to the folder of Ray's own logs, where that is on this machine.
    Raises ResourceError when nothing answers there, within seconds, or when it is another version of Ray.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    _quiet_environment()
    try:
        if address is None:
            _start(num_cpus, dashboard)
        else:
            _join(address)
        _quiet_data()
        if log_dir:
            _link_logs(log_dir)
        yield
    finally:
        family = _own_processes() if address is None else []
        ray.shutdown()
        _end(family)


def dashboard_url() -> str | None:
    """Where the dashboard of the Ray in use answers; None when it has none."""
    import ray._private.worker as worker

    node = worker._global_node
    url = node.webui_url if node else None
    return f"http://{url}" if url else None


def _own_processes() -> list[psutil.Process]:
    """The processes of a Ray that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.name().startswith("ray::") or any("/ray/" in word for word in process.cmdline()):
                found.append(process)
    return found


def _end(family: list[psutil.Process]) -> None:
    """Ray's agents outlive an interrupted start by minutes; what is left after a moment is ended here."""
    for process in psutil.wait_procs(family, timeout=3)[1]:
        with suppress(psutil.Error):
            process.kill()


def _start(num_cpus: int | None, dashboard: bool) -> None:
    import ray

    # One process less: nobody takes this machine back, as clouds do.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    memory = psutil.virtual_memory()
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=max(100 << 20, min(1 << 30, memory.total // 5)),
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=True,
        )
    except (RuntimeError, ConnectionError, TimeoutError, ValueError) as error:
        hint = "see /tmp/ray/session_latest/logs"
        raise ResourceError(f"Ray did not start here: {_line(error)}", hint=hint) from error


def _join(address: str) -> None:
    import ray

    hint = "check --address, or leave it out to run on this machine"
    host, port = _endpoint(address)
    if host:
        _probe(address, host, port, hint)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, configure_logging=True)
    except Exception as error:  # Ray raises its own errors, gRPC's and bare RuntimeErrors for the same cause
        with suppress(Exception):
            ray.shutdown()
        if "ersion mismatch" in str(error):
            raise ResourceError(
                f"the cluster at {address} runs other versions: {_line(error)}",
                hint=f"use Ray {ray.__version__} and Python {sys.version.split()[0]} there and here",
            ) from error
        raise ResourceError(f"no Ray cluster answers at {address}: {_line(error)}", hint=hint) from error


def _probe(address: str, host: str, port: int, hint: str) -> None:
    """Ray itself waits minutes for a port that is open and not Ray's."""
    import grpc

    fault = ""
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
        if os.environ.get("RAY_USE_TLS", "0") != "1":
            with grpc.insecure_channel(f"{host}:{port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=PROBE_SECONDS)
    except OSError as error:
        fault = (error.strerror or str(error)).lower()
    except grpc.FutureTimeoutError:
        fault = "something else is listening there"
    if fault:
        raise ResourceError(f"no Ray cluster answers at {address}: {fault}", hint=hint)


def _link_logs(log_dir: Path) -> None:
    import ray._private.worker as worker

    node = worker._global_node
    logs = Path(node.get_logs_dir_path()) if node else None
    if logs and logs.is_dir():
        log_dir.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            (log_dir / "ray").unlink(missing_ok=True)
            (log_dir / "ray").symlink_to(logs)


def _endpoint(address: str) -> tuple[str, int]:
    """Host and port to probe; ("", 0) for an address that Ray resolves itself."""
    if address in ("auto", "local"):
        return "", 0
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        hint = 'use "host:port", "ray://host:port" or "auto"'
        raise ResourceError(f'"{address}" is no address of a Ray cluster', hint=hint)
    return host.strip("[]"), int(port)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _quiet_environment() -> None:
    """Read by Ray's processes at their start, so set before them; what the user has set stays."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)


def _quiet_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def room(resources: Mapping[str, float], strategy: str = "PACK") -> int:
    """How many times `resources` fit on the cluster's machines, each time on one of them, in use or not.

    `strategy` is Ray's placement strategy: STRICT_PACK wants all on one machine, STRICT_SPREAD one a machine.
    """
    import ray

    machines = []
    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            fits = [have.get(name, 0) / amount for name, amount in resources.items() if amount > 0]
            machines.append(int(min(fits) + 1e-6) if fits else sys.maxsize)
    if strategy == "STRICT_PACK":
        return max(machines, default=0)
    return sum(min(n, 1) for n in machines) if strategy == "STRICT_SPREAD" else sum(machines)


def require(resources: Mapping[str, float], count: int = 1, strategy: str = "PACK") -> None:
    """Check that the cluster has room for `count` times `resources`, e.g. require({"GPU": 1}, 2).

    Raises ResourceError naming what is short; without it Ray would wait for ever.
    """
    import ray

    fits = room(resources, strategy)
    if fits >= count:
        return
    hint = "ask for fewer workers, or connect to a larger cluster with --address"
    have = ray.cluster_resources()
    for name, amount in resources.items():
        if have.get(name, 0) < amount * count:
            raise ResourceError(
                f"{amount * count:g} {name} are needed and the cluster has {have.get(name, 0):g}", hint=hint
            )
    each = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
    raise ResourceError(
        f"{count} workers need {each} each on one machine ({strategy}), and the machines have room for {fits}",
        hint=hint,
    )


def free_port(host: str, port: int) -> int:
    """`port` if it can be bound on `host`; 0 picks any. Raises ResourceError when it cannot."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ResourceError(f"port {port} on {host} is not free: {reason}", hint="choose another port") from error
        return probe.getsockname()[1]


# -- keeping vendors' output off the terminal --------------------------------------------------------------


def redirect(log_path: Path) -> None:
    """Send this process's stdout and stderr to `log_path` (appending) for good."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


@contextmanager
def quiet(log_path: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Send what anything in this process writes to stdout and stderr to `log_path`, down to C libraries.

    A console that shall still reach the terminal writes to a copy of its descriptor, made before; and the block gets
    a function that makes a block inside it where all writes go where they went before. Nested use writes to the inner
    file; the descriptors are restored whatever happens.
    """

    @contextmanager
    def aloud() -> Iterator[None]:
        with _restored():
            os.dup2(before[0], 1)
            os.dup2(before[1], 2)
            yield

    with _restored() as before:
        redirect(log_path)
        yield aloud


@contextmanager
def _restored() -> Iterator[tuple[int, int]]:
    """stdout and stderr are after the block what they were before; the block gets copies of these."""
    _flush()
    saved = os.dup(1), os.dup(2)
    try:
        yield saved
    finally:
        _flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        os.close(saved[0])
        os.close(saved[1])


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
