"""Sockets, signals, and the life of a server from its start to its end."""

import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus

from m7b.errors import M7bError, UsageError
from m7b.models import Model
from m7b.server.app import Server
from m7b.server.guard import Access
from m7b.server.work import EngineThread

_MOST_CONNECTIONS = 1024
_HEADER_BYTES = 64 << 10
_CLEANUP_S = 5
_MAX_PORT = 65535


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port`; 0 takes a free one.

    Raises:
        UsageError: there is no such address, or somebody listens there.
    """
    if not 0 <= port <= _MAX_PORT:  # some resolvers take it for another one
        raise UsageError(f"there is no port {port}", hint=f"--port takes 0 to {_MAX_PORT}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot listen on {host}:{port}: {reason}", hint="name another --port") from None
    return bound


def bind_unix_socket(path: Path) -> socket.socket:
    """A socket in the file system, for its owner alone. One that nobody listens on any more is replaced.

    Raises:
        UsageError: it cannot be made.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_listening(path):
            path.unlink()
        bound.bind(str(path))
    except OSError as error:
        raise UsageError(
            f"cannot listen on {path}: {error.strerror or error}", hint="name another --uds"
        ) from None
    finally:
        os.umask(before)
    return bound


def describe_socket(bound: socket.socket) -> str:
    """Where `bound` listens, as clients write it."""
    name = bound.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def serve(
    bound: Sequence[socket.socket],
    load_model: Callable[[], Model],
    access: Access,
    *,
    parallel: int | None = None,
    max_waiting: int = 64,
    grace: float = 30.0,
    keep_alive: float | None = None,
    identity: str = "",
    report_ready: Callable[[Model, int], object] = lambda model, parallel: None,
) -> None:
    """Serve until SIGINT or SIGTERM; answers that run may then go on for `grace` seconds.

    Args:
        bound: all places where to listen.
        load_model: loads the model, while the server answers 503 already.
        access: who may ask.
        parallel: the most sequences that run at once, as many as pay and fit where None.
        max_waiting: the most requests that wait.
        grace: seconds.
        keep_alive: seconds without a request after which the server ends; None for never.
        identity: that of the model, for commands that look for it.
        report_ready: called with the model and the number of sequences that run at once, when it can answer.

    Raises:
        M7bError: the model cannot be loaded.
    """
    failed: list[M7bError] = []

    def report(error: M7bError | None) -> None:
        if error is None:
            assert engine.model is not None
            assert engine.parallel is not None
            report_ready(engine.model, engine.parallel)
            return
        failed.append(error)
        end()

    def end() -> None:
        listening.should_exit = True

    engine = EngineThread(load_model, parallel, max_waiting, report, keep_alive, end)
    config = uvicorn.Config(
        Server(engine, access, identity).app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_graceful_shutdown=int(grace) + _CLEANUP_S,
        http="h11",
        ws="none",
    )
    listening = _Listening(config, engine, grace)
    names = [one.getsockname() for one in bound]
    AppStatus.enable_automatic_graceful_drain = False  # streams end with their answers
    engine.start()
    try:
        listening.run(sockets=list(bound))
    finally:
        engine.stop()
        for name in names:
            if isinstance(name, str):
                Path(name).unlink(missing_ok=True)
    if failed:
        raise failed[0]


class _Listening(uvicorn.Server):
    """uvicorn, which ends as a service does: with code 0, and with time for the answers that run."""

    def __init__(self, config: uvicorn.Config, engine: EngineThread, grace: float) -> None:
        super().__init__(config)
        self._engine, self._grace = engine, grace

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Heed SIGINT and SIGTERM while serving."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no more connections; a second signal ends answers at once."""
        if self.should_exit:
            self._engine.stop()
            return
        self.should_exit = True
        timer = threading.Timer(self._grace, self._engine.stop)
        timer.daemon = True
        timer.start()


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True
