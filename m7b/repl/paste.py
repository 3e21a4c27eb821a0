"""Tell pasted keys from pressed ones by their speed. Knows keys and terminals; nothing about messages."""

import array
import fcntl
import select
import termios
from asyncio import get_running_loop

from prompt_toolkit.application.current import get_app
from prompt_toolkit.key_binding import KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.renderer import CPR_Support

_PAUSE_S = 0.02  # nobody presses a key so soon after Enter


class PasteDetector:
    """Tells whether an Enter is part of a paste, for terminals that do not mark what is pasted.

    In a paste, more comes at once behind the end of a line. Keys that were pressed before the prompt opened
    come at once too, but each was meant.
    """

    def __init__(self) -> None:
        self._is_typed_ahead = False
        self._is_pasting = False  # more of a paste waits to be read
        self._pasted: list[KeyPress] = []  # what is read of it and not processed yet

    def begin(self) -> None:
        """Begin to read at a prompt: what waits now was typed before."""
        self._is_typed_ahead, self._is_pasting = True, False
        get_running_loop().call_soon(self._rest)

    def is_pasted(self, event: KeyPressEvent) -> bool:
        """Whether the Enter of `event` is part of a paste."""
        if self._is_typed_ahead:
            return False
        following = [press for press in event.key_processor.input_queue if press.key is not Keys.CPRResponse]
        is_known = self._is_pasting or any(press is event.key_sequence[-1] for press in self._pasted)
        if not (is_known or following or _more_comes()):
            return False
        self._pasted, self._is_pasting = following, _count_waiting() > 0
        if self._is_pasting:
            get_running_loop().call_soon(self._rest)
        return True

    def _rest(self) -> None:
        """Forget what was typed ahead or pasted, once all of it is read."""
        if _count_waiting():
            get_running_loop().call_soon(self._rest)
        else:
            self._is_typed_ahead = self._is_pasting = False


def _more_comes() -> bool:
    """Whether more keys follow at once; not the terminal's answer to where its cursor is."""
    app = get_app()
    if app.renderer.waiting_for_cpr and app.renderer.cpr_support is not CPR_Support.NOT_SUPPORTED:
        return False
    return bool(select.select([app.input.fileno()], [], [], _PAUSE_S)[0]) and _count_waiting() > 0


def _count_waiting() -> int:
    """Count the bytes that wait to be read."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(get_app().input.fileno(), termios.FIONREAD, count)
    except OSError:  # the terminal has gone
        return 0
    return count[0]
