"""Text to ids and back. Knows three kinds of tokenizer file; knows nothing about chat or tensors.

Text never becomes a control id, whatever it spells (spec section 3.3): only templates place those.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint, UsageError
from m7b.variants import TokenizerVersion


class Tokenizer(Protocol):
    """What every tokenizer can do."""

    @property
    def description(self) -> str:
        """What it is and where it comes from, for people."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, None where there is none."""
        ...

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects `bos_id` in front of a plain text."""
        ...

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """The ids of `text`, behind `bos_id` with `bos`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control ids vanish, bytes that are no UTF-8 become U+FFFD."""
        ...

    def piece(self, token: int) -> str:
        """The vocabulary entry of one id."""
        ...

    def is_control(self, token: int) -> bool:
        """Whether the id stands for no text."""
        ...


@dataclass(frozen=True, slots=True)
class OfficialVocabulary:
    """One of Mistral's own tokenizers, shipped with mistral-common."""

    version: TokenizerVersion


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """A `tokenizer.model` that is not one of Mistral's own."""

    path: Path


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """A Hugging Face `tokenizer.json`, with what tokenizer_config.json says about BOS."""

    path: Path
    bos_token: str | None
    adds_bos: bool | None


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """The tokenizer metadata of a GGUF file; `types` are those of SentencePiece, as in llama.cpp."""

    path: Path
    model: str
    pre: str
    pieces: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    bos_id: int | None
    adds_bos: bool
    adds_space: bool


TokenizerSource = OfficialVocabulary | SentencePieceFile | TokenizerJson | GGUFVocabulary


def load_tokenizer(source: TokenizerSource) -> Tokenizer:
    """Build the tokenizer that `source` describes.

    Raises:
        DamagedCheckpoint: its file cannot be read.
        UnsupportedCheckpoint: a GGUF names a kind of vocabulary that is not known.
    """
    match source:
        case OfficialVocabulary(version):
            return MistralTokenizer(official_file(version), f"Mistral's {version} tokenizer (SentencePiece)")
        case SentencePieceFile(path):
            return MistralTokenizer(path, f"{path.name} (SentencePiece)")
        case TokenizerJson():
            return _from_json(source)
        case GGUFVocabulary(model="llama"):
            return _sentencepiece_from_gguf(source)
        case GGUFVocabulary(model="gpt2"):
            return _byte_level_from_gguf(source)
        case GGUFVocabulary(path=path, model=model):
            raise UnsupportedCheckpoint(
                f"{path}: tokenizer.ggml.model is {model!r}",
                hint="m7b reads 'llama' (SentencePiece) and 'gpt2' (BPE)",
            )


_OFFICIAL_FILES = {
    TokenizerVersion.V1: "tokenizer.model.v1",
    # The file published with 7B v0.3 as tokenizer.model.v3 is mistral-common's v2 model (spec section 3.1).
    TokenizerVersion.V3: "mistral_instruct_tokenizer_240216.model.v2",
}

OFFICIAL_SHA256 = {
    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055": TokenizerVersion.V1,
    "37f00374dea48658ee8f5d0f21895b9bc55cb0103939607c8185bfd1c6ca1f89": TokenizerVersion.V3,
}
"""Mistral's own 7B tokenizer files by their sha256."""


def official_file(version: TokenizerVersion) -> Path:
    """Where mistral-common keeps the tokenizer file of a release."""
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / _OFFICIAL_FILES[version]


class MistralTokenizer:
    """A SentencePiece tokenizer, run by mistral-common (spec section 3.3)."""

    def __init__(self, path: Path, description: str, *, adds_bos: bool = True) -> None:
        from mistral_common.tokens.tokenizers import base, sentencepiece

        try:
            # The version only names a chat template, which is not used here; mistral-common would guess it.
            self._model = sentencepiece.SentencePieceTokenizer(path, base.TokenizerVersion.v1)
        except (AssertionError, RuntimeError, OSError) as error:
            raise DamagedCheckpoint(f"{path}: not a SentencePiece model: {error}") from None
        self._description = description
        self._adds_bos = adds_bos

    @property
    def description(self) -> str:
        """What it is and where it comes from, for people."""
        return self._description

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return self._model.n_words

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        return self._model.bos_id

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects `bos_id` in front of a plain text."""
        return self._adds_bos

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """The ids of `text`, behind `bos_id` with `bos`."""
        return self._model.encode(text, bos=bos, eos=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control ids vanish, bytes that are no UTF-8 become U+FFFD."""
        return self._model.decode([token for token in ids if not self._model.is_special(token)])

    def piece(self, token: int) -> str:
        """The vocabulary entry of one id."""
        return self._model.id_to_piece(token)

    def is_control(self, token: int) -> bool:
        """Whether the id stands for no text."""
        return self._model.is_special(token)


class FastTokenizer:
    """A tokenizer run by Hugging Face's `tokenizers`."""

    def __init__(self, model: Any, description: str, *, bos_id: int | None, adds_bos: bool) -> None:
        model.encode_special_tokens = True  # text that spells a control token stays text
        self._model = model
        self._description = description
        self._bos_id = bos_id
        self._adds_bos = adds_bos
        self._control = frozenset(
            token for token, entry in model.get_added_tokens_decoder().items() if entry.special
        )

    @property
    def description(self) -> str:
        """What it is and where it comes from, for people."""
        return self._description

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return int(self._model.get_vocab_size())

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, None where there is none."""
        return self._bos_id

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects `bos_id` in front of a plain text."""
        return self._adds_bos

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """The ids of `text`, behind `bos_id` with `bos`."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        if not bos:
            return ids
        if self._bos_id is None:
            raise UsageError("this tokenizer has no BOS token", hint="use --no-bos")
        return [self._bos_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control ids vanish, bytes that are no UTF-8 become U+FFFD."""
        text: str = self._model.decode(list(ids), skip_special_tokens=True)
        return text

    def piece(self, token: int) -> str:
        """The vocabulary entry of one id."""
        piece: str | None = self._model.id_to_token(token)
        return piece if piece is not None else f"<unused {token}>"

    def is_control(self, token: int) -> bool:
        """Whether the id stands for no text."""
        return token in self._control


def _from_json(source: TokenizerJson) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        model = Backend.from_file(str(source.path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise DamagedCheckpoint(f"{source.path}: not a tokenizer.json: {error}") from None
    bos_id = None if source.bos_token is None else model.token_to_id(source.bos_token)
    adds_bos = source.adds_bos
    if adds_bos is None:  # then the post-processor decides
        adds_bos = bos_id is not None and model.encode("").ids[:1] == [bos_id]
    return FastTokenizer(model, f"{source.path.name} (tokenizers)", bos_id=bos_id, adds_bos=adds_bos)


_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece's piece types


def _byte_level_from_gguf(source: GGUFVocabulary) -> Tokenizer:
    """Byte-level BPE: pieces and merges as GPT-2 has them, split the way `pre` was trained."""
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as Backend

    vocab = {piece: token for token, piece in enumerate(source.pieces)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in source.merges)]
    try:
        model = Backend(models.BPE(vocab, merges))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise DamagedCheckpoint(f"{source.path}: unusable vocabulary: {error}") from None
    model.pre_tokenizer = _pre_tokenizer(source)
    model.decoder = decoders.ByteLevel()
    for type_, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [piece for piece, t in zip(source.pieces, source.types, strict=True) if t == type_]
        model.add_tokens([AddedToken(piece, normalized=False, special=special) for piece in added])
    return FastTokenizer(
        model, f"{source.pre} BPE from the GGUF", bos_id=source.bos_id, adds_bos=source.adds_bos
    )


_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _pre_tokenizer(source: GGUFVocabulary) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=source.adds_space)
    match source.pre:
        case "default" | "gpt-2":
            return byte_level
        case "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        case "llama-bpe" | "llama3" | "llama-v3":
            split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated")
            bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=source.adds_space, use_regex=False)
            return pre_tokenizers.Sequence([split, bytes_only])
        case other:
            raise UnsupportedCheckpoint(
                f"{source.path}: tokenizer.ggml.pre is {other!r}",
                hint="m7b splits text for 'default', 'gpt-2', 'smollm' and 'llama-bpe'",
            )


def _sentencepiece_from_gguf(source: GGUFVocabulary) -> Tokenizer:
    """The SentencePiece model that the GGUF was written from, put together again."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for piece, score, type_ in zip(source.pieces, source.scores, source.types, strict=True):
        proto.pieces.add(piece=piece, score=score, type=type_)
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE  # type: ignore[attr-defined]
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.split_digits = True
    proto.trainer_spec.vocab_size = len(source.pieces)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = source.adds_space
    proto.normalizer_spec.remove_extra_whitespaces = False
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gguf.model"
        file.write_bytes(proto.SerializeToString())
        return MistralTokenizer(file, "SentencePiece from the GGUF", adds_bos=source.adds_bos)
