"""Mistral's own templates, run by mistral-common, which goes from request to ids without a prompt string."""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from m7b.errors import InvalidConversation
from m7b.templates.base import Tools
from m7b.templates.openai import read_messages, read_tools
from m7b.tokenizer import MistralTokenizer
from m7b.variants import TokenizerVersion

_SOURCES = {
    TokenizerVersion.V1: "<s> [INST] {system}\\n\\n{user} [/INST] {assistant}</s> [INST] {user} [/INST]",
    TokenizerVersion.V3: (
        "<s>[INST] {user}[/INST] {assistant}</s>[AVAILABLE_TOOLS] {tools}[/AVAILABLE_TOOLS]"
        "[INST] {system}\\n\\n{user}[/INST]"
    ),
}

_ORDER = (
    "system messages come first, then user and assistant in turn, and each call is followed by its result"
)
_LAST = 'the last message must be for the model to answer, or have "prefix": true for it to continue'


class MistralTemplate:
    """Template v1 (Instruct v0.1 and v0.2) or v3 (Instruct v0.3).

    In v1 the markers `[INST]` and `[/INST]` are plain text, so a message that spells them cannot be
    told from the template. In v3 they are control ids, which text never becomes.

    Args:
        tokenizer: a SentencePiece tokenizer of Mistral's.
        version: None takes v3 where the tokenizer has `[INST]` as a control id, else v1.
    """

    def __init__(self, tokenizer: MistralTokenizer, version: TokenizerVersion | None = None) -> None:
        from mistral_common.tokens.tokenizers.instruct import InstructTokenizerV1, InstructTokenizerV3

        has_markers = "[INST]" in tokenizer.controls
        self._version = version or (TokenizerVersion.V3 if has_markers else TokenizerVersion.V1)
        if self._version is TokenizerVersion.V3 and not has_markers:
            raise InvalidConversation(
                "UsageError", "template v3 needs a tokenizer with [INST] as a control token"
            )
        kind = InstructTokenizerV1 if self._version is TokenizerVersion.V1 else InstructTokenizerV3
        self._instruct: Any = kind(tokenizer.backend)
        self._eos_id: int = tokenizer.backend.eos_id

    @property
    def description(self) -> str:
        """The kind and the origin of the template, for people."""
        return f"Mistral's template {self._version} (mistral-common)"

    @property
    def source(self) -> str:
        """The text that the ids decode to. mistral-common never builds this text."""
        return _SOURCES[self._version]

    def find_ends(self) -> frozenset[int]:
        """The id that ends an answer, EOS."""
        return frozenset({self._eos_id})

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Tools | None = None,
        *,
        mode: str = "",
        **request: Any,
    ) -> list[int]:
        """Encode a conversation; the answer begins after the last id.

        Args:
            messages: as OpenAI's clients write them. A last assistant message with `prefix` true is
                continued.
            tools: those to offer to the model; template v1 has no place for them.
            mode: `test`, `serving` or `finetuning`: messages and tools must be mistral-common's own, which
                validates them as strictly as that.
            request: further fields of mistral-common's ChatCompletionRequest, which checks them.

        Raises:
            InvalidConversation: mistral-common refuses; `kind` is the class of its exception.
        """
        if mode != "":
            return self._encode_strictly(messages, tools, mode, request)
        read, offered = read_messages(messages), read_tools(tools)
        try:
            return self._encode_strictly(read, offered, "test", request)
        except InvalidConversation as error:
            raise error if request else self._locate(error, read, offered or []) from None

    def _encode_strictly(self, messages: Any, tools: Any, mode: str, request: Mapping[str, Any]) -> list[int]:
        from mistral_common.exceptions import MistralCommonException
        from mistral_common.protocol.instruct.normalize import get_normalizer
        from mistral_common.protocol.instruct.request import ChatCompletionRequest
        from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
        from mistral_common.tokens.tokenizers.base import TokenizerVersion as MistralVersion
        from pydantic import ValidationError

        version = MistralVersion(self._version.value)
        try:
            json.dumps([messages, tools], ensure_ascii=False, default=str).encode("utf-8")
            fields: dict[str, Any] = {"model": "m7b", "messages": messages, "tools": tools, **request}
            asked: Any = ChatCompletionRequest(**fields)
            checked = get_validator(version, ValidationMode(mode)).validate_request(asked)
            normalized = get_normalizer(version, None).from_chat_completion_request(checked)
            tokens: list[int] = self._instruct.encode_instruct(normalized).tokens
        except ValidationError as error:
            raise InvalidConversation("ValidationError", _format_errors(error.errors())) from None
        except UnicodeEncodeError:
            raise InvalidConversation("UsageError", "the messages or tools hold half a character") from None
        except (MistralCommonException, AssertionError, RuntimeError, ValueError) as error:
            # mistral-common passes JSON and images to libraries that raise these.
            raise InvalidConversation(type(error).__name__, str(error)) from None
        return tokens

    def _locate(
        self, error: InvalidConversation, messages: Sequence[Any], tools: Sequence[Any]
    ) -> InvalidConversation:
        """Add to the error its place: a tool, or the last of the shortest beginning that has the fault."""
        is_order = error.kind == "InvalidMessageStructureException"
        if tools and not self._has_fault(messages, "test"):
            bad = (at for at, tool in enumerate(tools) if self._has_fault(messages, "test", [tool]))
            place, hint = f"tools[{next(bad, 0)}]", ""
        elif messages and not self._has_fault(messages, "agnostic"):  # only there the last may be of any role
            place, hint = f"messages[{len(messages) - 1}]", _LAST if is_order else ""
        elif messages:
            ends = range(1, len(messages) + 1)
            at = bisect_left(ends, True, key=lambda end: self._has_fault(messages[:end], "agnostic"))
            place, hint = f"messages[{at}]", _ORDER if is_order else ""
        else:
            return error
        return InvalidConversation(error.kind, f"{place}: {error.args[0]}", hint=hint, param=place)

    def _has_fault(self, messages: Sequence[Any], mode: str, tools: Sequence[Any] | None = None) -> bool:
        try:
            self._encode_strictly(messages, tools, mode, {})
        except InvalidConversation:
            return True
        return False


def _format_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    """Format pydantic's errors as one line: the place of each, and the rule."""
    found = (f"{'.'.join(map(str, error['loc']))}: {error['type']}" for error in errors)
    return f"{len(errors)} errors: {'; '.join(found)}"
