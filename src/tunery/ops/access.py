"""Who may ask a service, and which versions its names stand for. A running service takes changes up by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tunery import versions
from tunery.errors import ConfigError
from tunery.ops.verbs import AnyProject, as_project

if TYPE_CHECKING:
    from tunery.serving.aliases import Alias, Aliases
    from tunery.serving.keys import Key, KeyStore


def create_key(
    name: str, *, project: AnyProject = None, models: Sequence[str] = ("*",), endpoints: Sequence[str] = ("*",),
    expires: str | None = None, **limits: int | None,
) -> tuple[Key, str]:  # fmt: skip
    """A new API key and its secret, which is told now and never again.

    `expires` is a time from now ("30d", "12h") or an ISO date; `limits` are requests_per_minute, tokens_per_minute and
    concurrent_requests. Raises ConfigError.
    """
    until = _time(expires) if expires else None
    return _keys(project).create(name, models=models, endpoints=endpoints, expires=until, limits=limits)


def list_keys(project: AnyProject = None) -> list[Key]:
    """All keys, the oldest first; without their secrets, which nobody has."""
    return _keys(project).list()


def revoke_key(wanted: str, *, project: AnyProject = None) -> Key:
    """Revoke a key, by name or id. Raises RunError when there is none."""
    return _keys(project).revoke(wanted)


def set_alias(
    name: str, weights: Mapping[str, float], *, shadow: str | None = None, project: AnyProject = None
) -> Alias:
    """Let `name` stand for versions, each with its share of the requests, and `shadow` answer unseen beside them.

    Raises RunError for a version that is not registered, ConfigError for an alias that cannot be.
    """
    home = Path(as_project(project).home)
    known = {ref: versions.get(home, ref).ref for ref in [*weights, *([shadow] if shadow else [])]}
    shares = {known[ref]: weight for ref, weight in weights.items()}
    if len(shares) < len(weights):
        raise ConfigError("a version is named twice", hint=f"once each: {', '.join(shares)}")
    if any(name == versions.served_id(v) for v in versions.list_versions(home)):
        raise ConfigError(f'"{name}" is a version\'s own name for good', hint='use "prod" or "shop@prod"')
    return _aliases(project).set(name, shares, shadow and known[shadow])


def remove_alias(name: str, *, project: AnyProject = None) -> None:
    """Raises RunError when there is none."""
    _aliases(project).remove(name)


def list_aliases(project: AnyProject = None) -> Mapping[str, Alias]:
    """All aliases by name."""
    return _aliases(project).all()


def _keys(project: AnyProject) -> KeyStore:
    from tunery.serving.keys import KeyStore

    return KeyStore(Path(as_project(project).home) / "keys.json")


def _aliases(project: AnyProject) -> Aliases:
    from tunery.serving.aliases import Aliases

    return Aliases(Path(as_project(project).home) / "aliases.json")


def _time(text: str) -> datetime:
    units = {"d": "days", "h": "hours", "m": "minutes"}
    now = datetime.now(UTC)
    try:
        if text[-1:] in units and text[:-1].isdigit():
            return now + timedelta(**{units[text[-1]]: int(text[:-1])})
        when = datetime.fromisoformat(text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f'"{text}" is no time', hint='use "30d", "12h" or a date such as 2027-01-31') from None
    if when <= now:
        raise ConfigError(f"{text} is over already", hint="a key needs a time to come")
    return when
