"""Datasets in: load, import and check labelled examples."""

from tunery.data.check import CheckResult, Finding, SplitStats, check
from tunery.data.dataset import fingerprint, list_datasets, load, load_rows
from tunery.data.download import download
from tunery.data.importer import Imported, import_dataset, materialise_bikeshop

__all__ = [
    "CheckResult",
    "Finding",
    "Imported",
    "SplitStats",
    "check",
    "download",
    "fingerprint",
    "import_dataset",
    "list_datasets",
    "load",
    "load_rows",
    "materialise_bikeshop",
]
