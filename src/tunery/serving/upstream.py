"""An engine as the gateway sees it: replicas that come and go, a bounded queue, and requests that survive one's death.

A generation changes nothing, so it may be asked twice: until the first byte of an answer has gone to the client, a
replica that breaks off is replaced by another without the client's noticing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunery.serving.refusal import Refusal, busy

if TYPE_CHECKING:
    import aiohttp

# Headers between the gateway and its replicas; raw, as ASGI has them.
SECRET, AGAIN = b"x-tunery-secret", b"x-tunery-again"
ADAPTER, ADAPTER_PATH = b"x-tunery-adapter", b"x-tunery-adapter-path"
PROBE = 0.25  # seconds between two looks at a replica that did not answer


@dataclass(eq=False)
class Replica:
    """One engine's address, and how many requests it is answering for this gateway."""

    name: str
    url: str
    in_flight: int = 0
    down: bool = False


class Broken(Exception):
    """A replica broke off before any of its answer was passed on."""


@dataclass
class Answer:
    """What a replica says: all of it in `body`, or `first` and then `rest` of a stream."""

    status: int
    content_type: str
    body: bytes = b""
    first: bytes = b""
    rest: AsyncIterator[bytes] | None = None


@dataclass
class Upstream:
    """The replicas of one engine. Each gets at most `at_once` requests; `queue` more wait here, the rest is refused."""

    name: str
    session: aiohttp.ClientSession
    secret: str
    at_once: int
    queue: int
    timeout: float  # seconds for a whole answer
    replicas: dict[str, Replica] = field(default_factory=dict)
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    _probes: set[asyncio.Task[None]] = field(default_factory=set)

    def update(self, places: Mapping[str, str]) -> None:
        """Take the replicas at these URLs, by name, for all there are."""
        self.replicas = {
            name: self.replicas[name] if name in self.replicas else Replica(name, url) for name, url in places.items()
        }
        self._wake()

    @property
    def ready(self) -> bool:
        return any(not r.down for r in self.replicas.values())

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def ask(self, path: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> AsyncIterator[Answer]:
        """Post `body` to the least busy replica; leaving the block ends the request there too.

        Raises Refusal with 429 when too many wait, 503 when no replica is there, 504 after `timeout`.
        """
        tried: set[str] = set()
        until = time.monotonic() + self.timeout
        while True:
            replica = await self._acquire(tried, until)
            try:
                async with self._asked(replica, path, body, headers, until, stream=stream) as answer:
                    yield answer
                    return
            except Broken:
                tried.add(replica.name)
            finally:
                replica.in_flight -= 1
                self._wake()

    @asynccontextmanager
    async def _asked(
        self, replica: Replica, path: str, body: bytes, headers: Mapping[str, str], until: float, *, stream: bool
    ) -> AsyncIterator[Answer]:
        """One replica's answer. Raises Broken when it breaks off before any of it was passed on."""
        import aiohttp

        mine = {**headers, SECRET.decode(): self.secret, "content-type": "application/json"}
        limit = aiohttp.ClientTimeout(total=max(0.1, until - time.monotonic()), sock_connect=5)
        given = False
        try:
            async with self.session.post(replica.url + path, data=body, headers=mine, timeout=limit) as response:
                if AGAIN.decode() in response.headers:
                    self._suspect(replica)
                    raise Broken
                kind = response.headers.get("content-type", "application/json")
                if stream and response.status == 200:
                    rest = response.content.iter_any().__aiter__()
                    answer = Answer(response.status, kind, first=await anext(rest, b""), rest=rest)
                else:
                    answer = Answer(response.status, kind, await response.read())
                given = True
                yield answer
        except TimeoutError:
            raise Refusal(504, f"There was no whole answer within {self.timeout:g} s.", code="timeout") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                self._suspect(replica)
            if given:
                raise busy("The replica that was answering is gone; ask again.") from error
            raise Broken from error

    async def _acquire(self, tried: set[str], until: float) -> Replica:
        while True:
            able = [r for r in self.replicas.values() if not r.down and r.name not in tried]
            if not able:
                raise busy("No replica can answer at the moment.", retry_after=5)
            best = min(able, key=lambda r: r.in_flight)
            if best.in_flight < self.at_once:
                best.in_flight += 1
                return best
            if len(self._waiting) >= self.queue:
                raise busy("Too many requests are waiting already.", status=429, retry_after=2)
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await asyncio.wait_for(turn, max(0.1, until - time.monotonic()))
            except TimeoutError:
                raise busy("The request has waited too long for its turn.", retry_after=5) from None
            finally:
                with suppress(ValueError):
                    self._waiting.remove(turn)

    def _wake(self) -> None:
        """Let those who wait look again: one for each free place."""
        free = sum(max(0, self.at_once - r.in_flight) for r in self.replicas.values() if not r.down)
        none_left = not self.ready
        while self._waiting and (free > 0 or none_left):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    def _suspect(self, replica: Replica) -> None:
        """Leave a replica alone until it answers again, or is no longer listed."""
        if replica.down:
            return
        replica.down = True
        self._wake()
        probe = asyncio.create_task(self._probe(replica))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, replica: Replica) -> None:
        import aiohttp

        headers = {SECRET.decode(): self.secret}
        while replica.name in self.replicas:
            await asyncio.sleep(PROBE)
            with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                limit = aiohttp.ClientTimeout(total=5)
                async with self.session.get(f"{replica.url}/health", headers=headers, timeout=limit) as response:
                    if response.status == 200:
                        replica.down = False
                        self._wake()
                        return

    async def scrape(self) -> dict[str, str]:
        """The metrics of each replica, as Prometheus text."""
        import aiohttp

        async def one(replica: Replica) -> tuple[str, str]:
            with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                limit = aiohttp.ClientTimeout(total=5)
                headers = {SECRET.decode(): self.secret}
                async with self.session.get(f"{replica.url}/metrics", headers=headers, timeout=limit) as response:
                    return replica.name, await response.text()
            return replica.name, ""

        return dict(await asyncio.gather(*(one(r) for r in self.replicas.values() if not r.down)))
