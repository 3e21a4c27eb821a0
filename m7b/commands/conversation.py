"""Conversations as files and pipes hand them over: OpenAI-style messages, or a plain prompt."""

import json

from m7b.completions import Conversation
from m7b.errors import UsageError


def parse_conversation(text: str, *, prompt_allowed: bool) -> Conversation:
    """The conversation in `text`: an object with `messages` and perhaps `tools`, or a list of messages.

    With `prompt_allowed`, any other text is one user message.

    Raises:
        UsageError: it is neither.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        value, reason = None, str(error)
    else:
        reason = "neither a list of messages nor an object with messages"
    if isinstance(value, list) and all(isinstance(entry, dict) and "role" in entry for entry in value):
        return Conversation(value)
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return Conversation(value["messages"], value.get("tools"))
    if prompt_allowed:
        return Conversation([{"role": "user", "content": text}])
    raise UsageError(f"no conversation: {reason}", hint='write [{"role": "user", "content": "Hello"}]')
