"""Tokenizers run by Hugging Face's `tokenizers`: a tokenizer.json, or byte-level BPE from elsewhere."""

from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from m7b.errors import DamagedCheckpoint, UsageError
from m7b.tokenizer.base import Edges, TokenizerJson, check_unicode, is_reserved, name_missing_piece
from m7b.tokenizer.ends import select_ends


class FastTokenizer:
    """A tokenizer run by Hugging Face's `tokenizers`."""

    def __init__(
        self, model: Any, description: str, *, bos_id: int | None, eos_id: int | None, adds_bos: bool
    ) -> None:
        model.encode_special_tokens = True  # text that spells a control token stays text
        self._model = model
        self._description = description
        self._bos_id = bos_id
        self._eos_id = eos_id
        self._adds_bos = adds_bos
        added = model.get_added_tokens_decoder()
        self._controls = {entry.content: token for token, entry in added.items() if entry.special}
        self._edges = {
            entry.content: Edges(entry.lstrip, entry.rstrip, entry.single_word)
            for entry in added.values()
            if entry.special
        }
        self._control = frozenset(self._controls.values())

    @property
    def description(self) -> str:
        """The kind and the origin of the tokenizer, for people."""
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
    def eos_id(self) -> int | None:
        """The id that ends a text, None where none is named."""
        return self._eos_id

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
        """Encode `text`, with `bos` behind `bos_id`; `inside` says that the text follows a control id."""
        model = self._inside if inside else self._model
        ids: list[int] = model.encode(check_unicode(text), add_special_tokens=False).ids
        if not bos:
            return ids
        if self._bos_id is None:
            raise UsageError("this tokenizer has no BOS token", hint="use --no-bos")
        return [self._bos_id, *ids]

    @cached_property
    def _inside(self) -> Any:
        """The model without the space that it puts in front of a text: none belongs after a control id."""
        from tokenizers import Tokenizer as Backend

        settings: str = self._model.to_str()
        never = settings.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        if never == settings:
            return self._model
        model = Backend.from_str(never)
        model.encode_special_tokens = True
        return model

    def decode(self, ids: Sequence[int]) -> str:
        """Decode `ids`; control ids vanish, bytes that are no UTF-8 become U+FFFD."""
        text: str = self._model.decode(list(ids), skip_special_tokens=True)
        return text

    def piece(self, token: int) -> str:
        """The vocabulary entry of one id."""
        piece: str | None = self._model.id_to_token(token)
        return name_missing_piece(token) if piece is None else piece

    def is_control(self, token: int) -> bool:
        """Whether the id stands for no text."""
        return token in self._control

    def save(self, file: Path) -> None:
        """Write the tokenizer as a tokenizer.json."""
        self._model.save(str(file))


def from_json(source: TokenizerJson, reserved: str) -> FastTokenizer:
    """Load a tokenizer.json; EOS, what ends a turn by its name, and added tokens that `reserved` holds become
    control tokens.

    Raises:
        DamagedCheckpoint: the file is no usable tokenizer.json.
    """
    from tokenizers import Tokenizer as Backend

    try:
        model = Backend.from_file(str(source.path))
        model.no_truncation()
        model.no_padding()
        _reserve(model, reserved, {source.bos_token, source.eos_token})
        plain, processed = model.encode("a", add_special_tokens=False).ids, model.encode("a").ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the library raises bare Exception, and panics beyond it
        raise DamagedCheckpoint(f"{source.path}: not a usable tokenizer.json: {error}") from None
    # The token that the post-processor puts in front of a text is its BOS.
    added = None if plain and processed[: len(plain)] == plain else next(iter(processed), None)
    bos_id = added if source.bos_token is None else model.token_to_id(source.bos_token)
    adds_bos = bos_id == added if source.adds_bos is None else source.adds_bos
    if bos_id is None:
        adds_bos = False  # whatever the file asks for, there is nothing to add
    eos_id = None if source.eos_token is None else model.token_to_id(source.eos_token)
    description = f"{source.path.name} (tokenizers)"
    return FastTokenizer(model, description, bos_id=bos_id, eos_id=eos_id, adds_bos=adds_bos)


def _reserve(model: Any, template: str, named: Set[str | None]) -> None:
    """Make special what ends a turn, tokens that are `named`, and the added ones that `template` writes."""
    from tokenizers import AddedToken

    vocab = model.get_vocab()
    found = {token.content: token for token in model.get_added_tokens_decoder().values()}
    written = {name for name in found if is_reserved(name, template)}
    names = sorted((select_ends(vocab) | named) & vocab.keys() | written, key=vocab.__getitem__)
    special = [found.get(name) or AddedToken(name, normalized=False) for name in names]
    for token in special:
        token.special = True
    model.add_special_tokens(special)  # these replace the tokens of the same name
