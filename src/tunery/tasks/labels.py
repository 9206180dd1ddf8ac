"""Labels, one or several, and free text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tunery.tasks.base import Structure, Task
from tunery.tasks.functions import quoted

if TYPE_CHECKING:
    from tunery.tasks.profile import Profile


class LabelTask(Task):
    """One label, or several joined by commas, in one line. Canonical: spaces folded, labels sorted.

    A slot is ("label", label).
    """

    name = "label"

    def parse(self, text: str) -> Structure | None:
        labels = split_labels(text) if "\n" not in text.strip() else []
        return Structure(", ".join(sorted(labels)), tuple(("label", v) for v in labels)) if labels else None

    def form(self, outputs: Iterable[str]) -> dict[str, Any]:
        return {"several": any(len(split_labels(o)) > 1 for o in outputs)}

    def grammar(self, profile: Profile) -> dict[str, Any] | None:
        """A choice of the labels seen, or a list of them where training rows have several."""
        attribute = profile.attributes.get("label")
        if attribute is None or attribute.kind != "closed":
            return None
        if not profile.form.get("several"):
            return {"choice": list(attribute.values)}
        labels = " | ".join(map(quoted, attribute.values))
        return {"grammar": f'root ::= label ("," " "? label)*\nlabel ::= {labels}\n'}


class TextTask(Task):
    """Free text: canonical is the text with spaces folded, and there is one slot."""

    name = "text"

    def parse(self, text: str) -> Structure | None:
        folded = " ".join(text.split())
        return Structure(folded, (("text", folded),)) if folded else None


def split_labels(text: str) -> list[str]:
    """The labels of an output, spaces folded."""
    return [label for part in text.split(",") if (label := " ".join(part.split()))]


def is_label_set(outputs: list[str]) -> bool:
    """Whether a set of labels explains these outputs: short ones that keep coming back."""
    if any(len(o) > 200 or "\n" in o.strip() for o in outputs):
        return False
    counts = Counter(label for o in outputs for label in split_labels(o))
    n = counts.total()
    return n >= 20 and len(counts) <= 200 and sum(c == 1 for c in counts.values()) <= 0.05 * n
