"""The option types of constrained output, and the grammar that they come to."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from m7b.commands.shared.prompt import read_prompt
from m7b.constraint import AnyJson, Grammar, JsonSchema, Lark, Regex
from m7b.errors import UsageError


class AnswerFormat(StrEnum):
    """What an answer may be made to be without a grammar of one's own."""

    TEXT = "text"
    JSON = "json"


JsonSchemaOption = Annotated[
    str | None,
    typer.Option(
        "-j",
        "--json-schema",
        metavar="FILE|JSON",
        help="Make the answer JSON that is valid against this schema.",
        show_default=False,
    ),
]
FormatOption = Annotated[AnswerFormat, typer.Option("--format", help="json makes the answer any valid JSON.")]
GrammarOption = Annotated[
    Path | None,
    typer.Option(
        "--grammar", help="Make the answer follow this grammar, in Lark's language.", show_default=False
    ),
]
RegexOption = Annotated[
    str | None,
    typer.Option(
        "--regex", metavar="PATTERN", help="Make the answer match this pattern.", show_default=False
    ),
]


def grammar_of(
    json_schema: str | None, answer_format: AnswerFormat, grammar: Path | None, regex: str | None
) -> Grammar | None:
    """The grammar that the options ask for, None where they ask for none.

    Raises:
        UsageError: they ask for several, or what they name cannot be read.
    """
    asked: list[Grammar] = []
    if json_schema is not None:
        asked.append(JsonSchema(_schema(json_schema)))
    if answer_format is AnswerFormat.JSON:
        asked.append(AnyJson())
    if grammar is not None:
        asked.append(Lark(read_prompt(None, grammar)))
    if regex is not None:
        asked.append(Regex(regex))
    if len(asked) > 1:
        raise UsageError(
            "more than one of --json-schema, --format json, --grammar and --regex is given", hint="give one"
        )
    return asked[0] if asked else None


def _schema(text: str) -> dict[str, object] | bool:
    """The schema that `text` is, or that is in the file of that name."""
    is_inline = text.lstrip().startswith("{") or text.strip() in ("true", "false")
    name = "the schema" if is_inline else text
    try:
        schema = json.loads(text if is_inline else read_prompt(None, Path(text)))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise UsageError(f"{name} is a JSON {type(schema).__name__}", hint="a schema is an object")
    return schema
