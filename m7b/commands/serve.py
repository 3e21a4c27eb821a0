"""`m7b serve`: the model for other programs, over HTTP."""

import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m7b.commands.shared.expansion import expand_options
from m7b.commands.shared.loading import load_model
from m7b.commands.shared.options import (
    ChatTemplateOption,
    ModelOption,
    OfflineOption,
    VariantOption,
    count,
    integer,
    number,
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
            parser=number,
            metavar="S",
            help="End after so many seconds without a request.",
            show_default=False,
        ),
    ] = None,
    engine: EngineOptions,
    offline: OfflineOption = False,
) -> None:
    """Serve a model to other programs by OpenAI's protocol, until it is stopped.

    Examples:

      m7b serve --variant demo --keep-alive 60

      m7b serve --variant demo --ctx-size 2048 --uds ./m7b.sock --keep-alive 60
    """
    from m7b.server import Access, bind_socket, bind_unix_socket, describe_socket
    from m7b.server import serve as serve_socket

    keys = _read_keys(api_key or [])
    access = Access(keys, _list_hosts(host, uds), tuple(allow_origin or ()))
    _check_open(host, uds, access, no_auth=no_auth)
    choice = ModelChoice(variant, model)
    bound = bind_unix_socket(uds) if uds else bind_socket(host, port)
    where = describe_socket(bound)
    note(f"listening on {where}, which answers when the model is loaded")

    def report_ready(loaded: Model, at_once: int) -> None:
        others = ", ".join(each.name for each in loaded.others)
        beside = f", beside {others}" if others else ""
        note(f"{loaded.name} is ready{beside}: {where}/v1 answers {at_once} at once; Ctrl+C ends")

    serve_socket(
        bound,
        lambda: load_model(choice, engine, chat_template=chat_template, keeps_apart=True),
        access,
        parallel=parallel,
        max_waiting=queue,
        grace=grace,
        keep_alive=keep_alive,
        report_ready=report_ready,
    )


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


def _is_loopback(host: str) -> bool:
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


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
