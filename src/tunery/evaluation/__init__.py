"""Evaluation: the same rows through one or more models, scored by the Task, compared, gated and written down."""

from tunery.evaluation.comparison import Comparison, compare
from tunery.evaluation.gate import Verdict, check_gate, parse_gate
from tunery.evaluation.record import write_report
from tunery.evaluation.run import BASE, Model, analyse, evaluate

__all__ = [
    "BASE", "Comparison", "Model", "Verdict", "analyse", "check_gate", "compare", "evaluate", "parse_gate",
    "write_report",
]  # fmt: skip
