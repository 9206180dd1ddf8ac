"""The way of a chunk through Ray Data: read and render, answer, parse and write. One block is one chunk all the way.

What a chunk becomes is a function of the chunk, and writing it replaces what was there. So Ray may do any of it again,
after whatever died, without a row being lost or doubled.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tunery import storage
from tunery.batching.output import Output, decode, encode
from tunery.batching.rows import Ask
from tunery.batching.source import Chunk, Entry, Source
from tunery.engine.rows import BATCH, OUTPUT
from tunery.engine.vllm import Setup, engine_error
from tunery.errors import EngineError, ResourceError, TuneryError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

Answering = Callable[["ray.data.Dataset"], "ray.data.Dataset"]  # adds the column `completion`


LOST_NODE_SECONDS = 120.0  # for a cluster to replace what a dead machine had
T = TypeVar("T")


class Shape(Protocol):
    """How rows ask and are answered: `rows.Table`, `openai.Requests`."""

    @property
    def constrained(self) -> bool: ...

    @property
    def columns(self) -> Mapping[str, str]: ...

    @property
    def names(self) -> frozenset[str]: ...

    def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[Ask | str]: ...

    def answer(
        self, row_id: str, row: Mapping[str, Any], ask: tuple[str, str], completion: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float]]: ...

    def failure(self, row_id: str, where: str, row: Any, reason: str) -> dict[str, Any]: ...

    def example(self, failed: Mapping[str, Any]) -> str: ...

    def failed_id(self, failed: Mapping[str, Any]) -> str: ...

    def id_of(self, row: Mapping[str, Any]) -> str: ...


@dataclass(frozen=True)
class Again:
    """The rows of a done chunk that are asked once more, by id, and the chunk's counts before."""

    ids: frozenset[str]
    counts: Mapping[str, float]


@dataclass(frozen=True)
class Job:
    """All that workers need to know. `schema` is the output's, None for JSONL."""

    source: Source
    output: Output
    shape: Shape
    schema: pa.Schema | None
    again: Mapping[int, Again] = field(default_factory=dict)

    # --- read and render ---

    def read(self, number: int) -> pa.Table:
        """A chunk as a table of requests; a row that cannot be asked has a fault and no prompt."""
        import pyarrow as pa

        began = time.time()
        entries = self._entries(number)
        if number in self.again:
            entries = [(row_id, e) for row_id, e in entries if row_id in self.again[number].ids]
        asks: list[Ask | str] = [self._fault(e) or "" for _, e in entries]
        good = [i for i, ask in enumerate(asks) if not ask]
        for i, ask in zip(good, self.shape.ask([entries[i][1].row or {} for i in good]), strict=True):
            asks[i] = ask

        grammar = self.shape.constrained
        rows = [
            {
                BATCH: str(number),
                "id": row_id,
                "line": entry.line,
                "row": pickle.dumps(entry.raw if entry.row is None else entry.row),
                "fault": ask if isinstance(ask, str) else None,
            }
            | (_request(ask, grammar) if isinstance(ask, Ask) else {})
            for (row_id, entry), ask in zip(entries, asks, strict=True)
        ]
        seconds = time.time() - began
        return pa.Table.from_pylist([row | {"read_seconds": seconds} for row in rows], schema=self.schema_of_requests())

    @staticmethod
    def schema_of_requests() -> pa.Schema:
        """The columns between the stages: what answers are written with, then what the engine reads."""
        import pyarrow as pa

        text, number = pa.string(), pa.int64()
        return pa.schema({
            BATCH: text, "id": text, "line": number, "row": pa.binary(), "fault": text, "label": text, "text": text,
            "read_seconds": pa.float64(), "prompt_token_ids": pa.list_(pa.int32()), "model": text,
            "max_tokens": number, "grammar": text, "sampling": text,
        })  # fmt: skip

    def _entries(self, number: int) -> list[tuple[str, Entry]]:
        """The rows of a chunk with their ids."""
        chunk = self.source.chunks[number]
        return [(self._id(chunk, entry), entry) for entry in self.source.read(chunk)]

    def _id(self, chunk: Chunk, entry: Entry) -> str:
        """The row's own id, or a digest of what it is and where it stands."""
        own = entry.row.get(self.shape.columns["id"]) if entry.row and "id" in self.shape.columns else None
        if own not in (None, ""):
            return str(own)
        content = entry.raw if entry.row is None else repr(sorted(entry.row.items()))
        return hashlib.sha256(f"{chunk.file}:{entry.line}:{content}".encode("utf-8", "replace")).hexdigest()[:16]

    def _fault(self, entry: Entry) -> str | None:
        if entry.row is None:
            return entry.fault
        column = self.shape.columns.get("id")
        if column and entry.row.get(column) in (None, ""):
            return f'column "{column}" holds no id'
        both = self.shape.names & entry.row.keys()
        return f'the row already has a column "{min(both)}"' if both else None

    # --- parse and write ---

    def write(self, table: pa.Table) -> dict[str, Any]:
        """Write an answered chunk. Returns its counts, the seconds it took and examples of what failed."""
        began = time.time()
        rows = table.to_pylist()
        (number,) = {int(row[BATCH]) for row in rows}
        chunk, again = self.source.chunks[number], self.again.get(number)
        if len(rows) != (len(again.ids) if again else chunk.rows):
            raise EngineError(f"chunk {number} came back with {len(rows)} rows", hint="please report it")
        label = self.source.files[chunk.file].label
        answered: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        counts: Counter[str] = Counter(dict(again.counts) if again else {})
        for row in rows:
            completion, own = row[OUTPUT], pickle.loads(row["row"])
            reason = row["fault"] or (completion["error"] if completion else "the engine gave no answer")
            if reason:
                failed.append(self.shape.failure(row["id"], f"{label}:{row['line']}", own, reason))
                continue
            done, found = self.shape.answer(row["id"], own, (row["label"], row["text"]), completion)
            answered.append(done)
            counts.update(found)
            counts.update({k: completion[k] or 0 for k in ("prompt_tokens", "completion_tokens", "cached_tokens")})
        if again:
            answered = self._merged(number, answered)
            self.output.undo(number)
        total = dict(counts) | {"rows": chunk.rows, "answered": len(answered), "failed": len(failed)}
        part = encode(answered, self.output.format, self.schema)
        marker = self.output.commit(number, part, failed, total)
        seconds = {"read_seconds": rows[0]["read_seconds"], "write_seconds": time.time() - began}
        return marker | seconds | {"examples": [self.shape.example(row) for row in failed[:3]]}

    def _merged(self, number: int, answered: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The chunk's rows from before and the new ones, in their order; once each, however often this is done."""
        before = decode(storage.read_bytes(self.output.part(number)), self.output.format)
        rows = {self.shape.id_of(row): dict(row) for row in (*before, *answered)}
        return [rows[row_id] for row_id, _ in self._entries(number) if row_id in rows]


def _request(ask: Ask, constrained: bool) -> dict[str, Any]:
    model = ask.model
    return {
        "label": model.label,
        "text": ask.text,
        "prompt_token_ids": ask.prompt,
        "model": model.adapter,
        "max_tokens": ask.max_tokens,
        "grammar": model.label if constrained and model.has_grammar else None,
        "sampling": ask.sampling,
    }


def run(job: Job, todo: Sequence[int], answer: Answering, setup: Setup) -> Iterator[dict[str, Any]]:
    """Do the chunks `todo`; yields what `Job.write` returns of each as it is done.

    `answer` takes a dataset whose blocks are chunks to the engines of `setup`. Raises TuneryError.
    """
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    size, context.target_max_block_size = context.target_max_block_size, None  # no block is cut
    whole: Any = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": _cpus(setup.spec.concurrency)}
    put = ray.put(job)
    try:
        numbers = ray.data.from_items([{"chunk": number} for number in todo], override_num_blocks=len(todo))
        asked = numbers.map_batches(functools.partial(_read, job=put), **whole)
        done = answer(asked).map_batches(functools.partial(_write, job=put), **whole)
        for row in _attended(done.iter_rows(), setup.require):
            report = pickle.loads(row["report"])
            if isinstance(report, TuneryError):
                raise report
            yield report
    except RayError as error:
        raise engine_error(error, setup.log_dir) from error
    finally:
        context.target_max_block_size = size


def _attended(found: Iterable[T], check: Callable[[], None]) -> Iterator[T]:
    """`found`, as long as the cluster can still give what its makers need.

    Raises what `check` does when that has lasted: an engine whose machine was lost would wait for another for ever.
    """
    said: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=8)
    over = threading.Event()

    def listen() -> None:
        error: BaseException | None = None
        try:
            for one in found:
                said.put((one, None))
                if over.is_set():
                    return
        except BaseException as caught:
            error = caught
        said.put((None, error))

    threading.Thread(target=listen, daemon=True).start()
    lacking: float | None = None
    try:
        while True:
            try:
                one, error = said.get(timeout=5)
            except queue.Empty:
                try:
                    check()
                    lacking = None
                except ResourceError:
                    lacking = lacking or time.monotonic()
                    if time.monotonic() - lacking > LOST_NODE_SECONDS:
                        raise
                continue
            if error:
                raise error
            if one is None:
                return
            yield one
    finally:
        over.set()
        with suppress(queue.Empty):
            said.get_nowait()


def _cpus(engines: int) -> float:
    """What a task of ours asks for: little on a small machine, where it waits most of the time; nothing where the
    engines take all there is."""
    import ray

    left = ray.cluster_resources().get("CPU", 0) - engines
    return 1 if left >= 4 else 0.5 if left >= 1 else 0


@functools.lru_cache(maxsize=1)
def _job(put: Any) -> Job:
    import ray

    return ray.get(put)


# What goes wrong in a worker for a reason that we know travels in place of what it was about, since Ray would make
# one long text of it.


def _read(batch: pa.Table, job: Any) -> pa.Table:
    import pyarrow as pa

    (number,) = batch["chunk"].to_pylist()
    try:
        return _job(job).read(number)
    except TuneryError as error:
        there = {BATCH: str(number), "row": pickle.dumps(error)}
        schema = Job.schema_of_requests()
        return pa.Table.from_pylist([dict.fromkeys(schema.names) | there], schema=schema)


def _write(batch: pa.Table, job: Any) -> pa.Table:
    import pyarrow as pa

    error = pickle.loads(batch["row"][0].as_py())
    try:
        report = error if isinstance(error, TuneryError) else _job(job).write(batch)
    except TuneryError as failure:
        report = failure
    return pa.table({"report": [pickle.dumps(report)]})
