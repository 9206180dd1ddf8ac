"""Names that stand for versions: all requests to one, a share to each of several, and one more in their shadow."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery.config import nearest
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
        alias = _alias(name, versions, shadow)
        with self._file.changing() as state:
            state[name] = {"versions": dict(alias.versions), "shadow": alias.shadow}
        return alias

    def remove(self, name: str) -> None:
        """Raises RunError when there is none."""
        with self._file.changing() as state:
            if name not in state:
                near = nearest(name, state)
                hint = f'did you mean "{near}"?' if near else f"there are: {', '.join(state) or 'none'}"
                raise RunError(f'no alias "{name}"', hint=hint)
            del state[name]

    def pick(self, name: str, sticky: str | None = None) -> str:
        """The version that this request goes to, the same for the same `sticky` while the weights stay; `name` itself
        where it is no alias, or has just ceased to be one.

        Each version draws a time from `sticky`, the shorter the more it weighs, and the first wins (weighted rendezvous
        hashing). Of two versions, only those requests move that must when the weights change; of more, at most twice as
        many, which is the best that a function of the weights alone can promise.
        """
        alias = self.all().get(name)
        if alias is None:
            return name
        weighted = {ref: weight for ref, weight in alias.versions.items() if weight > 0}
        if len(weighted) == 1:
            return next(iter(weighted))
        if sticky is None:
            return random.choices(list(weighted), list(weighted.values()))[0]
        return min(weighted, key=lambda ref: -math.log(_drawn(f"{name}\0{sticky}\0{ref}")) / weighted[ref])

    def shadow(self, name: str) -> str | None:
        alias = self.all().get(name)
        return alias.shadow if alias else None


def _drawn(text: str) -> float:
    """A number in (0, 1] that looks random and depends on `text` alone."""
    seven = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=7).digest()
    return (int.from_bytes(seven, "big") + 1) / 2**56


def _parsed(state: Any) -> dict[str, Alias]:
    return {name: _alias(name, entry["versions"], entry.get("shadow")) for name, entry in state.items()}


def _alias(name: str, versions: Mapping[str, float], shadow: str | None) -> Alias:
    """Raises ConfigError for what cannot be: typed on a command line, or written into the file by hand."""
    if not _NAME.fullmatch(name) or _VERSION.fullmatch(name) or name.endswith("@latest"):
        raise ConfigError(f'"{name}" cannot be an alias', hint='use "prod" or "shop@prod"; "shop@3" is a version')
    weights = versions.values()
    if not all(isinstance(w, int | float) and w >= 0 for w in weights) or not 0 < sum(weights) < math.inf:
        raise ConfigError(
            f"the weights of {name} must be numbers from 0 up, and one of them above 0",
            hint="for example shop@3=90 shop@4=10",
        )
    for ref in [*versions, *([shadow] if shadow else [])]:
        if not _VERSION.fullmatch(ref):
            raise ConfigError(f'an alias stands for versions, and "{ref}" is none', hint='name one as "shop@3"')
    if shadow in versions:
        raise ConfigError(f"{shadow} would be its own shadow", hint="leave it out of the versions, or of --shadow")
    return Alias(dict(versions), shadow)
