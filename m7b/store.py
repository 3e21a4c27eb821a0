"""Conversations on disk. Knows messages and how they are stored; nothing about templates or screens."""

import json
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType
from typing import Any, Self

from m7b.database import Database
from m7b.errors import M7bError, UsageError
from m7b.messages import Message, parse_message

TITLE_LENGTH = 60
NAME_LENGTH = 80

_SCHEMA = (
    # AUTOINCREMENT: an id is never used again, so nobody saves into the place of a removed conversation.
    "CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE,"
    " model TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL)",
    "CREATE TABLE messages (conversation INTEGER NOT NULL, position INTEGER NOT NULL, role TEXT NOT NULL,"
    " content BLOB NOT NULL, extra BLOB NOT NULL, is_partial INTEGER NOT NULL,"
    " PRIMARY KEY (conversation, position))",
)
_CONVERSATIONS = """
    SELECT id, name, model, created, updated,
        (SELECT count(*) FROM messages WHERE conversation = id),
        (SELECT content FROM messages WHERE conversation = id AND role = 'user' ORDER BY position LIMIT 1)
    FROM conversations ORDER BY updated DESC, id DESC
"""
_MESSAGES = "SELECT role, content, extra, is_partial FROM messages WHERE conversation = ? ORDER BY position"

_Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """What the store knows of a conversation besides its messages; times are seconds since 1970."""

    id: int
    name: str | None
    model: str
    created: float
    updated: float
    n_messages: int
    title: str


class ChangedMeanwhile(M7bError):
    """Another process has changed the conversation that was to be saved."""


class Store:
    """The conversations in the file `path`, or in memory where it is None; see Database for the errors."""

    def __init__(self, path: Path | None) -> None:
        self._database = Database(path, _SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def list_conversations(self) -> list[StoredConversation]:
        """List all conversations, the most recently saved first."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_CONVERSATIONS).fetchall()
        return [self._read_conversation(row) for row in rows]

    def find_latest(self) -> StoredConversation | None:
        """Find the most recently saved conversation that has messages."""
        return next((found for found in self.list_conversations() if found.n_messages), None)

    def find_named(self, name: str) -> StoredConversation | None:
        """Find the conversation called `name`."""
        return next((found for found in self.list_conversations() if _is_called(found, name)), None)

    def find(self, reference: str) -> StoredConversation:
        """Find the conversation whose id or name is `reference`.

        Raises:
            UsageError: there is none; the hint lists the latest ones.
        """
        known = self.list_conversations()
        for found in known:
            if reference == str(found.id) or _is_called(found, reference):
                return found
        latest = ", ".join(found.name or str(found.id) for found in known[:5])
        hint = f"the latest are {latest}: see m7b sessions list" if known else "there are none yet"
        raise UsageError(f"there is no conversation {reference!r}", hint=hint)

    def load_messages(self, id: int) -> list[Message]:
        """Load the messages of one conversation, none where it does not exist."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_MESSAGES, (id,)).fetchall()
        return [self._read_message(row) for row in rows]

    def search(self, text: str) -> Iterator[tuple[StoredConversation, int, Message]]:
        """Find the messages that hold `text`, by `fold`; yields each with its conversation and position."""
        wanted = fold(text)
        for conversation in self.list_conversations():  # nothing is locked while the caller takes its time
            for position, message in enumerate(self.load_messages(conversation.id)):
                if wanted in fold(message.text):
                    yield conversation, position, message

    def create(self, model: str, name: str | None = None) -> int:
        """Begin a conversation with `model` and return its id.

        Raises:
            UsageError: `name` is taken or cannot be a name.
        """
        now = time.time()
        with self._database.begin_write() as connection:
            if name is not None:
                name = check_name(name)
                _check_free(connection, name)
            done = connection.execute(
                "INSERT INTO conversations (name, model, created, updated) VALUES (?, ?, ?, ?)",
                (name, as_utf8(model), now, now),
            )
        assert done.lastrowid is not None
        return done.lastrowid

    def save(
        self,
        id: int,
        messages: Sequence[Message],
        model: str | None = None,
        *,
        seen: Sequence[Message] | None = None,
    ) -> None:
        """Replace the stored messages by `messages`, all or nothing; with `model` None, the model stays.

        Where another process has removed the conversation meanwhile, it is stored again under its id.

        Raises:
            ChangedMeanwhile: the stored messages are not those that the caller has `seen` last.
        """
        rows = [_make_row(message) for message in messages]
        label = None if model is None else as_utf8(model)
        with self._database.begin_write() as connection:
            connection.execute(
                "INSERT INTO conversations (id, model, created, updated)"
                " VALUES (:id, coalesce(:model, ''), :now, :now)"
                " ON CONFLICT (id) DO UPDATE SET model = coalesce(:model, model), updated = :now",
                {"id": id, "model": label, "now": time.time()},
            )
            stored = connection.execute(_MESSAGES, (id,)).fetchall()
            if stored and seen is not None and stored != [_make_row(message) for message in seen]:
                raise ChangedMeanwhile(f"another chat has changed conversation {id}")
            pairs = zip(stored, rows, strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            connection.execute("DELETE FROM messages WHERE conversation = ? AND position >= ?", (id, same))
            connection.executemany(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
                ((id, position, *row) for position, row in enumerate(rows[same:], same)),
            )

    def rename(self, id: int, name: str) -> None:
        """Rename a conversation to `name`.

        Raises:
            UsageError: `name` is taken or cannot be a name, or there is no such conversation.
        """
        with self._database.begin_write() as connection:
            name = check_name(name)
            _check_free(connection, name, id)
            done = connection.execute("UPDATE conversations SET name = ? WHERE id = ?", (name, id))
            if not done.rowcount:
                raise UsageError(f"there is no conversation {id}", hint="see m7b sessions list")

    def remove(self, id: int) -> None:
        """Remove a conversation with all its messages, if it is there."""
        with self._database.begin_write() as connection:
            connection.execute("DELETE FROM messages WHERE conversation = ?", (id,))
            connection.execute("DELETE FROM conversations WHERE id = ?", (id,))

    def _read_conversation(self, row: _Row) -> StoredConversation:
        id, name, model, created, updated, n_messages, content = row
        title = "" if content is None else _make_title(self._read_message(("user", content, b"{}", 0)).text)
        return StoredConversation(id, name, model, created, updated, n_messages, title)

    def _read_message(self, row: _Row) -> Message:
        role, content, extra, is_partial = row
        try:
            fields = {**_unpack(extra), "role": role, "content": _unpack(content)}
            return replace(parse_message(fields), is_partial=bool(is_partial))
        except (ValueError, TypeError, AttributeError, UsageError):
            self._database.refuse("a message in it cannot be read")


def as_utf8(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 cannot hold, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def compose(text: str) -> str:
    """Return `text` with each letter and its accents as one character: what looks the same is the same."""
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """Return what a search compares: one form of accents, ligatures and widths, and no capitals.

    It is Unicode's compatibility caseless matching, composed at the end, so that e does not find é.
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFKC", folded.casefold())


def check_name(name: str) -> str:
    """Check that a conversation can be called `name`; returns it as it is kept.

    Raises:
        UsageError: it cannot.
    """
    name = compose(name)
    if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise UsageError(f"{name!r} is no name", hint=f"a name is 1 to {NAME_LENGTH} printable characters")
    if name.isdigit():
        raise UsageError(f"{name!r} is no name", hint="numbers are ids: add a letter")
    return name


def _is_called(conversation: StoredConversation, name: str) -> bool:
    return conversation.name is not None and compose(conversation.name) == compose(name)


def _check_free(connection: Connection, name: str, id: int | None = None) -> None:
    """Refuse a name that another conversation than `id` has."""
    holder = connection.execute("SELECT id FROM conversations WHERE name = ?", (name,)).fetchone()
    if holder and holder[0] != id:
        raise UsageError(f"conversation {holder[0]} is called {name!r} already", hint="choose another name")


def _make_title(text: str) -> str:
    line = as_utf8(" ".join(text.split()))
    return line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1]}…"


def _make_row(message: Message) -> _Row:
    return (message.role, _pack(message.content), _pack(dict(message.extra)), int(message.is_partial))


def _pack(value: Any) -> bytes:
    """Write JSON in bytes that keep every Python string, even one with lone surrogates."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _unpack(data: bytes) -> Any:
    return json.loads(data.decode("utf-8", "surrogatepass"))
