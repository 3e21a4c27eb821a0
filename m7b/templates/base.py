"""What every chat template can do."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Tools = Sequence[Mapping[str, Any]]
"""Functions the model may call, in OpenAI's shape."""


class Template(Protocol):
    """Turns a conversation into the ids that the model was trained to see."""

    @property
    def description(self) -> str:
        """What it is and where it comes from, for people."""
        ...

    @property
    def source(self) -> str:
        """The template as it is written down."""
        ...

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Tools | None = None) -> list[int]:
        """The ids after which the answer begins.

        Args:
            messages: in OpenAI's shape. A last assistant message with `prefix` true is continued.
            tools: offered to the model, where the template has a place for them.

        Raises:
            InvalidConversation: the messages or tools are not what the template takes.
        """
        ...
