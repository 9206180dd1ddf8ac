"""Evaluation: the same rows through one or more models, scored by the Task, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunery.bases import Base
from tunery.config import EvalSpec
from tunery.data.template import Template
from tunery.engine.vllm import Adapter, generate
from tunery.errors import DataError, EngineError
from tunery.tasks import Task, score_rows
from tunery.tasks.score import DEFINITIONS
from tunery.types import Completion, Dataset, Report


def evaluate(
    spec: EvalSpec,
    *,
    base: Base,
    models: Mapping[str, Adapter | None],
    data: Dataset,
    template: Template,
    task: Task,
    log_dir: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Answer every row of `data` with each of `models` (label -> adapter, None is the base alone) and score it.

    One engine serves all models. A row without an answer counts as wrong and keeps its error in the samples.
    Raises DataError for rows without gold, EngineError when no row was answered.
    """
    examples = [e for e in data.examples if e.target is not None]
    if len(examples) < len(data.examples) or not examples:
        raise DataError(
            f"{len(data.examples) - len(examples)} of {len(data.examples)} rows of {data.name} have no gold output",
            hint="evaluate on labelled rows; for unlabelled ones there is `tunery batch`",
        )
    prompts = template.prompts(examples)
    limit = spec.sampling.max_tokens or answer_budget([e.target or "" for e in examples], template)
    requests = [
        {
            "id": f"{label}/{i}",
            "prompt_token_ids": prompt,
            "model": adapter and adapter.name,
            "max_tokens": limit,
        }
        for label, adapter in models.items()
        for i, prompt in enumerate(prompts)
    ]
    answers: dict[str, Completion] = {}
    completions = generate(
        requests,
        base=base.path,
        adapters=[a for a in models.values() if a],
        spec=spec.engine,
        sampling=spec.sampling.model_dump(exclude={"max_tokens"}, exclude_none=True)
        | {"stop_token_ids": template.stop_ids},
        log_dir=log_dir,
    )
    for completion in completions:
        answers[completion.example_id] = completion
        on_progress(len(answers), len(requests))
    if all(c.error for c in answers.values()):
        reason = next((c.error for c in answers.values() if c.error), "it ended without an answer")
        raise EngineError(f"no row was answered: {reason}", hint=f"the engine's log is in {log_dir}")

    golds = [e.target or "" for e in examples]
    samples: list[dict[str, Any]] = [{"id": e.id, "input": e.text, "gold": e.target, "answers": {}} for e in examples]
    metrics = {}
    for label in models:
        said = [answers.get(f"{label}/{i}") for i in range(len(examples))]
        texts = [c.text.strip() if c else "" for c in said]
        metrics[label], scores = score_rows(task, list(zip(texts, golds, strict=True)))
        for sample, text, completion, score in zip(samples, texts, said, scores, strict=True):
            sample["answers"][label] = {
                "text": text,
                "exact": bool(score.exact),
                "canonical": bool(score.canonical),
                "slot_errors": score.slot_errors,
                "finish_reason": completion and completion.finish_reason,
                "error": completion.error if completion else "no answer",
            }
    return Report(task.name, len(examples), metrics, DEFINITIONS, samples)


def answer_budget(golds: Sequence[str], template: Template) -> int:
    """Tokens an answer may take: half again the longest gold one, so that a model that runs on is stopped."""
    longest = max(
        (len(ids) for ids in template.tokenizer(list(golds), add_special_tokens=False)["input_ids"]),
        default=0,
    )
    return max(16, longest + longest // 2)
