"""Other programs that run the same model, to be measured beside ours. Each is imported when it is named."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import assert_never

from m7b.bench import PeerName
from m7b.bench.runs import Runner
from m7b.errors import UsageError
from m7b.runtime.bench.peers.task import Task

__all__ = ["PeerName", "Task", "check_peer", "open_peer"]


# What a peer runs for a quantization of ours: the same, or where it knows none, what it has of as many bits.
_QUANTS = {
    PeerName.TRANSFORMERS: {"none": "none", "int8": "int8", "nf4": "nf4", "fp4": "fp4", "q4_0": "nf4"},
    PeerName.LLAMA_CPP: {"none": "none", "q4_0": "q4_0", "q8_0": "q8_0", "int8": "q8_0"},
}
_INSTALL = {
    PeerName.TRANSFORMERS: ("transformers", "pip install 'm7b[peers]'"),
    PeerName.LLAMA_CPP: (
        "llama_cpp",
        "CMAKE_ARGS='-DGGML_NATIVE=on -DGGML_OPENMP=off' "
        "pip install --no-binary llama-cpp-python 'm7b[peers]'",
    ),
}


def check_peer(name: PeerName, quant: str | None, device: str = "cpu") -> None:
    """Refuse a peer that could not do the work, before anything is loaded.

    Raises:
        UsageError: it is not installed, or does not know weights quantized as `quant`, or runs elsewhere.
    """
    if device == "auto" or (device != "cpu" and name is not PeerName.TRANSFORMERS):
        raise UsageError(
            f"--peer {name} does not run on {device}", hint="--peer transformers runs on one device"
        )
    if quant is not None and quant not in _QUANTS[name]:
        known = ", ".join(_QUANTS[name])
        raise UsageError(f"--peer {name} knows no {quant}", hint=f"--quant can be {known}")
    module, command = _INSTALL[name]
    if find_spec(module) is None:
        raise UsageError(f"--peer {name} needs {module}, which is not installed", hint=command)


@contextmanager
def open_peer(name: PeerName, task: Task) -> Iterator[Runner]:
    """The peer with the model of `task` in memory, and everything of it gone at the end.

    Raises:
        OutOfResources: memory or disk do not suffice, which is checked before allocating.
    """
    if task.quant is not None:
        task = replace(task, quant=_QUANTS[name][task.quant])
    match name:
        case PeerName.TRANSFORMERS:
            from m7b.runtime.bench.peers.transformers import TransformersRunner

            yield TransformersRunner(task)
        case PeerName.LLAMA_CPP:
            from m7b.runtime.bench.peers.llama_cpp import open_llama_cpp

            with open_llama_cpp(task) as runner:
                yield runner
        case _:
            assert_never(name)
