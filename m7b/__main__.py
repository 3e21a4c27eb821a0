"""The console script, also as `python -m m7b`."""

import sys


def run() -> None:
    """Run the command line of this process. Ctrl-C is quiet from the first import on."""
    try:
        from m7b.cli import run as run_cli

        run_cli()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
