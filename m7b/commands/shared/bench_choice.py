"""The model that `m7b bench` measures: which one, how it runs, what a report tells of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m7b.bench.runs import KnownAnswer
from m7b.commands.shared.options import VariantName
from m7b.generation import AdapterChoice, DType, EngineOptions, KvType
from m7b.models import ModelChoice, ModelFiles, load_chosen_tokenizer, open_model
from m7b.render import note
from m7b.texts import TASKS, read_task


@dataclass(frozen=True, slots=True)
class BenchChoice:
    """Which model is measured and how it runs, in the words of the options."""

    variant: VariantName | None
    model: Path | None
    random_weights: bool
    quant: str | None
    dtype: DType | None
    threads: int | None
    window: int | None
    kv_type: KvType | None
    adapters: tuple[AdapterChoice, ...] = ()
    device: str = "cpu"


def open_subject(choice: BenchChoice) -> ModelFiles:
    """The chosen model, not yet loaded; with random weights a variant needs no files."""
    files = open_model(
        ModelChoice(choice.variant, choice.model),
        window=choice.window,
        has_random_weights=choice.random_weights,
    )
    if files.checkpoint.note:
        note(files.checkpoint.note)
    return files


def engine_options(choice: BenchChoice, ctx_size: int) -> EngineOptions:
    """How our engine is to run the choice."""
    return EngineOptions(
        dtype=choice.dtype,
        window=choice.window,
        ctx_size=ctx_size or None,
        threads=choice.threads,
        device=choice.device,
        quant=choice.quant,
        kv_type=choice.kv_type,
    )


def describe_model(opened: ModelFiles, choice: BenchChoice, weights: str) -> dict[str, Any]:
    """What a report tells of the model."""
    config = opened.config
    return {
        "name": opened.name,
        "random_weights": choice.random_weights,
        "parameters": config.n_params,
        "n_layers": config.n_layers,
        "weights": str(weights),
        "quant": choice.quant and str(choice.quant),
        "kv_type": choice.kv_type and str(choice.kv_type),
        "window": config.sliding_window,
    }


def read_texts(choice: BenchChoice) -> list[KnownAnswer]:
    """The texts to measure guesses with, in the tokens of the chosen model."""
    tokenizer = load_chosen_tokenizer(ModelChoice(choice.variant, choice.model))
    found = []
    for name in TASKS:
        prompt, answer = read_task(name)
        ids = tokenizer.encode(prompt, bos=tokenizer.adds_bos)
        found.append(KnownAnswer(name, tuple(ids), tuple(tokenizer.encode(answer, bos=False))))
    return found
