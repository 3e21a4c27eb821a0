"""A grammar compiled for a vocabulary, and the state of one answer in it."""

import re
from typing import TYPE_CHECKING

from m7b.constraint.calls import Calls
from m7b.constraint.grammar import Grammar, Lark, write_llguidance_grammar
from m7b.constraint.vocabulary import Vocabulary, build_vocabulary
from m7b.errors import UsageError
from m7b.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarMatcher:
    """The state of one answer in its grammar."""

    def __init__(self, matcher: "LLMatcher", vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def find_forced(self) -> list[int]:
        """The ids that must follow because the grammar allows one text only; none where it allows several.

        They are the ids that the tokenizer makes of that text. Last ids that depend on what follows the text
        are left out.
        """
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        may_stand = [self._vocabulary.inner_ids >> token & 1 for token in tokens]
        tokens = tokens[: may_stand.index(0)] if 0 in may_stand else tokens
        # SentencePiece turns its own sign for a space into a space, so its ids may spell another text.
        return tokens[: self._matcher.validate_tokens(tokens)]

    def pack_mask(self) -> bytes:
        """The ids that may follow, a bit for each, id 0 lowest in the first byte.

        Raises:
            UsageError: no id can continue the grammar here, or it takes too much work.
        """
        return self._compute_mask().to_bytes(self._vocabulary.n_bytes, "little")

    def accept(self, token: int) -> None:
        """Add `token`, which must be allowed, to the answer."""
        if self._vocabulary.stop_ids >> token & 1:
            assert self._matcher.is_accepting(), f"{token} is too early"
        else:
            assert self._vocabulary.inner_ids >> token & 1, f"{token} is no text"
            assert self._matcher.validate_tokens([token]) == 1, f"{token} is not allowed"
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing but a stop id may follow."""
        return self._compute_mask() == self._vocabulary.stop_ids

    def _compute_mask(self) -> int:
        mask = int.from_bytes(self._matcher.compute_bitmask(), "little")
        self._check()
        mask &= self._vocabulary.inner_ids | self._vocabulary.stop_ids
        if mask == 0:
            raise UsageError("nothing that this model can write satisfies the grammar here")
        return mask

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.stop_reason()
            raise UsageError(f"the grammar is too complex to follow ({reason})", hint="simplify it")


class GrammarConstraint:
    """A grammar compiled for one vocabulary; any number of answers can use it."""

    def __init__(self, matcher: "LLMatcher", vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def start_matcher(self) -> GrammarMatcher:
        """Return the state of an answer that begins."""
        return GrammarMatcher(self._matcher.deep_copy(), self._vocabulary)


def compile_constraint(
    grammar: Grammar, tokenizer: Tokenizer, *, vocab_size: int, stop_ids: frozenset[int], continues: bool
) -> GrammarConstraint:
    """Compile a grammar for a model.

    SentencePiece puts a space in front of a text, which decoding drops. An answer that begins a text begins
    with that space, as the model has learned it, and the grammar describes what follows the space.

    Args:
        grammar: what the text of an answer must be.
        tokenizer: gives the text of ids.
        vocab_size: the model's number of ids.
        stop_ids: the ids that end an answer, one at least.
        continues: whether the answer's text carries on from the prompt's, or begins a text.

    Raises:
        UsageError: the grammar cannot be enforced, or nothing satisfies it.
    """
    from llguidance import LLMatcher, LLParserLimits

    stop_ids = frozenset(token for token in stop_ids if 0 <= token < vocab_size)
    if not stop_ids:
        raise UsageError("no stop id could end an answer that keeps to a grammar")
    control_ids = grammar.control_ids if isinstance(grammar, Calls) else frozenset()
    vocabulary = build_vocabulary(tokenizer, vocab_size, stop_ids, control_ids)  # type: ignore[arg-type]
    behind_space = vocabulary.strips_space and not continues
    source = write_llguidance_grammar(grammar, behind_space=behind_space)
    # The other limits are llguidance's own, which stop within a second.
    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(vocabulary.backend, source, log_level=0, limits=limits)
    if matcher.is_error():
        reason = " ".join(matcher.get_error().split())
        if not isinstance(grammar, Lark):  # the lines that it quotes are ours
            reason = re.sub(r"^at \d+\(\d+\): | \d+ \| .*", "", reason)
        raise UsageError(f"the grammar cannot be enforced: {reason}")
    constraint = GrammarConstraint(matcher, vocabulary)
    probe = constraint.start_matcher()
    probe.pack_mask()
    if behind_space and vocabulary.space_id is not None:
        probe.accept(vocabulary.space_id)
        probe.pack_mask()
    return constraint
