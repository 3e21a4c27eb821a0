"""SentencePiece tokenizers, run by mistral-common."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, assert_never

from m7b.errors import DamagedCheckpoint
from m7b.tokenizer.base import Edges, InnerSpace, check_unicode, name_missing_piece
from m7b.variants import TokenizerVersion

_OFFICIAL_FILES = {
    TokenizerVersion.V1: "tokenizer.model.v1",
    # The file published with 7B v0.3 as tokenizer.model.v3 is mistral-common's v2 model.
    TokenizerVersion.V3: "mistral_instruct_tokenizer_240216.model.v2",
}

OFFICIAL_SHA256 = {
    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055": TokenizerVersion.V1,
    "37f00374dea48658ee8f5d0f21895b9bc55cb0103939607c8185bfd1c6ca1f89": TokenizerVersion.V3,
}
"""Mistral's own 7B tokenizer files by their sha256."""


def official_file(version: TokenizerVersion) -> Path:
    """The path of the tokenizer file of a release, in mistral-common."""
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / _OFFICIAL_FILES[version]


class MistralTokenizer:
    """A SentencePiece tokenizer, run by mistral-common."""

    def __init__(
        self,
        path: Path,
        description: str,
        *,
        adds_bos: bool = True,
        inner_space: InnerSpace = InnerSpace.ALWAYS,
        edges: Mapping[str, Edges] | None = None,
    ) -> None:
        from mistral_common.tokens.tokenizers import base, sentencepiece

        try:
            # The version only names a chat template, chosen elsewhere; else mistral-common guesses it.
            self._model = sentencepiece.SentencePieceTokenizer(path, base.TokenizerVersion.v1)
        except (AssertionError, RuntimeError, OSError) as error:
            raise DamagedCheckpoint(f"{path}: not a SentencePiece model: {error}") from None
        self._description = description
        self._adds_bos = adds_bos
        self._inner_space = inner_space
        self._edges = edges or {}
        self._content = b"" if inner_space is InnerSpace.ALWAYS else path.read_bytes()
        # Asked for every id of a vocabulary, so kept: mistral-common asks SentencePiece anew each time.
        self._vocab_size = self._model.n_words
        self._control_ids = self._model.special_ids
        self._controls = {self._model.id_to_piece(token): token for token in self._control_ids}

    @property
    def backend(self) -> Any:
        """The tokenizer of mistral-common that does the work."""
        return self._model

    @property
    def description(self) -> str:
        """The kind and the origin of the tokenizer, for people."""
        return self._description

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return self._vocab_size

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        return self._model.bos_id

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, None where none is named."""
        return None if self._model.eos_id < 0 else self._model.eos_id

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects `bos_id` in front of a plain text."""
        return self._adds_bos

    @property
    def controls(self) -> Mapping[str, int]:
        """The control ids by their names."""
        return self._controls

    @property
    def edges(self) -> Mapping[str, Edges]:
        """How control tokens are found, by their names."""
        return self._edges

    def encode(self, text: str, *, bos: bool, inside: bool = False) -> list[int]:
        """Encode `text`, with `bos` behind `bos_id`; a space goes in front, `inside` where it is wanted."""
        text = check_unicode(text)
        if inside and not self._wants_space(text):
            ids: list[int] = self._bare.encode(text)
            return [self._model.bos_id, *ids] if bos else ids
        return self._model.encode(text, bos=bos, eos=False)

    def _wants_space(self, text: str) -> bool:
        match self._inner_space:
            case InnerSpace.ALWAYS:
                return True
            case InnerSpace.UNLESS_SPACE:
                return not text.startswith(" ")
            case InnerSpace.NEVER:
                return False
            case other:
                assert_never(other)

    @cached_property
    def _bare(self) -> Any:
        """The same model without the space that it puts in front of a text."""
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        proto.ParseFromString(self._content)
        proto.normalizer_spec.add_dummy_prefix = False
        return SentencePieceProcessor(model_proto=proto.SerializeToString())

    def decode(self, ids: Sequence[int]) -> str:
        """Decode `ids`; control ids vanish, bytes that are no UTF-8 become U+FFFD."""
        return self._model.decode([token for token in ids if not self.is_control(token)])

    def piece(self, token: int) -> str:
        """The vocabulary entry of one id."""
        return self._model.id_to_piece(token) if token < self.vocab_size else name_missing_piece(token)

    def is_control(self, token: int) -> bool:
        """Whether the id stands for no text."""
        return token >= self._vocab_size or token in self._control_ids
