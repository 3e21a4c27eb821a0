"""Completions in OpenAI's shape: a request, the samples it asks for, the answer object, and batches of them.

Knows requests, text and ids; nothing about terminals or tensors.
"""

from m7b.completions.answer import (
    LogprobWriter,
    answer_request,
    count_cached,
    count_usage,
    format_answer,
    format_answers,
    token_text,
)
from m7b.completions.batch import RequestFile, find_mismatch, read_answers
from m7b.completions.completion import Choice, Completion, leave_out_tools
from m7b.completions.feed import LineFeed
from m7b.completions.line import is_error, parse_object
from m7b.completions.local import LocalAnswer
from m7b.completions.remarks import Remarks, find_remarks
from m7b.completions.request import (
    MAX_SAMPLES,
    ChatPrompt,
    CompletionRequest,
    is_conversation,
    parse_chat_prompt,
    parse_request,
)
from m7b.completions.together import BatchProgress, Together

__all__ = [
    "MAX_SAMPLES",
    "BatchProgress",
    "ChatPrompt",
    "Choice",
    "Completion",
    "CompletionRequest",
    "LineFeed",
    "LocalAnswer",
    "LogprobWriter",
    "Remarks",
    "RequestFile",
    "Together",
    "answer_request",
    "count_cached",
    "count_usage",
    "find_mismatch",
    "find_remarks",
    "format_answer",
    "format_answers",
    "is_conversation",
    "is_error",
    "leave_out_tools",
    "parse_chat_prompt",
    "parse_object",
    "parse_request",
    "read_answers",
    "token_text",
]
