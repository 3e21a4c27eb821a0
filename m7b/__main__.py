"""The console script, also as `python -m m7b`."""

import gc
import sys


def run() -> None:
    """Run the command line of this process. Ctrl-C is quiet from the first import on."""
    gc.set_threshold(100_000)  # or a fifth of each start is spent looking for garbage among what is imported
    try:
        from m7b.cli import run as run_cli

        run_cli()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # nor need any be looked for on the way out


if __name__ == "__main__":
    run()
