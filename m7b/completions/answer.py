"""A finished completion in OpenAI's shapes: `text_completion`, and `chat.completion` for conversations."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from m7b.completions.completion import Choice, Completion
from m7b.completions.request import CompletionRequest
from m7b.generation import GenerationEvent, TokenLogprob, Usage
from m7b.models import Model
from m7b.stream import IncrementalDecoder
from m7b.tokenizer import Tokenizer


def answer_request(
    model: Model,
    request: CompletionRequest,
    report: Callable[[GenerationEvent], object] = lambda _: None,
) -> dict[str, Any]:
    """Runs the request to its end, calling `report(event)` for each event; returns the answer object."""
    completion = Completion(model, request)
    for events in completion.samples():
        for event in events:
            report(event)
    return format_answer(completion)


def format_answer(completion: Completion) -> dict[str, Any]:
    """The finished `completion` as OpenAI writes it, with our `token_ids` and `timings`."""
    request = completion.request
    usages = [choice.finished.usage for choice in completion.choices]
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    kind, prefix = (
        ("text_completion", "cmpl") if request.conversation is None else ("chat.completion", "chatcmpl")
    )
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}" if request.id is None else request.id,
        "object": kind,
        "created": int(time.time()),
        "model": completion.model.name,
        "choices": [_choice(completion, choice) for choice in completion.choices],
        "usage": {
            "prompt_tokens": usages[0].prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": usages[0].prompt_tokens + completion_tokens,
        },
        "timings": _timings(usages, completion.model.load_s),
    }


def _choice(completion: Completion, choice: Choice) -> dict[str, Any]:
    is_chat = completion.request.conversation is not None
    text = {"message": _message(choice)} if is_chat else {"text": choice.text}
    logprobs = None
    if completion.request.params.logprobs is not None:
        logprobs = _chat_logprobs(completion, choice) if is_chat else _logprobs(completion, choice)
    return {
        "index": choice.index,
        **text,
        "token_ids": list(choice.finished.tokens),
        "finish_reason": choice.finished.reason.value,
        "logprobs": logprobs,
    }


def _message(choice: Choice) -> dict[str, Any]:
    """OpenAI's message: text, or calls."""
    if not choice.finished.calls:
        return {"role": "assistant", "content": choice.text}
    calls = [call.as_json() for call in choice.finished.calls]
    return {"role": "assistant", "content": choice.finished.beside or None, "tool_calls": calls}


def _logprobs(completion: Completion, choice: Choice) -> dict[str, Any]:
    """OpenAI's `logprobs` object of a text completion."""
    tokenizer, echo = completion.model.tokenizer, completion.request.echo
    entries: list[TokenLogprob | None] = [*completion.prompt_logprobs, *choice.finished.logprobs]
    tokens = [entry.token for entry in entries if entry]
    if echo:
        entries = [None, *entries]  # nothing comes before the first token, so it has no probability
        tokens = [completion.ids[0], *tokens]
    decoder = IncrementalDecoder(tokenizer, continues=completion.continues and not echo)
    offsets, length = [], 0
    for token in tokens:
        offsets.append(length)
        length += len(decoder.push(token))
    return {
        "tokens": [token_text(tokenizer, token) for token in tokens],
        "token_logprobs": [entry.logprob if entry else None for entry in entries],
        "top_logprobs": [_by_text(tokenizer, entry) if entry else None for entry in entries],
        "text_offset": offsets,
    }


def _by_text(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, float]:
    """Alternatives and the token itself by their text; of two that read alike, the likelier stands."""
    named: dict[str, float] = {}
    for token, logprob in (*entry.top, (entry.token, entry.logprob)):
        named.setdefault(token_text(tokenizer, token), logprob)
    return named


def _chat_logprobs(completion: Completion, choice: Choice) -> dict[str, Any]:
    """OpenAI's `logprobs` object of a chat completion."""

    def make_entry(token: int, logprob: float) -> dict[str, Any]:
        text = token_text(completion.model.tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}

    content = [
        make_entry(entry.token, entry.logprob) | {"top_logprobs": [make_entry(*other) for other in entry.top]}
        for entry in choice.finished.logprobs
    ]
    return {"content": content}


def _timings(usages: Sequence[Usage], load_s: float) -> dict[str, float | None]:
    """Seconds and tokens per second, summed over samples; speeds are null where nothing was measured."""
    prefill_s, decode_s = sum(u.prefill_s for u in usages), sum(u.decode_s for u in usages)
    n_read = sum(u.prompt_tokens - u.reused_tokens for u in usages)
    n_decoded = sum(max(0, u.completion_tokens - 1) for u in usages)
    return {
        "load_s": load_s,
        "ttft_s": usages[0].prefill_s,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "prefill_tps": n_read / prefill_s if prefill_s > 0 else None,
        "decode_tps": n_decoded / decode_s if decode_s > 0 else None,
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What one token adds in the middle of a text; its vocabulary entry where that is no whole text."""
    decoder = IncrementalDecoder(tokenizer, continues=True)
    text = decoder.push(token) + decoder.flush()
    return tokenizer.piece(token) if not text or "\ufffd" in text else text
