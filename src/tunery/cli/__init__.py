"""The command line. Nothing heavy is imported until a verb needs it."""

from tunery.cli.app import app, main
from tunery.cli.batch import batch_app
from tunery.cli.evaluation import eval_app
from tunery.cli.serving import keys_app, serve_app

app.add_typer(batch_app, name="batch")
app.add_typer(eval_app, name="eval")
app.add_typer(serve_app, name="serve")
app.add_typer(keys_app, name="keys")

__all__ = ["main"]
