"""A service that changes under load: what its clients see of an update, and how many replicas a load asks for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from making import make_version
from serving.asking import ask, project, samples, wait_for

import tunery
from tunery.bases import find_base
from tunery.config import Project
from tunery.engine.cluster import free_port
from tunery.ops.services import plan_service
from tunery.serving.replica import scaled
from tunery.serving.service import start, stop


@pytest.mark.parametrize(("ongoing", "wanted"), [(0, 1), (10, 1), (11, 2), (35, 4), (500, 4)])
def test_replicas_follow_the_requests_under_way(ongoing, wanted):
    """Against Ray's own context and configuration."""
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    config = AutoscalingConfig(min_replicas=1, max_replicas=4, target_ongoing_requests=10)
    known: Any = {
        "deployment_id": None, "deployment_name": "engine", "app_name": "engine", "current_num_replicas": 2,
        "target_num_replicas": 2, "running_replicas": [], "total_num_requests": 0, "total_queued_requests": 0,
        "aggregated_metrics": {"ongoing": {"a": ongoing / 2, "b": ongoing / 2}}, "raw_metrics": {},
        "capacity_adjusted_min_replicas": 1, "capacity_adjusted_max_replicas": 4, "policy_state": {},
        "last_scale_up_time": None, "last_scale_down_time": None, "current_time": None, "config": config,
    }  # fmt: skip
    context = AutoscalingContext(**known)
    assert scaled(context)[0] == wanted


@pytest.mark.long
def test_an_update_under_load_fails_no_request(ray_session, tiny_base, tmp_path):
    """New engine settings replace both replicas, one after the other, and the gateway, while clients ask."""
    make_version(tmp_path, tiny_base, "shop@1")

    def plan(**engine_kwargs):
        serve = {"port": port, "replicas": 2, "engine": {"engine_kwargs": {"dtype": "float32", **engine_kwargs}}}
        train = {"model_name_or_path": str(tiny_base)}
        project = Project.model_validate({"home": str(tmp_path), "train": train, "serve": {**serve, "port": port}})
        return plan_service(project, log_dir=Path(tmp_path / "logs"))

    port = free_port("127.0.0.1", 0)
    before, after = plan(max_num_seqs=16), plan(max_num_seqs=8)
    service = start(before)
    statuses: list[int] = []
    over = threading.Event()

    def client() -> None:
        body = {"model": "shop", "prompt": "a red bike", "max_tokens": 8}
        while not over.is_set():
            with httpx.Client(trust_env=False, timeout=60) as session:
                statuses.append(session.post(f"{service.url}/completions", json=body).status_code)
            time.sleep(0.2)

    clients = [threading.Thread(target=client) for _ in range(4)]
    try:
        for thread in clients:
            thread.start()
        start(after)
    finally:
        over.set()
        for thread in clients:
            thread.join()
        stop(port)
    assert len(statuses) > 50
    assert set(statuses) == {200}


@pytest.mark.long
def test_replicas_come_with_a_load_and_go_with_it(ray_session, tiny_base, tmp_path):
    make_version(tmp_path, tiny_base, "bikeshop@1")
    scale = {
        "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 2
    }  # fmt: skip
    spec = project(tmp_path, find_base(str(tiny_base)), autoscaling=scale)

    def replicas() -> list[float]:
        return [s.value for s in samples(service, "tunery_replicas")]

    with (
        tunery.serve(spec) as service,
        openai.OpenAI(base_url=service.url, api_key="unused", max_retries=0, timeout=120) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        assert replicas() == [1]
        over = threading.Event()

        def load() -> None:
            while not over.is_set():
                ask(client, "bikeshop", max_tokens=200, extra_body={"ignore_eos": True})

        loads = [pool.submit(load) for _ in range(8)]
        try:
            wait_for(lambda: replicas() == [2], 120)
        finally:
            over.set()
        for done in loads:
            done.result()
        wait_for(lambda: replicas() == [1], 120)
        assert ask(client, "bikeshop").choices
