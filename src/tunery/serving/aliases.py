"""Names that stand for versions: all requests to one, a share to each of several, and one more in their shadow."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery.errors import ConfigError, RunError
from tunery.serving.statefile import StateFile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[A-Za-z][A-Za-z0-9._-]{0,31})?")
_VERSION = re.compile(r"[^@\s]+@[0-9]+")


@dataclass(frozen=True)
class Alias:
    """`versions` has the weight of each; `shadow` answers too, unseen, and is compared."""

    versions: Mapping[str, float]
    shadow: str | None = None


class Aliases:
    """The aliases in a file, which may change while a service reads it."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, {}, _parsed)

    def all(self) -> Mapping[str, Alias]:
        return self._file.value

    def set(self, name: str, versions: Mapping[str, float], shadow: str | None = None) -> Alias:
        """Let `name` stand for `versions` ("name@3": weight). Raises ConfigError for what cannot be."""
        if not _NAME.fullmatch(name) or _VERSION.fullmatch(name):
            raise ConfigError(f'"{name}" cannot be an alias', hint='use "prod" or "shop@prod"; "shop@3" is a version')
        if not versions or min(versions.values()) < 0 or sum(versions.values()) <= 0:
            raise ConfigError(
                "the weights must be 0 or more, and one of them above", hint="for example shop@3=90 shop@4=10"
            )
        for ref in [*versions, *([shadow] if shadow else [])]:
            if not _VERSION.fullmatch(ref):
                raise ConfigError(f'an alias stands for versions, and "{ref}" is none', hint='name one as "shop@3"')
        if shadow in versions:
            raise ConfigError(f"{shadow} would be its own shadow", hint="leave it out of the versions, or of --shadow")
        with self._file.changing() as state:
            state[name] = {"versions": dict(versions), "shadow": shadow}
        return self.all()[name]

    def remove(self, name: str) -> None:
        """Raises RunError when there is none."""
        with self._file.changing() as state:
            if name not in state:
                raise RunError(f'no alias "{name}"', hint=f"there are: {', '.join(state) or 'none'}")
            del state[name]

    def pick(self, name: str, sticky: str | None = None) -> str:
        """The version that this request goes to; the same for the same `sticky` while the weights stay.

        Each version draws a number from `sticky`, scaled by its weight, and the largest wins (weighted rendezvous
        hashing): when weights change, only as many move as must.
        """
        alias = self.all()[name]
        weighted = {ref: weight for ref, weight in alias.versions.items() if weight > 0}
        if len(weighted) == 1:
            return next(iter(weighted))
        if sticky is None:
            return random.choices(list(weighted), list(weighted.values()))[0]
        return max(weighted, key=lambda ref: _drawn(f"{name}\0{sticky}\0{ref}") ** (1 / weighted[ref]))

    def shadow(self, name: str) -> str | None:
        return self.all()[name].shadow


def _drawn(text: str) -> float:
    """A number in (0, 1] that looks random and depends on `text` alone."""
    return (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") + 1) / 2**56


def _parsed(state: Any) -> dict[str, Alias]:
    return {name: Alias(dict(entry["versions"]), entry["shadow"]) for name, entry in state.items()}
