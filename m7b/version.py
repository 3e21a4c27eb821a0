"""The version of m7b."""

__version__ = "0.1.0"
