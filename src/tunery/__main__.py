"""`python -m tunery` is `tunery`."""

from tunery.cli import main

main()
