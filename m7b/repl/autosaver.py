"""Save a conversation while it goes on. Knows sessions and the store; nothing about screens."""

import time
from collections.abc import Sequence

from m7b.errors import OutOfResources, UsageError
from m7b.messages import Message
from m7b.repl.signals import delay_ctrl_c
from m7b.session import Session
from m7b.store import ChangedMeanwhile, Store, StoredConversation

_INTERVAL_S = 1.0  # how much of an answer a power cut may cost


class Autosaver:
    """Saves a session to `store`, in a conversation that it creates when there is something to save.

    Args:
        store: where to save; None saves nothing.
        kept: the stored conversation to continue, None for a new one.
        messages: the messages that are stored of it.
        name: the name of a new conversation.
        may_forget: where it cannot be saved, say so and go on without, as for one question and its answer.

    Attributes:
        id: that of the conversation, None while there is none.
        notice: what the user should know about the last save, empty where all went as planned.
    """

    def __init__(
        self,
        store: Store | None,
        kept: StoredConversation | None = None,
        messages: Sequence[Message] = (),
        name: str | None = None,
        *,
        may_forget: bool = False,
    ) -> None:
        self.store = store
        self._may_forget = may_forget
        self.notice = ""
        self._name = name
        self.begin(kept, messages)

    def begin(self, kept: StoredConversation | None = None, messages: Sequence[Message] = ()) -> None:
        """Leave the stored conversation as it is and go on with `kept`, or without it with a new one."""
        self.id = kept.id if kept else None
        self._seen = tuple(messages)
        self._saved_at = 0.0

    def save(self, session: Session) -> None:
        """Make the stored conversation equal to the session, unless nobody has said anything yet.

        Where another chat has taken the name or changed the conversation, this one goes on as a new one.
        """
        is_empty = all(message.role == "system" for message in session.messages)
        if self.store is None or (self.id is None and is_empty):
            return
        try:
            with delay_ctrl_c():
                self._save(self.store, session)
        except OutOfResources as error:
            if not self._may_forget:
                raise
            self.store, self.notice = None, f"this conversation is not kept: {error.message}"
        finally:
            self._saved_at = time.monotonic()

    def save_if_due(self, session: Session) -> None:
        """Save where a message was added, or where the last save was more than a second ago."""
        is_new = len(session.messages) != len(self._seen)
        if is_new or time.monotonic() - self._saved_at > _INTERVAL_S:
            self.save(session)

    def _save(self, store: Store, session: Session) -> None:
        model, messages = session.model.name, session.messages
        if self.id is None:
            self.id = self._create(store, model)
        try:
            store.save(self.id, messages, model, seen=self._seen)
        except ChangedMeanwhile as error:
            self.id = store.create(model)
            store.save(self.id, messages, model)
            self.notice = f"{error}; this one goes on as {self.id}"
        self._seen = messages

    def _create(self, store: Store, model: str) -> int:
        name, self._name = self._name, None
        try:
            return store.create(model, name)
        except UsageError as error:
            id = store.create(model)
            self.notice = f"{error.message}; this one is {id}"
            return id
