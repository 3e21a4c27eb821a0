"""The linear layers: which one a device, a number format and a quantization get, behind one factory.

Each module knows one way to hold a weight and to multiply by it; the model knows none of them.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch

from m7b.errors import UsageError
from m7b.runtime import kernels
from m7b.runtime.checkpoints import Checkpoint
from m7b.runtime.kernels import BLOCK
from m7b.runtime.linears.blocks import BlockLinear, StockBlockLinear, type_named
from m7b.runtime.linears.bnb import FourBitLinear, Int8Linear
from m7b.runtime.linears.dense import DenseLinear, PrepackedLinear, can_prepack
from m7b.runtime.linears.packed import PackedLinear
from m7b.runtime.model import Linear, LinearFactory

__all__ = ["LinearPlan", "PackedLinear", "Quant", "plan_linears", "type_named"]


class Quant(StrEnum):
    """How the weights of linears are held. `int8` is q8_0 on the CPU and LLM.int8() on accelerators."""

    NONE = "none"
    INT8 = "int8"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    NF4 = "nf4"
    FP4 = "fp4"


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """`make` makes the layers. `name` is for people. `bits` is what a weight takes, None: as stored."""

    name: str
    make: LinearFactory
    bits: float | None


def plan_linears(
    checkpoint: Checkpoint, quant: str | None, device: str, dtype: torch.dtype, *, dtype_given: bool = False
) -> LinearPlan:
    """Choose the layers. `quant` None keeps the blocks of a GGUF file where kernels multiply them.

    A `dtype` that the user has given asks for weights in it, unless a `quant` says otherwise.

    Raises:
        UsageError: there is no such quantization, or none on this device.
    """
    if quant is None:
        stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
        has_blocks = any(type_named(name) is not None for name in stored)
        are_whole = all(tensor.shape[-1] % BLOCK == 0 for tensor in checkpoint.tensors.values())
        runs_blocks = device == "cpu" and kernels.instruction_set() and dtype != torch.float16 and are_whole
        if has_blocks and runs_blocks and not dtype_given:
            return LinearPlan("as stored", BlockLinear.factory(None), None)
        quant = Quant.NONE
    wanted = _named(quant)
    bits = 8.0 * dtype.itemsize
    if device == "auto" and wanted is not Quant.NONE:
        raise UsageError(f"--quant {wanted} with --device auto", hint="name one device, such as cpu or cuda")
    match wanted:
        case Quant.NONE:
            return LinearPlan("none", _dense(device, dtype), bits)
        case Quant.NF4 | Quant.FP4:
            return LinearPlan(wanted, FourBitLinear.factory(wanted, dtype), 4.5)
        case Quant.INT8 if device != "cpu":
            return LinearPlan("int8 (bitsandbytes)", Int8Linear, 8.0)
    if device != "cpu":
        raise UsageError(
            f"--quant {wanted} runs on the CPU only", hint="nf4, fp4 and int8 run on accelerators"
        )
    if dtype == torch.float16:
        raise UsageError(f"--quant {wanted} does not run in float16", hint="leave out --dtype float16")
    odd = next((name for name, tensor in checkpoint.tensors.items() if tensor.shape[-1] % BLOCK), None)
    if odd is not None:
        raise UsageError(
            f"--quant {wanted} needs rows of whole blocks of {BLOCK}, "
            f"{odd} has rows of {checkpoint.tensors[odd].shape[-1]}",
            hint="nf4 takes rows of any length",
        )
    is_4_bit = wanted is Quant.Q4_0
    type = kernels.BlockType.Q4_0 if is_4_bit else kernels.BlockType.Q8_0
    layer = BlockLinear if kernels.instruction_set() else StockBlockLinear
    return LinearPlan(wanted, layer.factory(type), 4.5 if is_4_bit else 8.5)


def _named(quant: str) -> Quant:
    try:
        return Quant(quant)
    except ValueError:
        raise UsageError(f"--quant is {quant!r}", hint=f"it can be {', '.join(Quant)}") from None


def _dense(device: str, dtype: torch.dtype) -> LinearFactory:
    """oneDNN's own order where the CPU multiplies bfloat16, our kernel where it does not, else torch."""
    if device != "cpu" or dtype != torch.bfloat16:
        return Linear
    if can_prepack():
        return PrepackedLinear
    return DenseLinear if kernels.instruction_set() else Linear
