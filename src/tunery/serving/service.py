"""Starting and stopping the service: checks before anything heavy, then Ray Serve, then a real answer."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.config import nearest
from tunery.engine.cluster import free_port, require
from tunery.errors import ConfigError, EngineError, ModelError, ResourceError

if TYPE_CHECKING:
    import httpx

    from tunery.bases import Base
    from tunery.config import ServeSpec
    from tunery.engine.vllm import Adapter

APP = "tunery"
HOST = "127.0.0.1"
ENGINE_LOG = "engine.log"
START_TIMEOUT = 1200.0  # seconds; a large base takes minutes to load
ANSWER_TIMEOUT = 60.0  # seconds, for one token
STOP_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class Service:
    """A running service: `url` is an OpenAI client's base_url, `models` are all names that answer."""

    url: str
    models: tuple[str, ...]


@contextmanager
def serve(
    spec: ServeSpec, *, base: Base, adapters: Mapping[str, Adapter], aliases: Mapping[str, str], log_dir: Path
) -> Iterator[Service]:
    """Serve `base` and `adapters` (by their keys) until the block ends; Ray must be connected.

    `aliases` are further names of adapters, or of the base. When the block begins every model has answered. Raises
    ConfigError, ModelError or ResourceError before anything is started, and EngineError with the cause when the start
    fails.
    """
    from ray.exceptions import RayError

    from tunery.engine.vllm import llm_config

    name = base.path.resolve().name if Path(base.name).expanduser() == base.path else base.name
    named = [replace(adapter, name=key, path=adapter.path.resolve()) for key, adapter in adapters.items()]
    _check_names(name, adapters, aliases)
    _check_address(spec.host, spec.port)
    for adapter in named:
        _check_adapter(adapter)
    engine = spec.engine.model_copy(update={"concurrency": spec.replicas})
    config = llm_config(name, base.path.resolve(), named, engine)
    config["log_engine_metrics"] = False  # to Ray's agents; vLLM then keeps its own, which /metrics shows
    _check_cluster(config, spec.replicas)

    service = Service(f"http://{HOST}:{spec.port}/v1", (name, *adapters, *aliases))
    log_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + START_TIMEOUT
    try:
        try:
            _deploy(spec, config, named, aliases, log_dir)
            _await_running(deadline, log_dir)
        except (RayError, RuntimeError, TimeoutError) as error:
            raise EngineError(f"Ray Serve did not start: {cause(str(error))}", hint=f"its logs: {log_dir}") from error
        _await_answers(service, [name, *adapters])
        yield service
    finally:
        _stop(spec.port)


# -- checks -------------------------------------------------------------------------------------------------------


def _check_names(base: str, adapters: Mapping[str, Any], aliases: Mapping[str, str]) -> None:
    names = [base, *adapters, *aliases]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'two served models are named "{name}"', hint="rename one of them")
    for alias, target in aliases.items():
        if target not in (base, *adapters):
            near = nearest(target, adapters)
            raise ConfigError(
                f'the alias "{alias}" stands for "{target}", which is not served',
                hint=f'did you mean "{near}"?' if near else None,
            )


def _check_address(host: str, port: int) -> None:
    if host not in (HOST, "localhost"):
        raise ConfigError(
            f'serve.host is "{host}", but this server has no authentication and binds to this machine only',
            hint="leave serve.host out; to reach it from elsewhere use a tunnel, for example "
            f"ssh -L {port}:{HOST}:{port} SERVER",
        )
    try:
        free_port(HOST, port)
    except ResourceError as error:
        other = next((p for p in range(max(port, 1023) + 1, 65536) if _is_free(p)), "PORT")
        hint = f"stop what uses it, or take another: --set serve.port={other}"
        raise ResourceError(error.message, hint=hint) from None


def _is_free(port: int) -> bool:
    try:
        return free_port(HOST, port) == port
    except ResourceError:
        return False


def _check_adapter(adapter: Adapter) -> None:
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter.path / file).is_file():
            raise ModelError(f'the adapter of "{adapter.name}" has no {file}', where=str(adapter.path))


def _check_cluster(config: Mapping[str, Any], replicas: int) -> None:
    """Whether the cluster is big enough, ours to serve from, and reached at this machine's own address."""
    import ray
    import ray.serve  # which sets up its logger

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it reports every step on stderr
    if _connected():
        raise ResourceError(
            "Ray Serve already runs on this cluster, with a port and applications of its own",
            hint="stop it (`serve shutdown`), or serve from a Ray of your own: --set ray.address=null",
        )
    head = next((n for n in ray.nodes() if "node:__internal_head__" in n["Resources"]), None)
    if head and head["NodeID"] != ray.get_runtime_context().get_node_id():
        raise ResourceError("the service listens on the cluster's head node only", hint="run this command there")
    bundles = config["placement_group_config"]["bundles"]
    require(bundles[0], len(bundles) * replicas)


# -- start --------------------------------------------------------------------------------------------------------


def _deploy(
    spec: ServeSpec, config: dict[str, Any], adapters: list[Adapter], aliases: Mapping[str, str], log_dir: Path
) -> None:
    from ray import serve as ray_serve
    from ray.serve.schema import LoggingConfig

    from tunery.serving.app import Replica

    at_once = config["engine_kwargs"].get("max_num_seqs", 256)
    deployment = ray_serve.deployment(
        ray_serve.ingress()(Replica),
        name="engine",
        num_replicas=spec.replicas,
        # Serve's defaults queue without end in one replica; here a full service says so (503).
        max_ongoing_requests=2 * at_once,
        max_queued_requests=8 * at_once,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
        max_constructor_retry_count=1,
        placement_group_bundles=config["placement_group_config"]["bundles"],
        placement_group_strategy="PACK",
        ray_actor_options={"num_cpus": 1, "runtime_env": config["runtime_env"]},
        user_config={
            "adapters": {adapter.name: str(adapter.path) for adapter in adapters},
            "aliases": dict(aliases),
        },
    )
    logs = LoggingConfig(logs_dir=str(log_dir.resolve()), log_level="WARNING", enable_access_log=False)
    app = deployment.bind(config, log_dir.resolve() / ENGINE_LOG)
    target = ray_serve.RunTarget(app, name=APP, route_prefix="/", logging_config=logs)
    with ThreadPoolExecutor(1) as pool:
        # `start` returns when the proxy is up; a replica, which takes far longer, needs the controller alone.
        starting = pool.submit(
            ray_serve.start,
            proxy_location="HeadOnly",
            http_options={"host": HOST, "port": spec.port},
            logging_config=logs,
        )
        while not starting.done() and not _connected():
            time.sleep(0.05)
        if not starting.done() or not starting.exception():
            ray_serve.run_many([target], wait_for_applications_running=False)
        starting.result()


def _connected() -> bool:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False) is not None


def _await_running(deadline: float, log_dir: Path) -> None:
    """Return when every replica is up. Raises EngineError with the cause of the first one that failed."""
    from ray import serve as ray_serve

    while True:
        app = ray_serve.status().applications.get(APP)
        if app and app.status == "RUNNING":
            return
        if app and app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            account = "\n".join([app.message, *(d.message for d in app.deployments.values())])
            path = log_dir / "failure.log"
            path.write_text(_plain(account), encoding="utf-8")
            raise EngineError(f"the engine did not start: {cause(account)}", hint=f"the whole story: {path}")
        if time.monotonic() > deadline:
            raise EngineError(
                f"the engine was not ready after {START_TIMEOUT:.0f} s", hint=f"its logs are in {log_dir}"
            )
        time.sleep(0.2)


def _await_answers(service: Service, models: list[str]) -> None:
    """Ask every model for one token: proof that it answers, and what the first request would else wait for."""
    import httpx

    with httpx.Client(base_url=service.url, timeout=ANSWER_TIMEOUT, trust_env=False) as client:
        for model in models:
            deadline = time.monotonic() + ANSWER_TIMEOUT
            while fault := _fault(client, model):
                if time.monotonic() > deadline:
                    raise EngineError(f'"{model}" does not answer at {service.url}: {fault}')
                time.sleep(0.1)  # the proxy hears of a new application a moment after it is up


def _fault(client: httpx.Client, model: str) -> str | None:
    import httpx

    try:
        answer = client.post("/completions", json={"model": model, "prompt": ".", "max_tokens": 1})
    except httpx.TransportError as error:
        return str(error) or type(error).__name__
    return None if answer.status_code == 200 else f"HTTP {answer.status_code} {answer.text}"


def _plain(text: str) -> str:
    """`text` without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def cause(account: str) -> str:
    """The error at the end of a Ray traceback, as one line."""
    lines = _plain(account).rstrip().splitlines()
    last = next((i for i in range(len(lines) - 1, -1, -1) if re.match(r"([A-Za-z_]\w*\.)*[A-Z]\w*: ", lines[i])), None)
    if last is None and "ActorDiedError" in account:
        return "its process ended without a word, as one does that runs out of memory"
    if last is None:
        return next((line.strip() for line in reversed(lines) if line.strip()), "no reason was given")
    text = re.sub(r"^([a-z_]\w*\.)+", "", lines[last])
    if re.search(r"validation errors? for \w+$", text) and last + 1 < len(lines):
        # pydantic's: the reason is on the next line, between its kind and its input.
        text = re.sub(r" \[type=.*$", "", lines[last + 1].strip()).removeprefix("Value error, ")
    return text


# -- stop ---------------------------------------------------------------------------------------------------------


def _stop(port: int) -> None:
    """End the replicas, the proxy and the controller; returns when they are gone and the port is free."""
    import ray
    from ray import serve as ray_serve
    from ray.exceptions import RayError

    def controller() -> Any:
        try:
            return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        except ValueError:
            return None

    with suppress(RayError):  # what is dead already needs no stopping
        if found := controller():
            # `serve.shutdown` waits in a call to the controller, which kills itself: Ray then reports a failed task.
            ray.get(found.graceful_shutdown.remote(wait=False))
            deadline = time.monotonic() + STOP_TIMEOUT
            while (controller() or not _is_free(port)) and time.monotonic() < deadline:
                time.sleep(0.05)
        ray_serve.shutdown()
