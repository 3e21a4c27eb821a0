"""Grammars that answers keep to: they say which ids may follow, and which must.

Knows grammars, tokenizers and llguidance, which does the work; knows nothing about models or sampling.
"""

from m7b.constraint.calls import Calls, Place
from m7b.constraint.compiled import GrammarConstraint, GrammarMatcher, compile_constraint
from m7b.constraint.grammar import AnyJson, Grammar, JsonSchema, Lark, Regex, check_schema, find_kinds

__all__ = [
    "AnyJson",
    "Calls",
    "Grammar",
    "GrammarConstraint",
    "GrammarMatcher",
    "JsonSchema",
    "Lark",
    "Place",
    "Regex",
    "check_schema",
    "compile_constraint",
    "find_kinds",
]
