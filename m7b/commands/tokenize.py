"""`m7b tokenize` and `m7b detokenize`: what the model sees of a text or a conversation, and back."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer

from m7b.commands.shared.options import (
    BosOption,
    ChatTemplateOption,
    JsonOption,
    KeepNewlineOption,
    ModelOption,
    VariantOption,
    is_flag,
)
from m7b.commands.shared.prompt import read_file, read_prompt, tell_left_out
from m7b.completions import RequestFile, parse_chat_prompt
from m7b.errors import UsageError
from m7b.models import ModelChoice, load_chosen_template, load_chosen_tokenizer
from m7b.offer import check_template
from m7b.render import Output
from m7b.templates import MistralTemplate, Template, list_left_out
from m7b.tokenizer import Tokenizer
from m7b.variants import VARIANTS

T = TypeVar("T")

JsonlOption = Annotated[
    Path | None,
    typer.Option(
        "--jsonl", help="Answer a file of JSON objects, one a line; - is stdin.", show_default=False
    ),
]


def tokenize(
    ctx: typer.Context,
    text: Annotated[
        str | None,
        typer.Argument(
            help="The text, or with --chat a file of messages; - or nothing reads stdin.", show_default=False
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Apply the chat template to messages: OpenAI's, as JSON.")
    ] = False,
    chat_template: ChatTemplateOption = None,
    variant: VariantOption = None,
    model: ModelOption = None,
    bos: BosOption = None,
    keep_newline: KeepNewlineOption = False,
    as_json: JsonOption = False,
    jsonl: JsonlOption = None,
) -> None:
    """Show the token ids and pieces of a text, or of a conversation as the model would see it.

    Examples:

      m7b tokenize --variant base-v0.3 "Hello, world!"

      echo '[{"role": "user", "content": "Hi"}]' | m7b tokenize --chat -
    """
    if jsonl and text is not None:
        raise UsageError("--jsonl brings its own texts", hint="leave out TEXT")
    if chat and bos is not None:
        raise UsageError("--bos and --no-bos do not go with --chat", hint="the template places the BOS token")
    if is_flag(ctx, "chat_template") and not chat:
        raise UsageError("--chat-template goes with --chat")
    choice = ModelChoice(variant, model)
    if chat and jsonl:
        templates = _Cache(partial(load_chosen_template, chat_template=chat_template), choice)
        RequestFile(jsonl).run(lambda fields: _encode_messages(fields, *templates.load_for(fields)))
    elif chat:
        conversation = parse_chat_prompt(read_file(Path(text or "-")), prompt_allowed=False)
        tokenizer, template = load_chosen_template(choice, chat_template)
        if conversation.tools:
            check_template(template)
        ids = template.encode(conversation.messages, conversation.tools)
        tell_left_out(list_left_out(template, conversation.messages))
        _show(tokenizer, ids, as_json=as_json)
    elif jsonl:
        tokenizers = _Cache(load_chosen_tokenizer, choice)
        RequestFile(jsonl).run(lambda fields: _encode_line(fields, tokenizers.load_for(fields), bos))
    else:
        tokenizer = load_chosen_tokenizer(choice)
        ids = _encode(tokenizer, read_prompt(text, keep_newline=keep_newline), bos)
        _show(tokenizer, ids, as_json=as_json)


def detokenize(
    tokens: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Token ids; none reads stdin.", show_default=False),
    ] = None,
    variant: VariantOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
    jsonl: JsonlOption = None,
) -> None:
    """Show the text of token ids.

    Examples:

      m7b detokenize --variant base-v0.3 23325 29493 2294 29576

      m7b tokenize --json "Hello, world!" | m7b detokenize --json
    """
    choice = ModelChoice(variant, model)
    if jsonl:
        if tokens:
            raise UsageError("--jsonl brings its own tokens", hint="leave out the ids")
        tokenizers = _Cache(load_chosen_tokenizer, choice)
        RequestFile(jsonl).run(lambda fields: _decode_line(fields, tokenizers.load_for(fields)))
        return
    tokenizer = load_chosen_tokenizer(choice)
    ids = _parse_ids(" ".join(tokens) if tokens else read_prompt(None))
    text = _decode(tokenizer, ids)
    output = Output()
    if as_json:
        output.write_json({"text": text, "pieces": [tokenizer.piece(token) for token in ids]})
    else:
        output.write(text + "\n")


class _Cache(Generic[T]):
    """What `load` makes of the variants that the lines of one batch name, each made once."""

    def __init__(self, load: Callable[[ModelChoice], T], default: ModelChoice) -> None:
        self._load = load
        self._default = default
        self._loaded: dict[str | None, T] = {}

    def load_for(self, fields: dict[str, Any]) -> T:
        """What belongs to the line's `variant`, else to the options."""
        name = fields.get("variant")
        if name is not None and not (isinstance(name, str) and name in VARIANTS):
            raise UsageError(f"variant is {name!r}", hint=f"it can be {', '.join(VARIANTS)}")
        if name not in self._loaded:
            self._loaded[name] = self._load(self._default if name is None else ModelChoice(name))
        return self._loaded[name]


def _show(tokenizer: Tokenizer, ids: list[int], *, as_json: bool) -> None:
    """One id a line with its piece, control tokens in colour; as JSON, also the pieces joined."""
    pieces = [tokenizer.piece(token) for token in ids]
    output = Output()
    if as_json:
        output.write_json({"tokens": ids, "pieces": pieces, "text": "".join(pieces)})
        return
    for token, piece in zip(ids, pieces, strict=True):
        output.write(f"{token:>6}  ")
        output.write(piece, emphasis=tokenizer.is_control(token))
        output.write("\n")


def _encode_messages(fields: dict[str, Any], tokenizer: Tokenizer, template: Template) -> dict[str, Any]:
    """A line of `tokenize --chat --jsonl`. What else a request holds changes no token and is left aside."""
    messages: Any = fields.get("messages")
    tools: Any = fields.get("tools")
    if isinstance(template, MistralTemplate):
        ids = template.encode(messages, tools, **_list_settings(fields))
    else:
        if tools:
            check_template(template)
        ids = template.encode(messages, tools)
    return {"id": fields.get("id"), "tokens": ids, "text": "".join(map(tokenizer.piece, ids))}


def _list_settings(fields: dict[str, Any]) -> dict[str, Any]:
    """What else mistral-common validates: `mode`, `model`, and the request fields in `extra`."""
    extra = fields.get("extra") or {}
    if not isinstance(extra, dict) or extra.keys() & {"self", "messages", "tools", "mode"}:
        raise UsageError("extra must be an object of further request fields")
    given: dict[str, Any] = {name: fields[name] for name in ("mode", "model") if name in fields}
    return given | extra


def _encode_line(fields: dict[str, Any], tokenizer: Tokenizer, bos: bool | None) -> dict[str, Any]:
    _check_fields(fields, {"id", "text", "variant"})
    text = fields.get("text")
    if not isinstance(text, str):
        raise UsageError("text must be a string")
    return {"id": fields.get("id"), "tokens": _encode(tokenizer, text, bos)}


def _decode_line(fields: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    _check_fields(fields, {"id", "tokens", "variant"})
    return {"id": fields.get("id"), "text": _decode(tokenizer, fields.get("tokens"))}


def _check_fields(fields: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise UsageError(f"unknown field {unknown[0]!r}", hint=f"known are {', '.join(sorted(known))}")


def _encode(tokenizer: Tokenizer, text: str, bos: bool | None) -> list[int]:
    return tokenizer.encode(text, bos=tokenizer.adds_bos if bos is None else bos)


def _decode(tokenizer: Tokenizer, ids: Any) -> str:
    if not isinstance(ids, list) or not all(
        isinstance(token, int) and not isinstance(token, bool) for token in ids
    ):
        raise UsageError("tokens must be a list of ids")
    outside = next((token for token in ids if not 0 <= token < tokenizer.vocab_size), None)
    if outside is not None:
        raise UsageError(f"there is no token {outside}", hint=f"ids run from 0 to {tokenizer.vocab_size - 1}")
    return tokenizer.decode(ids)


def _parse_ids(text: str) -> Any:
    """Ids as JSON (a list, or an object with `tokens`) or as numbers with space or commas between."""
    try:
        if text.lstrip().startswith(("[", "{")):
            value = json.loads(text)
            return value.get("tokens") if isinstance(value, dict) else value
        return [int(word) for word in text.replace(",", " ").split()]
    except (ValueError, RecursionError):
        raise UsageError(
            f"{text[:40]!r} is no list of token ids", hint="write numbers with spaces between"
        ) from None
