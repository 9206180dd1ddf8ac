"""Tunery: labelled examples in, a fine-tuned, evaluated and served extraction model out.

import tunery
run = tunery.train("tunery.yaml")
report = tunery.evaluate("tunery.yaml")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tunery.config import Project, TrainSpec
    from tunery.data import How, check, export_dataset, import_dataset, load
    from tunery.doctor import examine
    from tunery.errors import TuneryError
    from tunery.ops.access import create_key, list_aliases, list_keys, remove_alias, revoke_key, set_alias
    from tunery.ops.datasets import check_data, export_data, sample_data, split_data
    from tunery.ops.exports import export
    from tunery.ops.quickstart import quickstart
    from tunery.ops.services import serve
    from tunery.ops.verbs import batch, compare, evaluate, retry_batch, train

_HOMES = {
    "How": "tunery.data",
    "Project": "tunery.config",
    "TrainSpec": "tunery.config",
    "TuneryError": "tunery.errors",
    "batch": "tunery.ops.verbs",
    "check": "tunery.data",
    "check_data": "tunery.ops.datasets",
    "compare": "tunery.ops.verbs",
    "create_key": "tunery.ops.access",
    "evaluate": "tunery.ops.verbs",
    "examine": "tunery.doctor",
    "export": "tunery.ops.exports",
    "export_data": "tunery.ops.datasets",
    "export_dataset": "tunery.data",
    "import_dataset": "tunery.data",
    "list_aliases": "tunery.ops.access",
    "list_keys": "tunery.ops.access",
    "load": "tunery.data",
    "quickstart": "tunery.ops.quickstart",
    "remove_alias": "tunery.ops.access",
    "retry_batch": "tunery.ops.verbs",
    "revoke_key": "tunery.ops.access",
    "sample_data": "tunery.ops.datasets",
    "serve": "tunery.ops.services",
    "set_alias": "tunery.ops.access",
    "split_data": "tunery.ops.datasets",
    "train": "tunery.ops.verbs",
}
__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import on first use: `import tunery` costs nothing, and `tunery --help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tunery' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
