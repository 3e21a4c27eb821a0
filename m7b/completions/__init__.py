"""Completions in OpenAI's shape: a request, the samples it asks for, and the answer object.

Knows requests, text and ids; nothing about files, terminals or tensors.
"""

from m7b.completions.answer import answer, token_text
from m7b.completions.completion import Choice, Completion
from m7b.completions.request import CompletionRequest, Conversation, parse_request

__all__ = [
    "Choice",
    "Completion",
    "CompletionRequest",
    "Conversation",
    "answer",
    "parse_request",
    "token_text",
]
