"""A checkpoint's own Jinja template: run in a sandbox, its text cut into segments, these encoded."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from m7b.call_format import CallFormat
from m7b.errors import InvalidConversation
from m7b.templates.base import Tools
from m7b.templates.calls import derive_call_format
from m7b.templates.jinja_messages import join_parts, read_message
from m7b.tokenizer import Tokenizer, match_controls, name_control

if TYPE_CHECKING:
    from m7b.templates.sandbox import Program

_GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode promises that no text holds these
_CONVERSATION = (
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
)
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {}}}
_PARTS = [{"type": "text", "text": "P1"}, {"type": "text", "text": "P2"}]
_PRINTED = re.compile(r"[\"']text[\"']: ?[\"']P1")  # a list of parts, written as Python or JSON does


class JinjaTemplate:
    """The template that came with a fine-tune or a GGUF file, as `transformers` would run it.

    Where a message spells a control token, or ends in the beginning of one, a guard character goes into its
    name before the template runs. The text is cut at control tokens, then the guards are removed. So a
    control id appears only where the template wrote it.

    Args:
        source: the template.
        tokenizer: encodes the segments.
        eos: the value of `eos_token` in the template.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, eos: str) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._bos = "" if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id)
        self._eos = eos
        self._forms: dict[tuple[str, bool], bool] = {}
        # A guard needs two characters to stand between.
        names = [name for name in tokenizer.controls if len(name) > 1]
        beginnings = {name[:end] for name in names for end in range(1, len(name))}
        self._control = match_controls(tokenizer)
        self._begins = re.compile(rf"(?={_match_any(names)}|{_match_any(beginnings)}\s*\Z).", re.DOTALL)

    @property
    def description(self) -> str:
        """The kind and the origin of the template, for people."""
        return "the checkpoint's own template (Jinja)"

    @property
    def source(self) -> str:
        """The template as it is written down."""
        return self._source

    @cached_property
    def call_format(self) -> CallFormat | None:
        """How the template writes calls; None where it shows none, or in a form that is not known."""
        return derive_call_format(
            lambda messages, tools, prompts: self._write(messages, tools, prompts=prompts)
        )

    def find_ends(self) -> frozenset[int]:
        """Find the control ids that follow an answer in the template's text, at once or behind spaces."""
        ends = set()
        system = {"role": "system", "content": "S"}
        for talk in (_CONVERSATION, [system, *_CONVERSATION], _CONVERSATION[:2]):
            shaped = [self._shape_content(dict(message)) for message in talk]
            _, *behind = re.split("(?i)A1", self._try(shaped))
            if behind and (end := self._control.match(behind[-1].lstrip())):
                ends.add(self._tokenizer.controls[name_control(self._tokenizer, end[0])])
        return frozenset(ends)

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Tools | None = None) -> list[int]:
        """Encode a conversation; the answer begins after the last id.

        Args:
            messages: in OpenAI's shape. A last assistant message with `prefix` true is continued.
            tools: given to the template, which may ignore them.

        Raises:
            InvalidConversation: these are no messages, or the template refuses them or fails.
        """
        plain = [
            self._shape_content(read_message(message)) for message in _check_objects("messages", messages)
        ]
        if not plain:
            raise InvalidConversation("UsageError", "there are no messages")
        continues = _is_continued(messages)
        try:
            guard, mark = self._find_unused(plain, tools)
            guarded = [self._guard(message, guard) for message in plain]
            offered = self._guard(_check_objects("tools", tools), guard) if tools else None
        except RecursionError:
            raise InvalidConversation("UsageError", "the messages or tools are nested too deep") from None
        if continues:
            _append(guarded[-1], f"{mark} ")  # a template that trims the message takes the space
        text = self._write(guarded, offered, prompts=not continues)
        if continues:
            text = _cut_at_mark(mark, text)
        ids = self._encode_text(text, guard)
        bos = self._tokenizer.bos_id
        return [bos, *ids] if self._tokenizer.adds_bos and bos is not None and ids[:1] != [bos] else ids

    @cached_property
    def _program(self) -> "Program":
        from m7b.templates.sandbox import Program

        return Program(self._source)

    def _write(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, prompts: bool) -> str:
        return self._program.run(
            messages=list(messages),
            tools=tools,
            documents=None,
            add_generation_prompt=prompts,
            bos_token=self._bos,
            eos_token=self._eos,
        )

    def _try(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """What the template writes of `messages`, nothing where it refuses them."""
        try:
            return self._write(messages, None, prompts=False)
        except InvalidConversation:
            return ""

    def _shape_content(self, message: dict[str, Any]) -> dict[str, Any]:
        """Give the content the form that the template takes: text, or parts that it joins itself."""
        role, content = message["role"], message["content"]
        match content:
            case list() if not self._shows(role, in_parts=True):
                content = join_parts(content)
            case str() if content and not self._shows(role, in_parts=False):
                if self._shows(role, in_parts=True):
                    content = [{"type": "text", "text": content}]
        return message | {"content": content}

    def _shows(self, role: str, *, in_parts: bool) -> bool:
        """Whether the template writes the text of a message of `role`, as text or in parts."""
        if "text" not in self._source:
            return not in_parts
        if (role, in_parts) not in self._forms:
            text = self._try(_make_talk(role, _PARTS if in_parts else "P1"))
            shown = all(part in text for part in ("P1", "P2")[: 1 + in_parts])
            self._forms[role, in_parts] = shown and not _PRINTED.search(text)
        return self._forms[role, in_parts]

    def _encode_text(self, text: str, guard: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for found in self._control.finditer(text):
            ids += self._encode_segment(text[at : found.start()], guard, at)
            ids.append(self._tokenizer.controls[name_control(self._tokenizer, found[0])])
            at = found.end()
        return ids + self._encode_segment(text[at:], guard, at)

    def _encode_segment(self, text: str, guard: str, at: int) -> list[int]:
        text = text.replace(guard, "")
        return self._tokenizer.encode(text, bos=False, inside=at > 0) if text else []

    def _guard(self, value: Any, guard: str) -> Any:
        """Insert a guard after each character of the strings in `value` at which a control token begins."""
        match value:
            case str():
                return self._begins.sub(lambda found: found[0] + guard, value)
            case Mapping():
                return {self._guard(key, guard): self._guard(entry, guard) for key, entry in value.items()}
            case list() | tuple():
                return [self._guard(entry, guard) for entry in value]
            case _:
                return value

    def _find_unused(self, *values: Any) -> list[str]:
        """Find two guard characters that are neither in `values` nor in the template."""
        held = json.dumps(values, ensure_ascii=False, default=list) + self._source
        unused = [guard for guard in _GUARDS if guard not in held][:2]
        if len(unused) < 2:
            raise InvalidConversation(
                "UsageError", "the messages hold every noncharacter from U+FDD0 to U+FDEF"
            )
        return unused


def is_mistral(source: str) -> bool:
    """Whether a template writes the same as Mistral's own, except for spaces."""
    from m7b.templates.sandbox import Program

    program = Program(source)
    texts = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    try:
        written = program.run(messages=list(_CONVERSATION), **texts)
    except InvalidConversation:
        return False
    if "".join(written.split()) != "<s>[INST]U1[/INST]A1</s>[INST]U2[/INST]":
        return False
    try:
        system = program.run(messages=[{"role": "system", "content": "S"}, _CONVERSATION[0]], **texts)
    except InvalidConversation:
        return True  # the templates of 2023 refuse a system message
    return "".join(system.split()) == "<s>[INST]SU1[/INST]"


def _make_talk(role: str, content: Any) -> list[dict[str, Any]]:
    """Make a conversation in which a message of `role` has `content`."""
    user, answer, _ = _CONVERSATION
    message = {"role": role, "content": content}
    match role:
        case "user":
            return [message]
        case "assistant":
            return [user, message, user]
        case "tool":
            result = message | {"tool_call_id": _CALL["id"], "name": "f"}
            return [user, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, result, answer]
        case _:
            return [message, user]


def _append(message: dict[str, Any], text: str) -> None:
    """Append to the content of a message, which may be parts."""
    if isinstance(message["content"], list):
        message["content"][-1]["text"] += text
    else:
        message["content"] += text


def _match_any(names: Iterable[str]) -> str:
    """Build a pattern that matches the longest of `names` that fits."""
    return f"(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True))) or '(?!)'})"


def _check_objects(name: str, values: Any) -> list[Mapping[str, Any]]:
    """Return `values` where it is a list of JSON objects, else raise InvalidConversation."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, Mapping) for value in values):
        raise InvalidConversation("UsageError", f"{name} must be a list of objects")
    return list(values)


def _is_continued(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message is an answer that the model is to continue."""
    *others, last = messages
    if not any(message.get("prefix") for message in messages):
        return False
    is_answer = last["role"] == "assistant" and not last.get("tool_calls")
    if not is_answer or any(message.get("prefix") for message in others):
        raise InvalidConversation(
            "UsageError", "only the last message can have a prefix, an assistant's text"
        )
    return True


def _cut_at_mark(mark: str, text: str) -> str:
    """Cut the text at the mark, which stands at the end of the continued message, as `transformers` does."""
    before, found, behind = text.rpartition(mark)
    if not found:
        raise InvalidConversation("UsageError", "the chat template does not show the message to continue")
    before = before.replace(f"{mark} ", "").replace(mark, "")  # where the template shows the message twice
    return before if behind.startswith(" ") else before.rstrip()
