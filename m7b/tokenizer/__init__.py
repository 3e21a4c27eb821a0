"""Text to ids and back. Knows three kinds of tokenizer file; knows nothing about chat or tensors.

Text never becomes a control id, whatever it spells: only templates place those.
"""

from m7b.tokenizer.added import from_sentencepiece
from m7b.tokenizer.base import (
    AddedPiece,
    Edges,
    GGUFVocabulary,
    InnerSpace,
    OfficialVocabulary,
    SentencePieceFile,
    Tokenizer,
    TokenizerJson,
    TokenizerSource,
    encode_special,
    list_controls,
    match_controls,
    name_control,
)
from m7b.tokenizer.ends import find_end_ids, select_ends
from m7b.tokenizer.fast import from_json
from m7b.tokenizer.gguf import from_gguf
from m7b.tokenizer.mistral import OFFICIAL_SHA256, MistralTokenizer, official_file
from m7b.tokenizer.save import save_tokenizer
from m7b.tokenizer.to_gguf import to_gguf
from m7b.tokenizer.token_bytes import TokenBytes, read_byte_piece

__all__ = [
    "OFFICIAL_SHA256",
    "AddedPiece",
    "Edges",
    "GGUFVocabulary",
    "InnerSpace",
    "MistralTokenizer",
    "OfficialVocabulary",
    "SentencePieceFile",
    "TokenBytes",
    "Tokenizer",
    "TokenizerJson",
    "TokenizerSource",
    "encode_special",
    "find_end_ids",
    "list_controls",
    "load_tokenizer",
    "match_controls",
    "name_control",
    "official_file",
    "read_byte_piece",
    "save_tokenizer",
    "select_ends",
    "to_gguf",
]


def load_tokenizer(source: TokenizerSource, reserved: str = "") -> Tokenizer:
    """Build the tokenizer that `source` describes.

    Args:
        source: the description of the tokenizer.
        reserved: the checkpoint's chat template. Added tokens that it writes become control tokens, even if
            the tokenizer's own file does not say so.

    Raises:
        DamagedCheckpoint: its file cannot be read.
        UnsupportedCheckpoint: a GGUF has a kind of vocabulary that m7b does not know.
    """
    match source:
        case OfficialVocabulary(version):
            description = f"Mistral's {version} tokenizer (SentencePiece)"
            return MistralTokenizer(official_file(version), description, inner_space=source.inner_space)
        case SentencePieceFile():
            return from_sentencepiece(source, reserved)
        case TokenizerJson():
            return from_json(source, reserved)
        case GGUFVocabulary():
            return from_gguf(source, reserved)
