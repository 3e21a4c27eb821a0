"""The file that tells MCP clients of their servers. Knows the format; nothing about the protocol."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from m7b.errors import UsageError
from m7b.network import is_web_address
from m7b.tools.json_file import read_json

_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_KINDS = {"stdio": "stdio", "http": "http", "streamablehttp": "http", "sse": "sse"}


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """How to start one server. `cwd` is None for the user's own working directory."""

    name: str
    command: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None
    shown: str
    """The command as the file has it, without what variables hold."""


@dataclass(frozen=True, slots=True)
class UrlConfig:
    """How to reach one server. `is_sse` is None where the file does not say which way it speaks."""

    name: str
    url: str
    headers: Mapping[str, str]
    is_sse: bool | None

    @property
    def shown(self) -> str:
        """The address without what may be secret: user, password and query."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


ServerConfig = ProcessConfig | UrlConfig


def load_entries(file: Path) -> dict[str, Any]:
    """Load what `file` says of each server that is not disabled, by the servers' names.

    Raises:
        UsageError: the file is no such file, or all of its servers are disabled.
    """
    value = read_json(file)
    servers = value.get("mcpServers") if isinstance(value, dict) else None
    if not isinstance(servers, dict):
        raise UsageError(f"{file.name}: no servers", hint='write {"mcpServers": {"NAME": {"command": "…"}}}')
    entries = {
        name: entry
        for name, entry in servers.items()
        if not (isinstance(entry, dict) and entry.get("disabled") is True)
    }
    if not entries:
        raise UsageError(f"{file.name}: no server in it is enabled")
    return entries


def parse_config(file: Path, name: str, entry: Any) -> ServerConfig:
    """Parse what `file` says of a server; a relative `cwd` starts at the file's folder.

    `${VAR}`, `${VAR:-DEFAULT}` and `${env:VAR}` stand for variables of the environment. Other clients keep
    settings of their own in such files, so m7b ignores keys that it does not know.

    Raises:
        UsageError: m7b cannot start or reach a server as it is described.
    """
    where = f"{file.name}: server {name!r}"
    if not isinstance(entry, dict):
        raise UsageError(f"{where} must be an object")
    match _read_kind(where, entry):
        case "stdio":
            return _parse_process(where, name, entry, file.parent)
        case kind:
            is_sse = None if kind is None else kind == "sse"
            return UrlConfig(name, _read_url(where, entry), _read_headers(where, entry), is_sse)


def _read_kind(where: str, entry: Mapping[str, Any]) -> str | None:
    """`stdio`, `http` or `sse`; None for a URL of which nobody says which it is."""
    named = entry.get("type", entry.get("transport"))
    if named is None:
        return None if "url" in entry else "stdio"
    kind = _KINDS.get(re.sub(r"[-_]", "", named.lower())) if isinstance(named, str) else None
    if kind is None:
        raise UsageError(f"{where}: m7b knows no type {named!r}", hint="it is stdio, http or sse")
    return kind


def _parse_process(where: str, name: str, entry: Mapping[str, Any], folder: Path) -> ProcessConfig:
    command, args, cwd = entry.get("command"), entry.get("args", []), entry.get("cwd")
    if not isinstance(command, str) or not command:
        raise UsageError(f"{where} has no command")
    if not isinstance(args, list) or not all(isinstance(argument, str) for argument in args):
        raise UsageError(f"{where}: args must be a list of strings")
    if not isinstance(cwd, str | None):
        raise UsageError(f"{where}: cwd must be a path")
    env = _read_strings(where, entry, "env")
    program, *arguments = (_expand(where, text) for text in (command, *args))
    place = None if cwd is None else folder.absolute() / _expand(where, cwd)
    if any("\0" in text for text in (program, *arguments, *env, *env.values(), str(place))):
        raise UsageError(f"{where}: no process takes a NUL character")
    return ProcessConfig(name, program, tuple(arguments), env, place, " ".join((command, *args)))


def _read_url(where: str, entry: Mapping[str, Any]) -> str:
    url = entry.get("url")
    if not isinstance(url, str) or not url:
        raise UsageError(f"{where} has no url")
    url = _expand(where, url).strip()
    if not is_web_address(url):
        raise UsageError(f"{where}: its url is none", hint="it looks like https://HOST/mcp")
    return url


def _read_headers(where: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """Read the headers; messages name them and leave out what they hold."""
    headers = {key: text.strip() for key, text in _read_strings(where, entry, "headers").items()}
    for key, text in headers.items():
        if not _HEADER_NAME.fullmatch(key):
            raise UsageError(f"{where}: {key!r} cannot be the name of a header")
        if not (text.isascii() and text.replace("\t", " ").isprintable()):
            raise UsageError(f"{where}: the header {key} holds a character that no header takes")
    return headers


def _read_strings(where: str, entry: Mapping[str, Any], key: str) -> dict[str, str]:
    values = entry.get(key, {})
    if not isinstance(values, dict) or not all(isinstance(text, str) for text in values.values()):
        raise UsageError(f"{where}: {key} must be an object of strings")
    return {name: _expand(where, text) for name, text in values.items()}


def _expand(where: str, text: str) -> str:
    """Fill in variables of the environment; an empty one counts as none where there is a default."""

    def fill(found: re.Match[str]) -> str:
        value = os.environ.get(found[1])
        if found[2] is not None:
            return value or found[2]
        if value is None:
            raise UsageError(f"{where}: the variable {found[1]} is not set", hint=f"export {found[1]}=…")
        return value

    return _VARIABLE.sub(fill, text)
