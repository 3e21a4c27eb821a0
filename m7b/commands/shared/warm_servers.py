"""Servers that keep a model for other commands: starting one in the background, showing and ending them."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import typer

from m7b.errors import NoServer, OutOfResources, UsageError
from m7b.models.choice import ModelChoice
from m7b.render import Output, note
from m7b.warm import folder
from m7b.warm.folder import Record

_SLACK_S = 10.0  # what a server needs beyond its time for answers
_LAST_S = 5.0


@dataclass
class WarmPlace:
    """A server's place in the run folder, where commands look for it; or none, where another has it.

    Args:
        identity: that of its model.
        claimed: the record, locked.
    """

    identity: str
    claimed: IO[str]
    _ready: Callable[[str], None] = field(default=lambda line: None)

    @property
    def socket(self) -> Path:
        """Where commands look for it."""
        return folder.socket_file(self.identity)

    def open(self, choice: ModelChoice, addresses: Sequence[str], grace: float) -> None:
        """Be found, now that the model is there; who waits for a server in the background is told."""
        name, path = choice.locate()
        place = str(Path(os.path.realpath(path)))
        record = Record(self.identity, name, place, os.getpid(), tuple(addresses), time.time(), grace)
        folder.write(self.claimed, record)
        self._ready(f"{name} is ready: {record.where} (pid {record.pid})\n")

    def close(self) -> None:
        """Be found no more."""
        folder.release(self.claimed, self.identity)

    def detach(self) -> None:
        """Go on in a process of its own; this one waits until it is ready, prints its line and exits.

        Until then the errors of the new process are shown, then they go to its log.

        Raises:
            typer.Exit: in this process, with the code of the other where that has failed.
        """
        log = os.open(folder.log_file(self.identity), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        reading, writing = os.pipe()
        if pid := os.fork():
            os.close(writing)
            self.claimed.close()
            _wait_until_ready(pid, reading)
        os.close(reading)
        os.setsid()
        _point_at([sys.__stdin__, sys.__stdout__], os.open(os.devnull, os.O_RDWR))

        def ready(line: str) -> None:
            _point_at([sys.__stderr__, sys.__stdout__], log)
            with suppress(OSError):  # whoever started it has gone
                os.write(writing, line.encode())
                os.close(writing)

        self._ready = ready


def claim_place(identity: str) -> WarmPlace | None:
    """Claim the place of a model; None where another server has it, or nobody can."""
    try:
        claimed = folder.claim(identity)
    except (OutOfResources, OSError):
        return None
    return WarmPlace(identity, claimed) if claimed else None


def start_in_background(identity: str) -> WarmPlace:
    """The place of a server that goes on in the background, in the process that does.

    Raises:
        typer.Exit: in the process that was called; with 0 also where such a server runs already.
        OutOfResources: the run folder cannot be used.
    """
    if not hasattr(os, "fork"):
        raise UsageError("this system cannot serve in the background", hint="leave out --background")
    claimed = folder.claim(identity)
    if claimed is None:
        record = folder.find_record(identity)
        where = f"{record.where} (pid {record.pid})" if record else "it is being loaded"
        Output().write(f"{record.name if record else 'the model'} is served already: {where}\n")
        raise typer.Exit
    place = WarmPlace(identity, claimed)
    place.detach()
    return place


def show_servers(choice: ModelChoice | None) -> None:
    """Print the servers that run, or those of one model, a line each.

    Raises:
        NoServer: there are none.
    """
    output = Output()
    for record in _find(choice):
        minutes = (time.time() - record.started) / 60
        log = folder.log_file(record.identity)
        output.write(f"{record.name}  pid {record.pid}  {minutes:.0f} min  {record.where}  log {log}\n")


def stop_servers(choice: ModelChoice | None, grace: float | None) -> None:
    """End the servers that run, or those of one model; `grace` seconds for their answers, or their own.

    Raises:
        NoServer: there are none.
    """
    for record in _find(choice):
        patience = record.grace + _SLACK_S if grace is None else grace
        for number, seconds in (
            (signal.SIGTERM, patience),
            (signal.SIGTERM, _LAST_S),
            (signal.SIGKILL, _LAST_S),
        ):
            with suppress(ProcessLookupError):
                os.kill(record.pid, number)
            if folder.wait_for_end(record, seconds):
                break
        note(f"the server of {record.name} (pid {record.pid}) has ended")


def _find(choice: ModelChoice | None) -> list[Record]:
    records = list(folder.list_records())
    if choice is not None:
        path = os.path.realpath(choice.locate()[1])
        records = [record for record in records if record.path == path]
    if not records:
        raise NoServer("no server of m7b runs", hint="m7b serve --background starts one")
    return records


def _wait_until_ready(pid: int, reading: int) -> None:
    """Wait for the process that is to serve, print what it says, and exit as it did where it has failed."""
    try:
        with os.fdopen(reading, encoding="utf-8") as pipe:
            line = pipe.read()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    if line:
        Output().write(line)
        raise typer.Exit
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        note(f"the server was ended by signal {-code} while it loaded the model")
    raise typer.Exit(code if code > 0 else 128 - code)


def _point_at(streams: Sequence[IO[str] | None], descriptor: int) -> None:
    for stream in streams:
        if stream is not None:
            stream.flush() if stream.writable() else None
            os.dup2(descriptor, stream.fileno())
