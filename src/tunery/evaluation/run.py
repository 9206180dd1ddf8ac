"""The run: rows to the engine, answers to scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunery.config import EvalSpec
from tunery.data.template import Template
from tunery.engine.vllm import Adapter, Setup, generate
from tunery.errors import ConfigError, DataError, EngineError
from tunery.evaluation.details import Confidences, certainty, check_columns, confusions, slices, span_scores
from tunery.evaluation.robustness import with_unseen_names
from tunery.tasks import DEFINITIONS, Profile, Scores, Task
from tunery.tasks.confidence import Token, placed, row_confidence, slot_confidences
from tunery.tasks.score import score
from tunery.types import Completion, Dataset, Example, Report

BASE = "base"  # the untuned model's column
CONSTRAINED = " constrained"  # what a constrained model's column is called, after its label


@dataclass(frozen=True)
class Model:
    """What answers: a model on disk and, where there is one, the adapter on it."""

    path: Path
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Answered:
    """One model's answer to one row. `tokens` is None where the engine gave no log-probabilities."""

    text: str
    finish_reason: str | None = None
    error: str | None = None
    tokens: Sequence[Token] | None = None


def evaluate(
    spec: EvalSpec,
    *,
    models: Mapping[str, Model],
    data: Dataset,
    template: Template,
    task: Task,
    log_dir: Path,
    profile: Profile | None = None,
    instruction: str | None = None,
    calibration: Dataset | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Answer every row of `data` with each of `models` (by label; BASE is the untuned one) and score it.

    One engine serves all adapters of a base; models with other weights get theirs one after another. A row without an
    answer counts as wrong and keeps its error in the samples.
    `profile` is what the training rows taught; `instruction`, the text that all rows begin with; the rows of
    `calibration` are answered too, and teach how far a confidence can be trusted; with `spec.swap_names`, the rows are
    answered once more with copied names replaced by unseen ones, which `details[label]["swapped"]` reports.
    Raises DataError for rows without gold, EngineError when no row was answered, ConfigError for a slice column that
    the rows lack and for `constrained` or `swap_names` where there is no profile, grammar or name.
    """
    grammar = None
    if spec.constrained:
        grammar = task.grammar(profile) if profile else None
        if grammar is None:
            why = "the task has none" if profile else "the version was trained before Tunery kept what its rows teach"
            raise ConfigError(f"no grammar to constrain answers with: {why}", hint="evaluate without --constrained")
    examples = labelled(data)
    check_columns(examples, spec.slices)
    judged = labelled(calibration) if calibration else []
    swapped = _swapped(spec, task, examples, profile, instruction)
    everything = [*examples, *judged, *swapped.values()]
    prompts = template.prompts(everything)
    limit = spec.sampling.max_tokens or answer_budget([e.target or "" for e in everything], template)
    columns: dict[str, tuple[Model, bool]] = {}
    for label, model in models.items():
        columns[label] = (model, False)
        if grammar is not None and label != BASE:
            columns[label + CONSTRAINED] = (model, True)
    requests: dict[Path, list[dict[str, Any]]] = {}  # by the weights that answer
    for label, (model, constrained) in columns.items():
        requests.setdefault(model.path, []).extend(
            {
                "id": f"{label}/{i}",
                "prompt_token_ids": prompt,
                "model": model.adapter and model.adapter.name,
                "max_tokens": limit,
                "grammar": "task" if constrained else None,
            }
            for i, prompt in enumerate(prompts)
        )
    total = sum(map(len, requests.values()))
    sampling = spec.sampling.model_dump(exclude={"max_tokens"}, exclude_none=True)
    sampling |= {"stop_token_ids": template.stop_ids}
    if spec.confidence:
        sampling["logprobs"] = 0
    completions: dict[str, Completion] = {}
    for path, asked in requests.items():
        setup = Setup(
            path,
            [m.adapter for m in models.values() if m.adapter and m.path == path],
            spec.engine,
            sampling,
            {"task": grammar} if grammar else {},
            log_dir,
        )
        for completion in generate(asked, setup):
            completions[completion.example_id] = completion
            on_progress(len(completions), total)
    if all(c.error for c in completions.values()):
        reason = next((c.error for c in completions.values() if c.error), "it ended without an answer")
        raise EngineError(f"no row was answered: {reason}", hint=f"the engine's log is in {log_dir}")
    pieces: dict[int, str] = {}
    answers = {
        label: [answered(completions.get(f"{label}/{i}"), template, pieces) for i in range(len(prompts))]
        for label in columns
    }
    n, m = len(examples), len(examples) + len(judged)
    report = analyse(
        task,
        examples,
        {label: found[:n] for label, found in answers.items()},
        profile=profile,
        instruction=instruction,
        slice_columns=spec.slices,
        judged=(judged, {label: found[n:m] for label, found in answers.items()}),
    )
    if not swapped:
        return report
    details = {
        label: {**report.details[label], "swapped": swapped_metrics(task, examples, found[:n], swapped, found[m:])}
        for label, found in answers.items()
    }
    return replace(report, details=details)


def _swapped(
    spec: EvalSpec, task: Task, examples: Sequence[Example], profile: Profile | None, instruction: str | None
) -> dict[int, Example]:
    if not spec.swap_names:
        return {}
    found = with_unseen_names(task, examples, profile, instruction) if profile else {}
    if not found:
        raise ConfigError(
            "swap_names: no row has a copied name that can be swapped"
            if profile
            else "swap_names: the version was trained before Tunery kept what its rows teach",
            hint="evaluate without it",
        )
    return found


def swapped_metrics(
    task: Task,
    examples: Sequence[Example],
    said: Sequence[Answered],
    swapped: Mapping[int, Example],
    said_swapped: Sequence[Answered],
) -> dict[str, Any]:
    """Metrics of the rows that have swapped names: "before", as they were, and "after"; and the swapped rows."""
    before = score(task, [(said[i].text, examples[i].target or "") for i in swapped])
    pairs = [(a.text, e.target or "") for a, e in zip(said_swapped, swapped.values(), strict=True)]
    after = score(task, pairs)
    names = ("exact_match", "canonical_match", "slot_f1", "slot_f1_macro")
    return {
        "n": len(swapped),
        "before": {k: before.metrics[k] for k in names},
        "after": {k: after.metrics[k] for k in names},
        "rows": [
            {"id": e.id, "input": e.text, "gold": gold, "text": text, "canonical": bool(row.canonical)}
            for e, (text, gold), row in zip(swapped.values(), pairs, after.rows, strict=True)
        ],
    }


def analyse(
    task: Task,
    examples: Sequence[Example],
    answers: Mapping[str, Sequence[Answered]],
    *,
    profile: Profile | None = None,
    instruction: str | None = None,
    slice_columns: Sequence[str] = (),
    judged: tuple[Sequence[Example], Mapping[str, Sequence[Answered]]] = ((), {}),
) -> Report:
    """Score answers, model by model and row by row. `judged` are the rows to calibrate confidences on.

    Raises ConfigError for a slice column that the rows do not have.
    """
    golds = [e.target or "" for e in examples]
    texts = [own_text(e, instruction) for e in examples]
    groups = slices(task, examples, texts, golds, profile, slice_columns)
    samples: list[dict[str, Any]] = [
        {"id": e.id, "input": e.text, "text": text, "gold": e.target, "answers": {}}
        | {"slices": {name: values[i] for name, values in groups.items()}}
        for i, (e, text) in enumerate(zip(examples, texts, strict=True))
    ]
    metrics, details = {}, {}
    gold_scores = score(task, [(g, g) for g in golds], texts=texts, resamples=2)
    for label, said in answers.items():
        scores = score(task, [(a.text, g) for a, g in zip(said, golds, strict=True)], texts=texts, profile=profile)
        metrics[label] = scores.metrics
        judged_rows, judged_answers = judged
        known = _confidences(task, judged_rows, judged_answers.get(label, ()), None)
        here = _confidences(task, examples, said, scores)
        sure, calibrated = certainty(here, known)
        details[label] = {
            "attributes": scores.attributes,
            "confusions": confusions(scores),
            "slices": {name: slice_metrics(scores, values) for name, values in groups.items()},
            "spans": span_scores(gold_scores.values, scores.values),
            "confidence": sure,
            "errors": sum(a.error is not None for a in said),
        }
        for i, (sample, answer) in enumerate(zip(samples, said, strict=True)):
            row = scores.rows[i]
            sample["answers"][label] = {
                "text": answer.text,
                "exact": bool(row.exact),
                "canonical": bool(row.canonical),
                "slot_errors": row.slot_errors,
                "wrong": [list(w) for w in row.wrong],
                "finish_reason": answer.finish_reason,
                "error": answer.error,
                "confidence": calibrated.row[i],
                "values": [
                    {
                        "attribute": v.attribute,
                        "value": v.value,
                        "kind": v.grounding.kind,
                        "rule": v.grounding.rule,
                        "start": v.grounding.start,
                        "end": v.grounding.end,
                        "flag": v.flag,
                        "confidence": c,
                    }
                    for v, c in zip(scores.values[i], calibrated.slots[i], strict=True)
                ],
            }
    return Report(task.name, len(examples), metrics, DEFINITIONS, samples, details)


def _confidences(
    task: Task, examples: Sequence[Example], said: Sequence[Answered], scores: Scores | None
) -> Confidences:
    if scores is None:
        pairs = [(a.text, e.target or "") for a, e in zip(said, examples, strict=True)] if said else []
        scores = score(task, pairs, resamples=2)
    rows, slots, slots_right = [], [], []
    for row, answer, example in zip(scores.rows, said, examples, strict=False):
        rows.append(row_confidence(answer.tokens) if answer.tokens else None)
        if row.said is None:
            slots.append([])
            slots_right.append([])
            continue
        found = slot_confidences(row.said, answer.text, answer.tokens) if answer.tokens else None
        slots.append(found or [None] * len(row.said.slots))
        gold = task.parse(example.target or "")
        left = list(gold.slots) if gold else []
        right = []
        for slot in row.said.slots:
            right.append(slot in left)
            if slot in left:
                left.remove(slot)
        slots_right.append(right)
    return Confidences(rows, [bool(r.canonical) for r in scores.rows], slots, slots_right)


def slice_metrics(scores: Scores, values: Sequence[str]) -> dict[str, Any]:
    """The main metrics of each slice, by its value."""
    import numpy as np

    from tunery.tasks.score import estimate

    wanted = [n for n in scores.ratios if n in ("exact_match", "canonical_match", "slot_f1", "hallucination_rate")]
    columns = [c for n in wanted for c in (2 * scores.ratios.index(n), 2 * scores.ratios.index(n) + 1)]
    found = {}
    labels = np.array(values, dtype=object)
    for value in sorted(set(values)):
        table = scores.table[labels == value][:, columns]
        estimates = estimate(wanted, table, ())
        found[value] = {"n": len(table)} | {name: estimates[name] for name in wanted}
    return found


def labelled(data: Dataset) -> list[Example]:
    """Its examples. Raises DataError where one has no gold output."""
    examples = [e for e in data.examples if e.target is not None]
    if len(examples) < len(data.examples) or not examples:
        raise DataError(
            f"{len(data.examples) - len(examples)} of {len(data.examples)} rows of {data.name} have no gold output",
            hint="evaluate on labelled rows; for unlabelled ones there is `tunery batch`",
        )
    return examples


def own_text(example: Example, instruction: str | None) -> str:
    """The row's own text, without the instruction that all rows share."""
    return example.text.removeprefix(f"{instruction}\n") if instruction else example.text


def answered(completion: Completion | None, template: Template, pieces: dict[int, str]) -> Answered:
    """An answer with its tokens placed in its text; `pieces` is a cache of tokens' texts."""
    if completion is None:
        return Answered("", error="no answer")
    text = completion.text
    tokens = None
    if completion.token_ids and completion.logprobs:
        tokens = placed(completion.token_ids, completion.logprobs, text, template.tokenizer, pieces)
    return Answered(text.strip(), completion.finish_reason, completion.error, tokens)


def answer_budget(golds: Sequence[str], template: Template) -> int:
    """Tokens an answer may take: half again the longest gold one, so that a model that runs on is stopped."""
    longest = max(
        (len(ids) for ids in template.tokenizer(list(golds), add_special_tokens=False)["input_ids"]),
        default=0,
    )
    return max(16, longest + longest // 2)
