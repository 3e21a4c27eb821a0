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
    return format_answers([completion])


def format_answers(completions: Sequence[Completion]) -> dict[str, Any]:
    """The finished completions of several prompts as one answer, whose choices are numbered through."""
    completion = completions[0]
    request = completion.request
    choices = [_choice(each, choice) for each in completions for choice in each.choices]
    usages = [choice.finished.usage for each in completions for choice in each.choices]
    kind, prefix = (
        ("text_completion", "cmpl") if request.conversation is None else ("chat.completion", "chatcmpl")
    )
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}" if request.id is None else request.id,
        "object": kind,
        "created": int(time.time()),
        "model": completion.model.name,
        "choices": [choice | {"index": index} for index, choice in enumerate(choices)],
        "usage": count_usage(completions),
        "timings": _timings(usages, completion.model.load_s),
    }


def count_usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """OpenAI's `usage`: a prompt counts once, however many samples go on from it."""
    firsts = [completion.choices[0].finished.usage for completion in completions]
    prompt_tokens = sum(usage.prompt_tokens for usage in firsts)
    completion_tokens = sum(
        choice.finished.usage.completion_tokens for each in completions for choice in each.choices
    )
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def count_cached(completions: Sequence[Completion]) -> dict[str, int]:
    """OpenAI's `prompt_tokens_details`, which depend on what was read before."""
    firsts = [completion.choices[0].finished.usage for completion in completions]
    return {"cached_tokens": sum(usage.reused_tokens for usage in firsts)}


def format_logprobs(completion: Completion, choice: Choice) -> dict[str, Any] | None:
    """OpenAI's `logprobs` of one choice, None where they are not wanted."""
    if completion.request.params.logprobs is None:
        return None
    is_chat = completion.request.conversation is not None
    return _chat_logprobs(completion, choice) if is_chat else _logprobs(completion, choice)


def _choice(completion: Completion, choice: Choice) -> dict[str, Any]:
    is_chat = completion.request.conversation is not None
    text = {"message": _message(choice)} if is_chat else {"text": choice.text}
    return {
        "index": choice.index,
        **text,
        "token_ids": list(choice.finished.tokens),
        "finish_reason": choice.finished.reason.value,
        "logprobs": format_logprobs(completion, choice),
    }


def _message(choice: Choice) -> dict[str, Any]:
    """OpenAI's message: text, or calls."""
    if not choice.finished.calls:
        return {"role": "assistant", "content": choice.text, "refusal": None}
    calls = [call.as_json() for call in choice.finished.calls]
    return {
        "role": "assistant",
        "content": choice.finished.beside or None,
        "refusal": None,
        "tool_calls": calls,
    }


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
    return {"content": content, "refusal": None}


def _timings(usages: Sequence[Usage], load_s: float) -> dict[str, float | None]:
    """Seconds and tokens per second, summed over samples; speeds are null where nothing was measured.

    Where tokens were drafted, also how many and how many of them were taken.
    """
    prefill_s, decode_s = sum(u.prefill_s for u in usages), sum(u.decode_s for u in usages)
    n_read = sum(u.prompt_tokens - u.reused_tokens for u in usages)
    n_decoded = sum(max(0, u.completion_tokens - 1) for u in usages)
    n_drafted, n_taken = sum(u.drafted_tokens for u in usages), sum(u.taken_tokens for u in usages)
    drafts = {"drafted_tokens": n_drafted, "taken_tokens": n_taken} if n_drafted else {}
    return {
        "load_s": load_s,
        "ttft_s": usages[0].prefill_s,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "prefill_tps": n_read / prefill_s if prefill_s > 0 else None,
        "decode_tps": n_decoded / decode_s if decode_s > 0 else None,
        **drafts,
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What one token adds in the middle of a text; its vocabulary entry where that is no whole text."""
    decoder = IncrementalDecoder(tokenizer, continues=True)
    text = decoder.push(token) + decoder.flush()
    return tokenizer.piece(token) if not text or "\ufffd" in text else text
