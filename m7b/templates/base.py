"""The protocol of chat templates."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Tools = Sequence[Mapping[str, Any]]
"""Functions the model may call, in OpenAI's shape."""


class Template(Protocol):
    """Turns a conversation into the ids that the model was trained to see."""

    @property
    def description(self) -> str:
        """The kind and the origin of the template, for people."""
        ...

    @property
    def source(self) -> str:
        """The template as it is written down."""
        ...

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Tools | None = None) -> list[int]:
        """Encode a conversation; the answer begins after the last id.

        Args:
            messages: in OpenAI's shape. A last assistant message with `prefix` true is continued.
            tools: those to offer to the model, where the template has a place for them.

        Raises:
            InvalidConversation: the template does not take these messages or tools.
        """
        ...
