"""API keys: made once, shown once, and kept as digests."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tunery.config import nearest
from tunery.errors import ConfigError, RunError
from tunery.serving.statefile import StateFile

ENDPOINTS = (
    "chat", "completions", "responses", "embeddings", "extract", "files", "batches", "models", "metrics",
    "applications",
)  # fmt: skip
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
_ID = re.compile(r"key-[0-9a-f]{8}")


@dataclass(frozen=True)
class Key:
    """A key without its secret. `models` are patterns over the names that requests may use, `endpoints` of ENDPOINTS;
    limits count a minute, None is no limit; times are ISO 8601 in UTC."""

    id: str
    name: str
    digest: str = field(repr=False)
    prefix: str = ""  # the secret's first characters, to tell keys apart by
    models: tuple[str, ...] = ("*",)
    endpoints: tuple[str, ...] = ("*",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    created: str = ""
    expires: str | None = None
    revoked: str | None = None

    @property
    def expired(self) -> bool:
        return self.expires is not None and datetime.fromisoformat(self.expires) <= datetime.now(UTC)

    def allows_model(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.models)

    def allows_endpoint(self, endpoint: str) -> bool:
        return "*" in self.endpoints or endpoint in self.endpoints


class KeyStore:
    """The keys in a file, which may change while a service reads it."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, {"keys": []}, _parsed, mode=0o600)

    def create(
        self, name: str, *, models: Sequence[str] = ("*",), endpoints: Sequence[str] = ("*",),
        expires: datetime | None = None, limits: Mapping[str, int | None] | None = None,
    ) -> tuple[Key, str]:  # fmt: skip
        """A new key and its secret, which is not kept. `limits` has some of LIMITS.

        Raises ConfigError for an endpoint or a limit that does not exist, and a name that is taken or unusable.
        """
        if not name.strip() or not name.isprintable() or len(name) > 64 or _ID.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot name a key", hint="use 1 to 64 printable characters; key-0123abcd is an id's form"
            )
        for limit in limits or {}:
            if limit not in LIMITS:
                raise ConfigError(f'there is no limit "{limit}"', hint=f"one of: {', '.join(LIMITS)}")
        for endpoint in endpoints:
            if endpoint != "*" and endpoint not in ENDPOINTS:
                near = nearest(endpoint, ENDPOINTS)
                hint = f'did you mean "{near}"?' if near else f"one of: {', '.join(ENDPOINTS)}"
                raise ConfigError(f'there is no endpoint "{endpoint}"', hint=hint)
        given = {limit: (limits or {}).get(limit) for limit in LIMITS}
        if wrong := [f"{k} is {v}" for k, v in given.items() if v is not None and v < 1]:
            raise ConfigError(f"a limit must be 1 or more: {', '.join(wrong)}")
        secret = f"tnr-{secrets.token_urlsafe(32)}"
        requests, tokens, at_once = (given[limit] for limit in LIMITS)
        key = Key(
            id=f"key-{secrets.token_hex(4)}",
            name=name,
            digest=_digest(secret),
            prefix=secret[:8],
            models=tuple(models),
            endpoints=tuple(endpoints),
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            concurrent_requests=at_once,
            created=_now(),
            expires=expires.astimezone(UTC).isoformat(timespec="seconds") if expires else None,
        )
        with self._file.changing() as state:
            if any(k["name"] == name and not k["revoked"] for k in state["keys"]):
                raise ConfigError(f'there is a key "{name}" already', hint="revoke it first, or choose another name")
            state["keys"].append(asdict(key))
        return key, secret

    def list(self) -> list[Key]:
        """All keys, the oldest first; revoked and expired ones too."""
        return list(self._file.value.values())

    def by_id(self, key_id: str) -> Key | None:
        """None for a key that there is not, or not any more."""
        return next((k for k in self.list() if k.id == key_id), None)

    def revoke(self, wanted: str) -> Key:
        """Revoke the key of that name or id, for good. Raises RunError when there is none."""
        with self._file.changing() as state:
            found = [k for k in state["keys"] if wanted in (k["id"], k["name"]) and not k["revoked"]]
            if not found:
                near = nearest(wanted, [k["name"] for k in state["keys"] if not k["revoked"]])
                hint = f'did you mean "{near}"?' if near else "`tunery keys list` shows them"
                raise RunError(f'no key "{wanted}" that is not revoked', hint=hint)
            found[0]["revoked"] = _now()
            return _key(found[0])

    def find(self, secret: str) -> Key | None:
        """The key of that secret, revoked and expired ones included."""
        # A secret has 256 random bits: there is nothing to guess that a slow hash would have to slow down. And looking
        # a digest up tells a caller nothing, since he cannot choose digests; it is compared in constant time besides.
        digest = _digest(secret)
        key = self._file.value.get(digest)
        return key if key and hmac.compare_digest(key.digest, digest) else None


def _parsed(state: Any) -> dict[str, Key]:
    return {key.digest: key for key in map(_key, state["keys"])}


def _key(values: dict[str, Any]) -> Key:
    return replace(Key(**values), models=tuple(values["models"]), endpoints=tuple(values["endpoints"]))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
