"""How far back layers with a window see: one token of a prompt is changed, and the end is judged again."""

from collections.abc import Generator

from m7b.bench.claims import Reach
from m7b.generation import EngineOptions
from m7b.progress import run_with_progress
from m7b.runtime.checkpoints.random import random_checkpoint
from m7b.runtime.engine import Engine
from m7b.runtime.loader import load_engine
from m7b.runtime.model.config import ModelConfig

STACKS = ((1, 8), (2, 8), (3, 8), (2, 16), (3, 4))
"""Layers and windows that are measured: small, so that what comes from the edge is no rounding error."""


def measure_reach() -> Generator[str, None, tuple[Reach, ...]]:
    """Change a token that each stack should just see, and the one before it. Tells what goes on."""
    measured = []
    for n_layers, window in STACKS:
        yield f"the reach of {n_layers} layers with a window of {window}"
        engine = _load(n_layers, window)
        reach = n_layers * (window - 1)
        at_edge, beyond = (_move(engine, distance) for distance in (reach, reach + 1))
        measured.append(Reach(n_layers, window, reach, at_edge, beyond))
    return tuple(measured)


def _load(n_layers: int, window: int) -> Engine:
    config = ModelConfig(
        dim=1024,
        n_layers=n_layers,
        n_heads=16,
        n_kv_heads=4,
        head_dim=64,
        hidden_dim=64,
        vocab_size=64,
        norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=window,
        max_seq_len=128,
        tied_embeddings=False,
    )
    checkpoint = random_checkpoint("reach", config)
    return run_with_progress(load_engine(checkpoint, EngineOptions(dtype="float32")), lambda progress: None)


def _move(engine: Engine, distance: int) -> float:
    """How far the log-probability behind a prompt moves when the token `distance` before its end changes."""
    size = engine.model.config.vocab_size
    ids = [(7 * place + 3) % size for place in range(distance + 4)]
    at = len(ids) - 2 - distance  # the last id is only judged
    changed = [*ids[:at], (ids[at] + 1) % size, *ids[at + 1 :]]
    before, after = (list(engine.score(prompt, 0))[-1].logprob for prompt in (ids, changed))
    return abs(after - before)
