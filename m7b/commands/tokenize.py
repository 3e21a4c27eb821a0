"""`m7b tokenize` and `m7b detokenize`: what the model sees of a text, and back."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from m7b.commands.batch import Batch
from m7b.commands.loading import load_chosen_tokenizer
from m7b.commands.options import (
    BosOption,
    JsonOption,
    KeepNewlineOption,
    ModelOption,
    VariantName,
    VariantOption,
)
from m7b.commands.prompt import read_prompt
from m7b.errors import UsageError
from m7b.render import Output
from m7b.tokenizer import Tokenizer
from m7b.variants import VARIANTS

JsonlOption = Annotated[
    Path | None,
    typer.Option(
        "--jsonl", help="Answer a file of JSON objects, one a line; - is stdin.", show_default=False
    ),
]


def tokenize(
    text: Annotated[
        str | None, typer.Argument(help="The text; - or nothing reads stdin.", show_default=False)
    ] = None,
    variant: VariantOption = None,
    model: ModelOption = None,
    bos: BosOption = None,
    keep_newline: KeepNewlineOption = False,
    as_json: JsonOption = False,
    jsonl: JsonlOption = None,
) -> None:
    """Show the token ids and pieces of a text.

    Examples:

      m7b tokenize --variant base-v0.3 "Hello, world!"

      m7b tokenize --variant instruct-v0.1 --json --no-bos < prompt.txt
    """
    if jsonl:
        if text is not None:
            raise UsageError("--jsonl brings its own texts", hint="leave out TEXT")
        tokenizers = _Tokenizers(variant, model)
        Batch(jsonl).run(lambda fields: _tokenized(fields, tokenizers, bos))
        return
    tokenizer = load_chosen_tokenizer(variant, model)
    ids = _encode(tokenizer, read_prompt(text, None, keep_newline=keep_newline), bos)
    pieces = [tokenizer.piece(token) for token in ids]
    output = Output()
    if as_json:
        output.write_json({"tokens": ids, "pieces": pieces})
        return
    for token, piece in zip(ids, pieces, strict=True):
        output.write(f"{token:>6}  {piece}\n")


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
    if jsonl:
        if tokens:
            raise UsageError("--jsonl brings its own tokens", hint="leave out the ids")
        tokenizers = _Tokenizers(variant, model)
        Batch(jsonl).run(lambda fields: _detokenized(fields, tokenizers))
        return
    tokenizer = load_chosen_tokenizer(variant, model)
    ids = _ids(" ".join(tokens) if tokens else read_prompt(None, None))
    text = _decode(tokenizer, ids)
    output = Output()
    if as_json:
        output.write_json({"text": text, "pieces": [tokenizer.piece(token) for token in ids]})
    else:
        output.write(text + "\n")


class _Tokenizers:
    """The tokenizers that the lines of one batch name, each loaded once."""

    def __init__(self, variant: VariantName | None, model: Path | None) -> None:
        self._default = (variant, model)
        self._loaded: dict[str | None, Tokenizer] = {}

    def of(self, fields: dict[str, Any]) -> Tokenizer:
        """The tokenizer of the line's `variant`, else of the options."""
        name = fields.get("variant")
        if name is not None and not (isinstance(name, str) and name in VARIANTS):
            raise UsageError(f"variant is {name!r}", hint=f"it can be {', '.join(VARIANTS)}")
        if name not in self._loaded:
            choice = self._default if name is None else (VariantName(name), None)
            self._loaded[name] = load_chosen_tokenizer(*choice)
        return self._loaded[name]


def _tokenized(fields: dict[str, Any], tokenizers: _Tokenizers, bos: bool | None) -> dict[str, Any]:
    _check_fields(fields, {"id", "text", "variant"})
    text = fields.get("text")
    if not isinstance(text, str):
        raise UsageError("text must be a string")
    return {"id": fields.get("id"), "tokens": _encode(tokenizers.of(fields), text, bos)}


def _detokenized(fields: dict[str, Any], tokenizers: _Tokenizers) -> dict[str, Any]:
    _check_fields(fields, {"id", "tokens", "variant"})
    return {"id": fields.get("id"), "text": _decode(tokenizers.of(fields), fields.get("tokens"))}


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


def _ids(text: str) -> Any:
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
