"""How fast an engine reads and decodes at a depth, and what it takes. Knows engines; prints nothing."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor, nn

from m7b.bench.results import Reads, Sample, Work
from m7b.generation import PromptProgress, SamplingParams, Step
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.checkpoints.random import cut
from m7b.runtime.engine import Engine
from m7b.runtime.kernels import BlockType
from m7b.runtime.linears.blocks import BlockLinear
from m7b.runtime.linears.packed import PackedLinear
from m7b.runtime.model.batch import Span
from m7b.runtime.model.transformer import Transformer

_BLOCK = 1_048_573  # a prime, so no two rows are the same
_TOKEN = 1  # which one it is changes no speed


class Runner(Protocol):
    """An engine that can be timed, ours or a peer."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def note(self) -> str:
        """What hinders it, for the user; empty where all is well."""
        ...

    @property
    def reads(self) -> Reads:
        """The bytes that it holds and reads."""
        ...

    def prepare(self, depth: int) -> None:
        """Bring the cache to `depth` tokens; this is not timed."""
        ...

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens: seconds to the last logits, and to the token chosen by them."""
        ...

    def decode(self, n: int) -> tuple[float, ...]:
        """Read a token and choose the next by argmax, `n` times: the seconds of each."""
        ...


class EngineRunner:
    """Our engine, through the calls that answers are made with.

    Args:
        engine: nobody else may use it meanwhile.
        quant: as it was loaded.
    """

    name = "m7b"
    note = ""

    def __init__(self, engine: Engine, quant: str | None = None) -> None:
        self._engine, self._depth = engine, 0
        cache = engine.cache
        self.reads = Reads(
            weights=kept_as(engine.model, quant),
            weight_bytes=weight_bytes(engine.model),
            kv_bytes=cache.n_bytes,
            kv_bytes_per_token=cache.config.cache_bytes_per_token(engine.model.norm.weight.element_size()),
            window=cache.window,
        )

    def prepare(self, depth: int) -> None:
        """Bring the cache to `depth` tokens, by going back to them or with random keys and values."""
        self._depth, rows = depth, self._engine.rows
        if depth and self._engine.cache[rows.main].holds(depth):
            rows.rewind(rows.main, depth)
        else:
            rows.rewind(rows.main, 0)
            fill(self._engine.cache, rows.main, depth)
            self._engine.pretend(rows.main, [_TOKEN] * depth)

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens: seconds to the last logits, and to the token chosen by them."""
        started = time.perf_counter()
        read = chosen = 0.0
        for event in self._continued(n, 1):
            match event:
                case PromptProgress():
                    read = time.perf_counter() - started
                case Step():
                    chosen = time.perf_counter() - started
        return read, chosen

    def decode(self, n: int) -> tuple[float, ...]:
        """Read a token and choose the next by argmax, `n` times: the seconds of each."""
        return step_seconds(event for event in self._continued(1, n) if isinstance(event, Step))

    def _continued(self, n_prompt: int, n_tokens: int) -> Iterator[PromptProgress | Step]:
        ids = [_TOKEN] * (self._depth + n_prompt)
        return self._engine.generate(ids, SamplingParams(max_tokens=n_tokens, temperature=0))


def step_seconds(steps: Iterable[object]) -> tuple[float, ...]:
    """The seconds that each of `steps` took to come."""
    before, seconds = time.perf_counter(), []
    for _ in steps:
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return tuple(seconds)


def repeat(runner: Runner, work: Work) -> Sample:
    """One repetition of `work`: the prompt and the decoded tokens each start at the depth."""
    prefill_s = ttft_s = None
    if work.prompt_tokens:
        runner.prepare(work.depth)
        prefill_s, ttft_s = runner.prefill(work.prompt_tokens)
    if not work.decode_tokens:
        return Sample(prefill_s, ttft_s, ())
    runner.prepare(work.depth)
    return Sample(prefill_s, ttft_s, runner.decode(work.decode_tokens))


@torch.inference_mode()
def fill(cache: RollingKVCache, row: int, depth: int) -> None:
    """Leave an empty `row` as a prompt of `depth` tokens would, with random keys and values.

    Which values they are changes no speed, and computing 4096 positions of a 7B takes minutes.
    """
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0))
    drawn = 0  # values taken from the block
    for at in range(0, depth, cache.prefill_chunk):
        span = Span(row, at, min(cache.prefill_chunk, depth - at))
        cache.reserve([span])
        shape = torch.Size((cache.config.n_kv_heads, span.n, cache.config.head_dim))  # (K, T, D)
        for layer in range(cache.config.n_layers):
            starts = (drawn, drawn + shape.numel())
            cache[row].write(layer, span, *(cut(block, shape.numel(), start).view(shape) for start in starts))
            drawn += 2 * shape.numel()
        cache.commit([span])


def weight_bytes(model: Transformer) -> int:
    """Bytes of weights that a decoded token reads: all but the embedding, of which it reads one row."""
    row = model.tok_embeddings.weight[0]
    return row.nbytes + sum(kept_bytes(part) for part in (model.layers, model.norm, model.output))


def kept_bytes(module: nn.Module) -> int:
    """Bytes of all weights in `module`, with the scales of those that are quantized."""
    if isinstance(module, PackedLinear):
        return module.n_bytes
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(map(_n_bytes, own)) + sum(map(kept_bytes, module.children()))


def kept_as(model: Transformer, quant: str | None) -> str:
    """How most weights of `model` are kept, in a word: a type of blocks, else `quant`, else a dtype."""
    types = [layer.block_type for layer in model.modules() if isinstance(layer, BlockLinear)]
    if types:
        common = max(dict.fromkeys(types), key=types.count)
        return common.name.lower() if isinstance(common, BlockType) else ""
    return str(model.norm.weight.dtype).removeprefix("torch.") if quant in (None, "none") else str(quant)


def peak_rss() -> int:
    """The most bytes of memory that this process has had, since `reset_peak_rss` where that works."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def reset_peak_rss() -> None:
    """Let `peak_rss` forget what was, as Linux can; elsewhere it counts from the start of the process."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _n_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, and of the scales that bitsandbytes hangs on its parameters."""
    state = getattr(tensor, "quant_state", None)
    scales = [state.absmax] if state is not None else [getattr(tensor, "SCB", None)]
    return tensor.nbytes + sum(scale.nbytes for scale in scales if isinstance(scale, Tensor))
