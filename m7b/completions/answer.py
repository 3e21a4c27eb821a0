"""A finished completion in OpenAI's shapes: `text_completion`, and `chat.completion` for conversations."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from m7b.completions.completion import Choice, Completion
from m7b.completions.request import CompletionRequest
from m7b.detokenizer import IncrementalDecoder
from m7b.generation import Finished, GenerationEvent, TokenLogprob, Usage
from m7b.models import Model
from m7b.tokenizer import TokenBytes, Tokenizer


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
    """The finished `completion` as OpenAI writes it, with our `token_ids`, `timings` and `left_out`."""
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
    left_out = [line for each in completions for line in each.left_out_tools]
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}" if request.id is None else request.id,
        "object": kind,
        "created": int(time.time()),
        "model": completion.model.name,
        "choices": [choice | {"index": index} for index, choice in enumerate(choices)],
        "usage": count_usage(completions),
        "timings": _timings(usages, completion.model.load_s),
    } | ({"left_out": left_out} if left_out else {})


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


def _choice(completion: Completion, choice: Choice) -> dict[str, Any]:
    is_chat = completion.request.conversation is not None
    writer = LogprobWriter(completion)
    text = {"message": _message(choice)} if is_chat else {"text": choice.text}
    return {
        "index": choice.index,
        **text,
        "token_ids": list(choice.finished.tokens),
        "finish_reason": choice.finished.reason.value,
        "logprobs": writer.write(writer.list_entries(choice.finished)),
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


class LogprobWriter:
    """Writes OpenAI's `logprobs` of one choice, piece by piece."""

    def __init__(self, completion: Completion) -> None:
        request = completion.request
        self._tokenizer = completion.model.tokenizer
        self._bytes = TokenBytes(self._tokenizer)
        self._is_wanted = request.params.logprobs is not None
        self._is_chat = request.conversation is not None
        self._tells_end = request.echo
        self._echoed = completion if request.echo else None
        self._decoder = IncrementalDecoder(
            self._tokenizer, continues=completion.continues and not request.echo
        )
        self._length = 0

    def list_entries(self, finished: Finished) -> list[TokenLogprob]:
        """What there is to write of an answer.

        Behind an echoed prompt also the stop id: who scores prompts counts on one token behind them.
        """
        end = [finished.end] if finished.end and self._tells_end else []
        return [*finished.logprobs, *end]

    def write(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Write those of the next tokens, behind those of an echoed prompt; None where none are wanted."""
        if not self._is_wanted:
            return None
        if self._is_chat:
            return {"content": [self._describe(entry) for entry in entries], "refusal": None}
        written: list[TokenLogprob | None] = [*entries]
        tokens = [entry.token for entry in entries]
        if self._echoed:  # nothing comes before the first token, so it has no probability
            written = [None, *self._echoed.prompt_logprobs, *entries]
            tokens = [*self._echoed.ids, *tokens]
            self._echoed = None
        offsets = []
        for token in tokens:
            offsets.append(self._length)
            self._length += len(self._decoder.push(token))
        return {
            "tokens": [token_text(self._tokenizer, token) for token in tokens],
            "token_logprobs": [entry.logprob if entry else None for entry in written],
            "top_logprobs": [_by_text(self._tokenizer, entry) if entry else None for entry in written],
            "text_offset": offsets,
        }

    def _describe(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._name(*other) for other in entry.top]
        return self._name(entry.token, entry.logprob) | {"top_logprobs": top}

    def _name(self, token: int, logprob: float) -> dict[str, Any]:
        text = token_text(self._tokenizer, token)
        of_text = self._bytes.read(token) or text.encode()  # a control token has its name
        return {"token": text, "logprob": logprob, "bytes": list(of_text)}


def _by_text(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, float]:
    """Alternatives and the token itself by their text; of two that read alike, the likelier stands."""
    named: dict[str, float] = {}
    for token, logprob in (*entry.top, (entry.token, entry.logprob)):
        named.setdefault(token_text(tokenizer, token), logprob)
    return named


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
