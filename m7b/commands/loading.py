"""From the options of a command to an open checkpoint, a tokenizer and a running engine."""

import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from m7b import hub
from m7b.commands.options import DType, VariantName
from m7b.errors import UnsupportedCheckpoint, UsageError
from m7b.generation import Engine, Quant
from m7b.render import Status, can_ask, note
from m7b.templates import MistralTemplate, Template, choose_template, load_template, read_source
from m7b.tokenizer import MistralTokenizer, OfficialVocabulary, Tokenizer, load_tokenizer
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint
    from m7b.runtime.loader import LoadProgress

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{,95}/[A-Za-z0-9][\w.-]{,95}")

Progress = TypeVar("Progress")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """All that a command needs to generate text; `load_s` seconds were spent on it.

    `template` is None where the model was not trained to chat. `ctx_size` tokens fit, `window` is None
    where attention is full. `about` and `license` are for people. The weights take `n_bytes` on disk.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    template: Template | None
    stop_ids: frozenset[int]
    vocab_size: int
    ctx_size: int
    window: int | None
    load_s: float
    about: Mapping[str, str]
    license: str
    n_bytes: int


def chosen_variant(variant: VariantName | None, model: Path | None) -> str | None:
    """The name of the variant that the options choose, None where they name a checkpoint by path.

    Raises:
        UsageError: both are given.
    """
    if variant and model:
        raise UsageError("--variant and --model are both given", hint="name one checkpoint")
    if model:
        return None
    return variant.value if variant else "demo"


def open_chosen(
    variant: VariantName | None, model: Path | None, *, window_given: bool
) -> "tuple[str, Checkpoint]":
    """The chosen checkpoint, not yet loaded, and what to call it."""
    name = chosen_variant(variant, model) or _hub_id(model)
    path = hub.locate(name) if name else model
    assert path is not None
    from m7b.runtime.checkpoints import open_checkpoint

    return name or path.resolve().name, open_checkpoint(path, window_given=window_given)


def offer_missing(variant: VariantName | None, model: Path | None) -> None:
    """Offer to fetch the chosen checkpoint if it is not here and somebody can be asked."""
    name = chosen_variant(variant, model) or _hub_id(model)
    if name is None or hub.find_path(name) or hub.is_offline():
        return
    if can_ask():
        from m7b.commands.download import fetch_default

        note(f"{name} is not on this machine yet")
        fetch_default(name, asks=True)


def _hub_id(model: Path | None) -> str | None:
    """The hub id that --model names, None where it is a path."""
    if model is None or not _HUB_ID.fullmatch(model.as_posix()) or model.exists():
        return None
    return model.as_posix()


def load_chosen_tokenizer(variant: VariantName | None, model: Path | None) -> Tokenizer:
    """The tokenizer alone. Those of the official variants need no checkpoint."""
    name = chosen_variant(variant, model)
    official = _official_tokenizer(name)
    return official or tokenizer_of(open_chosen(variant, model, window_given=True)[1])


def load_chosen_template(
    variant: VariantName | None, model: Path | None, chat_template: str | None
) -> tuple[Tokenizer, Template]:
    """The tokenizer and the chat template alone. Those of the official variants need no checkpoint.

    Raises:
        UsageError: the model has no chat template.
    """
    name = chosen_variant(variant, model)
    refuse_base(name, chat_template)
    tokenizer, checkpoint = _official_tokenizer(name), None
    if tokenizer is None:
        called, checkpoint = open_chosen(variant, model, window_given=True)
        tokenizer = tokenizer_of(checkpoint, chat_template)
    template = _template(name, tokenizer, checkpoint, chat_template)
    return tokenizer, chat_template_of(name or called, template)


def refuse_base(name: str | None, chat_template: str | None) -> None:
    """Refuse a base variant before anything is loaded.

    Raises:
        UsageError: `name` is one, and the user names no template for it.
    """
    if name in VARIANTS and not VARIANTS[name].is_instruct and chat_template is None:
        raise UsageError(
            f"{name} was not trained to chat",
            hint=f"continue a text with: m7b complete --variant {name}",
        )


def chat_template_of(name: str, template: Template | None) -> Template:
    """The template, if there is one.

    Raises:
        UsageError: there is none.
    """
    if template is None:
        raise UsageError(
            f"{name} brings no chat template",
            hint="name one with --chat-template v1, v3 or a Jinja file, or use m7b complete",
        )
    return template


def _official_tokenizer(name: str | None) -> Tokenizer | None:
    version = VARIANTS[name].tokenizer if name else None
    return load_tokenizer(OfficialVocabulary(version)) if version else None


def _template(
    name: str | None, tokenizer: Tokenizer, checkpoint: "Checkpoint | None", chat_template: str | None
) -> Template | None:
    """The template that the user names, else Mistral's for a variant of theirs, else the checkpoint's own."""
    stop_ids = sorted(checkpoint.stop_ids) if checkpoint else []
    eos_id = next((token for token in (tokenizer.eos_id, *stop_ids) if token is not None), None)
    eos = "" if eos_id is None else tokenizer.piece(eos_id)
    if chat_template is not None:
        return load_template(chat_template, tokenizer, eos)
    variant = VARIANTS.get(name or "")
    if variant and isinstance(tokenizer, MistralTokenizer):
        return MistralTemplate(tokenizer) if variant.is_instruct else None
    return choose_template(checkpoint.chat_template if checkpoint else None, tokenizer, eos)


def tokenizer_of(checkpoint: "Checkpoint", chat_template: str | None = None) -> Tokenizer:
    """The tokenizer that a checkpoint brings. What a template writes in added tokens, its own or the one
    that the user names, are control tokens to it.

    Raises:
        UnsupportedCheckpoint: it brings none, or one with more ids than the model has.
    """
    if checkpoint.tokenizer is None:
        raise UnsupportedCheckpoint(
            f"{checkpoint.path}: holds no tokenizer",
            hint="put tokenizer.model or tokenizer.json beside the weights",
        )
    named = read_source(chat_template) if chat_template is not None else None
    tokenizer = load_tokenizer(checkpoint.tokenizer, named or checkpoint.chat_template or "")
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise UnsupportedCheckpoint(
            f"{checkpoint.path}: the tokenizer has {tokenizer.vocab_size} ids, "
            f"the model {checkpoint.config.vocab_size}"
        )
    return tokenizer


def load_model(
    variant: VariantName | None,
    model: Path | None,
    *,
    window: int | None = None,
    ctx_size: int | None = None,
    prefill_chunk: int = 512,
    dtype: DType | None = None,
    quant: Quant | None = None,
    device: str = "cpu",
    threads: int | None = None,
    chat_template: str | None = None,
) -> LoadedModel:
    """Load the chosen checkpoint, showing progress on a terminal."""
    offer_missing(variant, model)
    started = time.perf_counter()
    status = Status()
    status.show("loading…")
    try:
        name, checkpoint = open_chosen(variant, model, window_given=window is not None)
        from m7b.runtime.loader import EngineOptions, load_engine

        if checkpoint.note:
            status.clear()
            note(checkpoint.note)
        if quant and (stored := checkpoint.requantized(quant)):
            status.clear()
            note(f"weights stored as {stored} are rounded a second time, to {quant}")
        tokenizer = _official_tokenizer(chosen_variant(variant, model)) or tokenizer_of(
            checkpoint, chat_template
        )
        template = _template(name, tokenizer, checkpoint, chat_template)
        options = EngineOptions(device, dtype, window, ctx_size, prefill_chunk, threads, quant=quant)
        engine = drained(load_engine(checkpoint, options), loading_of(name, status))
    finally:
        status.clear()
    return LoadedModel(
        name,
        engine,
        tokenizer,
        template,
        checkpoint.stop_ids,
        vocab_size=checkpoint.config.vocab_size,
        ctx_size=ctx_size or checkpoint.config.max_seq_len,
        window=checkpoint.config.sliding_window if window is None else window or None,
        load_s=time.perf_counter() - started,
        about=_about(name, checkpoint, tokenizer, template),
        license=VARIANTS[name].license if name in VARIANTS else checkpoint.license,
        n_bytes=checkpoint.n_bytes,
    )


def _about(
    name: str, checkpoint: "Checkpoint", tokenizer: Tokenizer, template: Template | None
) -> dict[str, str]:
    """What people may want to know of a model, by label."""
    config = checkpoint.config
    return {
        "model": name,
        "checkpoint": f"{checkpoint.path} ({checkpoint.format})",
        "parameters": f"{config.n_params:,}",
        "layers": f"{config.n_layers} of {config.n_heads} heads, {config.n_kv_heads} for keys and values",
        "trained context": f"{config.max_seq_len} tokens",
        "trained window": "none" if config.sliding_window is None else f"{config.sliding_window} tokens",
        "tokenizer": f"{tokenizer.description}, {tokenizer.vocab_size:,} ids",
        "template": template.description if template else "none",
    }


def drained(running: Generator[Progress, None, Result], tell: Callable[[Progress], None]) -> Result:
    """What `running` comes to; `tell` is told how far it is meanwhile."""
    while True:
        try:
            progress = next(running)
        except StopIteration as done:
            result: Result = done.value
            return result
        tell(progress)


def loading_of(name: str, status: Status) -> "Callable[[LoadProgress], None]":
    """Shows how far the model called `name` is loaded."""

    def show(progress: "LoadProgress") -> None:
        status.show(f"loading {name}: {progress.done >> 20} of {progress.total >> 20} MiB")

    return show
