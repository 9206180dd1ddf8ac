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
    """What a key has done within the last minute: times of requests, and (time, tokens) of answers.

    Tokens over the limit count against the minutes to come, so the last of these times may lie ahead.
    """

    requests: deque[float] = field(default_factory=deque)
    tokens: deque[tuple[float, int]] = field(default_factory=deque)
    spent: int = 0  # the sum of `tokens`
    running: int = 0

    def charge(self, tokens: int, most: int | None, now: float) -> None:
        """Count `tokens` now as far as `most` allows, and what is over in the minutes that follow, `most` in each."""
        before, self.spent = self.spent, self.spent + tokens
        if most is None:
            self.tokens.append((now, tokens))
            return
        at, held, room = now, 0, most - before
        if self.tokens and self.tokens[-1][0] > now:  # behind an earlier debt
            at, held = self.tokens.pop()
            room = most - held
        while tokens > 0 or held:
            part = max(0, min(tokens, room))
            if held + part:
                self.tokens.append((at, held + part))
            tokens -= part
            at, held, room = at + WINDOW, 0, most

    def forget(self, now: float) -> bool:
        """Drop what is more than a minute old; whether nothing is left."""
        while self.requests and now - self.requests[0] >= WINDOW:
            self.requests.popleft()
        while self.tokens and now - self.tokens[0][0] >= WINDOW:
            self.spent -= self.tokens.popleft()[1]
        return not (self.running or self.requests or self.tokens)


class Grant:
    """Leave for one request. `settle` says what it has cost, `release` that it is over."""

    def __init__(self, limits: Limits, key: Key, use: _Use) -> None:
        self._limits, self._key, self._use = limits, key, use
        self._open = True

    def settle(self, tokens: int) -> None:
        """Charge the tokens of prompt and answer; what goes over the limit delays later requests."""
        now = self._limits.clock()
        self._use.forget(now)
        self._use.charge(tokens, self._key.tokens_per_minute, now)

    def release(self) -> None:
        """End it; a second time does nothing."""
        if self._open:
            self._open = False
            self._use.running -= 1

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit headers, as they are now."""
        return self._limits.headers(self._key)


class Limits:
    """Sliding windows of a minute: never more requests within any 60 seconds than a key allows.

    Tokens are known when an answer ends, so that the last requests may go over; the minutes after pay for it.
    """

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
            reset = use.requests[-1] + WINDOW - now if use.requests else 0.0
            found |= _said("requests", most, most - len(use.requests), reset)
        if (most := key.tokens_per_minute) is not None:
            reset = use.tokens[-1][0] + WINDOW - now if use.tokens else 0.0
            found |= _said("tokens", most, most - use.spent, reset)
        return found

    def _use(self, key: Key, now: float) -> _Use:
        """The key's last minute, what is older forgotten; and that of keys which are not used any more."""
        use = self._uses.get(key.id)
        if use is None:
            self._uses = {other: u for other, u in self._uses.items() if not u.forget(now)}
            use = self._uses[key.id] = _Use()
        use.forget(now)
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
