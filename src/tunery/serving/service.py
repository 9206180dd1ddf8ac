"""Starting and stopping a service: checks before anything heavy, then Ray Serve, then a real answer."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.config import Autoscaling, ServeSpec
from tunery.engine.cluster import free_port, require
from tunery.errors import ConfigError, EngineError, ResourceError
from tunery.serving.applications import deployed
from tunery.serving.catalog import Engine
from tunery.serving.listening import LOCAL

if TYPE_CHECKING:
    from ray.serve import Application

GATEWAY = "gateway"  # the application's name; those of engines are the engines'
LOOPBACK = "127.0.0.1"
START_TIMEOUT = 1200.0  # seconds; a large base takes minutes to load
ANSWER_TIMEOUT = 60.0  # seconds, for one token
STOP_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class Service:
    """A running service: `url` is an OpenAI client's base_url, `models` are the names that answer, `logs` a folder."""

    url: str
    models: tuple[str, ...]
    logs: Path
    faults: Mapping[str, str] = field(default_factory=dict)  # versions that do not answer, and why


@dataclass(frozen=True)
class EnginePlan:
    """One engine to start: `config` is what `engine.vllm.llm_config` returned for it."""

    engine: Engine
    config: Mapping[str, Any]
    replicas: int = 1
    autoscaling: Autoscaling | None = None

    @property
    def at_once(self) -> int:
        """Requests that a replica gets at once: those it runs, and as many again that it has at hand."""
        return 2 * self.config["engine_kwargs"].get("max_num_seqs", 256)

    @property
    def least(self) -> int:
        """Replicas that must have room at the start."""
        return self.autoscaling.min_replicas if self.autoscaling else self.replicas


@dataclass(frozen=True)
class Plan:
    """A service to start. `home` holds keys.json, aliases.json and, unless the spec says otherwise, the registry.

    `alone` says that all of it runs on this machine; replicas then listen to this machine only.
    """

    spec: ServeSpec
    engines: Sequence[EnginePlan]
    home: Path
    log_dir: Path
    preload: Sequence[str] = ()
    required: Sequence[str] = ()  # those of `preload` without which there is no service
    alone: bool = True
    name: str = "tunery"

    def applications(self) -> dict[str, dict[str, Any]]:
        """The arguments of `engine_app`, by each engine's name, and of `gateway_app`; plain JSON."""
        common = {"service": self.name, "log_dir": str(self.log_dir)}
        host = LOOPBACK if self.alone else None
        found: dict[str, dict[str, Any]] = {
            plan.engine.name: {
                **common, "engine": plan.engine.name, "config": dict(plan.config), "replicas": plan.replicas,
                "autoscaling": plan.autoscaling and plan.autoscaling.model_dump(), "at_once": plan.at_once,
                "host": host, "drain": self.spec.drain_timeout_s,
            }
            for plan in self.engines
        }  # fmt: skip
        queue = self.spec.max_queued_requests
        found[GATEWAY] = {
            **common, "home": str(self.home), "spec": self.spec.model_dump(mode="json"),
            "engines": [asdict(plan.engine) for plan in self.engines],
            "limits": {p.engine.name: [p.at_once, 4 * p.at_once if queue is None else queue] for p in self.engines},
        }  # fmt: skip
        return found


# -- Serve applications -------------------------------------------------------------------------------------------


def engine_app(args: Mapping[str, Any]) -> Application:
    """The Serve application of one engine; `args` as `Plan.applications` has them. What `serve deploy` calls."""
    from ray import serve

    from tunery.serving.replica import Replica, scaled

    config = args["config"]
    scale: dict[str, Any] = {"num_replicas": args["replicas"]}
    if args["autoscaling"]:
        chosen = {k: v for k, v in args["autoscaling"].items() if v is not None}
        policy = {"policy_function": scaled}
        scale = {"autoscaling_config": {"target_ongoing_requests": args["at_once"] / 4, **chosen, "policy": policy}}
    deployment = serve.deployment(
        Replica,
        name=args["engine"],
        **scale,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=args["drain"] + 2,
        max_constructor_retry_count=1,
        placement_group_bundles=config["placement_group_config"]["bundles"],
        placement_group_strategy="PACK",
        ray_actor_options={"num_cpus": 1, "runtime_env": config["runtime_env"]},
    )
    log = str(Path(args["log_dir"]) / f"{args['engine']}.log")
    options = {"host": args["host"], "log": log, "drain": args["drain"]}
    return deployment.bind(args["service"], args["engine"], config, options)


def gateway_app(args: Mapping[str, Any]) -> Application:
    """The Serve application of the gateway, on the cluster's head node; `args` as `Plan.applications` has them."""
    from ray import serve

    from tunery.serving.host import Host

    spec = ServeSpec.model_validate(args["spec"])
    deployment = serve.deployment(
        Host,
        name=GATEWAY,
        num_replicas=1,
        max_surge_percent=100,  # in an update the next one listens before this one ends
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=spec.drain_timeout_s + 2,
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    )
    engines = [Engine(**e) for e in args["engines"]]
    limits = {name: tuple(pair) for name, pair in args["limits"].items()}
    return deployment.bind(args["service"], Path(args["home"]), spec, engines, limits, Path(args["log_dir"]))


def deploy_config(plan: Plan) -> dict[str, Any]:
    """The same service as a file for Ray's `serve deploy`."""
    builders = dict.fromkeys(plan.applications(), "engine_app") | {GATEWAY: "gateway_app"}
    return {
        **_proxied(plan.spec),
        "applications": [
            *(
                {"name": name, "import_path": f"{__name__}:{builders[name]}", "route_prefix": None, "args": args}
                for name, args in plan.applications().items()
            ),
            *deployed(plan.spec.applications, str(plan.home)),
        ],
    }


def _proxied(spec: ServeSpec) -> dict[str, Any]:
    """Where Serve's own proxy is: nowhere, or here for the gateway alone."""
    if not spec.applications:
        return {"proxy_location": "Disabled"}
    return {"proxy_location": "HeadOnly", "http_options": {"host": LOOPBACK, "port": spec.proxy}}


# -- checks -------------------------------------------------------------------------------------------------------


def check(spec: ServeSpec, *, has_keys: bool) -> None:
    """Raises ConfigError for an address that is open to others without keys, ResourceError for a port in use."""
    if spec.host not in LOCAL and not has_keys:
        raise ConfigError(
            f'serve.host is "{spec.host}", but there are no API keys: anyone who reaches it could ask',
            hint="make one with `tunery keys create NAME`, or leave serve.host out",
        )
    ports = {"port": (spec.host, spec.port)}
    if spec.applications:
        ports["proxy_port"] = (LOOPBACK, spec.proxy)
    for key, (host, port) in ports.items():
        try:
            free_port(host, port)
        except ResourceError as error:
            other = next((p for p in range(max(port, 1023) + 1, 65536) if _is_free(p)), "PORT")
            hint = f"stop what uses it, or take another: --set serve.{key}={other}"
            raise ResourceError(error.message, hint=hint) from None


def _is_free(port: int) -> bool:
    try:
        return free_port(LOOPBACK, port) == port
    except ResourceError:
        return False


def _check_cluster(plan: Plan) -> None:
    """Whether the cluster is big enough, ours to serve from, and reached at its head node."""
    import ray
    import ray.serve  # which sets up its logger

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it reports every step on stderr
    if _client():
        raise ResourceError(
            "Ray Serve already runs on this cluster, with applications of its own",
            hint="stop it (`tunery serve stop`, or `serve shutdown`), or serve from a Ray of your own: "
            "--set ray.address=null",
        )
    head = next((n for n in ray.nodes() if "node:__internal_head__" in n["Resources"]), None)
    if head and head["NodeID"] != ray.get_runtime_context().get_node_id():
        raise ResourceError("the service listens on the cluster's head node only", hint="run this command there")
    bundles = [b for p in plan.engines for b in p.config["placement_group_config"]["bundles"] * p.least]
    require(bundles[0], len(bundles))


# -- start --------------------------------------------------------------------------------------------------------


@contextmanager
def serve(plan: Plan) -> Iterator[Service]:
    """Serve until the block ends; Ray must be connected.

    When the block begins every base and every preloaded version has answered. Raises ResourceError before
    anything is started, and EngineError or ModelError with the cause when the start fails.
    """
    _check_cluster(plan)
    try:
        yield start(plan)
    finally:
        stop(plan.spec.port)


def start(plan: Plan) -> Service:
    """Start what `plan` says, or bring what runs under its name in line with it; returns when it answers."""
    from ray import serve as ray_serve
    from ray.exceptions import RayError
    from ray.serve.schema import LoggingConfig, ServeDeploySchema

    plan.log_dir.mkdir(parents=True, exist_ok=True)
    logs = LoggingConfig(logs_dir=str(plan.log_dir.resolve()), log_level="WARNING", enable_access_log=False)
    deadline = time.monotonic() + START_TIMEOUT
    args = plan.applications()
    try:
        ray_serve.start(**_proxied(plan.spec), logging_config=logs)
        apps = {name: (gateway_app if name == GATEWAY else engine_app)(args[name]) for name in args}
        targets = [
            ray_serve.RunTarget(app, name=name, route_prefix=None, logging_config=logs) for name, app in apps.items()
        ]
        ray_serve.run_many(targets, wait_for_applications_running=False)
        if others := deployed(plan.spec.applications, str(plan.home)):
            _client().deploy_apps(ServeDeploySchema.model_validate({"applications": others}))
        everything = [*args, *(a.name for a in plan.spec.applications)]
        _await_running(everything, deadline, plan.log_dir)
        gateway = ray_serve.get_app_handle(GATEWAY)
        while not gateway.ready.remote().result(timeout_s=ANSWER_TIMEOUT):
            _await_running(everything, deadline, plan.log_dir)
            time.sleep(0.1)
        names = [p.engine.model for p in plan.engines] + list(plan.preload)
        faults = gateway.warm.remote(names).result(timeout_s=ANSWER_TIMEOUT * (1 + len(names)))
        models = gateway.models.remote().result(timeout_s=ANSWER_TIMEOUT)
    except (RayError, RuntimeError, TimeoutError) as error:
        raise EngineError(f"Ray Serve did not start: {cause(str(error))}", hint=f"its logs: {plan.log_dir}") from error
    if lacking := [name for name in faults if name in (*plan.required, *(p.engine.model for p in plan.engines))]:
        raise EngineError("; ".join(f'"{name}" does not answer: {faults[name]}' for name in lacking))
    return Service(f"http://{plan.spec.host}:{plan.spec.port}/v1", tuple(models), plan.log_dir, faults)


def _client() -> Any:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def _await_running(names: Sequence[str], deadline: float, log_dir: Path) -> None:
    """Return when every application is up. Raises EngineError with the cause of the first one that failed."""
    from ray import serve as ray_serve

    while True:
        found = ray_serve.status().applications
        for name in names:
            app = found.get(name)
            if app and app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                account = "\n".join([app.message, *(d.message for d in app.deployments.values())])
                path = log_dir / "failure.log"
                path.write_text(_plain(account), encoding="utf-8")
                what = "the engine" if name.startswith("engine") else f"the application {name}"
                what = "the gateway" if name == GATEWAY else what
                raise EngineError(f"{what} did not start: {cause(account)}", hint=f"the whole story: {path}")
        if all(name in found and found[name].status == "RUNNING" for name in names):
            return
        if time.monotonic() > deadline:
            raise EngineError(
                f"the service was not ready after {START_TIMEOUT:.0f} s", hint=f"its logs are in {log_dir}"
            )
        time.sleep(0.1)


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


def stop(port: int, name: str = "tunery") -> None:
    """Answer what was asked, then end the replicas and the controller; returns when they and the port are free."""
    import ray
    from ray import serve as ray_serve
    from ray.exceptions import RayError

    from tunery.serving.directory import NAMESPACE

    def controller() -> Any:
        try:
            return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        except ValueError:
            return None

    with suppress(Exception):  # a gateway that did not start has nothing to answer
        ray_serve.get_app_handle(GATEWAY).drain.remote().result(timeout_s=STOP_TIMEOUT + 5)
    with suppress(RayError):  # what is dead already needs no stopping
        if found := controller():
            # `serve.shutdown` waits in a call to the controller, which kills itself: Ray then reports a failed task.
            ray.get(found.graceful_shutdown.remote(wait=False))
            deadline = time.monotonic() + STOP_TIMEOUT
            while (controller() or not _is_free(port)) and time.monotonic() < deadline:
                time.sleep(0.05)
        ray_serve.shutdown()
    with suppress(ValueError, RayError):
        ray.kill(ray.get_actor(f"{name}-directory", namespace=NAMESPACE))
