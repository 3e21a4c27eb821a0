"""The chat on a terminal: what is typed, what is shown, and the commands that begin with a slash.

Knows sessions, the store and terminals; is handed a model and knows nothing about how one is loaded.
"""

from m7b.repl.autosaver import Autosaver
from m7b.repl.chat import Chat
from m7b.repl.completion import SlashCompleter
from m7b.repl.prompt import Prompt
from m7b.repl.screen import Screen
from m7b.repl.slash.files import show_last_turn
from m7b.repl.toolbelt import Toolbelt

__all__ = ["Autosaver", "Chat", "Prompt", "Screen", "SlashCompleter", "Toolbelt", "show_last_turn"]
