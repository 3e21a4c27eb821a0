"""The run folder: which servers of this user run on this machine, and where they listen.

Each has a record that it keeps locked while it lives, so a server that was killed is told from one that runs,
whoever has its pid today.
"""

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from m7b.errors import OutOfResources, UsageError
from m7b.paths import run_folder


@dataclass(frozen=True, slots=True)
class Record:
    """One server.

    Attributes:
        identity: that of its model.
        name: its model.
        path: the checkpoint.
        pid: its process.
        addresses: where it listens, as clients write it.
        started: in seconds since 1970.
        grace: the seconds that it gives to running answers when it is to end.
    """

    identity: str
    name: str
    path: str
    pid: int
    addresses: tuple[str, ...]
    started: float
    grace: float

    @property
    def where(self) -> str:
        """Where it listens, as people read it."""
        return " and ".join(self.addresses)


def open_folder() -> Path:
    """The run folder, made if need be, for its owner alone.

    Raises:
        OutOfResources: it cannot be made, or somebody else may look into it.
    """
    folder = run_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutOfResources(f"cannot make {folder}: {error.strerror}", hint="set M7B_HOME") from None
    if not is_private(folder):
        raise OutOfResources(
            f"{folder} is not a folder that its owner alone can open", hint=f"chmod 700 {folder}"
        )
    return folder


def is_private(folder: Path) -> bool:
    """Whether `folder` is one of this user that nobody else can open."""
    try:
        state = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077


def socket_file(identity: str) -> Path:
    """Where the server of a model listens."""
    return _file(identity, "sock")


def log_file(identity: str) -> Path:
    """What the server of a model says."""
    return _file(identity, "log")


def claim(identity: str) -> IO[str] | None:
    """Lock the record of a model, for the server that is to be its own; None where another has it.

    The lock lasts until the file is closed, by this process and all that it forks.
    """
    open_folder()
    while True:
        file = open(_file(identity, "json"), "a+", encoding="utf-8")  # noqa: SIM115 - it outlives this call
        os.chmod(file.name, 0o600)
        if not _lock(file):
            file.close()
            return None
        if _is_linked(file):  # else its last owner has just removed it
            return file
        file.close()


def write(file: IO[str], record: Record) -> None:
    """Write the record that was claimed."""
    file.truncate(0)
    file.write(json.dumps(asdict(record)))
    file.flush()


def release(file: IO[str], identity: str) -> None:
    """Remove the record that was claimed, and the socket."""
    socket_file(identity).unlink(missing_ok=True)
    Path(file.name).unlink(missing_ok=True)
    file.close()


def find_record(identity: str) -> Record | None:
    """The server of a model, where one runs."""
    return next((record for record in list_records() if record.identity == identity), None)


def list_records() -> Iterator[Record]:
    """The servers that are ready; what servers left that were killed is removed.

    Raises:
        UsageError: somebody else may look into the folder.
    """
    folder = run_folder()
    if not folder.exists():
        return
    if not is_private(folder):
        raise UsageError(f"{folder} is not its owner's alone", hint=f"chmod 700 {folder}")
    for path in sorted(folder.glob("*.json")):
        try:
            file = open(path, "r+", encoding="utf-8")  # noqa: SIM115 - closed below
        except OSError:
            continue
        with file:
            if _lock(file):
                if _is_linked(file):
                    release(file, path.stem)
                continue
            if record := _read(file.read()):
                yield record


def wait_for_end(record: Record, seconds: float) -> bool:
    """Wait until a server and its process have ended; False if they have not within `seconds`."""
    until = time.monotonic() + seconds
    while any(each == record for each in list_records()) or _is_running(record.pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _is_running(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _file(identity: str, suffix: str) -> Path:
    return run_folder() / f"{identity}.{suffix}"


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_linked(file: IO[str]) -> bool:
    """Whether the file is still the one of its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


def _read(text: str) -> Record | None:
    """The record in `text`; None while its server is not ready."""
    try:
        fields = json.loads(text)
        return Record(**fields | {"addresses": tuple(fields["addresses"])})
    except (ValueError, TypeError, KeyError):
        return None
