"""The native kernels: linears over blocks of 4 and 8 bits, decode attention, norms. (C++ in `native/`.)

The extension is optional. Where it was not built, `instruction_set` is None and next to nothing here may
be called. Knows tensors; knows nothing about models. `M7B_KERNELS` may name a lesser instruction set
(`avx2`, `portable`), or `off`.
"""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from m7b.errors import UsageError
from m7b.runtime.kernels.updates import UpdateArrays, UpdatedParts

_native: Any
_missing = ""
try:
    from m7b.runtime.kernels import _native
except ImportError as error:
    _native, _missing = None, f"the native kernels were not built ({error})"

BLOCK = 32
"""Values of a weight that are multiplied by activations of one scale."""


class BlockType(IntEnum):
    """The block formats of GGUF that the kernels multiply, in the order of formats.h.

    INT8 is Q8_0's blocks, multiplied by activations of 8 bits instead of 16: faster, and less exact.
    """

    Q4_0, Q4_1, Q8_0, INT8, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS = range(13)

    @property
    def n_values(self) -> int:
        """Values in a block."""
        return _LAYOUTS[self][1]

    @property
    def n_bytes(self) -> int:
        """Bytes of one block in a GGUF file."""
        return _LAYOUTS[self][2]

    @property
    def ggml_id(self) -> int:
        """GGUF's number of the format."""
        return _LAYOUTS[self][0]

    @property
    def stored(self) -> str:
        """GGUF's name of the format."""
        return "Q8_0" if self is BlockType.INT8 else self.name

    def count_bytes(self, n: int) -> int:
        """Bytes of `n` values, whole blocks, in a file."""
        return n // self.n_values * self.n_bytes


# By block type: GGUF's number, values in a block, bytes of one. (ggml.h, ggml-common.h)
_LAYOUTS = (
    (2, 32, 18),
    (3, 32, 20),
    (8, 32, 34),
    (8, 32, 34),
    (6, 32, 22),
    (7, 32, 24),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (20, 32, 18),
    (23, 256, 136),
)
_DENSE = -1  # beside the block types: rows of bfloat16
_FEW_TOKENS = 8  # up to here reading a bfloat16 weight takes longer than multiplying by it
_FEW_AT_ONCE = 16  # tokens that go through all layers without a stop

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


INSTRUCTION_SETS = ("amx", "avx512vnni", "avx2", "i8mm", "dotprod", "neon", "portable")
"""What the kernels may run on, of each processor the best first."""


def _select() -> None:
    global _native, _missing
    wanted = os.environ.get("M7B_KERNELS", "")
    if wanted == "off":
        _native, _missing = None, "M7B_KERNELS is off"
    elif wanted and _native and not _native.use(wanted):
        raise UsageError(
            f"M7B_KERNELS is {wanted!r}",
            hint=f"it can be {', '.join(available_instruction_sets())} on this processor, or off",
        )


def available_instruction_sets() -> list[str]:
    """Those that this processor has, the best first; none without kernels. Changes none in use."""
    if not _native:
        return []
    chosen = _native.instruction_set()
    found = [name for name in INSTRUCTION_SETS if _native.use(name)]
    _native.use(chosen)
    return found


_select()


def instruction_set() -> str | None:
    """What the kernels run on, one of INSTRUCTION_SETS; None where there are none."""
    return _native.instruction_set() if _native else None


def why_missing() -> str:
    """Why there are no kernels, in one line; empty where there are."""
    return _missing


def empty_bytes(*shape: int) -> Tensor:
    """Unwritten memory (uint8), in large pages where the system has them, for what is read over and over.

    May be called without the extension: then the pages are as they are.
    """
    memory = torch.empty(shape, dtype=torch.uint8)
    if _native:
        _native.prefer_large_pages(memory.data_ptr(), memory.nbytes)
    return memory


def quantize(type: BlockType, weight: Tensor, importance: Tensor | None = None) -> Tensor:
    """Blocks (out, bytes) uint8 of `weight` (out, in).

    Without `importance` Q4_0 and Q4_1 are rounded as llama.cpp rounds them, and Q8_0 always is. Else scales
    and minima are searched for that leave the least squared error, each column's weighted by its
    `importance` (in,) float32.
    """
    weight = weight.contiguous()
    n_out, n_in = weight.shape
    blocks = torch.empty(n_out, n_in // type.n_values * type.n_bytes, dtype=torch.uint8)
    address = 0 if importance is None else importance.data_ptr()
    _native.quantize(
        *(type, *_array(weight), n_out, n_in, address, blocks.data_ptr(), torch.get_num_threads())
    )
    return blocks


class PackedWeight(NamedTuple):
    """A weight (out, in) in blocks, in the order that `linear` reads: `panels` (out / 16, bytes) uint8."""

    type: BlockType
    panels: Tensor
    n_out: int
    n_in: int


def pack(type: BlockType, blocks: Tensor) -> PackedWeight:
    """The rows of `blocks` (out, bytes) uint8, as GGUF stores them, in the order that `linear` reads."""
    blocks = blocks.contiguous()
    n_out, n_in = blocks.shape[0], blocks.shape[1] // type.n_bytes * type.n_values
    panels = empty_bytes((n_out + 15) // 16, _native.panel_bytes(type, n_in))
    _native.pack(type, blocks.data_ptr(), n_out, n_in, panels.data_ptr(), torch.get_num_threads())
    return PackedWeight(type, panels, n_out, n_in)


def count_packed_bytes(type: BlockType, n_out: int, n_in: int) -> int:
    """Bytes of a weight (out, in) once it is packed."""
    return (n_out + 15) // 16 * _native.panel_bytes(type, n_in)


def look_up(weight: PackedWeight, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The values (N, in) of some `rows` (N,) int64 of `weight` (out, in), all of them below `out`."""
    rows = rows.contiguous()
    values = torch.empty(rows.shape[0], weight.n_in, dtype=dtype)
    _native.look_up(
        *(weight.type, weight.panels.data_ptr(), weight.n_in, rows.data_ptr(), rows.shape[0]),
        *(*_array(values), torch.get_num_threads()),
    )
    return values


def dequantize(type: BlockType, blocks: Tensor) -> Tensor:
    """The values (out, in) float32 of the rows of `blocks` (out, bytes) uint8, as GGUF stores them."""
    blocks = blocks.contiguous()
    n_blocks = blocks.numel() // type.n_bytes
    values = torch.empty(blocks.shape[0], n_blocks // blocks.shape[0] * type.n_values)
    _native.widen(type, blocks.data_ptr(), n_blocks, values.data_ptr(), torch.get_num_threads())
    return values


def linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """`x` (T, in) float32 or bfloat16 times `weight` (out, in): (T, out) in the dtype of `x`.

    Activations are rounded under one scale for 32 of them: to 16 bits for Q8_0, else to 8 as llama.cpp's are.
    """
    x = x.contiguous()
    T, n_in = x.shape
    y = torch.empty(T, weight.n_out, dtype=x.dtype)
    _native.linear(
        *(weight.type, weight.panels.data_ptr(), weight.n_out),
        *(*_array(x), T, n_in, y.data_ptr(), torch.get_num_threads()),
    )
    return y


def torch_multiplies_bf16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor, not float32 in its place."""
    return torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def takes_bf16(T: int) -> bool:
    """Whether the kernels are faster than torch at `T` tokens times a bfloat16 weight."""
    return T <= _FEW_TOKENS or not (torch_multiplies_bf16() or instruction_set() == "portable")


def linear_bf16(weight: Tensor, x: Tensor) -> Tensor:
    """`x` (T, in) float32 or bfloat16 times `weight` (out, in) bfloat16: (T, out), summed in float32."""
    x = x.contiguous()
    y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)
    _native.linear_bf16(
        weight.data_ptr(), *_array(x), *x.shape, weight.shape[0], *_array(y), torch.get_num_threads()
    )
    return y


LEVELS_BLOCK = 64
"""Values of a `LevelWeight` that share a scale."""


class LevelWeight(NamedTuple):
    """A weight (out, in) of 16 `levels` float32, in whole blocks of 64, as bitsandbytes holds it.

    `quants` (out * in / 2) uint8 has the first of two values in its high half; `scales` (out * in / 64) is
    float32.
    """

    quants: Tensor
    scales: Tensor
    levels: Tensor


def linear_levels(x: Tensor, weight: LevelWeight, n_out: int) -> Tensor:
    """`x` (T, in) float32 or bfloat16 times `weight` (out, in) in bfloat16: (T, out), summed in float32."""
    x = x.contiguous()
    y = torch.empty(x.shape[0], n_out, dtype=x.dtype)
    _native.linear_levels(
        *(part.data_ptr() for part in weight),
        *(*_array(x), *x.shape, n_out, *_array(y), torch.get_num_threads()),
    )
    return y


class RingSpan(NamedTuple):
    """`n` tokens of one sequence, at positions [first, first + n), and the rings that they go to.

    `rings` are the addresses of each layer's keys and values, both (K, capacity, D) bfloat16, or blocks of 8
    bits as kv.py describes them; whoever makes this keeps them alive. `window` 0 is full attention.
    `is_prompt` tokens are read, not generated.
    """

    rings: "array[int]"
    capacity: int
    first: int
    n: int
    window: int
    is_prompt: bool
    is_in_blocks: bool = False


class RingSpans:
    """The spans of a batch, one behind the other, as the kernels read them."""

    def __init__(self, spans: Iterable[RingSpan]) -> None:
        self._spans = tuple(spans)  # kept, for their addresses are
        self._numbers = array("q")
        for span in self._spans:
            self._numbers.extend((span.rings.buffer_info()[0], *map(int, span[1:])))  # struct Span

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def address(self) -> int:
        """Where the array of struct `Span` of operations.h begins."""
        return self._numbers.buffer_info()[0]


def attend(queries: Tensor, keys: Tensor, values: Tensor, spans: RingSpans, layer: int) -> Tensor:
    """Write `keys` and `values` (N, K, D) bfloat16 to the rings of `layer`; softmax attention, (N, H, D).

    Each of the N tokens of the spans sees its own sequence, as far back as the window. `queries` are
    (N, H, D) float32 or bfloat16; D is a multiple of 16.
    """
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    _, H, D = queries.shape
    out = torch.empty_like(queries)
    _native.attend(
        *(*_array(queries), keys.data_ptr(), values.data_ptr(), spans.address, len(spans), layer),
        *(H, keys.shape[1], D, *_array(out), torch.get_num_threads()),
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` (T, dim) by its root mean square, rounded to its dtype, times `weight` (dim,)."""
    x = x.contiguous()
    y = torch.empty_like(x)
    _native.rms_norm(*_array(x), *_array(weight), *x.shape, *_array(y), torch.get_num_threads(), eps)
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (i, i + D/2) of `x` (T, heads, D) turned by its angle; `cos`, `sin` (T, 1, D/2) float32."""
    x = x.contiguous()
    y = torch.empty_like(x)
    _native.rotate(
        *(*_array(x), cos.data_ptr(), sin.data_ptr(), *x.shape, *_array(y)), torch.get_num_threads()
    )
    return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape."""
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    _native.swiglu(*_array(gate), *_array(up), gate.numel(), *_array(y), torch.get_num_threads())
    return y


def add_update(x: Tensor, y: Tensor, update: UpdateArrays) -> None:
    """Add to `y` (N, out) what `update` makes of `x` (N, in); both float32 or bfloat16, `y` contiguous."""
    x, numbers = x.contiguous(), array("q", update.numbers())
    _native.add_update(
        *(numbers.buffer_info()[0], *_array(x), *x.shape, y.shape[1], *_array(y), torch.get_num_threads())
    )


class LayerArrays(NamedTuple):
    """One layer: its norms (dim,) bfloat16 and its weights. So are those that are tensors (out, in)."""

    attention_norm: Tensor
    ffn_norm: Tensor
    wq: PackedWeight | Tensor
    wk: PackedWeight | Tensor
    wv: PackedWeight | Tensor
    wo: PackedWeight | Tensor
    w1: PackedWeight | Tensor
    w2: PackedWeight | Tensor
    w3: PackedWeight | Tensor

    def addresses(self) -> Iterator[int]:
        """The struct `Layer` of layers.h."""
        for part in self:
            if isinstance(part, PackedWeight):
                yield from (part.panels.data_ptr(), int(part.type))
            else:
                yield from (part.data_ptr(), _DENSE) if part.dim() == 2 else (part.data_ptr(),)


class LayerStack:
    """All layers, each in one call or all in one, with the bits that one call an operation gives.

    What Python takes between two operations is longer than the operations of a small model, and 3 % of
    a 7B's; and what lies between them stays in memory that is not asked for again and again.

    Args:
        layers: all of one model.
        eps: of the norms.
        head_dim: D.
    """

    def __init__(self, layers: Sequence[LayerArrays], eps: float, head_dim: int) -> None:
        self._layers = layers  # kept, for their addresses are
        self._addresses = array("q", [number for layer in layers for number in layer.addresses()])
        first, self._eps = layers[0], eps
        q_dim, kv_dim, dim, hidden_dim = (
            each.n_out if isinstance(each, PackedWeight) else each.shape[0]
            for each in (first.wq, first.wk, first.wo, first.w1)
        )
        self._sizes = (dim, hidden_dim, q_dim // head_dim, kv_dim // head_dim, head_dim)
        self._is_dense = isinstance(first.wq, Tensor)

    def takes(self, n_tokens: int) -> bool:
        """Whether this is the way for `n_tokens`: many times bfloat16 may be for torch."""
        return not self._is_dense or takes_bf16(n_tokens)

    def __call__(
        self, h: Tensor, cos: Tensor, sin: Tensor, spans: RingSpans, updated: UpdatedParts
    ) -> Tensor:
        """`h` (N, dim) bfloat16, the tokens of `spans`, after all layers: the same tensor, changed."""
        # Few tokens go through all layers in a call; many stop after each, where they can be interrupted.
        n_layers, n_tokens = len(self._layers), h.shape[0]
        n_at_once = n_layers if n_tokens <= _FEW_AT_ONCE else 1
        for first in range(0, n_layers, n_at_once):
            _native.forward(
                *(self._addresses.buffer_info()[0], first, first + n_at_once, *self._sizes),
                *(h.data_ptr(), n_tokens, cos.data_ptr(), sin.data_ptr(), spans.address, len(spans)),
                *(updated.address, len(updated), torch.get_num_threads(), self._eps),
            )
        return h


def read_sum(bytes: Tensor) -> int:
    """The sum of a uint8 tensor: reads it once, as fast as the kernels' threads can."""
    return _native.sum_bytes(bytes.data_ptr(), bytes.numel(), torch.get_num_threads())


def _array(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), _DTYPES[x.dtype]
