"""One version as an extractor: how a text becomes its prompt, and its answer values with their places and confidences.

Batches and services ask and read through it, so that both say the same of the same answer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunery import versions
from tunery.bases import Base
from tunery.data.template import Template, quick_template
from tunery.tasks import Profile, Structure, Task, task_by_name
from tunery.tasks.confidence import Calibrator, placed, row_confidence, slot_confidences
from tunery.tasks.score import Value, values_of
from tunery.types import Example, Message, ModelVersion

ANSWER_TOKENS = 512
_seen: dict[tuple[Base, str], dict[int, str]] = {}  # texts of tokens, by tokenizer


@dataclass(frozen=True)
class Reading:
    """What an answer says. `parsed` is its canonical form, `value` {attribute: value, or a list of them}; both are None
    where it cannot be parsed. `spans` have attribute, value, start, end, kind, flag and confidence of each value."""

    text: str
    parsed: str | None
    value: dict[str, Any] | None
    spans: list[dict[str, Any]]
    probability: float | None
    confidence: float | None


@dataclass(frozen=True)
class Model:
    """A version, or an untuned base, without its weights.

    `calibration` maps probabilities of whole answers and of single values to confidences, where an evaluation of the
    version has learnt how.
    """

    label: str
    base: Base
    template: str
    task: str
    adapter: str | None = None
    system: str | None = None
    instruction: str | None = None
    profile: Profile | None = None
    calibration: tuple[Calibrator | None, Calibrator | None] = (None, None)
    trust_remote_code: bool = False

    @property
    def writer(self) -> Template:
        """What writes its prompts; kept in the process."""
        return quick_template(self.base, self.template, self.trust_remote_code)

    @functools.cached_property
    def has_grammar(self) -> bool:
        return self.grammar() is not None

    def grammar(self) -> dict[str, Any] | None:
        """What answers are constrained to, where the task and the training rows tell."""
        return task_by_name(self.task).grammar(self.profile) if self.profile else None

    def example(self, text: str, *, system: str | None = None, instruction: str | None = None) -> Example:
        """The turns that ask about `text`, as the training rows had them unless told otherwise."""
        before = self.system if system is None else system
        own = self.instruction if instruction is None else instruction
        turns = (Message("user", "\n".join(filter(None, (own, text)))),)
        return Example("", (Message("system", before), *turns) if before else turns, None)

    def read(self, about: str, completion: Mapping[str, Any]) -> Reading:
        """What an answer about the text `about` says: `completion` has "text", "token_ids", "logprobs"."""
        task = task_by_name(self.task)
        text = completion["text"].strip()
        said = task.parse(text)
        values = values_of(task, said, about, self.profile)
        probability, sure = self._confidence(said, completion)
        whole, each = self.calibration
        return Reading(
            text=text,
            parsed=said and said.canonical,
            value=_record(task, said),
            spans=[_span(v, each(c) if each else None) for v, c in zip(values, sure, strict=True)],
            probability=_rounded(probability),
            confidence=_rounded(whole(probability) if whole else None),
        )

    def _confidence(
        self, said: Structure | None, completion: Mapping[str, Any]
    ) -> tuple[float | None, Sequence[float | None]]:
        slots = said.slots if said else ()
        ids, logprobs = completion["token_ids"], completion["logprobs"]
        if not ids or not logprobs:
            return None, [None] * len(slots)
        seen = _seen.setdefault((self.base, self.template), {})
        tokens = placed(ids, logprobs, completion["text"], self.writer.tokenizer, seen)
        each = slot_confidences(said, completion["text"].strip(), tokens) if said else []
        return row_confidence(tokens), each


def model_of(
    version: ModelVersion, base: Base, *, instruction: str | None = None, trust_remote_code: bool = False
) -> Model:
    """The model that a registered version is, over `base`; `instruction` instead of the one it was trained with."""
    return Model(
        label=version.ref,
        base=base,
        template=version.template,
        task=version.task,
        adapter=None if version.whole else version.ref,
        system=version.system,
        instruction=instruction or version.instruction,
        profile=versions.profile_of(version),
        calibration=versions.calibration_of(version),
        trust_remote_code=trust_remote_code,
    )


def _record(task: Task, said: Structure | None) -> dict[str, Any] | None:
    """{attribute: value, or a list where there are several}."""
    if said is None:
        return None
    found: dict[str, Any] = {}
    for path, value in said.slots:
        name = task.attribute(path)
        if name not in found:
            found[name] = value
        else:
            found[name] = [*(found[name] if isinstance(found[name], list) else [found[name]]), value]
    return found


def _span(value: Value, confidence: float | None) -> dict[str, Any]:
    g = value.grounding
    return {
        "attribute": value.attribute, "value": value.value, "start": g.start, "end": g.end, "kind": g.kind,
        "flag": value.flag, "confidence": _rounded(confidence),
    }  # fmt: skip


def _rounded(p: float | None) -> float | None:
    """To what a sum of log-probabilities is good for: its last digits depend on what was computed beside it."""
    return None if p is None else round(p, 4)
