"""The commands that begin with a slash. Importing this package registers them all, in the order of /help."""

from m7b.repl.slash import basics, turns, settings, looks, files  # noqa: F401, I001 - the order of /help
from m7b.repl.slash.registry import COMMANDS, Command, find_command

__all__ = ["COMMANDS", "Command", "find_command"]
