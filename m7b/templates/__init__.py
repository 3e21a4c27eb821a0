"""Encode a conversation. Knows messages, templates and tokenizers; nothing about sessions or tensors.

Ids are built from segments: a control id appears only where the template puts it, never because a
message spells its name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m7b.call_format import MISTRAL, CallFormat
from m7b.errors import InvalidConversation, UsageError
from m7b.templates.base import Template, Tools, shows_tools
from m7b.templates.jinja import JinjaTemplate, is_mistral
from m7b.templates.mistral import MistralTemplate
from m7b.templates.named import TemplatePair
from m7b.templates.openai import find_left_out
from m7b.text_input import decode_text
from m7b.tokenizer import MistralTokenizer, Tokenizer
from m7b.variants import TokenizerVersion

__all__ = [
    "JinjaTemplate",
    "MistralTemplate",
    "Template",
    "Tools",
    "choose_template",
    "find_call_format",
    "list_left_out",
    "load_template",
    "read_source",
    "shows_tools",
]


def choose_template(
    source: str | None, tokenizer: Tokenizer, eos: str, *, tool_source: str | None = None
) -> Template | None:
    """Choose the template of a checkpoint that has the Jinja `source`, None where it has none.

    Where tools are offered, `tool_source` is used instead; a checkpoint may bring it alone. Where a source
    writes what Mistral's templates write, mistral-common runs instead: same text, exact ids. But v1 has no
    place for tools, whatever was put into its source.
    """
    tool_source = tool_source or source
    if tool_source is None:
        return None
    with_tools = JinjaTemplate(tool_source, tokenizer, eos)
    if source is None:
        return TemplatePair(None, with_tools)
    if not isinstance(tokenizer, MistralTokenizer) or not is_mistral(source):
        is_one = tool_source == source
        return with_tools if is_one else TemplatePair(JinjaTemplate(source, tokenizer, eos), with_tools)
    plain = MistralTemplate(tokenizer)
    if is_mistral(tool_source) and shows_tools(plain):
        return plain
    try:
        return TemplatePair(plain, with_tools) if shows_tools(with_tools) else plain
    except InvalidConversation:
        return plain  # what fails with tools has no place for them


def list_left_out(template: Template, messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the places of what `template` leaves out of messages: thoughts, and text beside calls."""
    return [*find_left_out(messages)] if isinstance(template, MistralTemplate) else []


def find_call_format(template: Template) -> CallFormat | None:
    """Find how the template writes calls; None where it shows none, or in a form that is not known."""
    match template:
        case TemplatePair(with_tools=inner):
            return find_call_format(inner)
        case JinjaTemplate():
            return template.call_format
    return MISTRAL


def load_template(name: str, tokenizer: Tokenizer, eos: str) -> Template:
    """Load the template that the user names: `v1`, `v3` or a Jinja file.

    Raises:
        UsageError: there is no such template, or it is not for this tokenizer.
    """
    source = read_source(name)
    if source is not None:
        return JinjaTemplate(source, tokenizer, eos)
    if not isinstance(tokenizer, MistralTokenizer):
        raise UsageError(f"template {name} needs a SentencePiece tokenizer", hint="name a Jinja file")
    return MistralTemplate(tokenizer, TokenizerVersion(name))


def read_source(name: str) -> str | None:
    """Read the Jinja template in the file `name`; returns None for `v1` and `v3`.

    Raises:
        UsageError: there is no such file, or it is no text.
    """
    if name in tuple(TokenizerVersion):
        return None
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the template {name}: {error.strerror}", hint="name v1, v3 or a Jinja file"
        ) from None
    return decode_text(name, data)
