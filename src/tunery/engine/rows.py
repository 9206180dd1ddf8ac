"""The engine as a Ray Data operator: an actor that answers batches of tokenised prompts."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import EngineError

if TYPE_CHECKING:
    import pyarrow as pa

OUTPUT = "completion"  # a struct column, so that it collides with no column of the user's
BATCH = "batch"  # the column that names a batch to the watch
REMEMBERED = 8192  # answers, of a few KB each
PATIENCE = 2  # times that an engine may die over the same
_REQUEST = ("prompt_token_ids", "model", "max_tokens", "grammar", "sampling")


class EngineRows:
    """An actor of Ray Data's pool. It runs many batches at once, so the engine stays full across their ends.

    In: a table with `prompt_token_ids` (null: the row is not asked), and optionally `model` (an adapter's name or
    null), `max_tokens`, `grammar` (a key of `grammars`, or null) and `sampling` (a JSON object of SamplingParams for
    this row, or null). Out: the table without these columns and with the struct column `completion`, null for a row
    that was not asked. Equal requests are computed once where sampling is greedy, as long as the first is remembered.

    What goes wrong with a row is that row's `completion.error`. When the engine dies its process ends, so that Ray
    starts another and gives that the same batches again. Raises EngineError when the engine does not start.
    """

    def __init__(
        self,
        base: Path,
        adapters: Sequence[tuple[str, str]],
        engine_kwargs: dict[str, Any],
        sampling: Mapping[str, Any],
        grammars: Mapping[str, Mapping[str, Any]],
        log_path: Path | None,
        watch: Any = None,
        merge: bool = False,
    ) -> None:
        if log_path is not None:
            from tunery.engine.cluster import redirect

            redirect(log_path)
        from vllm.lora.request import LoRARequest

        from tunery.engine.stepping import SteppedEngine

        self._sampling, self._grammars, self._watch = dict(sampling), grammars, watch
        self._adapters: dict[str | None, Any] = {None: None}
        self._adapters |= {name: LoRARequest(name, i, path) for i, (name, path) in enumerate(adapters, 1)}
        self._answers: OrderedDict[Any, asyncio.Task[dict[str, Any]]] = OrderedDict()  # the latest last
        self._suspect = asyncio.Lock()
        try:
            if merge:
                from tunery.engine.merging import merged

                ((name, path),) = adapters
                self._adapters = {name: None}  # the base alone is no longer there
                base = merged(base, Path(path), engine_kwargs.get("dtype", "auto"))
            self._engine = SteppedEngine(base, engine_kwargs)
        except Exception as error:
            # Not chained: vLLM's validation errors cannot be pickled, and Ray aborts the actor over them.
            logging.exception("The engine did not start.")
            raise EngineError(f"the inference engine did not start: {_reason(error)}") from None

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        import pyarrow as pa

        there = [name for name in _REQUEST if name in table.column_names]
        requests = table.select(there).to_pylist()
        answers = await self._watched(table, requests) if self._watch else await self._answer_all(requests)
        yield table.drop_columns(there).append_column(OUTPUT, pa.array(answers, type=completion_type()))

    async def _answer_all(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        tasks = [None if request["prompt_token_ids"] is None else self._task(request) for request in requests]
        return [await task if task else None for task in tasks]

    def _task(self, request: Mapping[str, Any]) -> asyncio.Task[dict[str, Any]]:
        """What answers a request: a new task, or that of an equal one before."""
        if not self._greedy(request):
            return asyncio.ensure_future(self._answer(request))
        key = (array("i", request["prompt_token_ids"]).tobytes(), *(request.get(name) for name in _REQUEST[1:]))
        task = self._answers.pop(key, None)
        if task is None or (task.done() and "error" in task.result()):
            task = asyncio.ensure_future(self._answer(request))
        self._answers[key] = task
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)
        return task

    async def _watched(self, table: pa.Table, requests: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, Any] | None]:
        """As `_answer_all`, told to the watch: a batch that engines die over is asked row by row, and a row that
        they die over is not asked again."""
        batch = str(table[BATCH][0])
        deaths = await self._watch.begin.remote(batch)
        if deaths < PATIENCE:
            answers: list[dict[str, Any] | None] = await self._answer_all(requests)
        else:
            answers = []
            for i, request in enumerate(requests):
                async with self._suspect:  # one at a time, lest one that is innocent is there when it happens again
                    if await self._watch.begin.remote(f"{batch}/{i}") < PATIENCE:
                        answers += await self._answer_all([request])
                    else:
                        error = "the engine died each time that it was asked this"
                        answers.append({"text": "", "prompt_tokens": 0, "completion_tokens": 0, "error": error})
                    await self._watch.end.remote(f"{batch}/{i}")
        await self._watch.end.remote(batch)
        return answers

    def _greedy(self, request: Mapping[str, Any]) -> bool:
        own = json.loads(request.get("sampling") or "{}")
        return (self._sampling | own).get("temperature", 1.0) == 0

    async def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "text": "", "prompt_tokens": len(request["prompt_token_ids"]), "completion_tokens": 0,
        }  # fmt: skip
        try:
            return answer | await self._generate(request)
        except Exception as error:
            return answer | {"error": _reason(error)}

    async def _generate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from vllm import TokensPrompt

        model = request.get("model")
        if model not in self._adapters:
            raise ValueError(f"no adapter is named {model!r}")
        prompt = TokensPrompt(prompt_token_ids=request["prompt_token_ids"])
        output = await self._engine.generate(prompt, self._params(request), self._adapters[model])
        (final,) = output.outputs
        answer = {
            "text": final.text,
            "finish_reason": final.finish_reason,
            "completion_tokens": len(final.token_ids),
            "cached_tokens": output.num_cached_tokens or 0,
        }
        if final.logprobs is not None:
            ids = list(final.token_ids)
            answer["token_ids"] = ids
            answer["logprobs"] = [p[t].logprob if p else math.nan for t, p in zip(ids, final.logprobs, strict=True)]
        return answer

    def _params(self, request: Mapping[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = self._sampling | json.loads(request.get("sampling") or "{}")
        if (limit := request.get("max_tokens")) is not None:
            sampling["max_tokens"] = limit
        if (grammar := request.get("grammar")) is not None:
            sampling["structured_outputs"] = self._grammars[grammar]
        if isinstance(structured := sampling.get("structured_outputs"), Mapping):
            sampling["structured_outputs"] = StructuredOutputsParams(**structured)
        return SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)


class Watch:
    """An actor that lives where the driver does and counts over what engines have died: see `EngineRows`.

    It knows too when the first batch began and the last one ended (seconds since the epoch).
    """

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._first: float | None = None
        self._last: float | None = None

    def begin(self, what: str) -> int:
        """How often `what` was begun before and not ended."""
        self._first = self._first or time.time()
        self._begun[what] += 1
        return self._begun[what] - 1

    def end(self, what: str) -> None:
        self._last = time.time()
        self._begun.pop(what, None)

    def times(self) -> tuple[float | None, float | None]:
        return self._first, self._last


def _reason(error: Exception) -> str:
    """One line: pydantic's first complaint, or the error's own first line."""
    complaints: Any = getattr(error, "errors", None)
    text: str = complaints()[0]["msg"] if complaints else str(error) or type(error).__name__
    return text.strip().splitlines()[0].removeprefix("Value error, ")


def completion_type() -> pa.StructType:
    """The type of the `completion` column."""
    import pyarrow as pa

    return pa.struct(
        {
            "text": pa.string(),
            "finish_reason": pa.string(),
            "prompt_tokens": pa.int64(),
            "completion_tokens": pa.int64(),
            "cached_tokens": pa.int64(),
            "error": pa.string(),
            "token_ids": pa.list_(pa.int64()),
            "logprobs": pa.list_(pa.float64()),
        }
    )
