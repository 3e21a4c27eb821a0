"""A private SQLite file: readable to its owner only, of one version, with errors of ours.

Knows files and SQLite; nothing about what the tables hold.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from m7b.errors import M7bError, OutOfResources, UsageError

PATIENCE_S = 5.0


class Database:
    """The database in the file `path`, made with `schema` if need be.

    It survives being killed at any moment, and several processes may use it at once.

    Args:
        path: the file; None keeps everything in memory and forgets it at the end.
        schema: the statements that make the tables of version 1.

    Every method raises UsageError where the file is damaged or not ours, and OutOfResources where the disk,
    the permissions or another process stop it.
    """

    VERSION = 1

    def __init__(self, path: Path | None, schema: Sequence[str]) -> None:
        self._path = path
        with self._translate_errors():
            self._connection = self._connect()
        try:
            self._prepare(schema)
        except M7bError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def begin_read(self) -> Iterator[sqlite3.Connection]:
        """Read in one transaction: the block sees one state, whatever other processes do meanwhile."""
        with self._translate_errors(), self._connection:
            self._connection.execute("BEGIN")
            yield self._connection

    @contextmanager
    def begin_write(self) -> Iterator[sqlite3.Connection]:
        """Write in one transaction: all changes of the block, or none where it fails."""
        with self._translate_errors(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error that says that the file is damaged or not ours.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self._path} is not a file of m7b's, or a damaged one: {reason}",
            hint="move it away, and m7b begins a new one",
        ) from None

    def _connect(self) -> sqlite3.Connection:
        if self._path is None:
            return sqlite3.connect(":memory:", isolation_level=None)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite would make it readable to all; its journal takes over the mode of this file.
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise OutOfResources(f"cannot make {self._path}: {error.strerror}") from None
        address = f"{self._path.absolute().as_uri()}?mode=rw"  # mode=rw never creates the file
        return sqlite3.connect(address, uri=True, timeout=PATIENCE_S, isolation_level=None)

    def _prepare(self, schema: Sequence[str]) -> None:
        version = self._read_version()
        if version == 0:
            with self.begin_write() as connection:
                is_empty = not connection.execute("SELECT * FROM sqlite_master").fetchone()
                for statement in [*schema, f"PRAGMA user_version = {self.VERSION}"] if is_empty else []:
                    connection.execute(statement)
            version = self._read_version()
        if version > self.VERSION:
            raise UsageError(
                f"{self._path} has version {version}, this m7b knows {self.VERSION}", hint="use a newer m7b"
            )
        if version != self.VERSION:
            self.refuse("it has tables of something else")
        with self._translate_errors():
            # A rollback journal, SQLite's default, leaves one file at rest and works on network disks,
            # unlike a WAL. FULL waits for the disk, so what was saved outlives a power cut.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA secure_delete = ON")  # what is removed leaves the file too

    def _read_version(self) -> int:
        with self.begin_read() as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a bug of ours
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # absent where text is no UTF-8
            match code & 0xFF:
                case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_ERROR:
                    self.refuse(str(error))
                case sqlite3.SQLITE_BUSY:
                    raise OutOfResources(
                        f"{self._path} was in use by another process for {PATIENCE_S:g} s", hint="try again"
                    ) from None
                case _:
                    raise OutOfResources(
                        f"{self._path}: {error}", hint="it needs free disk space and permission to write"
                    ) from None
