"""Batches on many machines: a stage of Ray Data, whose actors answer requests. Needs `m7b[ray]`."""

from m7b.errors import UsageError
from m7b.scale.answerer import Answerer
from m7b.scale.folder import AnswerFolder, Tally

__all__ = ["AnswerFolder", "Answerer", "Tally", "require_ray"]


def require_ray() -> None:
    """Check that Ray is there, with what its data part needs.

    Raises:
        UsageError: it is not.
    """
    from importlib.util import find_spec

    missing = [name for name in ("ray", "pandas", "pyarrow") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed",
            hint="pip install 'm7b[ray]'",
        )
