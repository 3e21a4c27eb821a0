"""One conversation on its way into the store. Knows sessions and the store; nothing about screens."""

import time

from m7b.repl.signals import uninterrupted
from m7b.session import Session
from m7b.store import Store

_INTERVAL_S = 1.0  # what a power cut may cost of an answer


class Record:
    """Keeps a session in `store`, in a conversation that is created when there is something to keep.

    Args:
        store: where to keep it; None keeps nothing.
        id: the conversation that is continued, None for a new one.
        name: what to call a new one.
    """

    def __init__(self, store: Store | None, id: int | None = None, name: str | None = None) -> None:
        self.store = store
        self.id = id
        self._name = name
        self._saved_at, self._n_saved = 0.0, 0

    def save(self, session: Session) -> None:
        """Make what is stored equal to the session, unless nothing was ever said."""
        is_empty = all(message.role == "system" for message in session.messages)
        if self.store is None or (self.id is None and is_empty):
            return
        try:
            with uninterrupted():
                if self.id is None:
                    self.id = self.store.create(session.model.name, self._name)
                self.store.save(self.id, session.messages, session.model.name)
        finally:
            self._saved_at, self._n_saved = time.monotonic(), len(session.messages)

    def save_if_due(self, session: Session) -> None:
        """Save where a message was added, or the last time is a while ago."""
        if len(session.messages) != self._n_saved or time.monotonic() - self._saved_at > _INTERVAL_S:
            self.save(session)

    def begin(self, id: int | None = None, name: str | None = None) -> None:
        """Leave the conversation as it is stored and go on with another, a new one without `id`."""
        self.id, self._name = id, name
