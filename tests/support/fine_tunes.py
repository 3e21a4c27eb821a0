"""Tiny random checkpoints laid out as fine-tunes: bytes and added tokens, and a template."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.support.checkpoints import mistral, write_hf


def write_tokenizer(
    folder: Path, *, special: Sequence[str] = (), added: Sequence[str] = (), eos: str = "<|im_end|>"
) -> Path:
    """Write a tokenizer.json of bytes, `special` tokens and `added` ones that call themselves text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in dict.fromkeys([*special, eos])])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_fine_tune(
    folder: Path, template: str, *, eos: str = "<|im_end|>", context: int = 2048, **tokens: Sequence[str]
) -> Path:
    """Write a checkpoint with `template` and a tokenizer of `tokens`; see `write_tokenizer`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(write_tokenizer(folder, eos=eos, **tokens)))
    model = mistral(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(eos),
    )
    write_hf(model, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    (folder / "chat_template.jinja").write_text(template)
    return folder
