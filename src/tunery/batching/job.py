"""One batch from its spec to its summary: what it is made of, what is left to do, and how it goes."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import storage
from tunery.batching.openai import Requests
from tunery.batching.output import Output
from tunery.batching.pipeline import Again, Answering, Job, Shape, run
from tunery.batching.rows import TEXT_COLUMNS, Table
from tunery.batching.source import Source, find
from tunery.config import BatchSpec, nearest
from tunery.engine.vllm import Adapter, Setup, generate_dataset
from tunery.errors import ConfigError, DataError, RunError
from tunery.extraction import ANSWER_TOKENS, Model

if TYPE_CHECKING:
    import pyarrow as pa

OnEvent = Callable[[Mapping[str, Any]], None]

# Engine arguments that change how fast answers come, not what they are.
_INDIFFERENT = frozenset(
    "max_num_seqs max_num_batched_tokens gpu_memory_utilization kv_cache_memory_bytes enable_prefix_caching "
    "disable_log_stats max_loras max_cpu_loras swap_space enforce_eager".split()
)
_SEEN_ENOUGH = 100  # rows, before an error rate means something
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Counts of one batch: rows = answered + failed; `errors` is where the failed ones are, None without any.

    `summary` has all else that is known of it: see `summarise`.
    """

    output: str
    rows: int
    answered: int
    failed: int
    parsed: int
    prompt_tokens: int
    completion_tokens: int
    errors: str | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Batch:
    """A batch that can be run: everything checked, nothing written."""

    spec: BatchSpec
    source: Source
    output: Output
    shape: Shape
    schema: pa.Schema | None
    setup: Setup
    manifest: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """What would happen, for people."""
        kwargs = self.setup.engine_kwargs()
        return {
            "input": f"{len(self.source.files)} files, {self.source.rows:,} rows in {len(self.source.chunks):,} chunks",
            "output": self.output.path,
            "models": ", ".join(self.manifest["models"]),
            "grammar": ", ".join(self.setup.grammars) or "none",
            "adapter": "merged into the base" if self.setup.merge else ", ".join(a.name for a in self.setup.adapters),
            "engines": self.spec.engine.concurrency,
            "engine": ", ".join(f"{k}={v}" for k, v in sorted(kwargs.items())),
        }

    def finished(self) -> BatchResult | None:
        """What an earlier run of this very batch has left, if it went to its end. Raises RunError for another one."""
        found = self.output.success() if self.output.check(self.manifest) else None
        return _result(self.output, found) if found else None


def prepare(
    spec: BatchSpec, *, models: Mapping[str, Model], default: str, adapters: Sequence[Adapter], log_dir: Path | None
) -> Batch:
    """Look at input, output and settings. `models` are by every name that rows may use; all have one base.

    Raises DataError, ConfigError and StorageError for what cannot be done. Nothing is written.
    """
    if not spec.input or not spec.output:
        raise ConfigError("a batch needs an input and an output", hint="tunery batch rows.jsonl answers.jsonl")
    output = Output.at(spec.output)
    source = find(spec.input, chunk_rows=spec.engine.batch_size)
    first = models[default]
    context = min(first.base.context, spec.engine.engine_kwargs.get("max_model_len", first.base.context))
    limit = spec.sampling.max_tokens or min(ANSWER_TOKENS, context // 2)
    before = output.manifest() or {}
    created = before.get("created") or int(time.time())
    schema = None
    shape: Shape
    if spec.openai:
        if output.format != "jsonl":
            raise ConfigError("OpenAI's batch files are JSONL", hint="end the output in .jsonl")
        shape = Requests(models, default, context, limit, created)
    else:
        given = source.columns(survey=output.format != "jsonl")
        names = list(given) if given is not None else _first_columns(source)
        shape = Table(models, default, _columns(spec, names), context, limit, not spec.free, spec.answer_prefix)
        if clash := sorted(shape.names & set(names)):
            raise DataError(
                f"the input already has the column(s) {', '.join(clash)}",
                hint="set a beginning for the answers' columns: --set answer_prefix=answer_",
            )
        schema = shape.schema(given) if given is not None else None
    _check_ids(source, shape)
    sampling = spec.sampling.model_dump(exclude={"max_tokens"}, exclude_none=True)
    distinct = {m.label: m for m in models.values()}
    stops = {i for m in distinct.values() for i in m.writer.stop_ids}
    sampling |= {"stop_token_ids": sorted(stops)}
    if spec.confidence and not spec.openai:
        sampling["logprobs"] = 0
    grammars = {m.label: g for m in distinct.values() if shape.constrained and (g := m.grammar())}
    merge = spec.merge and _mergeable(spec, distinct, adapters)
    setup = Setup(first.base.path, adapters, spec.engine, sampling, grammars, log_dir, merge)
    manifest = _manifest(spec, source, setup, distinct) | {"created": created, "limit": limit}
    manifest["spec"] = spec.model_dump(mode="json") | {"input": storage.absolute(spec.input)}
    return Batch(spec, source, output, shape, schema, setup, manifest)


def perform(batch: Batch, on_event: OnEvent, *, retry: bool = False, answer: Answering | None = None) -> BatchResult:
    """Do what is left of a batch; needs a running Ray. With `retry`, failed rows of done chunks are asked once more.

    `answer` takes the engine's place. Raises RunError for an output in use, DataError when more rows fail than
    `max_error_rate` allows, EngineError. What is done by then stays, and the next run goes on from there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from tunery.engine.rows import Watch

    batch.output.check(batch.manifest)
    with batch.output.lock():
        if not batch.output.check(batch.manifest):
            batch.output.begin(batch.manifest)
        progress = _Progress(batch, on_event, batch.output.done())
        again = _failed_of(batch, progress.done) if retry else {}
        todo = [chunk.number for chunk in batch.source.chunks if chunk.number not in progress.done]
        if todo or again:
            batch.output.reopen()
        job = Job(batch.source, batch.output, batch.shape, batch.schema, again)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        watch = ray.remote(Watch).options(num_cpus=0, scheduling_strategy=here).remote()
        rows = max(chunk.rows for chunk in batch.source.chunks)
        engines = answer or (lambda data: generate_dataset(data, batch.setup, batch_rows=rows, watch=watch))
        progress.begin()
        if answer is None:
            batch.setup.require()
        if todo or again:
            for report in run(job, [*sorted(again), *todo], engines, batch.setup):
                if progress.first is None:
                    progress.first = ray.get(watch.times.remote())[0]
                progress.add(report)
        ended = ray.get(watch.times.remote())[1]
        missing = len(batch.source.chunks) - len(progress.done)
        if missing:
            raise RunError(f"{missing} chunks were not done", hint="run the same command to go on")
        batch.output.assemble(progress.done)
        summary = progress.summary(ended)
        batch.output.succeed(progress.done, summary)
    return _result(batch.output, summary)


def _failed_of(batch: Batch, done: Mapping[int, Mapping[str, Any]]) -> dict[int, Again]:
    return {
        number: Again(
            frozenset(map(batch.shape.failed_id, batch.output.failed(number))),
            {
                k: v
                for k, v in marker.items()
                if isinstance(v, int | float) and k not in ("chunk", "bytes", "error_bytes")
            },
        )
        for number, marker in done.items()
        if marker["failed"]
    }


def _result(output: Output, summary: Mapping[str, Any]) -> BatchResult:
    names = ("rows", "answered", "failed", "parsed", "prompt_tokens", "completion_tokens")
    errors = output.errors if summary["failed"] else None
    return BatchResult(output=output.path, errors=errors, summary=summary, **{k: summary[k] for k in names})


# --- what a batch is made of -----------------------------------------------------------------------------


def _first_columns(source: Source) -> list[str]:
    for chunk in source.chunks[:16]:
        for entry in source.read(chunk):
            if entry.row is not None:
                return list(entry.row)
    raise DataError("no readable row among the first", where=source.files[0].label)


def _columns(spec: BatchSpec, names: Sequence[str]) -> dict[str, str]:
    text = spec.column or next((c for c in TEXT_COLUMNS if c in names), None)
    if text is None:
        raise DataError(
            f"{spec.input}: which column holds the text?", hint=f"--column NAME, one of: {', '.join(names)}"
        )
    wanted = {
        "text": text, "id": spec.id_column, "model": spec.model_column, "sampling": spec.sampling_column,
        "gold": spec.gold,
    }  # fmt: skip
    found = {what: name for what, name in wanted.items() if name}
    for name in found.values():
        if name not in names:
            near = nearest(name, names)
            hint = f'did you mean "{near}"?' if near else f"it has: {', '.join(names)}"
            raise DataError(f'{spec.input} has no column "{name}"', hint=hint)
    return found


def _mergeable(spec: BatchSpec, models: Mapping[str, Model], adapters: Sequence[Adapter]) -> bool:
    """Whether one adapter answers every row and can be merged into its base, which then answers with no LoRA to add."""
    from tunery.engine.merging import obstacle

    if (
        len(models) > 1
        or len(adapters) != 1
        or any("lora" in k or k == "quantization" for k in spec.engine.engine_kwargs)
    ):
        return False
    (model,) = models.values()
    return model.adapter is not None and not obstacle(model.base.path, adapters[0].path)


def _check_ids(source: Source, shape: Shape) -> None:
    """Raises DataError where two rows have one id. Keeps eight bytes a row."""
    column = shape.columns.get("id")
    if column is None:
        return
    import numpy as np

    def ids() -> Any:
        for chunk in source.chunks:
            for entry in source.read(chunk):
                if entry.row is not None and (value := entry.row.get(column)) not in (None, ""):
                    yield str(value), f"{source.files[chunk.file].label}:{entry.line}"

    def hashed(text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")

    values, counts = np.unique(np.fromiter((hashed(i) for i, _ in ids()), np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    places: dict[str, list[str]] = {}
    for value, where in ids():
        if hashed(value) in suspects:
            places.setdefault(value, []).append(where)
    twice = [f'"{value}" ({", ".join(w[:3])})' for value, w in places.items() if len(w) > 1]
    if twice:
        raise DataError(
            f'{len(twice):,} ids in column "{column}" are there more than once: {", ".join(twice[:_EXAMPLES])}',
            hint="make them unique, or leave the id column out: ids are then made of content and position",
        )


def _manifest(spec: BatchSpec, source: Source, setup: Setup, models: Mapping[str, Model]) -> dict[str, Any]:
    """All that decides what comes out, as JSON values."""
    adapters = {a.name: _file_digest(a.path / "adapter_model.safetensors") for a in setup.adapters}
    free = {"input", "output", "engine", "max_error_rate", "price_per_hour", "sampling", "models"}
    kwargs = {k: v for k, v in setup.engine_kwargs().items() if k not in _INDIFFERENT}
    return {
        "format": 1,
        "input": {f"{i} {f.label}": {"bytes": f.size, "digest": f.digest} for i, f in enumerate(source.files)},
        "rows": source.rows,
        "chunks": len(source.chunks),
        "models": {
            m.label: {
                "base": m.base.digest,
                "adapter": adapters.get(m.adapter or ""),
                "template": m.writer.digest,
                "task": m.task,
                "system": m.system,
                "instruction": m.instruction,
            }
            for m in models.values()
        },
        "grammars": {k: hashlib.sha256(json.dumps(g).encode()).hexdigest()[:16] for k, g in setup.grammars.items()},
        "settings": spec.model_dump(mode="json", exclude=free) | {"sampling": spec.sampling.model_dump(mode="json")},
        "engine": kwargs,
    }


def _file_digest(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


# --- how it goes -----------------------------------------------------------------------------------------


class _Progress:
    """Adds up what chunks report, says how it goes, and stops what goes wrong."""

    def __init__(self, batch: Batch, on_event: OnEvent, done: dict[int, dict[str, Any]]) -> None:
        self.done = done
        self.began = time.time()
        self.first: float | None = None  # when the first chunk reached an engine
        self._batch, self._on_event = batch, on_event
        self._total = self._sum(done.values())
        self._before = Counter(self._total)
        self._seconds: Counter[str] = Counter()
        self._examples: list[str] = []

    @staticmethod
    def _sum(markers: Any) -> Counter[str]:
        total: Counter[str] = Counter()
        for marker in markers:
            total.update({k: v for k, v in marker.items() if isinstance(v, int | float)})
        return total

    def begin(self) -> None:
        """Say what is left."""
        total, rows = self._total, self._batch.source.rows
        self._on_event({"event": "resumed", "done": total["rows"], "failed": total["failed"], "rows": rows})

    def add(self, report: dict[str, Any]) -> None:
        """One chunk is done. Raises DataError when too many rows have failed."""
        seconds = {k: report.pop(k) for k in ("read_seconds", "write_seconds")}
        self._examples += report.pop("examples")[: _EXAMPLES - len(self._examples)]
        self._seconds.update(seconds)
        before = self.done.get(report["chunk"])
        if before:
            self._total.subtract(self._sum([before]))
        self.done[report["chunk"]] = report
        self._total.update(self._sum([report]))
        event = self.event()
        self._on_event(event)
        failed, done = self._total["failed"], self._total["rows"]
        rate = self._batch.spec.max_error_rate
        if event["left"] and done >= _SEEN_ENOUGH and failed > rate * done:
            raise DataError(
                f"{failed:,} of {done:,} rows failed, more than max_error_rate {rate:g} allows: "
                + "; ".join(self._examples),
                hint=f"all are in {storage.join(self._batch.output.folder, 'errors')}; mend what is wrong, "
                "or allow more with --max-error-rate",
            )

    def event(self) -> dict[str, Any]:
        """Counts, speeds of this run since the engine answers, and the seconds that are left at that speed."""
        total, here = self._total, self._total - self._before
        spent = max(1e-6, time.time() - (self.first or self.began))
        left = self._batch.source.rows - total["rows"]
        speed = here["rows"] / spent
        return {
            "event": "batch",
            "done": total["rows"],
            "failed": total["failed"],
            "left": left,
            "rows": self._batch.source.rows,
            "rows_per_second": round(speed, 2),
            "prompt_tokens_per_second": round(here["prompt_tokens"] / spent, 1),
            "completion_tokens_per_second": round(here["completion_tokens"] / spent, 1),
            "cache_hits": _share(total["cached_tokens"], total["prompt_tokens"]),
            "eta_seconds": round(left / speed) if speed else None,
        }

    def summary(self, ended: float | None) -> dict[str, Any]:
        """Everything that is known at the end, JSON values: counts of the whole batch, times of this run."""
        total, now = self._total, time.time()
        first, last = self.first or now, ended or now
        event = self.event()
        found: dict[str, Any] = {
            k: int(total[k])
            for k in ("rows", "answered", "failed", "parsed", "prompt_tokens", "completion_tokens", "cached_tokens")
        }
        found["seconds"] = {
            "start": round(first - self.began, 2),
            "compute": round(max(0.0, last - first), 2),
            "write": round(now - last, 2),
            "reading_in_workers": round(self._seconds["read_seconds"], 2),
            "writing_in_workers": round(self._seconds["write_seconds"], 2),
        }
        found["rows_per_second"] = event["rows_per_second"]
        found["cache_hits"] = event["cache_hits"]
        found["quality"] = {
            "parse_rate": _share(total["parsed"], total["answered"]),
            "unexpected_values": _share(total["flagged"], total["values"]),
            "low_confidence": _share(total["unsure"], total["answered"]),
        }
        if self._batch.spec.gold:
            found["gold"] = {
                "n": int(total["gold"]),
                "exact_match": _share(total["exact"], total["gold"]),
                "canonical_match": _share(total["canonical"], total["gold"]),
                "slot_f1": _share(2 * total["hits"], total["predicted"] + total["wanted"]),
            }
        if price := self._batch.spec.price_per_hour:
            here = total["rows"] - self._before["rows"]
            found["cost_per_1000_rows"] = round(price * (now - self.began) / 3600 / here * 1000, 6) if here else None
        return found


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
