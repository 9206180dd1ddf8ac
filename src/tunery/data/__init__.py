"""Datasets in: load, import and check labelled examples."""

from tunery.data.check import CheckResult, Finding, SplitStats, check
from tunery.data.dataset import fingerprint, list_datasets, load, load_rows
from tunery.data.download import download
from tunery.data.exporter import Exported, export_dataset
from tunery.data.importer import Imported, import_dataset, materialise_bikeshop
from tunery.data.intake import How

__all__ = [
    "CheckResult",
    "Exported",
    "Finding",
    "How",
    "Imported",
    "SplitStats",
    "check",
    "download",
    "export_dataset",
    "fingerprint",
    "import_dataset",
    "list_datasets",
    "load",
    "load_rows",
    "materialise_bikeshop",
]
