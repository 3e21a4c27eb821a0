"""Mistral 7B in a terminal, and in Python: `m7b.load`, then `complete`, `generate`, `chat` and so on.

Importing this costs next to nothing: `m7b.library` is imported when the first of its names is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from m7b.version import __version__

if TYPE_CHECKING:
    from m7b.library import (
        AnyJson,
        Finished,
        JsonSchema,
        Lark,
        M7bError,
        Model,
        Regex,
        TextDelta,
        Toolbox,
        answer,
        ask,
        chat,
        complete,
        detokenize,
        generate,
        load,
        score,
        tokenize,
    )

__all__ = [
    "AnyJson",
    "Finished",
    "JsonSchema",
    "Lark",
    "M7bError",
    "Model",
    "Regex",
    "TextDelta",
    "Toolbox",
    "__version__",
    "answer",
    "ask",
    "chat",
    "complete",
    "detokenize",
    "generate",
    "load",
    "score",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("m7b.library"), name)


def __dir__() -> list[str]:
    return __all__  # what a prompt completes, before any of it is asked for
