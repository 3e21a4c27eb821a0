"""Export a conversation as Markdown or JSON. Knows messages and files; nothing about screens."""

import json
import os
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

from m7b.errors import OutOfResources, UsageError
from m7b.messages import Message
from m7b.store import StoredConversation, as_utf8

_PARAGRAPH = "x"
_HTML_ENDS = ("-->", "?>", "]]>", "</pre>")


class ExportFormat(StrEnum):
    """The formats a conversation can be exported in."""

    MARKDOWN = "markdown"
    JSON = "json"
    JSONL = "jsonl"


def choose_format(file: Path) -> ExportFormat:
    """Choose the format by the suffix of the file; Markdown for all but .json and .jsonl."""
    formats = {".json": ExportFormat.JSON, ".jsonl": ExportFormat.JSONL}
    return formats.get(file.suffix.lower(), ExportFormat.MARKDOWN)


def format_export(
    conversation: StoredConversation, messages: Sequence[Message], form: ExportFormat = ExportFormat.MARKDOWN
) -> str:
    """Format a conversation as the text of an export; lone surrogates become escapes."""
    match form:
        case ExportFormat.MARKDOWN:
            heading = conversation.name or conversation.title or f"Conversation {conversation.id}"
            text = "\n".join([f"# {heading}\n\n{conversation.model}\n", *map(_format_message, messages)])
        case ExportFormat.JSON:
            fields: dict[str, Any] = {"id": conversation.id, "name": conversation.name}
            fields |= {"model": conversation.model, "messages": [message.as_json() for message in messages]}
            text = json.dumps(fields, ensure_ascii=False, indent=2) + "\n"
        case ExportFormat.JSONL:
            lines = (json.dumps(message.as_json(), ensure_ascii=False) for message in messages)
            text = "".join(f"{line}\n" for line in lines)
        case other:
            assert_never(other)
    return as_utf8(text)


def write_export(file: Path, text: str, *, replacing: bool = False) -> None:
    """Write `text` to `file`, readable to its owner only, whole or not at all.

    Raises:
        UsageError: `file` exists, unless `replacing`.
        OutOfResources: it cannot be written.
    """
    try:
        if file.exists() and not replacing:
            raise UsageError(f"{file} exists", hint="name another file, or add --force to replace it")
        if file.exists() and not file.is_file():
            raise UsageError(f"{file} is no regular file", hint="name another")
        with tempfile.TemporaryDirectory(prefix=".export-", dir=file.parent) as folder:
            whole = Path(folder) / "whole"
            whole.touch(0o600)
            whole.write_text(text, encoding="utf-8", newline="\n")
            os.replace(whole, file)
    except OSError as error:
        raise OutOfResources(f"cannot write {file}: {error.strerror}") from None


def _format_message(message: Message) -> str:
    mark = " (cut off)" if message.is_partial else ""
    parts = [f"**{message.role}**{mark}", _close_blocks(message.text)]
    if calls := message.extra.get("tool_calls"):
        parts.append(f"```json\n{json.dumps(calls, ensure_ascii=False)}\n```")
    return "".join(f"{part}\n\n" for part in parts if part).removesuffix("\n")


def _close_blocks(text: str) -> str:
    """Close what `text` leaves open, a fence or HTML, so that the next message is not read as part of it."""
    from markdown_it import MarkdownIt

    parse = MarkdownIt("commonmark").disable("inline").parse

    def is_closed(text: str) -> bool:
        *_, last, _ = [None, *parse(f"{text}\n\n{_PARAGRAPH}")]
        return last is not None and (last.type, last.level, last.content) == ("inline", 1, _PARAGRAPH)

    if is_closed(text):
        return text
    fences = [token.markup for token in parse(text) if token.type == "fence"]
    return next(filter(is_closed, (f"{text}\n{end}" for end in (*fences[-1:], *_HTML_ENDS))), text)
