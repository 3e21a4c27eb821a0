"""The chat on a terminal: the prompt, the screen, and the commands that begin with a slash.

Knows sessions, the store and terminals; gets a model and knows nothing about how to load one.
"""

from m7b.repl.autosaver import Autosaver
from m7b.repl.chat import Chat
from m7b.repl.completion import SlashCompleter
from m7b.repl.prompt import Prompt
from m7b.repl.screen import Screen
from m7b.repl.slash.files import show_last_turn
from m7b.repl.toolbelt import Toolbelt

__all__ = ["Autosaver", "Chat", "Prompt", "Screen", "SlashCompleter", "Toolbelt", "show_last_turn"]
