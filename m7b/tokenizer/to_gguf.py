"""Convert any tokenizer to the metadata of a GGUF file, in llama.cpp's words."""

import json
from pathlib import Path
from typing import Any

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.tokenizer.added import build_model
from m7b.tokenizer.base import (
    GGUFVocabulary,
    OfficialVocabulary,
    SentencePieceFile,
    Tokenizer,
    TokenizerJson,
    TokenizerSource,
)
from m7b.tokenizer.gguf import LLAMA3_SPLIT
from m7b.tokenizer.mistral import official_file

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece's piece types


def to_gguf(source: TokenizerSource, tokenizer: Tokenizer, vocab_size: int) -> GGUFVocabulary:
    """Convert `tokenizer`, which was loaded from `source`; fills the vocabulary up to the rows of the model.

    Raises:
        DamagedCheckpoint: its file cannot be read.
        UnsupportedCheckpoint: GGUF has no name for the way in which it splits text.
    """
    match source:
        case GGUFVocabulary():
            return source
        case OfficialVocabulary(version):
            file = SentencePieceFile(official_file(version))
            return _convert_sentencepiece(file, tokenizer, vocab_size)
        case SentencePieceFile():
            return _convert_sentencepiece(source, tokenizer, vocab_size)
        case TokenizerJson(path):
            return _convert_json(path, tokenizer, vocab_size)


def _convert_sentencepiece(
    source: SentencePieceFile, tokenizer: Tokenizer, vocab_size: int
) -> GGUFVocabulary:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(build_model(source))
    del proto.pieces[vocab_size:]  # ids that the model has no rows for
    missing = vocab_size - len(proto.pieces)
    return GGUFVocabulary(
        path=source.path,
        model="llama",
        pre="default",
        pieces=[piece.piece for piece in proto.pieces] + _make_padding(len(proto.pieces), missing),
        types=[
            _CONTROL if tokenizer.is_control(token) and piece.type == _USER_DEFINED else int(piece.type)
            for token, piece in enumerate(proto.pieces)
        ]
        + [_UNUSED] * missing,
        scores=[float(piece.score) for piece in proto.pieces] + [0.0] * missing,
        merges=[],
        bos_id=tokenizer.bos_id,
        adds_bos=tokenizer.adds_bos,
        adds_space=bool(proto.normalizer_spec.add_dummy_prefix),
        eos_id=tokenizer.eos_id,
    )


def _convert_json(path: Path, tokenizer: Tokenizer, vocab_size: int) -> GGUFVocabulary:
    try:
        content = json.loads(path.read_bytes())
        model, added = content["model"], content.get("added_tokens") or []
        ids: dict[str, int] = model["vocab"] | {entry["content"]: entry["id"] for entry in added}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DamagedCheckpoint(f"{path}: no vocabulary with merges: {error!r}") from None
    pieces = _make_padding(0, vocab_size)
    types = [_UNUSED] * vocab_size
    for piece, token in ids.items():
        if token < vocab_size:
            pieces[token], types[token] = piece, _NORMAL
    for entry in added:
        if entry["id"] < vocab_size:
            types[entry["id"]] = _CONTROL if entry.get("special") else _USER_DEFINED
    is_byte_level = "ByteLevel" in json.dumps(content.get("pre_tokenizer"))
    scores = [0.0] * vocab_size
    if not is_byte_level:
        if not model.get("byte_fallback"):
            raise UnsupportedCheckpoint(f"{path}: neither byte-level BPE nor one with a byte fallback")
        # The last written score is that of the first merge to a piece.
        for n, merge in reversed(list(enumerate(merges))):
            scores[ids[merge.replace(" ", "")]] = -float(n)
        for n in range(256):
            if (byte := ids.get(f"<0x{n:02X}>")) is not None:
                types[byte] = _BYTE
        if (unknown := ids.get(model.get("unk_token") or "")) is not None:
            types[unknown] = _UNKNOWN
    return GGUFVocabulary(
        path=path,
        model="gpt2" if is_byte_level else "llama",
        pre=_name_splitter(path, content.get("pre_tokenizer")) if is_byte_level else "default",
        pieces=pieces,
        types=types,
        scores=scores,
        merges=merges if is_byte_level else [],
        bos_id=tokenizer.bos_id,
        adds_bos=tokenizer.adds_bos,
        adds_space=not is_byte_level and _adds_space(content),
        eos_id=tokenizer.eos_id,
    )


def _make_padding(first: int, n: int) -> list[str]:
    return [f"<unused {token}>" for token in range(first, first + n)]


def _name_splitter(path: Path, pre_tokenizer: Any) -> str:
    """Find llama.cpp's name of the way in which a byte-level tokenizer splits text."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    match [part["type"] for part in parts]:
        case ["ByteLevel"]:
            return "gpt-2"
        case ["Digits", "ByteLevel"] if parts[0].get("individual_digits"):
            return "smollm"
        case ["Split", "ByteLevel"] if parts[0].get("pattern", {}).get("Regex") == LLAMA3_SPLIT:
            return "llama-bpe"
        case kinds:
            raise UnsupportedCheckpoint(
                f"{path}: splits text by {', '.join(kinds)}, for which GGUF has no name that m7b knows",
                hint="nf4, fp4 and int8 keep the tokenizer's own files",
            )


def _adds_space(content: Any) -> bool:
    """Whether a normalizer or a pre-tokenizer puts a space in front of a text."""
    settings = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    return '"Prepend"' in settings or '"prepend_scheme": "first"' in settings or '"always"' in settings
