"""The linear layers: which one a device, a number format and a quantization get, behind one factory.

Each module knows one way to hold a weight and to multiply by it; the model knows none of them.
"""

from dataclasses import dataclass, replace

import torch

from m7b.errors import UsageError
from m7b.generation import Quant
from m7b.runtime import kernels
from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.kernels import BLOCK
from m7b.runtime.linears.blocks import BlockLinear, StockBlockLinear, type_named
from m7b.runtime.linears.bnb import Int8Linear, four_bit_factory
from m7b.runtime.linears.dense import DenseLinear, PrepackedLinear
from m7b.runtime.linears.packed import PackedLinear
from m7b.runtime.model import Linear, LinearFactory

__all__ = ["LinearPlan", "PackedLinear", "plan_linears", "type_named"]


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """`make` makes the layers. `bits` is what a weight takes, None: as stored.

    `make_output` makes the last one where that is of another kind.
    """

    make: LinearFactory
    bits: float | None
    make_output: LinearFactory | None = None


def plan_linears(
    checkpoint: Checkpoint, quant: str | None, device: str, dtype: torch.dtype, *, dtype_given: bool = False
) -> LinearPlan:
    """Choose the layers. `quant` None keeps the blocks of a GGUF file where kernels multiply them.

    A `dtype` that the user has given asks for weights in it, unless a `quant` says otherwise.

    Raises:
        UsageError: there is no such quantization, or none on this device.
    """
    odd = next((name for name, tensor in checkpoint.tensors.items() if tensor.shape[-1] % BLOCK), None)
    if quant is None:
        stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
        has_blocks = any(type_named(name) is not None for name in stored)
        runs_blocks = device == "cpu" and kernels.instruction_set() and dtype != torch.float16
        if has_blocks and runs_blocks and odd is None and not dtype_given:
            return LinearPlan(BlockLinear.factory(None), None)
        if checkpoint.quant and device != "auto":
            # A folder of LLM.int8() runs as its other readers run it, in blocks where those are asked for.
            is_int8 = checkpoint.quant == Quant.INT8
            plan = (
                LinearPlan(Int8Linear, 8.0)
                if is_int8
                else plan_linears(checkpoint, checkpoint.quant, device, dtype)
            )
            return replace(plan, make_output=_dense(device, dtype))  # which transformers leaves as it is
        quant = Quant.NONE
    wanted = _named(quant)
    bits = 8.0 * dtype.itemsize
    if device == "auto" and wanted is not Quant.NONE:
        raise UsageError(f"--quant {wanted} with --device auto", hint="name one device, such as cpu or cuda")
    match wanted:
        case Quant.NONE:
            return LinearPlan(_dense(device, dtype), bits)
        case Quant.NF4 | Quant.FP4:
            return LinearPlan(four_bit_factory(wanted, device, dtype), 4.5)
        case Quant.INT8 if device != "cpu":
            return LinearPlan(Int8Linear, 8.0)
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
    is_4_bit = wanted is Quant.Q4_0
    type = kernels.BlockType[wanted.name]
    layer = BlockLinear if kernels.instruction_set() else StockBlockLinear
    return LinearPlan(layer.factory(type), 4.5 if is_4_bit else 8.5)


def _named(quant: str) -> Quant:
    try:
        return Quant(quant)
    except ValueError:
        raise UsageError(f"--quant is {quant!r}", hint=f"it can be {', '.join(Quant)}") from None


def _dense(device: str, dtype: torch.dtype) -> LinearFactory:
    """For bfloat16 on the CPU our kernel, without it oneDNN's own order where that works, else torch."""
    if device != "cpu" or dtype != torch.bfloat16:
        return Linear
    if kernels.instruction_set():
        return DenseLinear
    return PrepackedLinear if kernels.torch_multiplies_bf16() else Linear
