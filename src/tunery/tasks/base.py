"""The Task seam: what an output means, in every stage."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tunery.tasks.profile import Profile

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


class Structure(NamedTuple):
    """A parsed output: its canonical text, and its slots as (path, value) pairs, duplicates kept, as written.

    `canonical` is itself an output of the same meaning: parsing it gives it again.
    """

    canonical: str
    slots: tuple[tuple[str, str], ...]


class Task:
    """What an output means. A task of one's own defines `parse`; the rest has defaults.

    It is named by its import path, "module:Class", wherever the built-in ones are named "function" or "json".
    """

    name: str = ""

    def parse(self, text: str) -> Structure | None:
        """The meaning of an output; None when it is not, from end to end, of this task's form."""
        raise NotImplementedError

    def parse_tolerant(self, text: str) -> Structure | None:
        """As `parse`, forgiving what a person would: here, a code fence around the output."""
        return self.parse(text) or self.parse(unfenced(text))

    def attribute(self, path: str) -> str:
        """What the slots of `path` are counted under: the path, unless a task pools several."""
        return path

    def form(self, outputs: Iterable[str]) -> dict[str, Any]:
        """What this task's grammar has to know of training outputs beyond their attributes, as JSON values."""
        return {}

    def grammar(self, profile: Profile) -> dict[str, Any] | None:
        """vLLM's `structured_outputs` for outputs like those of the training rows; None: nothing to constrain."""
        return None


def unfenced(text: str) -> str:
    """The inside of the first code fence, or the text itself."""
    fence = _FENCE.search(text)
    return (fence[1] if fence else text).strip()
