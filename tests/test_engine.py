"""The engine against real Ray and real vLLM, on CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tunery.config import EngineSpec
from tunery.engine.cluster import connect, free_port, quiet, require, room
from tunery.engine.vllm import Adapter, Setup, engine_args, engine_env, engine_kwargs, generate, llm_config, lora_ranks
from tunery.errors import ConfigError, EngineError, ModelError, ResourceError

GREEDY = {"temperature": 0.0, "ignore_eos": True}


def adapter(rank: int, name: str = "names@1") -> Adapter:
    return Adapter(name, Path("adapter"), rank)


# -- engine arguments --


def test_arguments_are_vllms_own():
    assert {"max_num_seqs", "enable_lora", "gpu_memory_utilization", "enable_log_requests"} <= engine_args()
    assert lora_ranks()[0] == 1 and 64 in lora_ranks()


def test_unknown_argument_names_the_nearest(tiny_base):
    with pytest.raises(ConfigError, match='no engine argument "max_num_seq"') as caught:
        engine_kwargs(tiny_base, [], {"max_num_seq": 8})
    assert caught.value.hint == 'did you mean "max_num_seqs"?'
    with pytest.raises(ConfigError, match="set by tunery"):
        engine_kwargs(tiny_base, [], {"model": "other"})


def test_lora_is_sized_for_the_adapters(tiny_base):
    assert "enable_lora" not in engine_kwargs(tiny_base, [], {})
    kwargs = engine_kwargs(tiny_base, [adapter(8), adapter(20, "other@1")], {"max_num_seqs": 4})
    assert kwargs["max_lora_rank"] == 32  # the smallest that vLLM permits
    assert kwargs["max_loras"] == 2 and kwargs["max_num_seqs"] == 4


def test_rank_beyond_the_users_limit_is_refused(tiny_base):
    with pytest.raises(ModelError, match="rank 20, but max_lora_rank is 16") as caught:
        engine_kwargs(tiny_base, [adapter(20)], {"max_lora_rank": 16})
    assert "32" in (caught.value.hint or "")
    with pytest.raises(ModelError, match="rank 4096"):
        engine_kwargs(tiny_base, [adapter(4096)], {})


def test_one_spec_resolves_to_one_config(tiny_base):
    """Serve restarts replicas whose configuration differs."""
    first, second = (llm_config("tiny", tiny_base, [adapter(8)], EngineSpec()) for _ in range(2))
    assert first == second


# -- cluster --


def test_an_address_that_does_not_answer():
    """In a process of its own: one that has a Ray running uses that."""
    script = """
import sys
from tunery.engine.cluster import connect
from tunery.errors import ResourceError
for address in sys.argv[1:]:
    try:
        connect(address).__enter__()
    except ResourceError as error:
        print(error)
"""
    with socket.create_server(("127.0.0.1", 0)) as other:
        addresses = ["127.0.0.1:1", "cluster", f"127.0.0.1:{other.getsockname()[1]}"]
        done = subprocess.run([sys.executable, "-c", script, *addresses], capture_output=True, text=True, check=True)
    refused, none, taken = done.stdout.splitlines()
    assert "connection refused" in refused
    assert "no address of a Ray cluster" in none
    assert "something else is listening" in taken


def test_missing_resources_are_named(ray_session):
    require({"CPU": 1})
    with pytest.raises(ResourceError, match="2 GPU are needed and the cluster has 0"):
        require({"CPU": 1, "GPU": 1}, 2)
    assert room({"CPU": 0.5}) == 8
    assert room({"CPU": 1}, "STRICT_SPREAD") == 1
    with pytest.raises(ResourceError, match=r"2 workers need 1 CPU each on one machine \(STRICT_SPREAD\)"):
        require({"CPU": 1}, 2, "STRICT_SPREAD")
    with pytest.raises(ResourceError, match=r"0\.002 accelerator_type:L4 are needed and the cluster has 0"):
        require({"accelerator_type:L4": 0.001}, 2)


def test_connect_reuses_what_is_there(ray_session):
    import ray

    with connect("127.0.0.1:1"):
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_free_port():
    port = free_port("127.0.0.1", 0)
    assert free_port("127.0.0.1", port) == port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ResourceError, match="not free"):
        free_port("127.0.0.1", port)


def test_quiet_takes_the_output_and_gives_the_terminal_back(tmp_path, capfd):
    outer, inner = tmp_path / "logs" / "outer.log", tmp_path / "inner.log"
    with suppress(KeyboardInterrupt), quiet(outer) as aloud:
        os.write(1, b"from C\n")
        with aloud():
            print("a caller's own")
        with quiet(inner):
            os.write(2, b"nested\n")
        os.write(2, b"outer again\n")
        raise KeyboardInterrupt
    os.write(1, b"terminal\n")
    assert outer.read_text() == "from C\nouter again\n"
    assert inner.read_text() == "nested\n"
    assert capfd.readouterr().out == "a caller's own\nterminal\n"


# -- batches --


@pytest.fixture(scope="module")
def answers(ray_session, tiny_base, tiny_adapter, tmp_path_factory):
    """One engine's answers to requests of every kind, by id."""
    prompt = list(range(3, 40))
    requests = [
        {"id": "base", "prompt_token_ids": prompt, "model": None, "max_tokens": 8},
        {"id": "again", "prompt_token_ids": prompt, "model": None, "max_tokens": 8},
        {"id": "short", "prompt_token_ids": prompt, "model": None, "max_tokens": 3},
        {"id": "adapter", "prompt_token_ids": prompt, "model": "names@1", "max_tokens": 8},
        {"id": "unknown", "prompt_token_ids": prompt, "model": "names@2", "max_tokens": 8},
        {"id": "long", "prompt_token_ids": prompt * 100, "model": None, "max_tokens": 8},
        *({"id": f"{i}", "prompt_token_ids": [i + 3], "model": None, "max_tokens": 4} for i in range(100)),
    ]
    completions = generate(
        requests,
        Setup(
            tiny_base,
            [Adapter("names@1", tiny_adapter, 8)],
            EngineSpec(engine_kwargs={"max_num_seqs": 16}),
            GREEDY | {"allowed_token_ids": list(range(3, 259))},
            log_dir=tmp_path_factory.mktemp("logs"),
        ),
    )
    completions = list(completions)
    assert len(completions) == len(requests)
    return {completion.example_id: completion for completion in completions}


def test_every_request_is_answered(answers):
    assert all(answers[str(i)].error is None for i in range(100))
    base = answers["base"]
    assert (base.prompt_tokens, base.completion_tokens, base.finish_reason) == (37, 8, "length")
    assert base.text and base.text == answers["again"].text
    assert answers["short"].completion_tokens == 3


def test_an_adapter_is_addressed_by_name(answers):
    assert answers["adapter"].error is None
    assert answers["adapter"].text != answers["base"].text


def test_a_row_that_fails_is_one_row(answers):
    assert answers["unknown"].error == "no adapter is named 'names@2'"
    assert "maximum context length is 2048" in (answers["long"].error or "")
    assert answers["long"].text == ""


def test_an_engine_that_does_not_start_says_why_in_one_line(ray_session, tiny_base, tmp_path):
    requests = [{"id": "1", "prompt_token_ids": [3], "model": None, "max_tokens": 1}]
    spec = EngineSpec(engine_kwargs={"max_model_len": 1_000_000})
    with pytest.raises(EngineError, match=r"did not start: .*max_model_len") as caught:
        list(generate(requests, Setup(tiny_base, spec=spec, sampling=GREEDY, log_dir=tmp_path)))
    assert "\n" not in caught.value.message
    assert str(tmp_path) in (caught.value.hint or "")
    assert "did not start" in (tmp_path / "engine.log").read_text()


# -- the core in a process of its own --


def test_the_core_is_forked_and_ends_with_its_parent(ray_session, tiny_base, tiny_adapter):
    """In an actor, as in the service; and since vLLM leaves traces in the process it runs in."""
    import psutil
    import ray
    from ray.exceptions import RayActorError

    kwargs = engine_kwargs(tiny_base, [Adapter("names@1", tiny_adapter, 8)], {"max_num_seqs": 8})

    @ray.remote(num_cpus=1, runtime_env={"env_vars": engine_env({})})
    class Host:
        def start(self) -> int:
            """The process of the core."""
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(tiny_base), **kwargs))
            (core,) = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
            return core.pid

        async def pid(self) -> int:
            return os.getpid()

        async def ask(self, name: str, max_tokens: int = 8, lora: Any = None) -> list[int]:
            from vllm import SamplingParams, TokensPrompt

            params = SamplingParams(max_tokens=max_tokens, **GREEDY)
            prompt, tokens = TokensPrompt(prompt_token_ids=[3, 4, 5]), []
            async for output in self.engine.generate(prompt, params, name, lora_request=lora):
                tokens = list(output.outputs[0].token_ids)
            return tokens

        async def work(self) -> dict[str, Any]:
            import asyncio

            from vllm.lora.request import LoRARequest

            lora = LoRARequest("names@1", 7, str(tiny_adapter))
            seen: dict[str, Any] = {"alone": await self.ask("alone")}
            seen["together"] = await asyncio.gather(*(self.ask(f"together-{i}") for i in range(20)))
            left = asyncio.create_task(self.ask("left", 2000))
            await asyncio.sleep(0.2)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            seen["tuned"] = await self.ask("tuned", lora=lora)
            turns = [lora, None, lora, None, None] * 4  # groups that are filled up, and of eight
            seen["mixed"] = await asyncio.gather(*(self.ask(f"mixed-{i}", lora=x) for i, x in enumerate(turns)))
            await self.engine.remove_lora(7)
            seen["added"] = await self.engine.add_lora(lora)
            seen["loras"] = await self.engine.list_loras()
            return seen

        async def ask_the_dead(self) -> bool:
            from vllm.v1.engine.exceptions import EngineDeadError

            try:
                await self.ask("dead")
            except EngineDeadError:
                return self.engine.errored
            return False

    host: Any = Host.remote()
    core: Any = ray.get(host.start.remote(), timeout=300)
    seen: dict[str, Any] = ray.get(host.work.remote(), timeout=300)
    assert len(seen["alone"]) == 8 and seen["together"] == [seen["alone"]] * 20
    base, tuned = seen["alone"], seen["tuned"]
    assert base != tuned and seen["mixed"] == [tuned, base, tuned, base, base] * 4
    assert seen["added"] is True and set(seen["loras"]) == {7}

    os.kill(core, signal.SIGKILL)
    assert ray.get(host.ask_the_dead.remote(), timeout=60)

    core = psutil.Process(ray.get(host.start.remote(), timeout=300))
    assert core.cmdline()[0] == "VLLM::EngineCore"
    parent: Any = host.pid.remote()
    os.kill(ray.get(parent), signal.SIGKILL)
    core.wait(timeout=30)
    with pytest.raises(RayActorError):  # for Ray too: the core holds none of its connections
        ray.get(host.pid.remote(), timeout=30)
