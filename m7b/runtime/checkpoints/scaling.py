"""Scalings of RoPE as config.json and GGUF write them. Knows the fields; nothing about angles."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, assert_never

import numpy as np

from m7b.errors import UnsupportedCheckpoint
from m7b.runtime.checkpoints.fields import MAX_POSITIONS, Fields
from m7b.runtime.model.scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)

_MAX_FACTOR = 1e6
# What llama.cpp passes over in one architecture and heeds in another, with the values that change nothing.
_DOUBTFUL = {
    "yarn_ext_factor": (None, 1, -1),
    "yarn_attn_factor": (None, 1, -1),
    "yarn_log_multiplier": (None, 0),
    "yarn_beta_fast": (None, 32, -1),
    "yarn_beta_slow": (None, 1, -1),
}
_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


def find_rope(fields: Fields) -> Fields | None:
    """Find `rope_scaling`, or transformers 5's `rope_parameters`; None where both are missing or null.

    Raises:
        UnsupportedCheckpoint: it is no object, or has something for each kind of layer.
    """
    for key in ("rope_scaling", "rope_parameters"):
        value = fields.raw(key)
        if value is None or (value == {} and key == "rope_scaling"):
            continue
        if not isinstance(value, dict) or any(isinstance(entry, dict) for entry in value.values()):
            raise UnsupportedCheckpoint(
                f"{fields.file}: {key} is {str(value)[:60]}", hint="it must be one object for all layers"
            )
        return Fields(fields.file, value, key)
    return None


def read_scaling(fields: Fields) -> RopeScaling | None:
    """Read the scaling that config.json asks for, None where it changes nothing.

    Raises:
        DamagedCheckpoint: a number is missing or out of range.
        UnsupportedCheckpoint: it is of a kind that m7b does not know.
    """
    rope = find_rope(fields)
    if rope is None:
        return None
    kind = rope.raw("rope_type") or rope.raw("type") or "default"
    if rope.raw("partial_rotary_factor") not in (None, 1) or fields.raw("partial_rotary_factor") not in (
        None,
        1,
    ):
        raise UnsupportedCheckpoint(
            f"{fields.file}: partial_rotary_factor is not 1", hint="m7b turns whole heads"
        )
    match kind:
        case "default":
            return None
        case "linear":
            factor = rope.number("factor", _MAX_FACTOR)
            return None if factor == 1 else LinearScaling(factor)
        case "dynamic":
            longest = fields.integer("max_position_embeddings", MAX_POSITIONS)
            return DynamicScaling(rope.number("factor", _MAX_FACTOR), longest)
        case "yarn":
            return _read_yarn(rope, _find_original(fields, rope))
        case "llama3":
            return _read_llama3(rope, _find_original(fields, rope))
    raise UnsupportedCheckpoint(
        f"{fields.file}: {rope.within} is of the kind {str(kind)[:60]!r}",
        hint=f"m7b knows {', '.join(_KINDS)}",
    )


def read_native_scaling(fields: Fields) -> YarnScaling | None:
    """Read the `yarn` of a params.json, None where there is none.

    `beta` and `alpha` are YaRN's bounds of turns; cosines and sines are scaled where `apply_scale` says so.

    Raises:
        DamagedCheckpoint: a number is missing or out of range.
        UnsupportedCheckpoint: it is no object, or has a field that m7b does not know.
    """
    value = fields.raw("yarn")
    if value is None:
        return None
    known = {"factor", "original_max_position_embeddings", "beta", "alpha", "apply_scale"}
    unknown = sorted(value.keys() - known) if isinstance(value, dict) else [str(value)[:60]]
    if unknown:
        raise UnsupportedCheckpoint(f"{fields.file}: yarn has {unknown[0]}", hint="m7b does not know it")
    yarn = Fields(fields.file, value, "yarn")
    factor = yarn.number("factor", _MAX_FACTOR)
    return YarnScaling(
        factor=factor,
        original_context=yarn.integer("original_max_position_embeddings", MAX_POSITIONS),
        attention_factor=attention_factor(factor) if yarn.flag("apply_scale", True) else 1.0,
        beta_fast=yarn.number("beta", _MAX_FACTOR, default=32.0),
        beta_slow=yarn.number("alpha", _MAX_FACTOR, default=1.0),
    )


def read_gguf_scaling(fields: Fields, architecture: str) -> RopeScaling | None:
    """Read the scaling that a GGUF file asks for, as llama.cpp does; None where it changes nothing.

    Raises:
        DamagedCheckpoint: a number is out of range.
        UnsupportedCheckpoint: it is of a kind that m7b does not know.
    """
    name = f"{architecture}.rope.scaling"
    elder = f"{architecture}.rope.scale_linear"
    kind, factor = fields.raw(f"{name}.type"), 1.0
    for key in (elder, f"{name}.factor"):
        if fields.raw(key):  # a factor of 0 is none
            factor = shorten(fields.number(key, _MAX_FACTOR))
    attention = f"{name}.attn_factor"
    if kind == "yarn" and factor != 1:
        _refuse_doubtful(fields, name, _DOUBTFUL)
        given = 1.0 if fields.raw(attention) is None else shorten(fields.number(attention, _MAX_FACTOR))
        return _read_gguf_yarn(fields, architecture, factor, given)
    _refuse_doubtful(fields, name, {"attn_factor": (None, 1)})
    match kind:
        case None | "linear":  # a factor without a type is linear
            return None if factor == 1 else LinearScaling(factor)
        case "none":
            return None
    raise UnsupportedCheckpoint(
        f"{fields.file}: {name}.type is {str(kind)[:60]!r}" + (" without a factor" if kind == "yarn" else ""),
        hint="m7b knows none, linear, and yarn with a factor",
    )


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Write a scaling as the `rope_scaling` of a config.json; None for none."""
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case YarnScaling():
            kind = "yarn"
        case Llama3Scaling():
            kind = "llama3"
        case other:
            assert_never(other)
    numbers = asdict(scaling)
    return {"rope_type": kind, "original_max_position_embeddings": numbers.pop("original_context")} | numbers


def shorten(value: float) -> float:
    """The decimal that a float32 was rounded from: 9.999999747378752e-06 back to 1e-05."""
    return float(str(np.float32(value)))


def attention_factor(factor: float) -> float:
    """What YaRN multiplies cosines and sines by, unless told otherwise."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def _refuse_doubtful(fields: Fields, name: str, harmless: Mapping[str, tuple[Any, ...]]) -> None:
    for key, values in harmless.items():
        if (value := fields.raw(f"{name}.{key}")) not in values:
            raise UnsupportedCheckpoint(
                f"{fields.file}: {name}.{key} is {str(value)[:60]}", hint="llama.cpp may run it"
            )


def _find_original(fields: Fields, rope: Fields) -> int:
    """The context before it was stretched; at the top of the file it counts first, as in transformers."""
    name = "original_max_position_embeddings"
    for place in (fields, rope):
        if place.raw(name) is not None:
            return place.integer(name, MAX_POSITIONS)
    return fields.integer("max_position_embeddings", MAX_POSITIONS)


def _read_yarn(rope: Fields, original: int) -> YarnScaling:
    factor = rope.number("factor", _MAX_FACTOR)
    given = {
        name: rope.number(name, _MAX_FACTOR)
        for name in ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")
        if rope.raw(name)
    }
    scale = given.get("attention_factor") or attention_factor(factor)
    if "attention_factor" not in given and {"mscale", "mscale_all_dim"} <= given.keys() and factor > 1:
        above, below = (0.1 * given[name] * math.log(factor) + 1 for name in ("mscale", "mscale_all_dim"))
        scale = above / below
    return YarnScaling(
        factor=factor,
        original_context=original,
        attention_factor=scale,
        beta_fast=given.get("beta_fast", 32.0),
        beta_slow=given.get("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
    )


def _read_gguf_yarn(fields: Fields, architecture: str, factor: float, attention: float) -> YarnScaling:
    original = f"{architecture}.rope.scaling.original_context_length"
    longest = fields.integer(f"{architecture}.context_length", MAX_POSITIONS)
    return YarnScaling(
        factor=factor,
        original_context=fields.integer(original, MAX_POSITIONS) if fields.raw(original) else longest,
        attention_factor=attention * attention_factor(factor),
    )


def _read_llama3(rope: Fields, original: int) -> Llama3Scaling:
    low, high = (rope.number(name, _MAX_FACTOR) for name in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise rope.bad("high_freq_factor", f"more than low_freq_factor, {low:g}")
    return Llama3Scaling(rope.number("factor", _MAX_FACTOR), original, low, high)
