"""`python -m m7b.harness` is the `lm_eval` command, which knows `--model m7b` whatever its release."""

from m7b.harness import require_lm_eval


def run() -> None:
    """Run lm-eval's command line."""
    require_lm_eval()
    from lm_eval.__main__ import cli_evaluate

    import m7b.harness.model  # noqa: F401 - it registers itself

    cli_evaluate()


if __name__ == "__main__":
    run()
