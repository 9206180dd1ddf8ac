"""What is refused before anything starts, and what a failed start leaves."""

from __future__ import annotations

import importlib
import shutil
import socket

import pytest
from making import make_version
from serving.asking import (
    project,
)

import tunery
from tunery.bases import find_base
from tunery.config import Project, ServedBase, ServeSpec, parse
from tunery.engine.cluster import free_port
from tunery.errors import ConfigError, EngineError, ModelError, ResourceError, RunError
from tunery.ops import runs
from tunery.ops.access import create_key, revoke_key
from tunery.ops.services import describe


@pytest.fixture(scope="module")
def base(tiny_base):
    return find_base(str(tiny_base))


@pytest.fixture(scope="module")
def home(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    for ref in ("bikeshop@3", "viggo@1"):
        make_version(folder, tiny_base, ref)
    return folder


def refused(spec):
    with tunery.serve(spec):
        pytest.fail("it was served")


def test_a_port_in_use_is_named_and_a_free_one_offered(home, base):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=str(port)) as caught:
            refused(project(home, base, port=port))
    assert "--set serve.port=" in (caught.value.hint or "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_keys_it_binds_to_this_machine_only(home, base, host):
    with pytest.raises(ConfigError, match="no API keys") as caught:
        refused(project(home, base, host=host))
    assert "tunery keys create" in (caught.value.hint or "")


def test_keys_that_are_all_revoked_are_none(base, tmp_path):
    create_key("crm", project={"home": str(tmp_path)})
    revoke_key("crm", project={"home": str(tmp_path)})
    with pytest.raises(ConfigError, match="no API keys"):
        refused(project(tmp_path, base, host="0.0.0.0"))


def test_what_is_not_there_or_of_another_base_is_named(home, base, tmp_path):
    with pytest.raises(RunError, match='no version "bikeshop@2"'):
        refused(project(home, base, models=["bikeshop@2"]))
    shutil.copytree(home, tmp_path / "home")
    make_version(tmp_path / "home", base.path, "other@1", base_digest="another")
    with pytest.raises(ModelError, match="other@1: not served") as caught:
        refused(project(tmp_path / "home", base, base=str(base.path), models=["bikeshop", "other"]))
    assert "serve.bases" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="bases stands instead of base, models"):
        parse(ServeSpec, {"bases": [{}], "base": "x", "models": ["y"]})
    several = ServeSpec(bases=[ServedBase(base="x"), ServedBase(base="y")])
    assert ServeSpec.model_validate(several.model_dump()) == several  # as it comes to the gateway
    bases = [{"base": str(base.path)}, {"base": str(base.path)}]
    with pytest.raises(ConfigError, match="served twice"):
        refused(Project.model_validate({"home": str(home), "serve": {"bases": bases}}))


def test_an_incomplete_adapter_is_refused(home, base, tmp_path):
    shutil.copytree(home, tmp_path / "home")
    (tmp_path / "home" / "models" / "viggo" / "1" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        refused(project(tmp_path / "home", base))


def test_the_same_service_as_a_file_for_serve_deploy(home, base, tmp_path):
    """What Ray's own command reads: its schema holds, and its builders make the applications."""
    import yaml
    from ray.serve.schema import ServeDeploySchema

    scale = {"min_replicas": 1, "max_replicas": 4}
    facts = describe(project(home, base, autoscaling=scale), tmp_path / "serve.yaml")
    assert facts["models"] == ["bikeshop@3", "viggo@1"]
    config = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    assert [a.name for a in schema.applications] == ["engine", "gateway"]
    for application in schema.applications:
        module, _, builder = application.import_path.partition(":")
        built = getattr(importlib.import_module(module), builder)(application.args)
        assert built._bound_deployment.name == application.name


def test_a_failed_start_says_why_and_leaves_nothing(ray_session, home, base):
    from ray import serve as ray_serve

    spec = project(home, base, engine={"engine_kwargs": {"max_model_len": 99_999}})
    with pytest.raises(EngineError, match=r"max_model_len \(99999\) is greater") as caught, tunery.serve(spec):
        pytest.fail("it was served")
    assert "\n" not in caught.value.message
    run = runs.list_runs(home)[0]
    assert run.state == "failed"
    assert "Traceback" in (run.path / "logs" / "failure.log").read_text()
    assert "failure.log" in (caught.value.hint or "")
    assert free_port("127.0.0.1", spec.serve.port) == spec.serve.port
    assert not ray_serve.status().applications
