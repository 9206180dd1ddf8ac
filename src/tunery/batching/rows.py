"""What a row asks, and how its answer is written: rows of a table here, OpenAI's batch requests in `openai`."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunery.data.files import json_type
from tunery.data.template import Template
from tunery.errors import DataError, TuneryError
from tunery.extraction import Model
from tunery.tasks import Task, task_by_name
from tunery.types import Example, Message

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_COLUMNS = ("text", "input", "sentence", "content", "query", "prompt", "messages")
ROW_SAMPLING = frozenset(
    "temperature top_p top_k min_p max_tokens seed stop presence_penalty frequency_penalty repetition_penalty".split()
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One row's request. `text` is what values of the answer are looked up in; `sampling` a JSON object or None."""

    model: Model
    prompt: list[int]
    text: str
    max_tokens: int
    sampling: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows with a column of text or of messages.

    `columns` maps what we know of rows to their columns: "text", and "id", "model", "sampling", "gold" where given.
    """

    models: Mapping[str, Model]  # by every name that a row may use
    default: str
    columns: Mapping[str, str]
    context: int
    limit: int
    constrained: bool
    prefix: str = ""

    def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[Ask | str]:
        """Each row's request, or why it cannot be asked."""
        found: list[Ask | str] = []
        wanted: dict[str, list[int]] = {}
        examples: list[Example | None] = []
        for i, row in enumerate(rows):
            try:
                model = self._model(row)
                example = self._example(row, model)
                sampling = self._sampling(row)
                limit = sampling.pop("max_tokens", self.limit)
                ask = Ask(model, [], self._text(example, model), limit, json.dumps(sampling) if sampling else None)
            except (DataError, ValueError, TypeError) as error:
                found.append(getattr(error, "message", str(error)))
                examples.append(None)
                continue
            found.append(ask)
            examples.append(example)
            wanted.setdefault(model.label, []).append(i)
        for places in wanted.values():
            first = found[places[0]]
            assert isinstance(first, Ask)
            prompts = prompts_of(first.model.writer, [e for i in places if (e := examples[i])])
            for i, prompt in zip(places, prompts, strict=True):
                ask = found[i]
                assert isinstance(ask, Ask)
                found[i] = prompt if isinstance(prompt, str) else fitting(ask, prompt, self.context)
        return found

    def _model(self, row: Mapping[str, Any]) -> Model:
        name = row.get(self.columns["model"]) if "model" in self.columns else None
        if name in (None, ""):
            return self.models[self.default]
        if name not in self.models:
            raise DataError(f'no model "{name}" in this batch')
        return self.models[name]

    def _example(self, row: Mapping[str, Any], model: Model) -> Example:
        column = self.columns["text"]
        value = row.get(column)
        if column == "messages" and isinstance(value, str):
            value = json.loads(value)
        if isinstance(value, list):
            return Example("", messages_of(value), None)
        if not isinstance(value, str):
            raise DataError(f'column "{column}" holds {json_type(value)}, not text')
        own = {key: row[key] for key in ("system", "instruction") if isinstance(row.get(key), str)}
        return model.example(value, **own)

    def _text(self, example: Example, model: Model) -> str:
        return example.text.removeprefix(f"{model.instruction}\n") if model.instruction else example.text

    def _sampling(self, row: Mapping[str, Any]) -> dict[str, Any]:
        value = row.get(self.columns["sampling"]) if "sampling" in self.columns else None
        value = json.loads(value) if isinstance(value, str) and value else value
        if not value:
            return {}
        if not isinstance(value, dict):
            raise DataError(f'column "{self.columns["sampling"]}" holds {json_type(value)}, not an object')
        value = {k: v for k, v in value.items() if v is not None}  # a struct of Parquet names all keys in every row
        if unknown := sorted(set(value) - ROW_SAMPLING):
            raise DataError(f"a row cannot set {', '.join(unknown)}; it can: {', '.join(sorted(ROW_SAMPLING))}")
        return value

    # --- answers ---

    @property
    def names(self) -> frozenset[str]:
        """The columns that answers add."""
        return self._names  # asked for every row

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.schema({}).names)

    def id_of(self, row: Mapping[str, Any]) -> str:
        """The id of a row of the output."""
        return str(row[self.columns.get("id", f"{self.prefix}row_id")])

    def schema(self, given: Mapping[str, pa.DataType]) -> pa.Schema:
        """The columns of an output whose input has the columns `given`."""
        import pyarrow as pa

        span = pa.struct({
            "attribute": pa.string(), "value": pa.string(), "start": pa.int64(), "end": pa.int64(),
            "kind": pa.string(), "flag": pa.string(), "confidence": pa.float64(),
        })  # fmt: skip
        own = {
            "row_id": pa.string(), "output": pa.string(), "parsed": pa.string(), "value": pa.string(),
            "spans": pa.list_(span), "probability": pa.float64(), "confidence": pa.float64(),
            "finish_reason": pa.string(), "prompt_tokens": pa.int64(), "completion_tokens": pa.int64(),
            "model": pa.string(),
        }  # fmt: skip
        if "id" in self.columns:
            del own["row_id"]
        return pa.schema({**given, **{self.prefix + name: kind for name, kind in own.items()}})

    def answer(
        self, row_id: str, row: Mapping[str, Any], ask: tuple[str, str], completion: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The row with its answer, and what it adds to the batch's counts; `ask` is (model's label, text)."""
        model = next(m for m in self.models.values() if m.label == ask[0])
        read = model.read(ask[1], completion)
        own = {
            "output": read.text,
            "parsed": read.parsed,
            "value": read.value,
            "spans": read.spans,
            "probability": read.probability,
            "confidence": read.confidence,
            "finish_reason": completion["finish_reason"],
            "prompt_tokens": completion["prompt_tokens"],
            "completion_tokens": completion["completion_tokens"],
            "model": model.label,
        }
        if "id" not in self.columns:
            own = {"row_id": row_id, **own}
        best = read.confidence if read.confidence is not None else read.probability
        counts: dict[str, float] = {
            "parsed": read.parsed is not None,
            "values": len(read.spans),
            "flagged": sum(span["flag"] is not None for span in read.spans),
            "unsure": best is not None and best < 0.5,
        }
        if "gold" in self.columns:
            counts |= _gold(task_by_name(model.task), read.text, row.get(self.columns["gold"]))
        return {**row, **{self.prefix + k: v for k, v in own.items()}}, counts

    def failure(self, row_id: str, where: str, row: Any, reason: str) -> dict[str, Any]:
        """A row of the errors table; `row` is its columns, or the text of what is no row."""
        return {"row_id": row_id, "where": where, "reason": reason, "input": row}

    def failed_id(self, failed: Mapping[str, Any]) -> str:
        return failed["row_id"]

    def example(self, failed: Mapping[str, Any]) -> str:
        """A failed row in one line."""
        return f"{failed['where']}: {failed['reason']}"


def messages_of(value: Any) -> tuple[Message, ...]:
    """Turns from a list of {"role", "content"}. Raises DataError for anything else."""
    turns = []
    for turn in value if isinstance(value, list) else [None]:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(p.get("text", "")) for p in content)
        if role not in ("system", "user", "assistant", "tool") or not isinstance(content, str):
            raise DataError('messages must be a list of {"role": ..., "content": text}')
        turns.append(Message(role, content))
    if not turns:
        raise DataError("there are no messages")
    return tuple(turns)


def prompts_of(template: Template, examples: Sequence[Example]) -> list[list[int] | str]:
    """Token ids of each, or why there are none: one that the template refuses must not take the others with it."""
    try:
        return list(template.prompts(examples))
    except TuneryError:
        found: list[list[int] | str] = []
        for example in examples:
            try:
                found += template.prompts([example])
            except TuneryError as error:
                found.append(error.message)
        return found


def fitting(ask: Ask, prompt: list[int], context: int) -> Ask | str:
    """`ask` with its prompt, where the model can read all of it and has room for an answer."""
    if len(prompt) >= context:
        return f"the prompt has {len(prompt):,} tokens, the model's context is {context:,}"
    return Ask(ask.model, prompt, ask.text, ask.max_tokens, ask.sampling)


def _gold(task: Task, text: str, gold: Any) -> dict[str, float]:
    from tunery.tasks.score import score_row

    if not isinstance(gold, str):
        return {"gold": 0}
    score = score_row(task, text, gold)
    return {
        "gold": 1, "exact": score.exact, "canonical": score.canonical, "hits": score.hits,
        "predicted": score.predicted, "wanted": score.gold,
    }  # fmt: skip
