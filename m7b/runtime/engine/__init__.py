"""The engine: sequences of ids through one model, as many at once as there is room for. Knows no text."""

from m7b.runtime.engine.engine import Engine
from m7b.runtime.engine.sequence import Sequence

__all__ = ["Engine", "Sequence"]
