"""Where else a run's figures go, besides its own folder: TensorBoard, MLflow, Weights & Biases, Ray's metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunery.config import TrainSpec, nearest
from tunery.errors import ConfigError

Scalars = Callable[[int, Mapping[str, float]], None]  # a step, and what was measured there
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}  # what each needs; imports as named
_PLACE = ("current_steps", "total_steps", "percentage", "elapsed_time", "remaining_time", "best_global_step")


def trackers_of(report_to: str | Sequence[str]) -> list[str]:
    """The trackers that `report_to` names. Raises ConfigError for an unknown one, or one that is not installed."""
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    if names == ["all"]:
        return [name for name, package in PACKAGES.items() if find_spec(package)]
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in PACKAGES:
            near = nearest(name, PACKAGES)
            hint = f'did you mean "{near}"?' if near else f"one of: {', '.join(PACKAGES)}, all, none"
            raise ConfigError(f'report_to: unknown tracker "{name}"', hint=hint)
        if not find_spec(PACKAGES[name]):
            hint = f"pip install {PACKAGES[name]}, or leave {name} out of report_to"
            raise ConfigError(f"report_to: {name} is not installed", hint=hint)
    return names


@contextmanager
def reporting(spec: TrainSpec, output: Path, run: str) -> Iterator[Callable[[Mapping[str, Any]], list[str]]]:
    """A function that passes log rows on to the trackers of `spec`, as the run named `run`.

    Raises ConfigError for a tracker that does not start. One that fails on the way, as its server may, gets no more
    rows, and the function returns why: a training is worth more than its curve in another place.

    TensorBoard's events go to `output`/tensorboard. MLflow and W&B go where their own variables say
    (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, WANDB_PROJECT, WANDB_MODE), else into `output` too.
    """
    with ExitStack() as stack:
        writers: dict[str, Scalars] = {}
        for name in trackers_of(spec.report_to):
            try:
                writers[name] = stack.enter_context(_OPEN[name](spec, output, run))
            except Exception as exc:  # each tracker has errors of its own
                hint = f"see that its server and its key are right, or leave {name} out of report_to"
                raise ConfigError(f"report_to: {name} does not start: {exc}", hint=hint) from exc

        def report(row: Mapping[str, Any]) -> list[str]:
            faults = []
            for name, write in list(writers.items()) if "current_steps" in row else ():
                try:
                    write(row["current_steps"], scalars(row))
                except Exception as exc:
                    del writers[name]
                    faults.append(f"{name} gets no more of this run: {exc}")
            return faults

        yield report


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """A log row's figures, named as transformers names them for trackers: train/loss, eval/loss."""
    evaluation = any(name.startswith("eval_") for name in row)
    return {
        f"eval/{name.removeprefix('eval_')}" if evaluation else f"train/{name}": float(value)
        for name, value in row.items()
        if name not in _PLACE and isinstance(value, int | float)
    }


@contextmanager
def _tensorboard(spec: TrainSpec, output: Path, run: str) -> Iterator[Scalars]:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(output / "tensorboard")) as writer:
        writer.add_text("settings", "\n".join(f"    {k}: {v}" for k, v in settings(spec).items()))

        def write(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield write


@contextmanager
def _mlflow(spec: TrainSpec, output: Path, run: str) -> Iterator[Scalars]:
    import mlflow  # pyright: ignore[reportMissingImports]

    here = f"sqlite:///{(output / 'mlflow.db').resolve()}"
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or here)
    if not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        mlflow.set_experiment("tunery")
    with mlflow.start_run(run_name=run):
        mlflow.log_params(settings(spec))

        def write(step: int, values: Mapping[str, float]) -> None:
            mlflow.log_metrics(dict(values), step=step)

        yield write


@contextmanager
def _wandb(spec: TrainSpec, output: Path, run: str) -> Iterator[Scalars]:
    import wandb  # pyright: ignore[reportMissingImports]

    project = os.environ.get("WANDB_PROJECT", "tunery")
    with wandb.init(project=project, name=run, dir=str(output), config=settings(spec)) as session:

        def write(step: int, values: Mapping[str, float]) -> None:
            session.log(dict(values), step=step)

        yield write


_OPEN = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


def settings(spec: TrainSpec) -> dict[str, Any]:
    """What was set, without what was left open."""
    return {k: v for k, v in spec.model_dump(mode="json").items() if v is not None}


def ray_gauges(run: str) -> Callable[[Mapping[str, Any]], None]:
    """A function that shows log rows as Ray's metrics (`ray_tunery_train_loss{run=...}`), for Prometheus to scrape.

    To be called in a Ray worker; the gauges go with it.
    """
    from ray.util.metrics import Gauge

    gauges: dict[str, Gauge] = {}

    def show(row: Mapping[str, Any]) -> None:
        figures = scalars(row) | {f"train/{k}": float(row[k]) for k in ("current_steps", "remaining_time") if k in row}
        for name, value in figures.items():
            key = "tunery_" + name.replace("/", "_")
            if key not in gauges:
                gauges[key] = Gauge(key, description=f"{name} of a training", tag_keys=("run",))
            gauges[key].set(value, tags={"run": run})

    return show
