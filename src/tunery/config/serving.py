"""The `serve` section: bases, versions and applications behind one port."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tunery.config.spec import EngineSpec, Spec


class Autoscaling(Spec):
    """Ray Serve's `autoscaling_config`, by its own names; replicas follow the requests that are being answered."""

    min_replicas: int = Field(default=1, ge=1)  # with none, nothing would tell Ray that somebody asks
    max_replicas: int = Field(default=2, ge=1)
    target_ongoing_requests: float | None = Field(default=None, gt=0)  # None: half of what an engine runs at once
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is above max_replicas")
        return self


class TelemetrySpec(Spec):
    """What a service writes about its requests. Their contents are kept only where `request_log` names a place."""

    access_log: bool = True
    otlp_endpoint: str | None = None  # of a trace collector, as http://localhost:4318
    request_log: str | None = None  # a folder or URL for Parquet files
    request_log_sample: float = Field(default=1.0, gt=0, le=1)
    redact: list[str] = Field(default_factory=list)  # "email", "phone", "number", or regular expressions

    @field_validator("redact")
    @classmethod
    def _expressions(cls, value: list[str]) -> list[str]:
        for text in value:
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f'"{text}" is no regular expression: {error}') from None
        return value


class ServedBase(Spec):
    """One base in a service, with the versions that it may answer as. A name stands for all its versions."""

    base: str | None = None
    models: list[str] | Literal["all"] = "all"
    replicas: int = Field(default=1, ge=1)
    autoscaling: Autoscaling | None = None  # instead of a fixed number of replicas
    engine: EngineSpec = Field(default_factory=EngineSpec)


class ServedApplication(Spec):
    """A Ray Serve application of one's own in the service, by Ray's names. It answers below `route_prefix`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)
    import_path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # as "orders:app", seen from the project's folder
    route_prefix: str = Field(pattern=r"^(/[A-Za-z0-9._-]+)+$")
    args: dict[str, Any] = Field(default_factory=dict)
    runtime_env: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _apart(self) -> ServedApplication:
        if self.name == "gateway" or self.name.partition("-")[0] == "engine":
            raise ValueError(f'"{self.name}" is the name of a part of the service')
        if (first := self.route_prefix.split("/")[1]) in (
            "v1",
            "healthz",
            "health",
            "readyz",
            "metrics",
            "openapi.json",
        ):
            raise ValueError(f"/{first} is the service's own")
        return self


class ServeSpec(ServedBase):
    """A service: one base, or several by `bases`, with their versions behind an OpenAI-compatible API."""

    bases: list[ServedBase] = Field(default_factory=list)  # instead of base, models, replicas and engine here
    registry: str | None = None  # where versions are looked up: a folder or URL that holds "models"; None: the home
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    preload: list[str] | Literal["latest", "none"] = "latest"  # adapters to load before the service is ready
    cors: list[str] = Field(default_factory=list)  # origins of pages that may ask
    max_body_bytes: int = Field(default=4 << 20, ge=1)
    max_file_bytes: int = Field(default=512 << 20, ge=1)  # of an upload
    max_queued_requests: int | None = Field(default=None, ge=0)  # of an engine; None: eight times what it runs at once
    request_timeout_s: float = Field(default=600.0, gt=0)
    drain_timeout_s: float = Field(default=30.0, ge=0)
    telemetry: TelemetrySpec = Field(default_factory=TelemetrySpec)
    applications: list[ServedApplication] = Field(default_factory=list)  # beside the bases, behind the same port
    proxy_port: int | None = Field(default=None, ge=1, le=65535)  # of Ray's proxy before them, here; None: port + 1

    @field_validator("applications")
    @classmethod
    def _told_apart(cls, value: list[ServedApplication]) -> list[ServedApplication]:
        for names in ([a.name for a in value], [a.route_prefix for a in value]):
            if doubles := {n for n in names if names.count(n) > 1}:
                raise ValueError(f"{', '.join(sorted(doubles))} is there twice")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> ServeSpec:
        alone = ServedBase()
        twice = [name for name in ServedBase.model_fields if getattr(self, name) != getattr(alone, name)]
        if self.bases and twice:
            raise ValueError(f"bases stands instead of {', '.join(twice)}: give these to each of the bases")
        return self

    @property
    def proxy(self) -> int:
        """The port of Ray's proxy."""
        return self.proxy_port or self.port + 1

    @property
    def engines(self) -> list[ServedBase]:
        """The bases to serve; at least one."""
        return list(self.bases) or [self]
