"""The engine as a Ray Data operator: an actor that answers batches of tokenised prompts."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import EngineError

if TYPE_CHECKING:
    import pyarrow as pa

OUTPUT = "completion"  # a struct column, so that it collides with no column of the user's


class EngineRows:
    """An actor of Ray Data's pool. It runs many batches at once, so the engine stays full across their ends.

    In: a table with `prompt_token_ids`, and optionally `model` (an adapter's name or null), `max_tokens` and
    `constrained` (false: the sampling's structured_outputs are not for this row).
    Out: the table without `prompt_token_ids` and with the struct column `completion`. What goes wrong with a
    row is that row's `completion.error`; raises EngineError when the engine itself fails.
    """

    def __init__(
        self,
        base: Path,
        adapters: Sequence[tuple[str, str]],
        engine_kwargs: dict[str, Any],
        sampling: Mapping[str, Any],
        log_path: Path | None,
    ) -> None:
        if log_path is not None:
            from tunery.engine.cluster import redirect

            redirect(log_path)
        from vllm import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.async_llm import AsyncLLM

        self._sampling = dict(sampling)
        self._adapters = {name: LoRARequest(name, i, path) for i, (name, path) in enumerate(adapters, 1)}
        self._ids = itertools.count()
        try:
            self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(base), **engine_kwargs))
        except Exception as error:
            # Not chained: vLLM's validation errors cannot be pickled, and Ray aborts the actor over them.
            logging.exception("The engine did not start.")
            raise EngineError(f"the inference engine did not start: {_reason(error)}") from None

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        import pyarrow as pa

        absent = [None] * len(table)
        prompts = table["prompt_token_ids"].to_pylist()
        models = table["model"].to_pylist() if "model" in table.column_names else absent
        limits = table["max_tokens"].to_pylist() if "max_tokens" in table.column_names else absent
        free = [c is False for c in table["constrained"].to_pylist()] if "constrained" in table.column_names else absent
        answers = await asyncio.gather(*map(self._answer, prompts, models, limits, free))
        column = pa.array(answers, type=completion_type())
        yield table.drop_columns(["prompt_token_ids"]).append_column(OUTPUT, column)

    async def _answer(
        self, prompt: list[int], model: str | None, max_tokens: int | None, free: bool | None
    ) -> dict[str, Any]:
        from vllm import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        answer: dict[str, Any] = {"text": "", "prompt_tokens": len(prompt), "completion_tokens": 0}
        try:
            if model is not None and model not in self._adapters:
                raise ValueError(f"no adapter is named {model!r}")
            lora = self._adapters[model] if model is not None else None
            tokens = TokensPrompt(prompt_token_ids=prompt)
            params, request_id = self._params(max_tokens, bool(free)), str(next(self._ids))
            async for output in self._engine.generate(tokens, params, request_id, lora_request=lora):
                if output.finished:
                    (final,) = output.outputs
                    answer |= {
                        "text": final.text,
                        "finish_reason": final.finish_reason,
                        "completion_tokens": len(final.token_ids),
                    }
                    if final.logprobs is not None:
                        ids = list(final.token_ids)
                        answer["token_ids"] = ids
                        answer["logprobs"] = [
                            p[t].logprob if p else math.nan for t, p in zip(ids, final.logprobs, strict=True)
                        ]
        except EngineDeadError as error:
            raise EngineError("the inference engine has died") from error
        except Exception as error:
            answer["error"] = _reason(error)
        return answer

    def _params(self, max_tokens: int | None, free: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = dict(self._sampling)
        if max_tokens is not None:
            sampling["max_tokens"] = max_tokens
        if free:
            sampling.pop("structured_outputs", None)
        if isinstance(structured := sampling.get("structured_outputs"), Mapping):
            sampling["structured_outputs"] = StructuredOutputsParams(**structured)
        return SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)


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
            "error": pa.string(),
            "token_ids": pa.list_(pa.int64()),
            "logprobs": pa.list_(pa.float64()),
        }
    )
