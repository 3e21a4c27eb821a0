"""The thread that runs the model, and the requests on their way between it and the event loop.

One thread owns the engine. The event loop hands it requests and takes back what happens to them.
"""

import asyncio
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from m7b.completions import Completion
from m7b.errors import M7bError, OutOfResources
from m7b.generation import GenerationEvent
from m7b.models import Model
from m7b.render import note

Events = list[tuple[int, GenerationEvent]]
"""What happened to the choices of a request, each by its index."""


class Busy(M7bError):
    """The queue is full."""


class Stopping(M7bError):
    """The server ends, and takes no more requests."""


class Answering:
    """One request: its completions, and what comes of them.

    Args:
        completions: one for each prompt of the request.
    """

    def __init__(self, completions: list[Completion]) -> None:
        self.completions = completions
        self.n_sequences = sum(completion.request.n for completion in completions)
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Events | M7bError | None] = asyncio.Queue()

    async def take(self) -> Events | None:
        """What has happened since the last call, waiting for it; None at the end.

        Raises:
            M7bError: the request failed.
        """
        news = await self._news.get()
        if isinstance(news, M7bError):
            raise news
        return news

    # What follows runs on the thread of the engine.

    @property
    def is_done(self) -> bool:
        """Whether all completions are finished."""
        return all(completion.is_done for completion in self.completions)

    def start(self) -> None:
        """Queue all completions in the engine, and tell that they are.

        Raises:
            M7bError: one cannot be begun.
        """
        for completion in self.completions:
            completion.start()
        self.tell([])

    def gather(self) -> None:
        """Tell what has happened, and the end."""
        events: Events = []
        first = 0
        for completion in self.completions:
            events += [(first + index, event) for index, event in completion.gather()]
            first += completion.request.n
        if events:
            self.tell(events)
        if self.is_done:
            self.tell(None)

    def end(self) -> None:
        """End what runs where it is."""
        for completion in self.completions:
            completion.end()
        self.gather()

    def cancel(self) -> None:
        """Let go of what runs."""
        for completion in self.completions:
            completion.cancel()

    def tell(self, news: Events | M7bError | None) -> None:
        """Tell the event loop."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)


@dataclass(frozen=True, slots=True)
class _Begin:
    answering: Answering


@dataclass(frozen=True, slots=True)
class _Cancel:
    answering: Answering


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


@dataclass(slots=True)
class Load:
    """How much there is to do: requests that wait, sequences that run."""

    n_waiting: int = 0
    n_running: int = 0


@dataclass
class EngineThread:
    """Runs a model for all who ask.

    Args:
        load_model: loads it; runs on this thread.
        parallel: the most sequences that run at once, as many as pay and fit where None.
        max_waiting: the most requests that wait.
        report: called, on this thread, once the model is there or has failed to load.
        keep_alive: seconds without a request after which `end` is called; None waits for ever.
        end: called once, on this thread.

    Attributes:
        model: None until it is loaded.
        load: how much there is to do.
    """

    load_model: Callable[[], Model]
    parallel: int | None
    max_waiting: int
    report: Callable[[M7bError | None], object]
    keep_alive: float | None = None
    end: Callable[[], object] = lambda: None
    model: Model | None = None
    load: Load = field(default_factory=Load)
    _commands: "queue.SimpleQueue[_Begin | _Cancel | _Stop]" = field(default_factory=queue.SimpleQueue)
    _waiting: deque[Answering] = field(default_factory=deque)
    _running: list[Answering] = field(default_factory=list)
    _pending: int = 0  # requests that were submitted and are not done; guarded by the lock
    _is_stopping: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def submit(self, completions: list[Completion]) -> Answering:
        """Queue a request, from the event loop.

        Raises:
            Busy: too many wait.
            Stopping: the server ends.
        """
        answering = Answering(completions)
        with self._lock:
            if self._is_stopping:
                raise Stopping("the server is shutting down")
            if self._pending >= (self.parallel or 1) + self.max_waiting:
                raise Busy(
                    f"{self._pending} requests run or wait, and {self.max_waiting} may wait",
                    hint="try again later, or raise --queue",
                )
            self._pending += 1
        self._commands.put(_Begin(answering))
        return answering

    def cancel(self, answering: Answering) -> None:
        """Let go of a request, whether it is done or not; from any thread."""
        self._commands.put(_Cancel(answering))

    def stop(self) -> None:
        """End the answers that run where they are, and the thread."""
        with self._lock:
            self._is_stopping = True
        self._commands.put(_Stop())

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    # What follows runs on the thread.

    def _run(self) -> None:
        try:
            self.model = self.load_model()
        except M7bError as error:
            self.report(error)
            return
        self.parallel = self.parallel or self.model.engine.suggest_parallel(min(self.model.ctx_size, 4096))
        self.report(None)
        while self._obey():
            self._admit()
            if self._running:
                self._step(self.model)

    def _obey(self) -> bool:
        """Do what the event loop asks for, waiting where there is nothing else to do; False to stop."""
        while True:
            self.load.n_waiting = len(self._waiting)
            self.load.n_running = sum(each.n_sequences for each in self._running)
            is_idle = not (self._running or self._waiting)
            try:
                command = self._commands.get(block=is_idle, timeout=self.keep_alive)
            except queue.Empty:
                if not is_idle:
                    return True
                self.keep_alive = None
                self.end()
                continue
            match command:
                case _Begin(answering):
                    self._waiting.append(answering)
                case _Cancel(answering):
                    self._cancel(answering)
                case _Stop():
                    for answering in [*self._running, *self._waiting]:
                        if answering in self._waiting:
                            answering.tell(Stopping("the server is shutting down"))
                        else:
                            answering.end()
                    return False

    def _cancel(self, answering: Answering) -> None:
        for among in (self._waiting, self._running):
            if answering in among:
                among.remove(answering)
                answering.cancel()
                self._forget()

    def _admit(self) -> None:
        """Start requests, first come, first served, while there is room; one that is larger runs alone."""
        while self._waiting:
            n_running = sum(each.n_sequences for each in self._running)
            if n_running and n_running + self._waiting[0].n_sequences > (self.parallel or 1):
                return
            answering = self._waiting.popleft()
            if self._guard(answering, answering.start):
                self._running.append(answering)

    def _step(self, model: Model) -> None:
        try:
            if not all(answering.is_done for answering in self._running):
                model.engine.step()
        except OutOfResources as error:
            self._fail(error)
            return
        except Exception:  # noqa: BLE001 - a bug ends the requests that it met, not the server
            self._fail(_tell_bug())
            return
        for answering in list(self._running):
            if not self._guard(answering, answering.gather):
                self._running.remove(answering)
            elif answering.is_done:
                self._running.remove(answering)
                self._forget()

    def _fail(self, error: M7bError) -> None:
        for answering in self._running:
            answering.cancel()
            answering.tell(error)
            self._forget()
        self._running.clear()

    def _guard(self, answering: Answering, act: Callable[[], None]) -> bool:
        """Act for one request; its fault ends it alone. Returns whether it goes on."""
        try:
            act()
        except M7bError as error:
            fault = error
        except Exception:  # noqa: BLE001 - nor may it end the thread that all others wait for
            fault = _tell_bug()
        else:
            return True
        answering.cancel()
        answering.tell(fault)
        self._forget()
        return False

    def _forget(self) -> None:
        with self._lock:
            self._pending -= 1


def _tell_bug() -> M7bError:
    """Say on stderr where a bug is; returns the error for those who have met it."""
    traceback.print_exc()
    note("this is a bug in m7b; the lines above say where")
    return M7bError("the engine failed")
