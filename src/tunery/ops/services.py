"""Serving as a verb: what the project and the registry say becomes a plan, and the plan a recorded run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import storage, versions
from tunery.bases import Base, find_base
from tunery.config import Project, ServedBase, base_in_project, in_project
from tunery.errors import ConfigError, ModelError, RunError
from tunery.ops import runs
from tunery.ops.access import list_keys
from tunery.ops.verbs import AnyProject, Observer, as_project, in_ray, silent, untuned
from tunery.types import ModelVersion

PRELOADED = 8  # adapters at most, unless they are named

if TYPE_CHECKING:
    from tunery.serving import EnginePlan, Plan, Service


@contextmanager
def serve(project: AnyProject = None, *, observer: Observer = silent) -> Iterator[Service]:
    """Serve bases and their versions until the block ends.

    Every version answers to "name@digest" and "name@3", the latest of each name to the bare name, and further names
    come from `tunery models alias`. Versions, aliases and keys that are made while it runs are taken up.
    """
    from tunery.serving import serve as run_service

    project = as_project(project)
    with runs.start(Path(project.home), "serve", project) as run:
        plan = plan_service(project, log_dir=run.logs, observer=observer)
        observer({"event": "run", "id": run.id, "path": str(run.path)})
        with in_ray(project, run.logs) as aloud:
            observer({"event": "stage", "text": "starting the engine" + "s" * (len(plan.engines) > 1)})
            with run_service(plan) as service:
                for name, why in service.faults.items():
                    observer({"event": "note", "text": f"{name} does not answer: {why}"})
                run.result(url=service.url, models=list(service.models))
                with aloud():  # the block is the caller's
                    yield service


@dataclass(frozen=True)
class Running:
    """A service that runs: `state` is "ready", "starting" or "silent", which is none of both."""

    run: str
    url: str
    state: str
    since: str
    replicas: int
    models: tuple[str, ...]


def running(project: AnyProject = None) -> list[Running]:
    """The services that were started from this project and have not ended, the newest first."""
    import httpx

    found = []
    for run in runs.list_runs(Path(as_project(project).home)):
        if run.kind != "serve" or run.state != "running":
            continue
        url, state, replicas = run.result.get("url"), "starting", 0
        if url:
            try:
                answer = httpx.get(f"{url.removesuffix('/v1')}/readyz", timeout=5, trust_env=False)
                state = "ready" if answer.status_code == 200 else "starting"
                replicas = sum(answer.json().get("replicas", {}).values())
            except (httpx.HTTPError, ValueError):
                state = "silent"
        found.append(Running(run.id, url or "", state, run.started, replicas, tuple(run.result.get("models", ()))))
    return found


def stop(project: AnyProject = None, wanted: str | None = None, *, timeout: float = 120.0) -> list[str]:
    """End the services that run from this project, or one run of them; what they were asked is answered first.

    Returns their runs' ids. Raises RunError for one that runs on another machine, or does not end within `timeout` s.
    """
    home = Path(as_project(project).home)
    ended = []
    for service in running(project):
        if wanted and not service.run.startswith(wanted):
            continue
        runs.end(home, service.run, timeout)
        ended.append(service.run)
    if wanted and not ended:
        raise RunError(f'no service "{wanted}" is running', hint="`tunery serve status` shows what is")
    return ended


def describe(project: Project, config: Path | None = None, *, observer: Observer = silent) -> dict[str, Any]:
    """What would be served; written to `config` too, as a file for Ray's `serve deploy`. Nothing is started."""
    from tunery.serving.service import deploy_config

    home = Path(project.home).resolve()
    plan = plan_service(project, log_dir=home / "runs" / "deployed" / "logs", observer=observer)
    if config:
        import yaml

        plan = replace(plan, alone=False)
        storage.write_atomic(config, yaml.safe_dump(deploy_config(plan), sort_keys=False))
    facts: dict[str, Any] = {"url": f"http://{plan.spec.host}:{plan.spec.port}/v1"}
    for engine in plan.engines:
        facts[engine.engine.name] = engine.engine.model
        facts[f"{engine.engine.name}.engine_kwargs"] = dict(engine.config["engine_kwargs"])
    facts["models"] = [v.ref for v in known_versions(plan.spec.registry or "", plan.log_dir) if any(
        e.engine.admits(v) for e in plan.engines
    )]  # fmt: skip
    return facts


def plan_service(project: Project, *, log_dir: Path, observer: Observer = silent) -> Plan:
    """The service that `project` describes, checked. Nothing is started or written.

    Raises ConfigError, ModelError, or RunError for versions that are not there.
    """
    from tunery.serving import Plan
    from tunery.serving.service import check

    spec, home = project.serve, Path(project.home).resolve()
    check(spec, has_keys=any(not key.revoked and not key.expired for key in list_keys(project)))
    registry = in_project(project, spec.registry) if spec.registry else str(home)
    known = known_versions(registry, log_dir)
    engines: list[EnginePlan] = []
    for served in spec.engines:
        name = f"engine-{len(engines)}" if spec.bases else "engine"
        engines.append(_engine(project, served, known, registry, name, observer))
    doubles = {p.engine.model for p in engines if [q.engine.model for q in engines].count(p.engine.model) > 1}
    if doubles:
        raise ConfigError(f"{', '.join(sorted(doubles))} would be served twice", hint="name each base once")
    served = {v.name: v.ref for v in known if any(p.engine.admits(v) for p in engines) and not v.whole}
    preload = spec.preload if isinstance(spec.preload, list) else []
    if spec.preload == "latest":
        preload = list(served.values())[:PRELOADED]
    named = isinstance(spec.preload, list) or any(s.models != "all" for s in spec.engines)
    return Plan(
        spec.model_copy(update={"registry": registry}), engines, home, log_dir.resolve(), preload=preload,
        required=preload if named else (), alone=project.ray.address is None,
    )  # fmt: skip


def known_versions(registry: str, log_dir: Path) -> list[ModelVersion]:
    """All versions in a registry, wherever it is, that answer."""
    from tunery.serving.catalog import mirrored

    home = mirrored(registry, log_dir / "registry") if storage.is_remote(registry) else Path(registry)
    return [v for v in versions.list_versions(home) if not v.judges]


def _engine(
    project: Project, served: ServedBase, known: Sequence[ModelVersion], registry: str, name: str, observer: Observer
) -> EnginePlan:
    from tunery.engine.vllm import Adapter, llm_config, unservable
    from tunery.serving import Engine, EnginePlan

    wanted = [v for v in known if served.models == "all" or v.ref in served.models or v.name in served.models]
    for ref in () if served.models == "all" else served.models:
        if not any(ref in (v.ref, v.name) for v in wanted):
            raise RunError(
                f'no version "{ref}" to serve', hint="`tunery models list` shows them; `tunery train` makes one"
            )
    base, whole = _base(project, served, wanted)
    label = versions.served_id(whole) if whole else _served_name(base)
    fitting = [v for v in wanted if v.base_digest == base.digest and not v.whole] if not whole else []
    if others := [v.ref for v in wanted if v not in fitting and v != whole]:
        if served.models != "all":
            raise ModelError(
                f'{", ".join(others)}: not served with "{label}", of another base or a model of its own',
                hint="give each base an entry of its own in serve.bases",
            )
        observer({"event": "note", "text": f"of another base than {label}, not served: {', '.join(others)}"})
    adapters = []
    for version in fitting:
        if why := unservable(versions.adapter_config(version.adapter, weights=not storage.is_remote(registry))):
            if served.models != "all":
                raise ModelError(
                    f"{version.ref} cannot be asked as an adapter: {why}",
                    hint=f"make a model of it: `tunery models export {version.ref} FOLDER --format merged`",
                )
            observer({"event": "note", "text": f"{version.ref} is not served: {why}"})
            continue
        adapters.append(Adapter(version.ref, version.adapter, version.rank))
    engine = served.engine.model_copy(update={"concurrency": served.replicas})
    config = llm_config(label, base.path.resolve(), adapters, engine)
    rank = config["engine_kwargs"].get("max_lora_rank", 0)
    models = served.models if served.models == "all" else list(served.models)
    return EnginePlan(
        Engine(name, label, str(base.path.resolve()), base.digest, rank, models, whole.ref if whole else None),
        config,
        served.replicas,
        served.autoscaling,
    )


def _base(project: Project, served: ServedBase, wanted: Sequence[ModelVersion]) -> tuple[Base, ModelVersion | None]:
    """The base to load: the one named, else that of the latest version; and the version where it is a whole model."""
    latest = max(wanted, key=lambda v: v.created, default=None)
    if served.base or latest is None:
        named = base_in_project(project, served.base or project.train.model_name_or_path)
        return find_base(named, allow_pickle=project.train.allow_pickle), None
    if latest.whole:
        return find_base(str(latest.adapter)), latest
    return untuned(project, latest), None


def _served_name(base: Base) -> str:
    return base.path.resolve().name if Path(base.name).expanduser() == base.path else base.name
