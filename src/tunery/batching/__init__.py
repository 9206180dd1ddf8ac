"""Batch inference: rows in, the same rows with answers out, each exactly once, whatever is killed in between."""

from tunery.batching.job import Batch, BatchResult, perform, prepare
from tunery.extraction import Model

__all__ = ["Batch", "BatchResult", "Model", "perform", "prepare"]
