"""How the arithmetic of a model is done: one choice, made once, for all of it.

Nobody else asks for the device, the dtype, the instruction set or the kind of weights to find that out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import torch
from torch import Tensor

from m7b.errors import UsageError
from m7b.generation import Quant
from m7b.runtime import kernels
from m7b.runtime.backends.cpu import KERNELS, FusedTransformer
from m7b.runtime.backends.cuda import StaticTransformer
from m7b.runtime.backends.eager import TORCH
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.kernels import BLOCK
from m7b.runtime.linears import PackedLinear
from m7b.runtime.linears.blocks import BlockEmbedding, BlockLinear, StockBlockLinear, parse_block_type
from m7b.runtime.linears.bnb import Int8Linear, make_four_bit_factory
from m7b.runtime.linears.dense import DenseLinear, PrepackedLinear
from m7b.runtime.model.batch import Batch
from m7b.runtime.model.operations import EmbeddingFactory, LinearFactory, Operations
from m7b.runtime.model.transformer import Embedding, Linear, Transformer

FEW = 8
"""Tokens up to which multiplying many is done like multiplying one."""

_COST_OF_TOKEN = {"amx": 0.12, "avx512vnni": 0.12, "avx2": 0.3}  # beside another, by instruction set

Forward = Callable[[Batch, RollingKVCache], Tensor]
"""A model, ready to run: the wanted logits (M, V) float32 of a batch over a cache."""


class Batching(Enum):
    """What one pass may mix, so that each sequence is computed as it would be alone.

    EXACT: every number depends on the token's own sequence alone, whatever is beside it and however its
    prompt is cut. APART: it also depends on how many tokens are multiplied at once, so a long span goes
    alone, and few tokens beside few. MIXED: the same, but nobody asks for the last bits.
    """

    EXACT = "exact"
    APART = "apart"
    MIXED = "mixed"

    @property
    def n_paying(self) -> int:
        """How many sequences decode at once before more of them gain little."""
        return FEW if self is Batching.APART else 16


MOST_STATIC_ROWS = 64
"""How many sequences decode at once by static passes: an accelerator takes as long for them as for one."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """What it takes to check guesses at the next tokens of an answer.

    A pass over one token takes 1 and each token more `cost`; docs/benchmarks.md has the figures. Up to
    `widest` tokens of one answer in a pass get the bits that each gets alone, or sums in float32 that differ
    in their last ones.
    """

    widest: int
    cost: float


@dataclass(frozen=True, slots=True)
class Backend:
    """The parts that a model is built of, and what they promise.

    `drafting` None says that tokens in one pass may round differently from single ones.
    `bits` is what a weight of the linears takes, None: as stored. `fuses` says that layers may be run whole,
    where hooks on their parts see nothing. `is_static` says that answers are decoded by passes of fixed
    shapes, over a static cache.
    """

    linear: LinearFactory
    output: LinearFactory
    operations: Operations
    batching: Batching
    bits: float | None
    embedding: EmbeddingFactory = Embedding
    fuses: bool = True
    drafting: Drafting | None = None
    is_static: bool = False

    @property
    def n_paying(self) -> int:
        """How many sequences decode at once before more of them gain little."""
        return MOST_STATIC_ROWS if self.is_static else self.batching.n_paying

    @property
    def arithmetic(self) -> str:
        """Who multiplies: with the same, the same numbers come to the same bits."""
        if self.operations is KERNELS:
            return f"{kernels.instruction_set()} kernels"
        return f"torch {torch.__version__} with {torch.get_num_threads()} threads"

    def bind(self, model: Transformer) -> Forward:
        """The fastest way through `model`, which is loaded and stays as it is."""
        if self.is_static and self.fuses:
            return StaticTransformer(model)
        kinds = {type(layer) for layer in model.layers.modules() if isinstance(layer, PackedLinear)}
        if self.fuses and self.operations is KERNELS and kinds in ({BlockLinear}, {DenseLinear}):
            return FusedTransformer(model)
        return model


@dataclass(frozen=True, slots=True)
class _Weights:
    """The linears that hold the weights, their bits, and the output's linear where it is of another kind.

    `is_exact`: what a token is multiplied to never depends on the tokens beside it.
    """

    linear: LinearFactory
    bits: float | None
    output: LinearFactory | None = None
    embedding: EmbeddingFactory = Embedding
    is_exact: bool = False


def choose_backend(
    checkpoint: Checkpoint,
    quant: str | None,
    device: str,
    dtype: torch.dtype,
    *,
    dtype_given: bool = False,
    is_static: bool | None = None,
) -> Backend:
    """Choose for `checkpoint`. `quant` None keeps the blocks of a GGUF file where kernels multiply them.

    A `dtype` that the user has given asks for weights in it, unless a `quant` says otherwise. Answers are
    decoded by static passes on CUDA's devices, or where `is_static` says so.

    Raises:
        UsageError: there is no such quantization, or none on this device.
    """
    has_kernels = device == "cpu" and kernels.instruction_set() is not None
    weights = _choose_weights(checkpoint, quant, device, dtype, has_kernels, dtype_given=dtype_given)
    if is_static is None:
        # LLM.int8() asks the device in each pass whether there are outliers, so no graph can hold it.
        is_static = device.startswith("cuda") and weights.linear is not Int8Linear
    runs_kernels = (
        not is_static and has_kernels and dtype == torch.bfloat16 and checkpoint.config.head_dim % 16 == 0
    )
    if runs_kernels and weights.is_exact and weights.output is None:
        batching = Batching.EXACT
    else:
        is_apart = device == "cpu" and dtype != torch.float32 and not is_static
        batching = Batching.APART if is_apart else Batching.MIXED
    is_plain = weights.is_exact or weights.linear in (DenseLinear, Linear)
    is_plain &= weights.output in (None, weights.linear)
    return Backend(
        linear=weights.linear,
        output=weights.output or weights.linear,
        operations=KERNELS if runs_kernels else TORCH,
        batching=batching,
        bits=weights.bits,
        embedding=weights.embedding,
        drafting=None
        if is_static
        else _choose_drafting(batching, dtype, device, runs_kernels=runs_kernels, is_plain=is_plain),
        is_static=is_static,
    )


def _choose_drafting(
    batching: Batching, dtype: torch.dtype, device: str, *, runs_kernels: bool, is_plain: bool
) -> Drafting | None:
    """How guesses are checked, where that changes no answer."""
    cost = _COST_OF_TOKEN.get(kernels.instruction_set() or "", 0.5)
    is_float32 = device == "cpu" and dtype == torch.float32
    if batching is Batching.EXACT or (is_plain and (runs_kernels or is_float32)):
        return Drafting(FEW, cost)
    return None


def _choose_weights(
    checkpoint: Checkpoint,
    quant: str | None,
    device: str,
    dtype: torch.dtype,
    has_kernels: bool,
    *,
    dtype_given: bool = False,
) -> _Weights:
    odd = next((name for name, tensor in checkpoint.tensors.items() if tensor.shape[-1] % BLOCK), None)
    dense = _choose_dense(device, dtype, has_kernels)
    if quant is None:
        has_blocks = bool(checkpoint.list_quantized())
        if has_blocks and has_kernels and dtype != torch.float16 and odd is None and not dtype_given:
            return _Weights(BlockLinear.factory(None), None, None, _choose_embedding(checkpoint, dtype), True)
        if checkpoint.quant and device != "auto":
            # A folder of LLM.int8() runs as its other readers run it, in blocks where those are asked for.
            is_int8 = checkpoint.quant == Quant.INT8
            weights = (
                _Weights(Int8Linear, 8.0)
                if is_int8
                else _choose_weights(checkpoint, checkpoint.quant, device, dtype, has_kernels)
            )
            return replace(weights, output=dense)  # which transformers leaves as it is
        quant = Quant.NONE
    wanted = _parse_quant(quant)
    if device == "auto" and wanted is not Quant.NONE:
        raise UsageError(f"--quant {wanted} with --device auto", hint="name one device, such as cpu or cuda")
    match wanted:
        case Quant.NONE:
            return _Weights(dense, 8.0 * dtype.itemsize)
        case Quant.NF4 | Quant.FP4:
            return _Weights(make_four_bit_factory(wanted, dtype, has_kernels=has_kernels), 4.5)
        case Quant.INT8 if device != "cpu":
            return _Weights(Int8Linear, 8.0)
    if device != "cpu":
        raise UsageError(
            f"--quant {wanted} runs on the CPU only", hint="nf4, fp4 and int8 run on accelerators"
        )
    if dtype == torch.float16:
        raise UsageError(f"--quant {wanted} does not run in float16", hint="leave out --dtype float16")
    if odd is not None:
        raise UsageError(
            f"--quant {wanted} needs rows of whole blocks of {BLOCK}, "
            f"{odd} has rows of {checkpoint.tensors[odd].shape[-1]}",
            hint="nf4 takes rows of any length",
        )
    layer = BlockLinear if has_kernels else StockBlockLinear
    bits = 4.5 if wanted is Quant.Q4_0 else 8.5
    return _Weights(layer.factory(kernels.BlockType[wanted.name]), bits, is_exact=has_kernels)


def _choose_embedding(checkpoint: Checkpoint, dtype: torch.dtype) -> EmbeddingFactory:
    """One that stays in blocks where it is stored in blocks."""
    stored = checkpoint.tensors["tok_embeddings.weight"].dtype
    return partial(BlockEmbedding, dtype=dtype) if parse_block_type(stored) is not None else Embedding


def _parse_quant(quant: str) -> Quant:
    try:
        return Quant(quant)
    except ValueError:
        raise UsageError(f"--quant is {quant!r}", hint=f"it can be {', '.join(Quant)}") from None


def _choose_dense(device: str, dtype: torch.dtype, has_kernels: bool) -> LinearFactory:
    """For bfloat16 on the CPU our kernel, without it oneDNN's own order where that works, else torch."""
    if device != "cpu" or dtype != torch.bfloat16:
        return Linear
    if has_kernels:
        return DenseLinear
    return PrepackedLinear if kernels.torch_multiplies_bf16() else Linear
