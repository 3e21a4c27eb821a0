"""Where weights live: one device, or what accelerate plans across devices, memory and disk."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import get_max_memory, infer_auto_device_map

from m7b.errors import OutOfResources, UsageError
from m7b.runtime.machine import free_memory
from m7b.runtime.model.transformer import Transformer

AUTO, DISK = "auto", "disk"

DeviceMap = dict[str, str]
"""Module name to device ("cpu", "cuda:0", "disk"); the empty name is the whole model."""


def plan_devices(
    model: Transformer,
    device: str,
    dtype: torch.dtype,
    cache_bytes: int = 0,
    max_memory: dict[int | str, int] | None = None,
) -> DeviceMap:
    """Decide where each part of a meta `model` goes.

    `auto` fills accelerators first, then memory, then disk, as accelerate measures them, and leaves
    room for the cache where it will be; `max_memory` (bytes by device) stands in for its measurement.

    Raises:
        OutOfResources: there is no such device.
        UsageError: `device` is not the name of one.
    """
    if device != AUTO:
        return {"": _check_device(device)}
    room = dict(max_memory or get_max_memory())
    computing = next((place for place in room if place not in ("cpu", DISK)), "cpu")
    room[computing] = max(0, int(room[computing]) - cache_bytes)
    planned = infer_auto_device_map(
        model,
        max_memory=room,
        no_split_module_classes=["TransformerBlock"],
        dtype=dtype,
    )
    return {
        name: f"cuda:{place}" if isinstance(place, int) else str(place) for name, place in planned.items()
    }


def find_device(name: str, device_map: DeviceMap) -> str:
    """The device of the parameter or module called `name`: that of its longest listed prefix."""
    while name not in device_map and name:
        name = name.rpartition(".")[0]
    return device_map[name]


def execution_device(device_map: DeviceMap) -> str:
    """Where the parts that wait in memory or on disk are computed: the first accelerator, else the CPU."""
    return next((place for place in device_map.values() if place not in ("cpu", DISK)), "cpu")


def layer_devices(device_map: DeviceMap, n_layers: int) -> Sequence[str]:
    """The device on which each layer computes, and so keeps its cache."""
    main = execution_device(device_map)
    places = (find_device(f"layers.{layer}", device_map) for layer in range(n_layers))
    return [main if place in ("cpu", DISK) else place for place in places]


def check_memory(needed: int, what: str) -> None:
    """Refuse what this machine's free memory cannot hold, before anything is allocated.

    Raises:
        OutOfResources: with both figures.
    """
    free = free_memory()
    if needed > free:
        raise OutOfResources(
            f"{what} needs {needed >> 20:,} MiB of memory and {free >> 20:,} MiB are free",
            hint="close other programs, lower --ctx-size, or let --device auto keep weights on disk",
        )


def check_disk(needed: int, what: str) -> None:
    """Refuse to keep weights in a temporary folder that cannot hold them.

    Raises:
        OutOfResources: with both figures.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutOfResources(
            f"{what} needs {needed >> 20:,} MiB in {folder} and {free >> 20:,} MiB are free",
            hint="set TMPDIR to a folder on a larger disk",
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Translate the ways in which torch says that memory has run out.

    Raises:
        OutOfResources: it has.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        is_ours = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate" in str(error)
        if not is_ours:
            raise
        raise OutOfResources(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'nothing left'}",
            hint="close other programs, or lower --ctx-size or --prefill-chunk",
        ) from None


def _check_device(device: str) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(f"--device is {device!r}", hint="it can be cpu, auto, cuda, cuda:N or mps") from None
    if kind == "cpu":
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    index = torch.device(device).index or 0
    if accelerator is None or accelerator.type != kind or index >= count:
        raise OutOfResources(f"there is no device {device!r} here", hint="--device cpu always works")
    return f"{kind}:{index}" if kind == "cuda" else kind
