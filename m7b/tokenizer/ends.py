"""Tokens that end a text or a turn, told by their names. Knows names; nothing about files."""

from collections.abc import Collection

from m7b.tokenizer.base import Tokenizer

# Those that llama.cpp ends a generation at, whatever the file says of them.
_ENDS = frozenset({
    "</s>", "<eos>", "[EOS]", "<EOT>", "_<EOT>", "[EOT]", "<|im_end|>", "<|end|>", "<|endoftext|>",
    "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<end_of_utterance>",
    "<｜end▁of▁sentence｜>", "[e~[", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>",
    "<|tool_response>",
})  # fmt: skip
# A model that fills gaps in code says with these that the gap, the file or the repository is over.
_GAP_ENDS = frozenset({
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|file_sep|>",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
})  # fmt: skip


def select_ends(pieces: Collection[str]) -> frozenset[str]:
    """Select those of a vocabulary's `pieces` that end a text or a turn."""
    ends = (_ENDS | _GAP_ENDS).intersection(pieces)
    # Where other tokens end a turn, `<|end|>` ends a message within it, and `</s>` is HTML.
    has_calls = "<|call|>" in ends or "<|calls|>" in ends
    if has_calls and not ends.isdisjoint({"<|return|>", "<|flush|>"}):
        ends -= {"<|end|>"}
    if "<|tool_response>" in ends or "<|plamo:eos|>" in pieces:
        ends -= {"</s>"}
    return ends


def find_end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Find the ids that end a text or a turn: those of such names, and EOS."""
    pieces = {tokenizer.piece(token): token for token in range(tokenizer.vocab_size)}
    ids = {pieces[name] for name in select_ends(pieces.keys())}
    return frozenset(ids if tokenizer.eos_id is None else ids | {tokenizer.eos_id})
