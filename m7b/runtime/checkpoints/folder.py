"""What the folder formats share: finding the tokenizer and the chat templates beside the weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m7b.errors import CheckpointNotFound, DamagedCheckpoint
from m7b.runtime.checkpoints.fields import read_json
from m7b.tokenizer import (
    OFFICIAL_SHA256,
    OfficialVocabulary,
    SentencePieceFile,
    TokenizerJson,
    TokenizerSource,
    select_ends,
)
from m7b.variants import VARIANTS

_SENTENCEPIECE = ("tokenizer.model.v3", "tokenizer.model.v1", "tokenizer.model")
_VOCAB_SIZES = {variant.tokenizer: variant.vocab_size for variant in VARIANTS.values()}


def tokenizer_source(folder: Path, vocab_size: int) -> TokenizerSource | None:
    """The tokenizer in `folder`, judged by content; None where there is none.

    Mistral's own file wins where it covers the whole vocabulary. A fine-tune that added tokens has
    them in its tokenizer.json.
    """
    models = [folder / name for name in _SENTENCEPIECE if (folder / name).is_file()]
    for model in models:
        version = OFFICIAL_SHA256.get(hashlib.sha256(_bytes(model)).hexdigest())
        if version and _VOCAB_SIZES[version] == vocab_size:
            return OfficialVocabulary(version)
    if (folder / "tokenizer.json").is_file():
        config = _tokenizer_config(folder)
        adds_bos = config.get("add_bos_token")
        if not isinstance(adds_bos, bool | None):
            raise DamagedCheckpoint(
                f"{folder / 'tokenizer_config.json'}: add_bos_token is neither true nor false"
            )
        bos_token, eos_token = (_special_token(folder, config, key) for key in ("bos_token", "eos_token"))
        return TokenizerJson(folder / "tokenizer.json", bos_token, adds_bos, eos_token)
    return SentencePieceFile(models[0]) if models else None


def stop_ids(folder: Path) -> frozenset[int]:
    """The added tokens that end an answer: EOS, and those that end a turn by their names."""
    config = _tokenizer_config(folder)
    added = _added_tokens(folder, config)
    ends = select_ends(added) | {_special_token(folder, config, "eos_token")}
    return frozenset(token for name, token in added.items() if name in ends)


def chat_templates(folder: Path) -> dict[str, str]:
    """The Jinja templates that the checkpoint brings, by their names.

    Files of their own count; tokenizer_config.json, then the old chat_template.json, where none is `default`.
    """
    places = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {"default": folder / "chat_template.jinja"} | {file.stem: file for file in places}
    found = {name: _text(file) for name, file in files.items() if file.is_file()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if "default" not in found:
            found = _named_templates(_read_json(folder / name).get("chat_template")) | found
    return found


def _named_templates(value: Any) -> dict[str, str]:
    """One template, a list of templates with names, or an object of them."""
    match value:
        case str():
            return {"default": value}
        case dict():
            named = value
        case list():
            named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        case _:
            named = {}
    return {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the tokens that were added to a vocabulary, as the files beside it tell of them."""
    listed = config.get("added_tokens_decoder")
    decoder = listed if isinstance(listed, dict) else {}
    added = {_content(token): int(key) for key, token in decoder.items() if key.isdecimal() and len(key) < 10}
    named = _read_json(folder / "added_tokens.json") | added
    return {name: token for name, token in named.items() if isinstance(name, str) and type(token) is int}


def _special_token(folder: Path, config: Mapping[str, Any], key: str) -> str | None:
    """A token by its role, as tokenizer_config.json says it, else the older special_tokens_map.json."""
    token = config.get(key)
    return _content(_read_json(folder / "special_tokens_map.json").get(key) if token is None else token)


def _text(file: Path) -> str:
    try:
        return _bytes(file).decode("utf-8")
    except ValueError as error:
        raise DamagedCheckpoint(f"{file}: not UTF-8: {error}") from None


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointNotFound(f"{file}: {error.strerror}") from None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "tokenizer_config.json")


def _read_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _content(token: Any) -> str | None:
    """The text of a special token, written as a string or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
