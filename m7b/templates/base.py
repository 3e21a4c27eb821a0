"""The protocol of chat templates."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from m7b.errors import UsageError

Tools = Sequence[Mapping[str, Any]]
"""Functions the model may call, in OpenAI's shape."""

_QUESTION = ({"role": "user", "content": "a"},)
_PROPERTY = {"type": "string", "description": "where"}
_PROBE = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "looks",
        "parameters": {"type": "object", "properties": {"place": _PROPERTY}, "required": ["place"]},
    },
}


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

    def find_ends(self) -> frozenset[int]:
        """Find the control ids with which the template ends an answer, none where it ends it with text."""
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


def shows_tools(template: Template) -> bool:
    """Whether a template shows tools to the model.

    Raises:
        InvalidConversation: the template fails with tools.
    """
    shown = template.encode(_QUESTION, [_PROBE])
    try:
        return shown != template.encode(_QUESTION)
    except UsageError:
        return True  # it was written for tools alone
