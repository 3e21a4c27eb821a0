"""Rebuild the tokenizer in a GGUF's metadata for the library that runs its kind."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.tokenizer.base import GGUFVocabulary, Tokenizer, is_reserved
from m7b.tokenizer.ends import select_ends
from m7b.tokenizer.fast import FastTokenizer
from m7b.tokenizer.mistral import MistralTokenizer

_CONTROL, _USER_DEFINED = 3, 4  # SentencePiece's piece types, which GGUF uses for all vocabularies


def from_gguf(source: GGUFVocabulary, reserved: str) -> Tokenizer:
    """Build the tokenizer that the metadata describe.

    EOS, what ends a turn by its name, and user-defined pieces that `reserved` holds become control tokens.

    Raises:
        DamagedCheckpoint: the vocabulary contradicts itself.
        UnsupportedCheckpoint: it is of a kind that m7b does not read.
    """
    ends = select_ends(source.pieces) | (
        {source.pieces[source.eos_id]} if source.eos_id is not None else set()
    )
    types = [
        _CONTROL if piece in ends or (type_ == _USER_DEFINED and is_reserved(piece, reserved)) else type_
        for piece, type_ in zip(source.pieces, source.types, strict=True)
    ]
    source = replace(source, types=types)
    match source.model:
        case "llama":
            return _load_sentencepiece(source)
        case "gpt2":
            return _load_byte_level(source)
        case other:
            raise UnsupportedCheckpoint(
                f"{source.path}: tokenizer.ggml.model is {other!r}",
                hint="m7b reads 'llama' (SentencePiece) and 'gpt2' (byte-level BPE)",
            )


def build_sentencepiece_model(source: GGUFVocabulary) -> bytes:
    """Rebuild the SentencePiece model that the GGUF was written from.

    Raises:
        DamagedCheckpoint: the vocabulary cannot be used.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        for piece, score, type_ in zip(source.pieces, source.scores, source.types, strict=True):
            proto.pieces.add(piece=piece, score=score, type=type_)
    except ValueError as error:
        raise DamagedCheckpoint(f"{source.path}: unusable vocabulary: {error}") from None
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE  # type: ignore[attr-defined]
    proto.trainer_spec.byte_fallback = True
    if source.bos_id is not None:
        proto.trainer_spec.bos_piece = source.pieces[source.bos_id]
    if source.eos_id is not None:
        proto.trainer_spec.eos_piece = source.pieces[source.eos_id]
    proto.normalizer_spec.add_dummy_prefix = source.adds_space
    proto.normalizer_spec.remove_extra_whitespaces = False
    content: bytes = proto.SerializeToString()
    return content


def _load_sentencepiece(source: GGUFVocabulary) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.model"
        file.write_bytes(build_sentencepiece_model(source))
        try:
            return MistralTokenizer(file, "SentencePiece from the GGUF", adds_bos=source.adds_bos)
        except DamagedCheckpoint as error:
            reason = error.message.removeprefix(f"{file}: ")
            raise DamagedCheckpoint(f"{source.path}: unusable vocabulary: {reason}") from None


def _load_byte_level(source: GGUFVocabulary) -> Tokenizer:
    """Byte-level BPE: pieces and merges as GPT-2 has them, text split the way `pre` was trained."""
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as Backend

    vocab = {piece: token for token, piece in enumerate(source.pieces)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in source.merges)]
    for left, right in merges:
        if not {left, right, left + right} <= vocab.keys():
            raise DamagedCheckpoint(
                f"{source.path}: merges {left!r} and {right!r}, which the vocabulary lacks"
            )
    try:
        # llama.cpp takes a whole word from this vocabulary before it looks at merges.
        model = Backend(models.BPE(vocab, merges, ignore_merges=source.pre in _LLAMA3))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise DamagedCheckpoint(f"{source.path}: unusable vocabulary: {error}") from None
    model.pre_tokenizer = _build_pre_tokenizer(source)
    model.decoder = decoders.ByteLevel()
    for type_, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [piece for piece, t in zip(source.pieces, source.types, strict=True) if t == type_]
        model.add_tokens([AddedToken(piece, normalized=False, special=special) for piece in added])
    description = f"{source.pre} BPE from the GGUF"
    return FastTokenizer(
        model, description, bos_id=source.bos_id, eos_id=source.eos_id, adds_bos=source.adds_bos
    )


_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _build_pre_tokenizer(source: GGUFVocabulary) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if source.pre == "gpt-2":
        return byte_level
    if source.pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if source.pre in _LLAMA3:
        split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, bytes_only])
    raise UnsupportedCheckpoint(
        f"{source.path}: tokenizer.ggml.pre is {source.pre!r}",
        hint="m7b splits text for 'gpt-2', 'smollm' and 'llama-bpe'",
    )
