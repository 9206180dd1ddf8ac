"""The command line. Nothing heavy is imported until a verb needs it."""

from tunery.cli.app import app, main
from tunery.cli.batch import batch_app
from tunery.cli.evaluation import eval_app

app.add_typer(batch_app, name="batch")
app.add_typer(eval_app, name="eval")

__all__ = ["main"]
