"""How many actors of how many threads a cluster runs, and joining it. Imports Ray where it joins."""

import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

from m7b import errors
from m7b.errors import M7bError, OutOfResources, UsageError

_STORE_BYTES = 1 << 28  # on one machine Ray keeps a few parts at a time, and would claim a third of memory


@dataclass(frozen=True, slots=True)
class Crew:
    """So many actors, each with so many threads."""

    n_actors: int
    n_threads: int

    def __str__(self) -> str:
        """As a remark tells it."""
        threads = f"{self.n_threads} thread{'s' if self.n_threads > 1 else ''}"
        return f"{self.n_actors} actors of {threads} each" if self.n_actors > 1 else f"one actor of {threads}"


def choose_crew(cpus: Sequence[int], n_actors: int | None, n_threads: int | None) -> Crew:
    """Fit actors into machines with so many CPUs each; by default one a machine, with all of its CPUs.

    Where machines differ, the default is as many threads as the smallest has CPUs.

    Raises:
        OutOfResources: they do not fit.
    """
    machines = [n for n in cpus if n]
    if not machines:
        raise OutOfResources("the cluster has no machine with a CPU")
    threads = n_threads or _share(machines, n_actors)
    room = sum(n // threads for n in machines)
    if not room:
        raise OutOfResources(
            f"an actor of {threads} threads fits nowhere: the largest machine has {max(machines)} CPUs",
            hint=f"--threads-per-actor takes up to {max(machines)}",
        )
    if (n_actors or room) > room:
        raise OutOfResources(
            f"{Crew(n_actors or room, threads)} do not fit: there is room for {room}",
            hint=f"--actors takes up to {room} with --threads-per-actor {threads}",
        )
    return Crew(n_actors or room, threads)


def translate_error(text: str) -> M7bError:
    """The error that ended an actor while it began, out of the traceback that Ray makes of it."""
    *_, last = text.strip().split("\n")
    if found := re.match(r"m7b\.errors\.(\w+): (.*)", last):
        error = M7bError(found[2])
        error.exit_code = getattr(errors, found[1], M7bError).exit_code
        return error
    if "No module named 'm7b" in last:
        return UsageError("m7b is not installed on a machine of the cluster", hint="pip install 'm7b[ray]'")
    return OutOfResources(
        f"an actor died while it loaded the model: {last}",
        hint="if memory ran out, fewer --actors need less",
    )


@contextmanager
def join_cluster(address: str | None) -> Iterator[list[int]]:
    """Join the cluster at `address`, or begin one on this machine; gives the CPUs of each of its machines.

    Raises:
        UsageError: there is no cluster, or it cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    address = address or os.environ.get("RAY_ADDRESS")

    if address and address.startswith("ray://"):
        raise UsageError(
            f"--address {address} is a client's, which reads no files",
            hint="run this on a machine of the cluster, with --address auto",
        )
    memory = {} if address else {"object_store_memory": _STORE_BYTES}
    try:
        with _hush():
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **memory
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = ". ".join(str(error.__cause__ or error).splitlines()[0].split(". ")[:1])
        raise UsageError(
            f"cannot join the cluster at {address or 'this machine'}: {reason}",
            hint="ray start --head begins one; RAY_AUTH_MODE=token goes to one that asks for its token",
        ) from None
    with redirect_stdout(_Nowhere()):
        try:
            yield [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        finally:
            ray.shutdown()


class _Nowhere(io.TextIOBase):
    """Takes what Ray tells of actors that died; a terminal where there is one, so that Ray shows bars."""

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def _hush() -> Iterator[None]:
    """Keep from stderr what native code says of itself."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _share(machines: Sequence[int], n_actors: int | None) -> int:
    """The most threads with which so many actors fit, up to the CPUs of the smallest machine."""
    most = min(machines)
    fitting = (n for n in range(most, 0, -1) if sum(cpus // n for cpus in machines) >= (n_actors or 1))
    return next(fitting, 1)
