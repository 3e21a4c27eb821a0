"""The file that tells MCP clients which servers to start. Knows the format; nothing about the protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m7b.errors import UsageError
from m7b.tools.json_file import read_json


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to start one server. `cwd` is None for the user's own working directory."""

    name: str
    command: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None


def load_server_configs(file: Path) -> list[ServerConfig]:
    """Load the servers of `file` that are not disabled; a relative `cwd` starts at the file's folder.

    Other clients keep settings of their own in such files, so m7b ignores keys that it does not know.

    Raises:
        UsageError: the file is no such file, or m7b cannot start a server as it is described.
    """
    value = read_json(file)
    servers = value.get("mcpServers") if isinstance(value, dict) else None
    if not isinstance(servers, dict):
        raise UsageError(f"{file.name}: no servers", hint='write {"mcpServers": {"NAME": {"command": "…"}}}')
    configs = [
        _parse_config(f"{file.name}: server {name!r}", name, entry, file.parent)
        for name, entry in servers.items()
        if not (isinstance(entry, dict) and entry.get("disabled") is True)
    ]
    if not configs:
        raise UsageError(f"{file.name}: no server in it is enabled")
    return configs


def _parse_config(where: str, name: str, entry: Any, folder: Path) -> ServerConfig:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} must be an object")
    if "url" in entry or entry.get("type", "stdio") != "stdio":
        raise UsageError(
            f"{where} is reached over the network", hint="m7b speaks to servers that it starts (stdio)"
        )
    command, args, env, cwd = (
        entry.get("command"),
        entry.get("args", []),
        entry.get("env", {}),
        entry.get("cwd"),
    )
    if not isinstance(command, str) or not command:
        raise UsageError(f"{where} has no command")
    if not isinstance(args, list) or not all(isinstance(argument, str) for argument in args):
        raise UsageError(f"{where}: args must be a list of strings")
    if not isinstance(env, dict) or not all(isinstance(text, str) for text in env.values()):
        raise UsageError(f"{where}: env must be an object of strings")
    if not isinstance(cwd, str | None):
        raise UsageError(f"{where}: cwd must be a path")
    if any("\0" in text for text in (command, *args, *env, *env.values(), cwd or "")):
        raise UsageError(f"{where}: no process takes a NUL character")
    return ServerConfig(name, command, tuple(args), env, None if cwd is None else folder.absolute() / cwd)
