"""The protocol of tokenizers, and a description of each kind that a checkpoint can have."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from m7b.errors import DamagedCheckpoint, UsageError
from m7b.variants import TokenizerVersion


@dataclass(frozen=True, slots=True)
class Edges:
    """How a control token is found in a text: with the spaces on a side of it; as a word of its own."""

    takes_left: bool = False
    takes_right: bool = False
    is_word: bool = False

    def write_pattern(self, name: str) -> str:
        """Write the pattern of a token's name."""
        inner = rf"(?<!\w){re.escape(name)}(?!\w)" if self.is_word else re.escape(name)
        return (r"\s*" if self.takes_left else "") + inner + (r"\s*" if self.takes_right else "")


class Tokenizer(Protocol):
    """The protocol of all tokenizers."""

    @property
    def description(self) -> str:
        """The kind and the origin of the tokenizer, for people."""
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
    def eos_id(self) -> int | None:
        """The id that ends a text, None where none is named."""
        ...

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects `bos_id` in front of a plain text."""
        ...

    @property
    def controls(self) -> Mapping[str, int]:
        """The control ids by their names."""
        ...

    @property
    def edges(self) -> Mapping[str, Edges]:
        """How control tokens are found, by their names; those that stand as they are may be missing."""
        ...

    def encode(self, text: str, *, bos: bool, inside: bool = False) -> list[int]:
        """Encode `text`, with `bos` behind `bos_id`; `inside` says that the text follows a control id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode `ids`; control ids vanish, bytes that are no UTF-8 become U+FFFD."""
        ...

    def piece(self, token: int) -> str:
        """The vocabulary entry of one id."""
        ...

    def is_control(self, token: int) -> bool:
        """Whether the id stands for no text."""
        ...


class InnerSpace(StrEnum):
    """Whether a space goes in front of text behind a control token; one that begins a text always gets it."""

    ALWAYS = "always"
    UNLESS_SPACE = "unless it begins with one"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class OfficialVocabulary:
    """One of Mistral's own tokenizers, shipped with mistral-common."""

    version: TokenizerVersion
    inner_space: InnerSpace = field(default=InnerSpace.ALWAYS, compare=False)


@dataclass(frozen=True, slots=True)
class AddedPiece:
    """A token that a fine-tune added; `token` None takes the next id that is free."""

    piece: str
    token: int | None
    is_control: bool
    edges: Edges = Edges()


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """A `tokenizer.model` that is not one of Mistral's own, with what the files beside it add."""

    path: Path
    added: tuple[AddedPiece, ...] = ()
    eos_token: str | None = None
    inner_space: InnerSpace = field(default=InnerSpace.ALWAYS, compare=False)


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """A Hugging Face `tokenizer.json`, with what tokenizer_config.json says about BOS and EOS."""

    path: Path
    bos_token: str | None
    adds_bos: bool | None
    eos_token: str | None = None


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
    eos_id: int | None = None

    def __post_init__(self) -> None:
        self._check("tokens", self.pieces, str)
        self._check("token_type", self.types, int)
        self._check("scores", self.scores, float)
        self._check("merges", self.merges, str)
        for name, values in (("types", self.types), ("scores", self.scores)):
            if len(values) != len(self.pieces):
                raise DamagedCheckpoint(f"{self.path}: {len(self.pieces)} tokens with {len(values)} {name}")
        for name, token in (("BOS", self.bos_id), ("EOS", self.eos_id)):
            if token is not None and not 0 <= token < len(self.pieces):
                raise DamagedCheckpoint(f"{self.path}: the {name} token is {token} of {len(self.pieces)}")

    def _check(self, key: str, values: Sequence[object], kind: type) -> None:
        if not all(type(value) is kind for value in values):
            raise DamagedCheckpoint(
                f"{self.path}: tokenizer.ggml.{key} holds something that is no {kind.__name__}"
            )


TokenizerSource = OfficialVocabulary | SentencePieceFile | TokenizerJson | GGUFVocabulary


def check_unicode(text: str) -> str:
    """Return `text` where it is Unicode. Arguments that are not UTF-8, and JSON escapes, can hold surrogates.

    Raises:
        UsageError: it holds a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text is not Unicode: lone surrogate U+{ord(text[error.start]):04X} at {error.start}"
        ) from None
    return text


def encode_special(tokenizer: Tokenizer, text: str, *, bos: bool) -> list[int]:
    """Encode `text`, in which the names of control tokens stand for these; with `bos` behind one BOS id.

    Only for a prompt that its author writes out: what others have written must not hold control tokens.
    """
    ids: list[int] = []
    at = 0
    for found in match_controls(tokenizer).finditer(text):
        ids += _encode_between(tokenizer, text[at : found.start()], is_first=at == 0)
        ids.append(tokenizer.controls[name_control(tokenizer, found[0])])
        at = found.end()
    ids += _encode_between(tokenizer, text[at:], is_first=at == 0)
    has_bos = not bos or tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id]
    return ids if has_bos or tokenizer.bos_id is None else [tokenizer.bos_id, *ids]


def list_controls(tokenizer: Tokenizer, text: str) -> list[str]:
    """List the names of control tokens that `text` spells, each once."""
    found = match_controls(tokenizer).findall(text)
    return list(dict.fromkeys(name_control(tokenizer, match) for match in found))


def match_controls(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Build the pattern of control tokens in a text, with the spaces that they take."""
    names = sorted((name for name in tokenizer.controls if len(name) > 1), key=len, reverse=True)
    plain = Edges()
    return re.compile(
        "|".join(tokenizer.edges.get(name, plain).write_pattern(name) for name in names) or "(?!)"
    )


def name_control(tokenizer: Tokenizer, found: str) -> str:
    """The name of the control token that `match_controls` found, perhaps with spaces."""
    return found if found in tokenizer.controls else found.strip()


def _encode_between(tokenizer: Tokenizer, text: str, *, is_first: bool) -> list[int]:
    """Encode a text between control tokens. The space that a tokenizer adds behind one is not added twice."""
    first, *_ = tokenizer.encode("a", bos=False, inside=True)
    if not is_first and tokenizer.piece(first).startswith("\u2581"):
        text = text.removeprefix(" ")
    return tokenizer.encode(text, bos=False, inside=not is_first) if text else []


def is_reserved(piece: str, template: str) -> bool:
    """Whether a chat template writes `piece`, so that no text may spell it. Spaces are never reserved."""
    return piece in template and not piece.isspace() and piece != ""


def name_missing_piece(token: int) -> str:
    """Make a name for an id beyond the vocabulary: a model can have more rows than the tokenizer has ids."""
    return f"<no piece for {token}>"
