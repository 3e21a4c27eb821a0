"""`python -m m7b` is `m7b`."""

from m7b.cli import run

run()
