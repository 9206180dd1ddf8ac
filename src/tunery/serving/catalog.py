"""What a service serves, by every name that a request may use; follows the registry while the service runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tunery import storage, versions
from tunery.bases import Base, find_base
from tunery.data.template import quick_template
from tunery.engine.vllm import unservable
from tunery.errors import TuneryError
from tunery.types import ModelVersion

LOOK = 2.0  # seconds between two looks at the registry
MISSED = 0.5  # seconds between two looks for names that were not there

log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Engine:
    """One base with the versions that it may serve: "all", or refs; "name" stands for every version of it.

    `name` is the deployment's, `model` what requests call the base. Where a whole model was tuned it is `whole`, a
    version's ref, and there are no adapters.
    """

    name: str
    model: str
    base: str  # a folder
    digest: str
    max_rank: int
    models: str | Sequence[str] = "all"
    whole: str | None = None

    def admits(self, version: ModelVersion) -> bool:
        """Whether `version` is one of those this engine is to serve: of its base, and no reward model."""
        if version.judges:
            return False
        if version.whole:
            return version.ref == self.whole
        wanted = self.models == "all" or version.ref in self.models or version.name in self.models
        return wanted and version.base_digest == self.digest


@dataclass(frozen=True)
class Served:
    """A model that answers: a base, or a version of it. `id` is what the engine calls it, and never changes hands."""

    id: str
    engine: str
    base: str
    version: ModelVersion | None = None
    place: str | None = None  # of the adapter, as a replica reaches it: a folder or a URL
    fault: str | None = None  # why it cannot be asked after all

    @property
    def ref(self) -> str:
        """ "name@3", or the base's name."""
        return self.version.ref if self.version else self.id

    @cached_property
    def chat_template(self) -> str | None:
        """What a chat must be written with, where the engine would not by itself do as the training did."""
        if self.version is None or self.version.template == "auto":
            return None
        return quick_template(base_of(self.base), self.version.template).chat_template


@cache
def base_of(folder: str) -> Base:
    """The base in a folder; all its weights are read for that, so once."""
    return find_base(folder)


class Catalog:
    """The models of `engines`, with versions from a registry: a home folder, or the URL of one."""

    def __init__(self, registry: str, engines: Sequence[Engine], mirror: Path) -> None:
        """`mirror` is a folder to keep the small files of versions in, where the registry is elsewhere."""
        self._registry = registry
        self._mirror = mirror
        self._engines = engines
        self._lock = threading.Lock()
        self._looked = 0.0
        self._by_name: dict[str, Served] = {}
        self._seen: dict[Path, Served | None] = {}
        self.refresh()

    async def find(self, name: str) -> Served | None:
        """The model of that name: a base, a served id, "name@3", or "name" for the latest.

        A version that was registered a moment ago is found too.
        """
        if name not in self._by_name and time.monotonic() - self._looked > MISSED:
            await asyncio.to_thread(self.refresh)
        return self._by_name.get(name)

    def cards(self, aliases: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """OpenAI's model object of every name; one that stands for another has that as its root.

        `aliases` are further names, and the name that each stands for.
        """
        table: dict[str, tuple[str, Served]] = {name: (s.id, s) for name, s in self._by_name.items() if not s.fault}
        for alias, name in aliases.items():
            if name in table:
                table[alias] = table[name]
        bases = {e.name: e.model for e in self._engines}
        return {
            name: {
                "id": name, "object": "model", "created": _created(served), "owned_by": "tunery", "root": root,
                "parent": bases[served.engine] if served.place else None,
                "version": served.ref if served.version else None,
            }
            for name, (root, served) in table.items()
        }  # fmt: skip

    def refresh(self) -> None:
        """Look at the registry anew. What was served and is gone from it stays away; a fault of one leaves the rest."""
        with self._lock:
            self._looked = time.monotonic()
            try:
                found = versions.list_versions(self._home())
            except TuneryError as error:
                log.warning("The registry cannot be read; what was served stays: %s", error)
                return
            table = {e.model: Served(e.model, e.name, e.base) for e in self._engines if not e.whole}
            latest: dict[str, Served] = {}
            for version in found:
                if version.adapter not in self._seen:
                    self._seen[version.adapter] = self._served(version)
                served = self._seen[version.adapter]
                if served:
                    table[served.id] = table[version.ref] = served
                    if not served.fault or version.name not in latest:
                        latest[version.name] = served
            self._by_name = table | latest

    def _home(self) -> Path:
        if not storage.is_remote(self._registry):
            return Path(self._registry)
        return mirrored(self._registry, self._mirror)

    def _served(self, version: ModelVersion) -> Served | None:
        engine = next((e for e in self._engines if e.admits(version)), None)
        if engine is None:
            return None
        served = versions.served_id(version)
        if version.whole:
            return Served(served, engine.name, engine.base, version)
        place = str(version.adapter.resolve())
        if storage.is_remote(self._registry):
            place = storage.join(self._registry, "models", version.name, str(version.version))
        return Served(served, engine.name, engine.base, version, place, _fault(version, engine))


def _fault(version: ModelVersion, engine: Engine) -> str | None:
    if version.rank > engine.max_rank:
        return (
            f"its rank is {version.rank}, this engine takes up to {engine.max_rank}; "
            f"start the service with engine_kwargs.max_lora_rank={version.rank}"
        )
    try:
        config = storage.read_json(version.adapter / "adapter_config.json")
    except TuneryError as error:
        return error.message
    return unservable(config)


def _created(served: Served) -> int:
    from datetime import datetime

    return int(datetime.fromisoformat(served.version.created).timestamp()) if served.version else 0


def mirrored(registry: str, mirror: Path) -> Path:
    """A home with the small files of the versions at a URL; complete versions never change, so each is read once.

    As everywhere, version.json comes last and says that the others are there.
    """
    for name in storage.list_files(storage.join(registry, "models", "*", "*", "version.json")):
        folder = mirror / "models" / Path(name).parent.parent.name / Path(name).parent.name
        if (folder / "version.json").exists():
            continue
        for file in ("adapter_config.json", "profile.json", "calibration.json", "prompts.json", "version.json"):
            source = storage.join(name.rpartition("/")[0], file)
            if storage.exists(source):
                storage.write_atomic(folder / file, storage.read_bytes(source))
    return mirror
