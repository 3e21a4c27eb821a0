"""Where weights live: one device, or what accelerate plans across devices, memory and disk."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import get_max_memory, infer_auto_device_map

from m7b.errors import OutOfResources, UsageError
from m7b.runtime.machine import free_memory
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.transformer import Transformer

AUTO, DISK = "auto", "disk"

_KEPT_BYTES = 512 << 20
"""For libraries' own memory, graphs, and tensors on their way to a device."""

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
        return {"": check_device(device)}
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


def check_device(device: str) -> str:
    """The whole name of `device`: `cuda:0` for `cuda`.

    Raises:
        OutOfResources: there is no such device.
        UsageError: it is not the name of one.
    """
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


def plan_rows(device: str, beside_rows: int, row_bytes: int, most: int, what: str) -> int:
    """How many rows of a cache, `most` of them, find room on `device` beside so many bytes of all else.

    Raises:
        OutOfResources: not one does; with both figures.
    """
    free = _count_free(device)
    n_rows = min(most, (free - beside_rows) // row_bytes)
    if n_rows < 1:
        raise OutOfResources(
            f"{what} needs {beside_rows + row_bytes >> 20:,} MiB on {device} and {free >> 20:,} MiB are free",
            hint="lower --ctx-size, try --quant nf4, or let --device auto keep weights elsewhere",
        )
    return n_rows


def count_work_bytes(config: ModelConfig, prefill_chunk: int, n_slots: int, itemsize: int) -> int:
    """Bytes that reading a chunk of a prompt takes beside weights and rows, and what libraries keep."""
    n_groups = config.n_heads // config.n_kv_heads
    masks = prefill_chunk * n_slots * (8 + 1 + (n_groups + 1) * itemsize)  # distances, what is seen, biases
    heads = config.head_dim * (config.n_heads + 2 * config.n_kv_heads)
    activations = prefill_chunk * (4 * config.dim + 3 * config.hidden_dim + 4 * heads) * max(itemsize, 4)
    logits = prefill_chunk * config.vocab_size * 8  # in float32, and in the dtype of the output
    filled = 2 * config.n_kv_heads * n_slots * config.head_dim * itemsize  # one layer's, where it is decoded
    return masks + activations + logits + filled + _KEPT_BYTES


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
        is_ours = isinstance(error, MemoryError | torch.OutOfMemoryError)
        is_ours |= any(word in str(error) for word in ("can't allocate", "CUBLAS_STATUS_ALLOC_FAILED"))
        if not is_ours:
            raise
        raise OutOfResources(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'nothing left'}",
            hint="close other programs, or lower --ctx-size or --prefill-chunk",
        ) from None


def _count_free(device: str) -> int:
    """Bytes that are free on `device`."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else free_memory()
