"""Limits of keys, in the memory of the one gateway: exact, and quick enough to be asked for every request."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tunery.serving.keys import Key

WINDOW = 60.0  # seconds


class OverLimit(Exception):
    """A request that a key may not make now. `what` says which limit, `retry_after` is in seconds."""

    def __init__(self, what: str, retry_after: float, headers: dict[str, str]) -> None:
        super().__init__(what)
        self.what = what
        self.retry_after = retry_after
        self.headers = headers


@dataclass
class _Use:
    """What a key has done within the last minute: times of requests, and (time, tokens) of answers."""

    requests: deque[float] = field(default_factory=deque)
    tokens: deque[tuple[float, int]] = field(default_factory=deque)
    spent: int = 0  # the sum of `tokens`
    running: int = 0
    last: float = 0.0


class Grant:
    """Leave for one request. `settle` says what it has cost, `release` that it is over."""

    def __init__(self, limits: Limits, key: Key, use: _Use) -> None:
        self._limits, self._key, self._use = limits, key, use
        self._open = True

    def settle(self, tokens: int) -> None:
        """Charge the tokens of prompt and answer; what goes over the limit delays later requests."""
        if tokens > 0:
            self._use.tokens.append((self._limits.clock(), tokens))
            self._use.spent += tokens

    def release(self) -> None:
        """End it; a second time does nothing."""
        if self._open:
            self._open = False
            self._use.running -= 1

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit headers, as they are now."""
        return self._limits.headers(self._key)


class Limits:
    """Sliding windows of a minute: never more within any 60 seconds than a key allows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._uses: dict[str, _Use] = {}

    def admit(self, key: Key) -> Grant:
        """Leave for one request of `key`. Raises OverLimit, which costs the key nothing."""
        now = self.clock()
        use = self._use(key, now)
        if key.concurrent_requests is not None and use.running >= key.concurrent_requests:
            raise OverLimit(f"{key.concurrent_requests} requests at once", 1.0, self.headers(key))
        if key.requests_per_minute is not None and len(use.requests) >= key.requests_per_minute:
            free = use.requests[len(use.requests) - key.requests_per_minute] + WINDOW - now
            raise OverLimit(f"{key.requests_per_minute} requests a minute", free, self.headers(key))
        if key.tokens_per_minute is not None and use.spent >= key.tokens_per_minute:
            raise OverLimit(f"{key.tokens_per_minute} tokens a minute", self._wait(key, use, now), self.headers(key))
        use.requests.append(now)
        use.running += 1
        return Grant(self, key, use)

    def headers(self, key: Key) -> dict[str, str]:
        """What is left to `key`, in OpenAI's words; nothing where it has no limit."""
        now = self.clock()
        use = self._use(key, now)
        found: dict[str, str] = {}
        if (most := key.requests_per_minute) is not None:
            reset = use.requests[0] + WINDOW - now if use.requests else 0.0
            found |= _said("requests", most, most - len(use.requests), reset)
        if (most := key.tokens_per_minute) is not None:
            reset = use.tokens[0][0] + WINDOW - now if use.tokens else 0.0
            found |= _said("tokens", most, most - use.spent, reset)
        return found

    def _use(self, key: Key, now: float) -> _Use:
        """The key's last minute, what is older forgotten; and that of keys which are not used any more."""
        use = self._uses.get(key.id)
        if use is None:
            idle = [k for k, u in self._uses.items() if not u.running and now - u.last > WINDOW]
            for other in idle:
                del self._uses[other]
            use = self._uses[key.id] = _Use()
        use.last = now
        while use.requests and now - use.requests[0] >= WINDOW:
            use.requests.popleft()
        while use.tokens and now - use.tokens[0][0] >= WINDOW:
            use.spent -= use.tokens.popleft()[1]
        return use

    def _wait(self, key: Key, use: _Use, now: float) -> float:
        """Seconds until enough of the tokens are a minute old."""
        over = use.spent - (key.tokens_per_minute or 0)
        for at, tokens in use.tokens:
            over -= tokens
            if over < 0:
                return at + WINDOW - now
        return WINDOW


def _said(what: str, most: int, left: int, reset: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(most),
        f"x-ratelimit-remaining-{what}": str(max(0, left)),
        f"x-ratelimit-reset-{what}": f"{max(0.0, reset):.3f}s",
    }
