"""A `tokenizer.model` with the tokens that a fine-tune added to it. Knows pieces; no files beside it."""

import tempfile
from pathlib import Path
from typing import Any

from m7b.errors import DamagedCheckpoint
from m7b.tokenizer.base import SentencePieceFile, is_reserved
from m7b.tokenizer.mistral import MistralTokenizer

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # SentencePiece's piece types
_MOST = 1 << 16  # ids that a fine-tune may add; each takes memory


def from_sentencepiece(source: SentencePieceFile, reserved: str) -> MistralTokenizer:
    """Load a `tokenizer.model`; EOS, and added pieces that `reserved` holds, become control tokens.

    Raises:
        DamagedCheckpoint: the file cannot be used, or what is added contradicts it.
    """
    description = f"{source.path.name} (SentencePiece)"
    if not source.added:
        return MistralTokenizer(source.path, description, inner_space=source.inner_space)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(build_model(source, reserved))
        n = len(source.added)
        edges = {each.piece: each.edges for each in source.added}
        description = f"{description} and {n} added tokens"
        return MistralTokenizer(file, description, inner_space=source.inner_space, edges=edges)


def build_model(source: SentencePieceFile, reserved: str = "") -> bytes:
    """Build the SentencePiece model of the file with what is added; it matches these whole.

    Raises:
        DamagedCheckpoint: the file cannot be used, or what is added contradicts it.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(source.path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DamagedCheckpoint(f"{source.path}: not a SentencePiece model: {error}") from None
    known = {entry.piece: token for token, entry in enumerate(proto.pieces)}
    placed = sorted(
        (each for each in source.added if each.token is not None), key=lambda each: each.token or 0
    )
    for each in (*placed, *(each for each in source.added if each.token is None)):
        token = known.get(each.piece, len(proto.pieces)) if each.token is None else each.token
        is_control = each.is_control or is_reserved(each.piece, reserved) or each.piece == source.eos_token
        _place(source.path, proto, each.piece, token, known)
        if token >= len(proto.pieces) - 1 or is_control:
            proto.pieces[token].type = _CONTROL if is_control else _USER_DEFINED
        known[each.piece] = token
    if source.eos_token in known:
        proto.trainer_spec.eos_piece = source.eos_token
    content: bytes = proto.SerializeToString()
    return content


def _place(path: Path, proto: Any, piece: str, token: int, known: dict[str, int]) -> None:
    """Put `piece` at `token`, behind unused pieces where ids are left out."""
    if not 0 <= token < len(known) + _MOST or known.get(piece, token) != token:
        raise DamagedCheckpoint(f"{path}: the added token {piece!r} has the id {token}, which cannot be")
    while len(proto.pieces) < token:
        proto.pieces.add(piece=f"<unused {len(proto.pieces)}>", score=0.0, type=_UNUSED)
    if token == len(proto.pieces):
        proto.pieces.add(piece=piece, score=0.0, type=_USER_DEFINED)
    elif proto.pieces[token].piece != piece:
        raise DamagedCheckpoint(
            f"{path}: the added token {piece!r} has the id {token}, that of {proto.pieces[token].piece!r}"
        )
