"""Tiny checkpoints laid out as fine-tunes are: with tokens that were added, and with chat templates."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from m7b.tokenizer import Tokenizer as OurTokenizer
from m7b.tokenizer import TokenizerJson, load_tokenizer
from tests.support.checkpoints import mistral, write_gguf, write_hf

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
PIECES += [chr(code) for code in range(33, 127)]
N_TEXT = len(PIECES)
"""The id of the first token that is added."""

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content']"
    " + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
OPENCHAT = (
    "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': '"
    " + message['content'] + '<|end_of_turn|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)


def write_tokenizer(folder: Path, added: list[str], *, special: bool = True, **config: Any) -> None:
    """Write tokenizer.json, as Llama's are, and tokenizer_config.json; None leaves a field out."""
    model = Tokenizer(
        models.BPE({p: n for n, p in enumerate(PIECES)}, [], byte_fallback=True, unk_token="<unk>")
    )
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    model.decoder = decoders.Sequence(parts)
    model.add_special_tokens(["<unk>", "<s>", "</s>"])
    model.add_tokens([AddedToken(name, normalized=False, special=special) for name in added])
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    fields = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True} | config
    written = {name: value for name, value in fields.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(written), encoding="utf-8")


def write_tuned(folder: Path, added: list[str], *, special: bool = True, eos: Any = 2, **config: Any) -> Path:
    """Write a whole folder: `eos` is what config.json says, `config` what tokenizer_config.json does."""
    model = mistral(vocab_size=N_TEXT + len(added), max_position_embeddings=512)
    write_hf(model, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"eos_token_id": eos, "sliding_window": None}))
    write_tokenizer(folder, added, special=special, **config)
    return folder


def write_tuned_gguf(file: Path, added: list[str], types: list[int] | None = None, **metadata: Any) -> Path:
    """Write a GGUF file with a SentencePiece vocabulary; `types` are those of the tokens that were added."""
    kinds = [2, 3, 3, *[6] * 256, *[1] * (N_TEXT - 259), *(types or [3] * len(added))]
    vocabulary = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*PIECES, *added],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * len(kinds),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return write_gguf(mistral(vocab_size=len(kinds)), file, **(vocabulary | metadata))


def load_tuned(folder: Path, source: str, eos: str = "</s>") -> OurTokenizer:
    """The tokenizer in `folder`, for a chat template."""
    return load_tokenizer(TokenizerJson(folder / "tokenizer.json", "<s>", True, eos), source)
