"""The end."""

from __future__ import annotations

from tunery.engine.cluster import free_port


def test_the_end_of_the_block_ends_everything(running):
    from ray import serve as ray_serve
    from ray.util import list_named_actors

    service, stack = running
    port = int(service.url.split(":")[-1].removesuffix("/v1"))
    stack.close()
    assert free_port("127.0.0.1", port) == port
    assert not ray_serve.status().applications
    assert not [a for a in list_named_actors(all_namespaces=True) if "SERVE" in str(a) or "directory" in str(a)]
