"""The messages of a conversation, in OpenAI's shape. Knows nothing about templates, storage or screens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m7b.errors import UsageError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    `content` is text, OpenAI's list of chunks, or None beside tool calls. `extra` holds the other
    fields as they came (`tool_calls`, `tool_call_id`, `name`). `is_partial` marks an answer that was cut off.
    """

    role: str
    content: str | list[Any] | None
    extra: Mapping[str, Any] = field(default_factory=dict)
    is_partial: bool = False

    @property
    def text(self) -> str:
        """The text of the content, chunks joined by empty lines."""
        if isinstance(self.content, list):
            return "\n\n".join(
                str(chunk.get("text", "")) for chunk in self.content if isinstance(chunk, dict)
            )
        return self.content or ""

    def as_json(self) -> dict[str, Any]:
        """The message as OpenAI writes it."""
        return {"role": self.role, "content": self.content, **self.extra}


def parse_message(value: Any) -> Message:
    """Parse a message from a JSON object.

    Raises:
        UsageError: `value` is no message.
    """
    if not isinstance(value, dict) or value.get("role") not in ROLES:
        raise UsageError("not a message", hint=f"it needs a role: {', '.join(ROLES)}")
    content = value.get("content")
    if not isinstance(content, str | list | None):
        raise UsageError(f"a message's content is a {type(content).__name__}", hint="it must be text")
    extra = {name: entry for name, entry in value.items() if name not in ("role", "content")}
    return Message(value["role"], content, extra)
