"""From examples to what a stage trains on: the rows of each unit, within the length that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tunery.bases import Base
from tunery.config import TrainSpec
from tunery.data.template import Row, Template
from tunery.errors import ConfigError, DataError
from tunery.types import Dataset, Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answer(Row):
    """A row whose target is judged, not imitated."""

    worth: float = 0.0  # what the target counts: 1 wanted, -1 unwanted, 0 neither; in GRPO its advantage
    reward: float = 0.0
    reference: Tensor | None = field(default=None, compare=False)  # (len(target),) log-probabilities, reference model
    sampled: Tensor | None = field(default=None, compare=False)  # (len(target), 4) what `Ppo` notes of each token


Unit = Sequence[Row]  # one row, or rows with the same prompt
Encoded = tuple[list[Example], list[Unit]]


def encode(
    data: Dataset, template: Template, spec: TrainSpec, base: Base, notes: list[str]
) -> tuple[list[Example], list[Unit]]:
    """The units of `data` for `spec.stage`, and the examples whose answers are good ones (each has its unit in sft).

    Raises DataError for rows that the stage cannot learn from, or, with overlong: error, that are too long.
    """
    limit = _limit(spec, base)
    if spec.stage == "pt":
        return list(data.examples), _texts(data, template, limit)
    examples, units = _ENCODERS[spec.stage](data, template, spec.mask_history)
    kept = _within(data, units, spec, base, notes)
    examples = [examples[i] for i, _ in kept]
    units = [unit for _, unit in kept]
    if spec.samples:
        _check_room(units, spec, base)
    if spec.stage == "kto":
        good = [e for e, (row,) in zip(examples, units, strict=True) if isinstance(row, Answer) and row.worth > 0]
        return good, _mismatched(data, units, limit)
    return examples, units


def _answers(data: Dataset, template: Template, mask_history: bool) -> Encoded:
    """`sft`, `grpo`, `ppo`: each example by itself."""
    examples = list(data.examples)
    if any(_is_pair(e) for e in examples):
        hint = (
            f"stage: dpo learns from pairs; for the chosen alone: tunery data export {data.name} good.jsonl --to alpaca"
        )
        raise DataError(f"{data.name} holds pairs of a chosen and a rejected answer", hint=hint)
    if bad := sum(e.meta.get("kto_tag") is False for e in examples):
        hint = "stage: kto learns from both; or leave them out: tunery data export NAME good.jsonl --to alpaca"
        raise DataError(f"{bad:,} answers of {data.name} are tagged as ones to avoid; this would learn them", hint=hint)
    return examples, [(row,) for row in template.rows(examples, mask_history=mask_history)]


def _pairs(data: Dataset, template: Template, _: bool) -> Encoded:
    """`dpo`, `orpo`, `simpo`: the chosen answer before the rejected one; of a conversation, the last answers."""
    examples = list(data.examples)
    missing = next((e for e in examples if not _is_pair(e)), None)
    if missing:
        tagged = " (stage: kto learns from tags)" if "kto_tag" in missing.meta else ""
        hint = f"give rows the columns chosen and rejected, and their entry ranking: true{tagged}"
        raise DataError(f'{data.name} holds no pairs: "{missing.id}" has no rejected answer', hint=hint)
    chosen = template.rows(examples, mask_history=True)
    rejected = template.rows([_rejected(e) for e in examples], mask_history=True)
    pairs = zip(map(_judged, chosen), map(_judged, rejected), strict=True)
    return examples, list(pairs)


def _compared(data: Dataset, template: Template, mask_history: bool) -> Encoded:
    """`rm`: pairs whose answers end with the token that ends sampled ones, since there they are judged."""
    examples, pairs = _pairs(data, template, mask_history)
    stop = template.stop_ids
    return examples, [tuple(replace(row, target=until(row.target, stop)) for row in pair) for pair in pairs]


def _tagged(data: Dataset, template: Template, _: bool) -> Encoded:
    """`kto`: each answer with its tag; a pair is two."""
    examples: list[Example] = []
    worths: list[float] = []
    for e in data.examples:
        tag = True if _is_pair(e) else e.meta.get("kto_tag")
        if not isinstance(tag, bool):
            hint = "name the column of tags with columns.kto_tag: true for answers to imitate, false for ones to avoid"
            raise DataError(f'{data.name} holds no tags: "{e.id}" has no kto_tag', hint=hint)
        examples += [e, _rejected(e)] if _is_pair(e) else [e]
        worths += [1.0, -1.0] if _is_pair(e) else [1.0 if tag else -1.0]
    if len(set(worths)) < 2:
        kind = "imitate" if worths[0] > 0 else "avoid"
        raise DataError(
            f"every answer of {data.name} is tagged as one to {kind}", hint="kto needs answers of both tags"
        )
    rows = template.rows(examples, mask_history=True)
    return examples, [(_judged(row, worth),) for row, worth in zip(rows, worths, strict=True)]


_ENCODERS: dict[str, Callable[[Dataset, Template, bool], Encoded]] = {
    "sft": _answers, "grpo": _answers, "ppo": _answers, "dpo": _pairs, "orpo": _pairs, "simpo": _pairs, "kto": _tagged,
    "rm": _compared,
}  # fmt: skip


def _is_pair(example: Example) -> bool:
    return isinstance(example.meta.get("rejected"), str) and "chosen" not in example.meta


def _rejected(example: Example) -> Example:
    return replace(example, id=f"{example.id}/rejected", target=example.meta["rejected"])


def _judged(row: Row, worth: float = 0.0) -> Answer:
    return Answer(row.id, row.prompt, row.target, worth=worth)


def _mismatched(data: Dataset, units: Sequence[Unit], limit: int) -> list[Unit]:
    """Each row and, beside it, its prompt with the answer of the row before, as LLaMA-Factory and TRL pair them.

    That answer only tells how far the model has moved: where it is too long, its beginning does.
    """
    rows = [row for (row,) in units]
    if len({tuple(row.target) for row in rows}) < 2:
        raise DataError(f"all answers of {data.name} are the same", hint="kto compares each with that of another row")
    others = [rows[-1], *rows[:-1]]
    return [
        (row, Answer(f"{row.id}/mismatched", row.prompt, other.target[: max(1, limit - len(row.prompt))]))
        for row, other in zip(rows, others, strict=True)
    ]


def _texts(data: Dataset, template: Template, limit: int) -> list[Unit]:
    """`pt`: texts as they are, with the end of text after each; one over `limit` tokens goes on in a further row."""
    answered = next((e for e in data.examples if e.target is not None or len(e.messages) > 1), None)
    if answered:
        hint = 'stage: sft learns from answers; for text alone map one column: "columns": {"prompt": "text"}'
        raise DataError(f'stage: pt reads plain text, and "{answered.id}" of {data.name} is a conversation', hint=hint)
    first, last = template.tokenizer.bos_token_id, template.tokenizer.eos_token_id
    units: list[Unit] = []
    for example, ids in zip(data.examples, template.texts([e.text for e in data.examples]), strict=True):
        tokens = [*([] if first is None else [first]), *ids, *([] if last is None else [last])]
        for number, at in enumerate(range(0, max(1, len(tokens) - 1), limit - 1), 1):
            part = tokens[at : at + limit]  # its first token is the last of the part before: each is predicted once
            units.append((Row(example.id if at == 0 else f"{example.id}/{number}", part[:1], part[1:]),))
    return units


def _limit(spec: TrainSpec, base: Base) -> int:
    return min(spec.cutoff_len or base.context, base.context)


def _within(
    data: Dataset, units: Sequence[Unit], spec: TrainSpec, base: Base, notes: list[str]
) -> list[tuple[int, Unit]]:
    """The units that are short enough and their places, after `spec.overlong` has dealt with the others."""
    limit = _limit(spec, base)
    over = [row for unit in units for row in unit if len(row) > limit]
    if not over:
        return list(enumerate(units))
    longest = max(map(len, over))
    if spec.overlong == "error":
        named = ", ".join(r.id for r in over[:5]) + (", ..." if len(over) > 5 else "")
        raise DataError(
            f"{len(over)} of {sum(map(len, units))} rows of {data.name} are longer than {limit} tokens "
            f"(longest {longest}): {named}",
            hint=f"raise cutoff_len (this base reads {base.context}), or choose overlong: drop or truncate",
        )
    if spec.overlong == "truncate":
        notes.append(f"{data.name}: {len(over)} rows cut to {limit} tokens (longest {longest})")
        return [(i, _cut(unit, limit)) for i, unit in enumerate(units)]
    kept = [(i, unit) for i, unit in enumerate(units) if max(map(len, unit)) <= limit]
    notes.append(f"{data.name}: {len(over)} rows over {limit} tokens dropped, {len(kept)} kept")
    if not kept:
        raise DataError(f"every row of {data.name} is longer than {limit} tokens", hint="raise cutoff_len")
    return kept


def _cut(unit: Unit, limit: int) -> Unit:
    """The end of the prompt goes first, the same of all answers; a target that alone is too long loses its end."""
    if len(unit) == 1:
        return (unit[0].cut(limit),)
    room = min(max(len(row.target) for row in unit), limit - 1)
    prompt = unit[0].prompt[: limit - room]
    return tuple(replace(row, prompt=prompt, target=row.target[: limit - len(prompt)]) for row in unit)


def _check_room(units: Sequence[Unit], spec: TrainSpec, base: Base) -> None:
    longest = max(len(row.prompt) for unit in units for row in unit)
    if longest + spec.max_completion_length > base.context:
        raise ConfigError(
            f"a prompt of {longest} tokens and max_completion_length {spec.max_completion_length} are more than the "
            f"{base.context} tokens this base reads",
            hint="lower max_completion_length, or drop long rows with cutoff_len and overlong: drop",
        )


def until(ids: list[int], stop: Sequence[int]) -> list[int]:
    """`ids` up to the first token that ends an answer, or all of them."""
    end = next((at for at, token in enumerate(ids) if token in stop), len(ids) - 1)
    return ids[: end + 1]
