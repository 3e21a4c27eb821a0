"""What the folder formats share: finding the tokenizer and the chat templates beside the weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m7b.errors import CheckpointNotFound, DamagedCheckpoint
from m7b.runtime.checkpoints.fields import read_json
from m7b.tokenizer import (
    OFFICIAL_SHA256,
    AddedPiece,
    Edges,
    InnerSpace,
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
            return OfficialVocabulary(version, _inner_space(folder))
    if (folder / "tokenizer.json").is_file():
        config = _tokenizer_config(folder)
        adds_bos = config.get("add_bos_token")
        if not isinstance(adds_bos, bool | None):
            raise DamagedCheckpoint(
                f"{folder / 'tokenizer_config.json'}: add_bos_token is neither true nor false"
            )
        bos_token, eos_token = (_special_token(folder, config, key) for key in ("bos_token", "eos_token"))
        return TokenizerJson(folder / "tokenizer.json", bos_token, adds_bos, eos_token)
    if not models:
        return None
    names = _special_names(folder)
    return SentencePieceFile(
        models[0], _added_pieces(folder, set(names.values())), names.get("eos_token"), _inner_space(folder)
    )


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


def _added_pieces(folder: Path, special: set[str]) -> tuple[AddedPiece, ...]:
    """The tokens that a fine-tune without a tokenizer.json added, those without an id last."""
    file = folder / "added_tokens.json"
    decoder = _tokenizer_config(folder).get("added_tokens_decoder") or {}  # where it is, it counts alone
    ids: dict[str, Any] = {} if decoder else _read_json(file)
    pieces = {piece: AddedPiece(piece, token, piece in special) for piece, token in ids.items()}
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        piece = _content(entry)
        if piece is not None and token.isdecimal() and len(token) < 12:
            is_control = bool(entry.get("special")) or piece in special
            flags = (bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word"))
            pieces[piece] = AddedPiece(piece, int(token), is_control, Edges(*flags))
    if bad := [piece for piece, token in ids.items() if type(token) is not int or not piece]:
        raise DamagedCheckpoint(f"{file}: {bad[0]!r} has no id")
    nameless = sorted(special - pieces.keys() - {""})
    return (*pieces.values(), *(AddedPiece(piece, None, True) for piece in nameless))


def _special_names(folder: Path) -> dict[str, str]:
    """What the folder calls its special tokens, by their keys."""
    names: dict[str, str] = {}
    for values in (_read_json(folder / "special_tokens_map.json"), _tokenizer_config(folder)):
        for key, value in values.items():
            more = value if key == "additional_special_tokens" and isinstance(value, list) else ()
            named = {f"{key}.{n}": each for n, each in enumerate(more)}
            if key.endswith("_token") and not isinstance(value, bool):
                named[key] = value
            names |= {name: text for name, each in named.items() if (text := _content(each))}
    return names


def _inner_space(folder: Path) -> InnerSpace:
    """Whether transformers would put a space in front of text behind a control token, for this folder."""
    if (folder / "tokenizer.json").is_file():
        settings = read_json(folder / "tokenizer.json")
        if '"Prepend"' in json.dumps(settings.get("normalizer")):
            return InnerSpace.ALWAYS
        is_always = '"prepend_scheme": "always"' in json.dumps(settings.get("pre_tokenizer"))
        return InnerSpace.UNLESS_SPACE if is_always else InnerSpace.NEVER
    config = _read_json(folder / "config.json")
    # Of Mistral's models transformers passes over `legacy`.
    is_legacy = config.get("model_type") == "llama" and _tokenizer_config(folder).get("legacy") is True
    return InnerSpace.UNLESS_SPACE if is_legacy else InnerSpace.NEVER


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
