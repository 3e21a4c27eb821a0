"""`m7b serve`: the model for other programs, over HTTP."""

import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from m7b.commands.shared.expansion import expand_options
from m7b.commands.shared.fetching import offer_missing
from m7b.commands.shared.loading import load_model
from m7b.commands.shared.options import (
    ChatTemplateOption,
    ModelOption,
    OfflineOption,
    VariantOption,
    count,
    duration,
    integer,
    is_flag,
    number,
)
from m7b.commands.shared.warm_servers import (
    WarmPlace,
    claim_place,
    show_servers,
    start_in_background,
    stop_servers,
)
from m7b.errors import UsageError
from m7b.generation import EngineOptions
from m7b.models import Model, ModelChoice
from m7b.render import note
from m7b.text_input import read_text

if TYPE_CHECKING:
    from m7b.server import Access


@expand_options
def serve(
    ctx: typer.Context,
    *,
    variant: VariantOption = None,
    model: ModelOption = None,
    chat_template: ChatTemplateOption = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", parser=integer, metavar="N", help="The port; 0 takes a free one.")
    ] = 8077,
    uds: Annotated[
        Path | None,
        typer.Option("--uds", metavar="PATH", help="Listen on a Unix socket instead.", show_default=False),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY|@FILE",
            help="Let in who knows this key, or one of those in a file, one a line; can be repeated. "
            "M7B_API_KEY says it too.",
            show_default=False,
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let everybody in who can reach an address beyond this machine.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="Let pages of this origin ask from a browser; can be repeated.",
            show_default=False,
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            parser=count,
            metavar="N",
            help="Answer this many at once; as many as pay and fit if not given.",
            show_default=False,
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option("--queue", parser=count, metavar="N", help="Most requests that wait.")
    ] = 64,
    grace: Annotated[
        float,
        typer.Option("--grace", parser=number, metavar="S", help="Seconds for running answers at the end."),
    ] = 30.0,
    keep_alive: Annotated[
        float | None,
        typer.Option(
            "--keep-alive",
            parser=duration,
            metavar="S|Nm|Nh",
            help="End after so many seconds, minutes or hours without a request.",
            show_default=False,
        ),
    ] = None,
    background: Annotated[
        bool,
        typer.Option(
            "--background", help="Go on in the background, for m7b's own commands; at a port if one is given."
        ),
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the servers of the model given, or all.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show the servers of the model given, or all.")
    ] = False,
    engine: EngineOptions,
    offline: OfflineOption = False,
) -> None:
    """Serve a model to other programs by OpenAI's protocol, until it is stopped.

    Examples:

      m7b serve --variant demo --keep-alive 60

      m7b serve --variant demo --ctx-size 2048 --uds ./m7b.sock --keep-alive 60
    """
    choice = ModelChoice(variant, model)
    if stop or status:
        chosen = choice if is_flag(ctx, "variant") or is_flag(ctx, "model") else None
        if status:
            show_servers(chosen)
        else:
            stop_servers(chosen, grace if is_flag(ctx, "grace") else None)
        return
    from m7b.server import Access

    access = Access(_read_keys(api_key or []), _list_hosts(host, uds), tuple(allow_origin or ()))
    _check_open(host, uds, access, no_auth=no_auth)
    is_public = not background or is_flag(ctx, "host") or is_flag(ctx, "port")
    public = uds or ((host, port) if is_public else None)
    place = _find_place(choice, engine, chat_template, public, background=background)
    try:
        _serve(
            _Places(public, place, is_quiet=background),
            choice,
            access,
            lambda: load_model(choice, engine, chat_template=chat_template, keeps_apart=True),
            parallel=parallel,
            max_waiting=queue,
            grace=grace,
            keep_alive=keep_alive,
        )
    finally:
        if place:
            place.close()


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a server is to listen.

    Attributes:
        public: a host and a port, or a socket, for any program; None for m7b's commands alone.
        warm: the place where commands of m7b look.
        is_quiet: whether nobody sees what it says.
    """

    public: tuple[str, int] | Path | None
    warm: WarmPlace | None
    is_quiet: bool


def _serve(
    places: _Places,
    choice: ModelChoice,
    access: "Access",
    load: Callable[[], Model],
    *,
    grace: float,
    **limits: Any,
) -> None:
    """Listen, and serve until it is stopped."""
    from m7b.server import bind_socket, bind_unix_socket, describe_socket
    from m7b.server import serve as serve_sockets

    public, warm = places.public, places.warm
    bound = []
    if public is not None:
        bound.append(bind_unix_socket(public) if isinstance(public, Path) else bind_socket(*public))
    where = " and ".join(map(describe_socket, bound))
    if warm:
        bound.append(bind_unix_socket(warm.socket))
        access = replace(access, private=str(warm.socket))
    addresses = [describe_socket(one) for one in bound]
    if not places.is_quiet:
        note(f"listening on {where}, which answers when the model is loaded")

    def report_ready(loaded: Model, at_once: int) -> None:
        if warm:
            warm.open(choice, addresses, grace)
        others = ", ".join(each.name for each in loaded.others)
        ready = f"{loaded.name} is ready{f', beside {others}' if others else ''}"
        note(f"{ready}: {where or addresses[0]}/v1 answers {at_once} at once; Ctrl+C ends")

    identity = warm.identity if warm else ""
    serve_sockets(bound, load, access, grace=grace, identity=identity, report_ready=report_ready, **limits)


def _find_place(
    choice: ModelChoice,
    engine: EngineOptions,
    chat_template: str | None,
    public: tuple[str, int] | Path | None,
    *,
    background: bool,
) -> WarmPlace | None:
    """The place where commands look for the server; in the background it is another process from here on.

    Raises:
        CheckpointNotFound: the model is not on this machine, and the server is to be in the background.
        UsageError: it is served in the background already, and not as it is to be.
    """
    from m7b.warm.folder import find_record
    from m7b.warm.identity import identify

    # Commands with adapters have theirs added together, and here each is a model of its own.
    plain = replace(engine, adapter=())
    if background:
        offer_missing(choice)
        identity = identify(choice, plain, chat_template)
        running = find_record(identity) if engine.adapter or public else None
        if running and engine.adapter:
            raise UsageError(
                f"{running.name} is served already, perhaps with other adapters",
                hint="m7b serve --stop ends that",
            )
        if running and public and not _is_among(public, running.addresses):
            raise UsageError(
                f"{running.name} is served already, at {running.where}", hint="m7b serve --stop ends that"
            )
        return start_in_background(identity)
    return claim_place(identify(choice, plain, chat_template)) if choice.is_installed else None


def _read_keys(given: list[str]) -> tuple[str, ...]:
    """The keys of the options, of the files that they name and of the environment.

    Raises:
        UsageError: there are none in one of them.
    """
    keys: list[str] = []
    for text in given or filter(None, [os.environ.get("M7B_API_KEY", "")]):
        found = read_text(Path(text[1:])).split("\n") if text.startswith("@") else [text]
        found = [key.strip() for key in found if key.strip()]
        if not found:
            raise UsageError("an API key is empty", hint="write one, or @ and a file of them")
        keys += found
    return tuple(keys)


def _is_among(public: tuple[str, int] | Path, addresses: Sequence[str]) -> bool:
    """Whether one of `addresses` is a place where a server is to listen; port 0 is any."""
    if isinstance(public, Path):
        return f"unix:{public}" in addresses
    host, port = _resolve(public[0]), public[1]
    found = [urlsplit(address) for address in addresses if address.startswith("http")]
    return any(one.hostname in host and port in (0, one.port) for one in found)


def _resolve(host: str) -> set[str]:
    """The addresses of a host, none where nobody knows it."""
    try:
        return {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


def _is_loopback(host: str) -> bool:
    addresses = _resolve(host)
    return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _list_hosts(host: str, uds: Path | None) -> frozenset[str] | None:
    """The names that requests may be addressed to; None where the server is meant for other machines."""
    if uds is None and not _is_loopback(host):
        return None
    return frozenset(
        {"localhost", "127.0.0.1", "::1", host.lower(), ""}
        if uds
        else {"localhost", "127.0.0.1", "::1", host.lower()}
    )


def _check_open(host: str, uds: Path | None, access: "Access", *, no_auth: bool) -> None:
    """See that nobody opens a server to other machines unawares.

    Raises:
        UsageError: somebody would.
    """
    if uds or _is_loopback(host) or access.keys:
        return
    if not no_auth:
        raise UsageError(
            f"{host} can be reached from other machines",
            hint="give --api-key, or --no-auth to let everybody in",
        )
    note(f"everybody who can reach {host} may ask, for --no-auth is given")
