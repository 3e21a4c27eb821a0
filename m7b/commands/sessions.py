"""`m7b sessions`: the conversations that were kept, to list, read, export, search and remove."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from m7b.errors import UsageError
from m7b.export import ExportFormat, choose_format, format_export, write_export
from m7b.paths import NoHome, sessions_file
from m7b.render import Output, note
from m7b.store import Store, StoredConversation, as_utf8, fold

sessions = typer.Typer(
    help="List, read, export, search and remove the conversations that were kept.", rich_markup_mode=None
)

ReferenceArgument = Annotated[str, typer.Argument(metavar="REF", help="A conversation by id or name.")]


@sessions.command("list")
def list_conversations(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line instead of text.")
    ] = False,
) -> None:
    """List the conversations, the latest first.

    Examples:

      m7b sessions list

      m7b sessions list --json
    """
    with _open() as store:
        conversations = store.list_conversations()
    output = Output()
    if not conversations:
        note("there are no conversations yet")
    if as_json:
        for conversation in conversations:
            output.write_json(asdict(conversation))
    else:
        output.write("".join(f"{line}\n" for line in _table(conversations)))


@sessions.command()
def show(reference: ReferenceArgument) -> None:
    """Print a conversation.

    Examples:

      m7b sessions show 1

      m7b sessions show recipes
    """
    with _open() as store:
        conversation = store.find(reference)
        messages = store.load_messages(conversation.id)
    Output().write(format_export(conversation, messages))


@sessions.command()
def export(
    reference: ReferenceArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write to this file instead of stdout.", show_default=False),
    ] = None,
    form: Annotated[
        ExportFormat | None,
        typer.Option("--format", help="The format; that of the file's suffix if not given, else markdown."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With -o: replace a file that exists.")] = False,
) -> None:
    """Write a conversation as Markdown or JSON.

    Examples:

      m7b sessions export recipes -o recipes.md

      m7b sessions export 1 --format jsonl
    """
    if force and not output:
        raise UsageError("--force goes with --output")
    with _open() as store:
        conversation = store.find(reference)
        messages = store.load_messages(conversation.id)
    if output:
        write_export(
            output, format_export(conversation, messages, form or choose_format(output)), replacing=force
        )
        note(f"wrote {output}")
    else:
        Output().write(format_export(conversation, messages, form or ExportFormat.MARKDOWN))


@sessions.command()
def rm(
    references: Annotated[list[str], typer.Argument(metavar="REF...", help="Conversations by id or name.")],
) -> None:
    """Remove conversations for good.

    Examples:

      m7b sessions rm recipes

      m7b sessions rm 1 2
    """
    with _open() as store:
        doomed = {found.id: found for found in map(store.find, references)}  # or none, if one is unknown
        for conversation in doomed.values():
            store.remove(conversation.id)
            note(f"removed {conversation.id} {_label(conversation)}")


@sessions.command()
def search(
    text: Annotated[str, typer.Argument(help="What to look for, in whatever case.", show_default=False)],
) -> None:
    """Print the lines that hold a text, one for each message.

    Examples:

      m7b sessions search pasta

      m7b sessions search "the capital of"
    """
    output = Output()
    n_found = 0
    with _open() as store:
        for conversation, _, message in store.search(text):
            lines = message.text.splitlines() or [""]
            line = next((line for line in lines if fold(text) in fold(line)), lines[0])
            output.write(as_utf8(f"{conversation.id:>4}  {message.role:<9}  {line}\n"))
            n_found += 1
    if not n_found:
        note("nothing found")


def _open() -> Store:
    """The store; one without a file where nothing was ever kept, so that asking leaves no trace."""
    try:
        file = sessions_file()
        return Store(file if file.exists() else None)
    except NoHome:
        return Store(None)


def _table(conversations: list[StoredConversation]) -> list[str]:
    rows = [
        (
            str(conversation.id),
            datetime.fromtimestamp(conversation.updated).strftime("%Y-%m-%d %H:%M"),
            conversation.model,
            str(conversation.n_messages),
            _label(conversation),
        )
        for conversation in conversations
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{id:>{widths[0]}}  {when}  {model:<{widths[2]}}  {n_messages:>{widths[3]}}  {label}"
        for id, when, model, n_messages, label in rows
    ]


def _label(conversation: StoredConversation) -> str:
    return conversation.name or conversation.title or "(empty)"
