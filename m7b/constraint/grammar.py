"""The grammars that an answer can be kept to, and how to write them for llguidance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from m7b.constraint.calls import Calls, PairTexts, Place, write_calls, write_pair_texts
from m7b.errors import UsageError
from m7b.tokenizer.base import check_unicode

MAX_SOURCE = 100_000
"""Characters of a pattern or a Lark grammar; longer ones would take seconds to compile."""
# Separators are those of json.dumps, which wrote the calls that Mistral trained on, and no other whitespace
# is allowed: an answer cannot end in endless blanks. Without \u, no escape spells a character that a pattern
# rules out, nor half of one; control characters that have no letter of their own are lost.
_JSON = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allowed_escapes": 'nrbtf\\"',
}


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that is valid against `schema`, of draft 2020-12."""

    schema: Mapping[str, Any] | bool


@dataclass(frozen=True, slots=True)
class AnyJson:
    """Any JSON object or array."""


@dataclass(frozen=True, slots=True)
class Regex:
    """All of the answer matches `pattern`, in the syntax of Rust's regex crate."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """A context-free grammar in llguidance's variant of Lark's language; `start` is the answer."""

    source: str


Grammar = JsonSchema | AnyJson | Regex | Lark | Calls


def write_llguidance_grammar(grammar: Grammar, *, behind_space: bool) -> str:
    """Write a grammar in llguidance's format; with `behind_space` a space comes first.

    Raises:
        UsageError: a schema asks for what cannot be enforced, or a grammar is too long.
    """
    body = {"name": "body"} | _build_body(grammar)
    is_loose = isinstance(grammar, Calls) and grammar.place is not Place.REST  # templates begin as they like
    space = '" "? ' if is_loose else '" " '
    # A grammar of its own, because the names in a Lark grammar belong to the user.
    start = {"lark_grammar": f"start: {space if behind_space else ''}@body"}
    arguments = _build_arguments(grammar) if isinstance(grammar, Calls) else []
    return json.dumps({"grammars": [start, body, *arguments]})


def check_schema(schema: object) -> None:
    """Check that answers can be kept to `schema`.

    Raises:
        UsageError: they cannot, or nothing satisfies it; the message names the keyword and its place.
    """
    _write_rules(schema)


def _build_arguments(calls: Calls) -> list[dict[str, Any]]:
    """Build the grammar of what each tool takes, by the names that `write_calls` gives them."""
    grammars = []
    pairs = write_pair_texts(calls.format.pairs, calls.controls) if calls.format.pairs else None
    for n, (name, schema) in enumerate(calls.tools.items()):
        try:
            rules = f"start: json\n{_write_rules(schema, pairs)}"
            grammars.append({"name": f"arguments_{n}", "lark_grammar": rules})
        except UsageError as error:
            raise UsageError(f"the tool {name}: {error.message}", hint=error.hint) from None
    return grammars


def _build_body(grammar: Grammar) -> dict[str, Any]:
    match grammar:
        case JsonSchema(schema):
            return {"lark_grammar": f"start: json\n{_write_rules(schema)}"}
        case AnyJson():
            return {"json_schema": {"type": ["object", "array"], "x-guidance": _JSON}}
        case Regex(pattern):
            return {"lark_grammar": f"start: /{_escape_slashes(_check_length('pattern', pattern))}/"}
        case Lark(source):
            if "%json" in source:  # llguidance would ignore the keywords of the schema that it does not know
                raise UsageError(
                    "%json in a Lark grammar is not supported", hint="give the JSON schema alone"
                )
            return {"lark_grammar": _check_length("grammar", source)}
        case Calls():
            return {"lark_grammar": write_calls(grammar)}
        case _:
            assert_never(grammar)


def find_kinds(schema: object) -> dict[str, frozenset[str]]:
    """Find the JSON types of an object's properties by their names; "" stands for those that have none.

    Raises:
        UsageError: answers cannot be kept to the schema.
    """
    from m7b.constraint import rules

    return rules.find_kinds(schema)


def _write_rules(schema: object, pairs: PairTexts | None = None) -> str:
    from m7b.constraint.rules import write_schema_rules  # which only schemas need

    return write_schema_rules(schema, pairs)


def _escape_slashes(pattern: str) -> str:
    from llguidance import regex_to_lark

    return regex_to_lark(pattern, "")


def _check_length(name: str, source: str) -> str:
    if len(source) > MAX_SOURCE:
        raise UsageError(f"the {name} has {len(source)} characters, m7b takes {MAX_SOURCE}")
    return check_unicode(source)
