"""lm-eval, the Language Model Evaluation Harness, with our engine as one of its models. Needs `m7b[eval]`."""

from m7b.errors import UsageError


def require_lm_eval() -> None:
    """Check that lm-eval is there.

    Raises:
        UsageError: it is not.
    """
    from importlib.util import find_spec

    missing = [name for name in ("lm_eval", "datasets") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed",
            hint="pip install 'm7b[eval]'",
        )
