"""The console script, also as `python -m m7b`."""

import gc
import sys


def run() -> None:
    """Run the command line of this process. Ctrl-C is quiet from the first import on."""
    gc.set_threshold(100_000)  # imports make a million objects and no garbage to look for
    try:
        from m7b.cli import run as run_cli

        run_cli()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # nor need any be looked for on the way out


if __name__ == "__main__":
    run()
