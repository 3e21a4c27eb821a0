"""Write a tokenizer as the files that a Hugging Face folder has."""

import json
import shutil
from pathlib import Path

from m7b.tokenizer.base import (
    GGUFVocabulary,
    OfficialVocabulary,
    SentencePieceFile,
    Tokenizer,
    TokenizerJson,
    TokenizerSource,
)
from m7b.tokenizer.fast import FastTokenizer
from m7b.tokenizer.gguf import build_sentencepiece_model
from m7b.tokenizer.mistral import official_file

_BESIDE = ("tokenizer_config.json", "tokenizer.model", "added_tokens.json", "special_tokens_map.json")


def save_tokenizer(source: TokenizerSource | None, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer`, which was loaded from `source`, into `folder`."""
    match source:
        case TokenizerJson(path) | SentencePieceFile(path, added=(_, *_)):
            name = "tokenizer.json" if isinstance(source, TokenizerJson) else "tokenizer.model"
            shutil.copyfile(path, folder / name)
            for name in _BESIDE:
                if (path.parent / name).is_file():
                    shutil.copyfile(path.parent / name, folder / name)
            return
        case OfficialVocabulary(version):
            shutil.copyfile(official_file(version), folder / "tokenizer.model")
        case SentencePieceFile(path):
            shutil.copyfile(path, folder / "tokenizer.model")
        case GGUFVocabulary() if isinstance(tokenizer, FastTokenizer):
            tokenizer.save(folder / "tokenizer.json")
        case GGUFVocabulary():
            (folder / "tokenizer.model").write_bytes(build_sentencepiece_model(source))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast"
        if isinstance(tokenizer, FastTokenizer)
        else "LlamaTokenizer",
        "add_bos_token": tokenizer.adds_bos,
        **{
            name: tokenizer.piece(token)
            for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))
            if token is not None
        },
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
