"""From a choice to a model that runs. Tells how far it is, to whoever wants to know; shows nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from m7b.generation import AdapterChoice, EngineOptions, read_adapters
from m7b.models.adapters import OpenAdapter, check_names, mix_adapters, open_adapters
from m7b.models.choice import ModelChoice
from m7b.models.files import ModelFiles, open_model
from m7b.models.fingerprint import fingerprint_adapters, make_fingerprint
from m7b.models.model import Model
from m7b.models.text import find_stop_ids, load_texts
from m7b.progress import run_with_progress
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.templates import Template
    from m7b.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Loading:
    """`done` of `total` bytes of the weights of the model called `name` are in place."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Remark:
    """What the user should know of the model, in one line."""

    text: str


LoadEvent = Loading | Remark


def load_model(
    choice: ModelChoice,
    options: EngineOptions | None = None,
    *,
    chat_template: str | None = None,
    report: Callable[[LoadEvent], object] | None = None,
    keeps_apart: bool = False,
) -> Model:
    """Load a model that is on this machine.

    Args:
        choice: which model.
        options: how it is to run.
        chat_template: `v1`, `v3` or a Jinja file, instead of the model's own.
        report: called with each event while the model is loaded.
        keeps_apart: whether adapters are not added together: each makes one of the `others` of the model.

    Raises:
        CheckpointNotFound: it is not on this machine.
        UnsupportedCheckpoint: it is no model that m7b runs.
        DamagedCheckpoint: its files are cut short or contradict each other.
        OutOfResources: memory, disk or the device do not suffice.
    """
    options, report = options or EngineOptions(), report or (lambda event: None)
    started = time.perf_counter()
    files = open_model(choice, window=options.window)
    name, checkpoint, config = files.name, files.checkpoint, files.config
    from m7b.runtime.loader import load_engine

    adapters = open_adapters(options.adapter, config)
    if keeps_apart:
        check_names(name, adapters)
    added = [] if keeps_apart else adapters
    mixes = [mix_adapters(added), *([each] for each in mix_adapters(adapters) if keeps_apart)]

    if checkpoint.note:
        report(Remark(checkpoint.note))
    if options.quant and (stored := checkpoint.find_requantized(options.quant)):
        report(Remark(f"weights stored as {stored} are rounded a second time, to {options.quant}"))
    elif not options.quant and (rare := checkpoint.list_unknown()):
        report(Remark(f"weights stored as {', '.join(sorted(rare))} are held as Q8_0"))
    tokenizer, template = load_texts(choice, files, chat_template)
    if template is None and checkpoint.chat_templates:
        named = ", ".join(sorted(checkpoint.chat_templates))
        report(Remark(f"this checkpoint's chat templates are for special uses, and are not used: {named}"))
    engine = run_with_progress(
        load_engine(checkpoint, options, mixes if adapters else ()),
        lambda progress: report(Loading(name, progress.done, progress.total)),
    )
    model = Model(
        join_names(name, added),
        engine,
        tokenizer,
        template,
        find_stop_ids(checkpoint, tokenizer, template),
        vocab_size=config.vocab_size,
        ctx_size=options.ctx_size or config.max_seq_len,
        window=config.sliding_window,
        about=_describe(files, tokenizer, template) | _describe_adapters(added),
        license=VARIANTS[name].license if name in VARIANTS else checkpoint.license,
        load_s=time.perf_counter() - started,
        n_bytes=checkpoint.n_bytes,
        n_params=config.n_params,
        controls=tokenizer.controls,
        fingerprint=make_fingerprint(checkpoint, engine, options.quant, added, template),
    )
    return replace(model, others=_make_others(model, adapters)) if keeps_apart else model


def join_names(model: str, adapters: Sequence[OpenAdapter]) -> str:
    """What a model with adapters is called: `demo + pirate:0.5`."""
    return " + ".join([model, *(each.label for each in adapters)])


def split_name(name: str) -> tuple[str, list[AdapterChoice]]:
    """The model's own part of what a model with adapters is called, and the adapters."""
    model, *labels = name.split(" + ")
    return model, list(read_adapters(labels))


def _make_others(model: Model, adapters: Sequence[OpenAdapter]) -> tuple[Model, ...]:
    return tuple(
        replace(
            model,
            name=each.name,
            engine=model.engine.with_adapter(number),
            fingerprint=dict(model.fingerprint) | fingerprint_adapters([each]),
            about=dict(model.about) | {"model": each.name} | _describe_adapters([each]),
        )
        for number, each in enumerate(adapters, 1)
    )


def _describe_adapters(adapters: Sequence[OpenAdapter]) -> dict[str, str]:
    return {"adapters": "; ".join(each.description for each in adapters)} if adapters else {}


def _describe(files: ModelFiles, tokenizer: "Tokenizer", template: "Template | None") -> dict[str, str]:
    """What people may want to know of a model, by label."""
    checkpoint = files.checkpoint
    config = checkpoint.config
    return {
        "model": files.name,
        "checkpoint": f"{checkpoint.path} ({checkpoint.format})",
        "parameters": f"{config.n_params:,}",
        "layers": f"{config.n_layers} of {config.n_heads} heads, {config.n_kv_heads} for keys and values",
        "trained context": f"{config.max_seq_len} tokens",
        "trained window": "none" if config.sliding_window is None else f"{config.sliding_window} tokens",
        "tokenizer": f"{tokenizer.description}, {tokenizer.vocab_size:,} ids",
        "template": template.description if template else "none",
    }
