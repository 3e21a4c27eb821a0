"""The prompt: keys, history and toolbar, by prompt-toolkit. Knows keys; knows nothing about sessions."""

import os
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer
from prompt_toolkit.enums import DEFAULT_BUFFER, EditingMode
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from m7b.repl.paste import PasteDetector
from m7b.repl.reflow import follow_reflow

_PROMPT, _MORE = ">>> ", "... "
_BLOCK = '"""'
_KEYPAD_ENTER = 57414  # in CSI u
_STYLE = Style.from_dict({"bottom-toolbar": "noreverse #888888", "prompt": "bold"})


class Prompt:
    """Reads messages from the terminal.

    Args:
        completer: what Tab offers.
        toolbar: returns the line below the prompt; called whenever the prompt is drawn.
        is_multiline: returns whether Enter begins a new line and Alt+Enter sends, not the other way round.
        history_file: where to save typed lines; None forgets them at the end.
        vi: the keys of vi instead of Emacs.
    """

    def __init__(
        self,
        completer: Completer,
        toolbar: Callable[[], str],
        is_multiline: Callable[[], bool],
        *,
        history_file: Path | None = None,
        vi: bool = False,
    ) -> None:
        ANSI_SEQUENCES.update(_list_sequences())
        self._pastes = PasteDetector()
        self._session: PromptSession[str] = PromptSession(
            _PROMPT,
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=_bind_keys(is_multiline, self._pastes),
            completer=completer,
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            bottom_toolbar=lambda: [("", toolbar())],
            style=_STYLE,
            history=_open_history(history_file),
            enable_suspend=True,
            tempfile_suffix=".md",
            vi_mode=vi,
        )
        follow_reflow(self._session)
        # Where a terminal does not say where its cursor is, only the toolbar is missing: no reason to warn.
        self._session.app.renderer.cpr_not_supported_callback = None

    def read(self, draft: str) -> str:
        """Return the next message; the user types over `draft`.

        Raises:
            EOFError: Ctrl+D in an empty prompt, or the terminal has gone.
        """
        # Ctrl-C comes as a key.
        return self._session.prompt(default=draft, handle_sigint=False, pre_run=self._pastes.begin)


class _PrivateHistory(FileHistory):
    """A history file that only its owner can read; errors of the disk are ignored."""

    def store_string(self, string: str) -> None:
        path = Path(os.fsdecode(self.filename))
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            super().store_string(string.encode("utf-8", "backslashreplace").decode("utf-8"))
        except OSError:
            pass

    def load_history_strings(self) -> Any:
        try:
            return super().load_history_strings()
        except OSError:
            return []


def _open_history(file: Path | None) -> History:
    return _PrivateHistory(file) if file else InMemoryHistory()


def _continuation(width: int, line: int, wraps: int) -> AnyFormattedText:
    return "" if wraps else _MORE


def _is_open(text: str, *, is_multiline: bool) -> bool:
    """Whether Enter continues the message `text` instead of sending it."""
    if text.lstrip().startswith(_BLOCK):
        return not (len(text.strip()) >= 2 * len(_BLOCK) and text.rstrip().endswith(_BLOCK))
    return is_multiline and not text.startswith("/")


def _list_sequences() -> dict[str, Keys | tuple[Keys, ...]]:
    """List what terminals send for Enter and its like with Shift, Alt or Ctrl, and the keys it means here.

    Some speak CSI u as kitty does, some xterm's modifyOtherKeys. Shift adds 1 to a modifier, Alt 2, Ctrl 4.
    """
    shift, alt, ctrl = 2, 3, 5
    newline, escape = Keys.ControlJ, Keys.Escape
    keys: dict[tuple[int, int], Keys | tuple[Keys, ...]] = {
        (code, modifier): newline for code in (13, _KEYPAD_ENTER) for modifier in range(shift, 9)
    }
    for code, key in ((13, Keys.Enter), (_KEYPAD_ENTER, Keys.Enter), (9, Keys.Tab), (127, Keys.Backspace)):
        keys[code, 1], keys[code, alt] = key, (escape, key)
    keys |= {(9, shift): Keys.BackTab, (127, shift): Keys.Backspace, (127, ctrl): (escape, Keys.Backspace)}
    keys |= {(27, 1): escape}
    keys |= {(ord(letter), ctrl): Keys(f"c-{letter}") for letter in ascii_lowercase}
    sequences = {f"\x1b[27;{modifier};{code}~": key for (code, modifier), key in keys.items()}
    for (code, modifier), meant in keys.items():
        sequences |= {f"\x1b[{code};{modifier}{event}u": meant for event in ("", ":1", ":2")}
        sequences |= {f"\x1b[{code}u": meant} if modifier == 1 else {}
    return sequences


def _bind_keys(is_multiline: Callable[[], bool], pastes: PasteDetector) -> KeyBindings:
    """Bind our keys; all others are prompt-toolkit's."""
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if _is_open(buffer.text, is_multiline=is_multiline()) or pastes.is_pasted(event):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def alt_enter(event: KeyPressEvent) -> None:
        is_vi = (
            event.app.editing_mode is EditingMode.VI
        )  # where Esc and Enter, one soon after the other, send
        if is_vi or is_multiline():
            event.current_buffer.validate_and_handle()
        else:
            event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-j", filter=typing)
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c", filter=typing)
    def clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    @bindings.add("c-g", filter=typing)
    @bindings.add("c-x", "c-e", filter=typing)
    def editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor(validate_and_handle=False)

    return bindings
