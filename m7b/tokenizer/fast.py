"""Tokenizers run by Hugging Face's `tokenizers`: a tokenizer.json, or byte-level BPE from elsewhere."""

from collections.abc import Sequence
from typing import Any

from m7b.errors import DamagedCheckpoint, UsageError
from m7b.tokenizer.base import TokenizerJson, no_piece, unicode_text


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
        ids: list[int] = self._model.encode(unicode_text(text), add_special_tokens=False).ids
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
        return no_piece(token) if piece is None else piece

    def is_control(self, token: int) -> bool:
        """Whether the id stands for no text."""
        return token in self._control


def from_json(source: TokenizerJson) -> FastTokenizer:
    """The tokenizer of a tokenizer.json.

    Raises:
        DamagedCheckpoint: it is none.
    """
    from tokenizers import Tokenizer as Backend

    try:
        model = Backend.from_file(str(source.path))
        model.no_truncation()
        model.no_padding()
        plain, processed = model.encode("a", add_special_tokens=False).ids, model.encode("a").ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the library raises bare Exception, and panics beyond it
        raise DamagedCheckpoint(f"{source.path}: not a usable tokenizer.json: {error}") from None
    # What the post-processor puts in front of a text is its BOS, whatever it adds behind.
    added = None if plain and processed[: len(plain)] == plain else next(iter(processed), None)
    bos_id = added if source.bos_token is None else model.token_to_id(source.bos_token)
    adds_bos = bos_id == added if source.adds_bos is None else source.adds_bos
    if bos_id is None:
        adds_bos = False  # whatever the file asks for, there is nothing to add
    return FastTokenizer(model, f"{source.path.name} (tokenizers)", bos_id=bos_id, adds_bos=adds_bos)
