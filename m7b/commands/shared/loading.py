"""A model loaded for a command: what is missing is offered first, and progress shows on a terminal."""

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from m7b import models
from m7b.commands.shared.fetching import offer_missing
from m7b.generation import EngineOptions
from m7b.models import LoadEvent, Loading, Model, ModelChoice, PromptCache, Remark, find_adapter
from m7b.render import Status, note

if TYPE_CHECKING:
    from m7b.runtime.loader import LoadProgress


def load_model(
    choice: ModelChoice,
    options: EngineOptions | None = None,
    *,
    chat_template: str | None = None,
    keeps_apart: bool = False,
) -> Model:
    """Load the chosen model, as `models.load_model` does, and show how far it is."""
    for each in (choice, *map(find_adapter, options.adapter if options else ())):
        offer_missing(each)
    status = Status()
    status.show("loading…")

    def show(event: LoadEvent) -> None:
        match event:
            case Loading(name, done, total):
                status.show(f"loading {name}: {done >> 20} of {total >> 20} MiB")
            case Remark(text):
                status.clear()
                note(text)
            case other:
                assert_never(other)

    try:
        return models.load_model(
            choice, options, chat_template=chat_template, report=show, keeps_apart=keeps_apart
        )
    finally:
        status.clear()


def open_prompt_cache(place: str | None, *, keeps: bool = True) -> PromptCache | None:
    """Where `--prompt-cache` has what was read of prompts; see PromptCache.

    Raises:
        UsageError: there cannot be such a file.
        DamagedCheckpoint: it is damaged.
    """
    return None if place in (None, "off") else PromptCache(place, note, keeps=keeps)


def show_loading(name: str, status: Status) -> "Callable[[LoadProgress], None]":
    """What shows how far the weights of the model called `name` are loaded."""

    def show(progress: "LoadProgress") -> None:
        status.show(f"loading {name}: {progress.done >> 20} of {progress.total >> 20} MiB")

    return show
