"""Fine-tuning: a plan that is checked, a loop that trains, Ray Train that carries it to many machines."""

from tunery.training.artifacts import model_files
from tunery.training.output import Trained
from tunery.training.plan import Plan, prepare
from tunery.training.trainer import train

__all__ = ["Plan", "Trained", "model_files", "prepare", "train"]
