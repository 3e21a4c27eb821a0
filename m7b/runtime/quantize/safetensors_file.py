"""A safetensors file that is written tensor by tensor, for a model may be larger than memory.

The header, which says where each tensor lies, comes first in the file and is known last: room is kept for it
and what is left of that filled with spaces, as the format allows. Until then nobody can read the file.
"""

import json
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

_HEADER_BYTES = 4096  # for each weight: its entry and those of its scales
_WORD = 8  # every tensor begins at a multiple of it, as readers want
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class SafetensorsWriter:
    """One file, whole when the context is left without an error.

    Args:
        file: where to.
        n_weights: how many weights it will hold, each of them perhaps in parts.
    """

    def __init__(self, file: Path, n_weights: int) -> None:
        self._room = _HEADER_BYTES * (n_weights + 1)
        self._file = file.open("wb")
        self._file.write(bytes(8 + self._room))
        self._entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._odd: dict[str, Tensor] = {}
        self._at = 0

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._finish()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, now or, where what comes after it would begin at an odd place, at the end."""
        if tensor.nbytes % _WORD:
            self._odd[name] = tensor
        else:
            self._write(name, tensor)

    def _write(self, name: str, tensor: Tensor) -> None:
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        self._file.write(data.data)
        self._entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._at, self._at + data.nbytes],
        }
        self._at += data.nbytes

    def _finish(self) -> None:
        for name, tensor in sorted(self._odd.items(), key=lambda item: -item[1].itemsize):
            self._write(name, tensor)
        header = json.dumps(self._entries, separators=(",", ":")).encode("utf-8")
        assert len(header) <= self._room, "the room is for the longest names of all"
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
