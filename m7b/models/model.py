"""A model that is loaded: all that it takes to generate, score and tokenize text with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from m7b.constraint import Grammar, compile_constraint
from m7b.generation import Constraint, SamplingParams
from m7b.models.text import require_template
from m7b.offer import Offer
from m7b.templates import Template
from m7b.tokenizer import Tokenizer

if TYPE_CHECKING:
    from m7b.runtime.engine import Engine


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model.

    Attributes:
        name: the variant or hub id, or the name of the checkpoint's file or folder; then its adapters.
        engine: continues token ids.
        template: turns a conversation into ids; None where the model was not trained to chat.
        stop_ids: the ids that end an answer.
        vocab_size: the engine's number of ids, which may be more than the tokenizer's.
        ctx_size: the tokens of prompt and answer that fit.
        window: tokens that attention sees; None where it sees all.
        about: what people may want to know of it, by label.
        license: the license as far as the checkpoint tells, empty where it does not.
        load_s: the seconds that loading took.
        n_bytes: what the weights take on disk.
        n_params: the number of weights.
        controls: the control tokens that stop strings can name, by their names.
        fingerprint: what decides the bits of all that the engine reads, by label.
        others: models over the same engine, each of this one and an adapter.
    """

    name: str
    engine: "Engine"
    tokenizer: Tokenizer
    template: Template | None
    stop_ids: frozenset[int]
    vocab_size: int
    ctx_size: int
    window: int | None
    about: Mapping[str, str] = field(default_factory=dict)
    license: str = ""
    load_s: float = 0.0
    n_bytes: int = 0
    n_params: int = 0
    controls: Mapping[str, int] = field(default_factory=dict)
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    others: tuple["Model", ...] = ()

    @property
    def chat_template(self) -> Template:
        """The template, for a model that is to chat.

        Raises:
            UsageError: there is none.
        """
        return require_template(self.name, self.template)

    def compile(self, grammar: Grammar, *, continues: bool = False) -> Constraint:
        """`grammar` in this model's tokens; `continues` says that the answer carries on from a text."""
        return compile_constraint(
            grammar,
            self.tokenizer,
            vocab_size=self.vocab_size,
            stop_ids=self.stop_ids,
            continues=continues,
        )

    def list_stop_ids(self, params: SamplingParams) -> frozenset[int]:
        """List the ids that end an answer: the model's, those in `params`, and controls among its stops."""
        named = (self.controls[stop] for stop in params.stop if stop in self.controls)
        return self.stop_ids | params.stop_ids | frozenset(named)

    def constrain_calls(self, offer: Offer) -> Constraint | None:
        """What keeps the calls of `offer` valid, None where nothing has to."""
        return offer.constraint(self.tokenizer, vocab_size=self.vocab_size, stop_ids=self.stop_ids)
