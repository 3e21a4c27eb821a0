"""What the folder formats share: finding the tokenizer and the chat template beside the weights."""

import hashlib
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
        bos_token, eos_token = (_content(config.get(key)) for key in ("bos_token", "eos_token"))
        return TokenizerJson(folder / "tokenizer.json", bos_token, adds_bos, eos_token)
    return SentencePieceFile(models[0]) if models else None


def chat_template(folder: Path) -> str | None:
    """The Jinja template that the checkpoint brings, the one named `default` of several; None where none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return _bytes(file).decode("utf-8")
        except ValueError as error:
            raise DamagedCheckpoint(f"{file}: not UTF-8: {error}") from None
    template = _tokenizer_config(folder).get("chat_template")
    if isinstance(template, list):
        named = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(named, {}).get("template")
    return template if isinstance(template, str) else None


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointNotFound(f"{file}: {error.strerror}") from None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.is_file() else {}


def _content(token: Any) -> str | None:
    """The text of a special token, written as a string or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
