"""Batch inference: a file of rows in, the same rows with answers out.

The output appears under its name only when it is whole: rows go to a part file, which is renamed at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery.bases import Base
from tunery.config import BatchSpec
from tunery.data import load_rows
from tunery.data.template import Template
from tunery.engine.vllm import Adapter, Setup, generate
from tunery.errors import ConfigError, DataError
from tunery.storage import write_atomic
from tunery.tasks import Task
from tunery.types import Completion, Example, Message

ANSWER_TOKENS = 512
_TEXT_COLUMNS = ("text", "input", "sentence", "content", "query", "prompt")


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Counts of one batch: rows = answered + failed."""

    output: Path
    rows: int
    answered: int
    failed: int
    parsed: int
    prompt_tokens: int
    completion_tokens: int


def run_batch(
    spec: BatchSpec,
    *,
    base: Base,
    adapter: Adapter | None,
    template: Template,
    task: Task,
    system: str | None,
    instruction: str | None,
    log_dir: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BatchResult:
    """Answer every row of `spec.input` and write `spec.output` as JSONL or Parquet.

    Output rows hold the input's columns and `output` (raw text), `parsed` (canonical text, or null), `finish_reason`,
    `prompt_tokens`, `completion_tokens`, `error`, in the input's order. `system` and `instruction` are what all
    training rows shared; a row's own columns of these names come first.
    """
    if not spec.input or not spec.output:
        raise ConfigError("a batch needs an input and an output", hint="tunery batch rows.jsonl answers.jsonl")
    output = Path(spec.output)
    if output.exists():
        raise ConfigError(f"{output} exists already", hint="name another output, or remove it first")
    if output.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f'cannot write "{output.suffix or output.name}"', hint="end the output in .jsonl or .parquet")
    rows = load_rows(spec.input)
    clash = sorted(set(rows[0]) & {"parsed", "finish_reason", "prompt_tokens", "completion_tokens", "error"})
    if clash:
        raise DataError(f"the input already has the column(s) {', '.join(clash)}", hint="rename them in the input")
    examples = _examples(rows, spec.column, system, instruction, spec.input)
    limit = spec.sampling.max_tokens or min(ANSWER_TOKENS, base.context // 2)
    requests = [
        {"id": str(i), "prompt_token_ids": ids, "model": adapter and adapter.name, "max_tokens": limit}
        for i, ids in enumerate(template.prompts(examples))
    ]
    answers: dict[int, Completion] = {}
    sampling = spec.sampling.model_dump(exclude={"max_tokens"}, exclude_none=True)
    sampling |= {"stop_token_ids": template.stop_ids}
    setup = Setup(base.path, [adapter] if adapter else [], spec.engine, sampling, log_dir=log_dir)
    for completion in generate(requests, setup):
        answers[int(completion.example_id)] = completion
        on_progress(len(answers), len(rows))
    done = [_row(row, answers.get(i), task) for i, row in enumerate(rows)]
    _write(output, done)
    failed = sum(bool(r["error"]) for r in done)
    return BatchResult(
        output=output,
        rows=len(done),
        answered=len(done) - failed,
        failed=failed,
        parsed=sum(r["parsed"] is not None for r in done),
        prompt_tokens=sum(r["prompt_tokens"] for r in done),
        completion_tokens=sum(r["completion_tokens"] for r in done),
    )


def _row(row: dict[str, Any], completion: Completion | None, task: Task) -> dict[str, Any]:
    if completion is None:
        completion = Completion("", "", error="the engine ended without an answer")
    text = completion.text.strip()
    structure = task.parse(text) if not completion.error else None
    return row | {
        "output": text,
        "parsed": structure and structure.canonical,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "error": completion.error,
    }


def _examples(
    rows: Sequence[dict[str, Any]], column: str | None, system: str | None, instruction: str | None, source: str
) -> list[Example]:
    columns = list(rows[0])
    name = column or next((c for c in _TEXT_COLUMNS if c in columns), None)
    if name is None or name not in columns:
        raise DataError(
            f'{source} has no column "{name}"' if name else f"{source}: which column holds the text?",
            hint=f"--column NAME, one of: {', '.join(columns)}",
        )
    examples = []
    for i, row in enumerate(rows):
        text = row.get(name)
        if not isinstance(text, str):
            raise DataError(f'column "{name}" holds no text', where=f"{source}, row {i + 1}")
        before = row.get("system") if isinstance(row.get("system"), str) else system
        own = row.get("instruction") if isinstance(row.get("instruction"), str) else instruction
        turns = (Message("user", "\n".join(filter(None, (own, text)))),)
        examples.append(Example(str(i), (Message("system", before), *turns) if before else turns, None))
    return examples


def _write(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    if output.suffix == ".jsonl":
        write_atomic(output, "".join(json.dumps(r, ensure_ascii=False, default=str) + "\n" for r in rows))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = output.with_name(output.name + ".part")
    pq.write_table(pa.Table.from_pylist(list(rows)), part)
    part.rename(output)
