"""Who answers a request: a server of this machine that has the model loaded, or else this process."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from m7b.errors import NoServer
from m7b.generation import EngineOptions
from m7b.models.choice import ModelChoice
from m7b.render import note

if TYPE_CHECKING:
    from m7b.completions import CompletionRequest, LocalAnswer
    from m7b.models import Model, PromptCache
    from m7b.warm.client import WarmAnswer

_AUTO, _OFF = "auto", "off"

ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        metavar="auto|off|URL",
        help="Who answers: a server of this very model on this machine where one runs, none, or this one.",
    ),
]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say on stderr who answers.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which model is to answer, and who may lend it.

    Attributes:
        server: `auto`, `off`, or the address of a server.
        is_verbose: whether to say who answers.
        prompt_cache: keeps what this process reads of a prompt.
    """

    choice: ModelChoice
    engine: EngineOptions
    chat_template: str | None
    server: str = _AUTO
    is_verbose: bool = False
    prompt_cache: "PromptCache | None" = None

    def __post_init__(self) -> None:
        if self.server not in (_AUTO, _OFF):
            from m7b.warm.client import check_address

            check_address(self.server)

    @property
    def is_default(self) -> bool:
        """Whether nothing is said of the model."""
        return (self.choice, self.engine, self.chat_template) == (ModelChoice(), EngineOptions(), None)


def answer(
    asked: Asked, request: "CompletionRequest", load: "Callable[[], Model]", *, is_whole: bool
) -> "LocalAnswer | WarmAnswer":
    """Begin the answer to a request, by a server where there is one, else by the model that `load` loads.

    Raises:
        NoServer: the server that was named does not answer.
        M7bError: the request cannot be answered.
    """
    if warm := find_warm_answer(asked, request, is_whole=is_whole):
        return warm
    from m7b.completions import LocalAnswer

    return LocalAnswer(load(), request, asked.prompt_cache)


def find_warm_answer(asked: Asked, request: "CompletionRequest", *, is_whole: bool) -> "WarmAnswer | None":
    """Begin the answer of a server; None where this process is to answer."""
    if asked.server == _OFF:
        return None
    if asked.prompt_cache:
        tell_unasked(asked, "a prompt that is kept")
        return None
    if asked.server != _AUTO:
        identity = None if asked.is_default else _identify(asked)
        return _ask(asked, asked.server, request, identity, is_whole=is_whole)
    if not asked.choice.is_installed:
        return None
    try:
        from m7b.warm.folder import is_private, socket_file

        identity = _identify(asked)
        path = socket_file(identity)
        if not path.exists():
            return None
        if not is_private(path.parent):
            raise NoServer(f"{path.parent} is not its owner's alone")
        return _ask(asked, f"unix:{path}", request, identity, is_whole=is_whole)
    except (NoServer, OSError, ImportError) as error:  # fcntl is not everywhere
        _tell(asked, f"the model is loaded here: {error}")
        return None


def _identify(asked: Asked) -> str:
    from m7b.warm.identity import identify

    return identify(asked.choice, asked.engine, asked.chat_template)


def _ask(
    asked: Asked, address: str, request: "CompletionRequest", identity: str | None, *, is_whole: bool
) -> "WarmAnswer":
    from m7b.warm.client import WarmAnswer

    key = os.environ.get("M7B_API_KEY", "")
    key = "" if key.startswith("@") else key
    warm = WarmAnswer(address, request, identity=identity, is_whole=is_whole, key=key)
    _tell(asked, f"the server at {address} answers")
    return warm


def _tell(asked: Asked, text: str) -> None:
    if asked.is_verbose:
        note(text)


def tell_unasked(asked: Asked, what: str) -> None:
    """Say that `what` is done here, where a server was named."""
    if asked.server not in (_AUTO, _OFF):
        note(f"{what} is done by this process: the server at {asked.server} is not asked")
