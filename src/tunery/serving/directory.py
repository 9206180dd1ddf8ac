"""Where the engines of a service are: a small Ray actor that replicas tell and the gateway asks.

Serve knows this too, but tells only callers that go through its handles, and those carry every token of an answer
through Ray: at 32 answers at once that halves what the engine can give.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

BEAT = 2.0  # seconds between two signs of life of a replica
GONE = 8.0  # seconds without one, after which a replica is taken for dead
NAMESPACE = "tunery"

Places = Mapping[str, Mapping[str, str]]  # engine -> replica -> URL


class Directory:
    """`secret` is what replicas ask of whoever calls them: their ports are open to the machine, or the cluster."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._entries: dict[str, tuple[str, str, float]] = {}  # replica -> (engine, URL, last seen)
        self._version = time.time_ns()  # a directory that takes another's place has not said this before
        self._changed = asyncio.Event()

    async def secret(self) -> str:
        return self._secret

    async def announce(self, replica: str, engine: str, url: str) -> None:
        """A replica is ready, or still there."""
        known = self._entries.get(replica)
        self._entries[replica] = (engine, url, time.monotonic())
        if known is None or known[:2] != (engine, url):
            self._tell()

    async def withdraw(self, replica: str) -> None:
        """A replica takes no more requests."""
        if self._entries.pop(replica, None):
            self._tell()

    async def changes(self, seen: int, wait: float = 5.0) -> tuple[int, Places]:
        """The places, and their version: as soon as it is not `seen` any more, or after `wait` seconds."""
        self._forget()
        if seen == self._version:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(wait, BEAT))
            self._forget()
        places: dict[str, dict[str, str]] = {}
        for replica, (engine, url, _) in self._entries.items():
            places.setdefault(engine, {})[replica] = url
        return self._version, places

    def _forget(self) -> None:
        dead = [r for r, (_, _, last) in self._entries.items() if time.monotonic() - last > GONE]
        for replica in dead:
            del self._entries[replica]
        if dead:
            self._tell()

    def _tell(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()


def directory(service: str, secret: str | None = None) -> Any:
    """The handle of a service's Directory; started where there is none, with the secret that its callers know.

    Without one it gets a new one here, which Ray gives to what it starts in its place, too.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return (
        ray.remote(Directory)
        .options(
            name=f"{service}-directory",
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
            # Else it would be placed with the replica that asks first, and end with it.
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),  # type: ignore[arg-type]
            max_restarts=-1,
            max_task_retries=3,
            max_concurrency=1000,
        )
        .remote(secret or secrets.token_urlsafe(32))
    )
