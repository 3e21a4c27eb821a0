"""Ways to hold a weight and to multiply by it, one a module. The model knows none; a backend chooses."""

from m7b.runtime.linears.packed import PackedLayer, PackedLinear

__all__ = ["PackedLayer", "PackedLinear"]
