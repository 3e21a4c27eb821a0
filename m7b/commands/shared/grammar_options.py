"""The options of constrained output, and the grammar that they come to."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from m7b.commands.shared.prompt import read_file
from m7b.constraint import AnyJson, Grammar, JsonSchema, Lark, Regex
from m7b.errors import UsageError


class AnswerFormat(StrEnum):
    """What an answer may be made to be without a grammar of one's own."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class GrammarOptions:
    """What answers are to keep to, in the words of the options; at most one of them."""

    json_schema: Annotated[
        str | None,
        typer.Option(
            "-j",
            "--json-schema",
            metavar="FILE|JSON",
            help="Make the answer JSON that is valid against this schema.",
            show_default=False,
        ),
    ] = None
    answer_format: Annotated[
        AnswerFormat, typer.Option("--format", help="json makes the answer any valid JSON.")
    ] = AnswerFormat.TEXT
    grammar: Annotated[
        Path | None,
        typer.Option(
            "--grammar", help="Make the answer follow this grammar, in Lark's language.", show_default=False
        ),
    ] = None
    regex: Annotated[
        str | None,
        typer.Option(
            "--regex", metavar="PATTERN", help="Make the answer match this pattern.", show_default=False
        ),
    ] = None

    def read(self) -> Grammar | None:
        """Read the grammar that is asked for, None where none is.

        Raises:
            UsageError: several are, or what they name cannot be read.
        """
        asked: list[Grammar] = []
        if self.json_schema is not None:
            asked.append(JsonSchema(_read_schema(self.json_schema)))
        if self.answer_format is AnswerFormat.JSON:
            asked.append(AnyJson())
        if self.grammar is not None:
            asked.append(Lark(read_file(self.grammar)))
        if self.regex is not None:
            asked.append(Regex(self.regex))
        if len(asked) > 1:
            raise UsageError(
                "more than one of --json-schema, --format json, --grammar and --regex is given",
                hint="give one",
            )
        return asked[0] if asked else None


def _read_schema(text: str) -> dict[str, object] | bool:
    """The schema that `text` is, or that is in the file of that name."""
    is_inline = text.lstrip().startswith("{") or text.strip() in ("true", "false")
    name = "the schema" if is_inline else text
    try:
        schema = json.loads(text if is_inline else read_file(Path(text)))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise UsageError(f"{name} is a JSON {type(schema).__name__}", hint="a schema is an object")
    return schema
