"""The tokenizer and the chat template of a model, with its weights or without.

Those of the official variants ship with mistral-common and need no checkpoint.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from m7b.errors import UnsupportedCheckpoint, UsageError
from m7b.models.choice import ModelChoice
from m7b.models.files import ModelFiles, open_model
from m7b.templates import MistralTemplate, Template, choose_template, load_template, read_source
from m7b.tokenizer import (
    InnerSpace,
    MistralTokenizer,
    OfficialVocabulary,
    Tokenizer,
    find_end_ids,
    load_tokenizer,
)
from m7b.variants import VARIANTS, TokenizerVersion

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint


_MOST_BEYOND = 1024  # ids without a row that are looked at one by one


def load_chosen_tokenizer(choice: ModelChoice) -> Tokenizer:
    """Load the tokenizer alone.

    Raises:
        CheckpointNotFound: it is in a checkpoint that is not on this machine.
    """
    return _official_tokenizer(choice) or read_tokenizer(open_model(choice, window=0).checkpoint)


def load_chosen_template(choice: ModelChoice, chat_template: str | None) -> tuple[Tokenizer, Template]:
    """Load the tokenizer and the chat template alone; `chat_template` names another than the model's own.

    Raises:
        UsageError: the model has no chat template.
    """
    refuse_base(choice, chat_template)
    tokenizer, name, checkpoint = _official_tokenizer(choice), choice.release or "", None
    if tokenizer is None:
        files = open_model(choice, window=0)
        name, checkpoint = files.name, files.checkpoint
        tokenizer = read_tokenizer(checkpoint, chat_template)
    template = _choose_template(choice.release, tokenizer, checkpoint, chat_template)
    return tokenizer, require_template(name, template, checkpoint.chat_templates if checkpoint else ())


def load_texts(
    choice: ModelChoice, files: ModelFiles, chat_template: str | None
) -> tuple[Tokenizer, Template | None]:
    """Load the tokenizer and the template of a model whose `files` are open."""
    tokenizer = _official_tokenizer(choice) or read_tokenizer(files.checkpoint, chat_template)
    return tokenizer, _choose_template(files.name, tokenizer, files.checkpoint, chat_template)


def refuse_base(choice: ModelChoice, chat_template: str | None) -> None:
    """Refuse a base variant before anything is loaded.

    Raises:
        UsageError: the choice is one, and the user names no template for it.
    """
    name = choice.release
    if name in VARIANTS and not VARIANTS[name].is_instruct and chat_template is None:
        raise UsageError(
            f"{name} was not trained to chat",
            hint=f"continue a text with: m7b complete --variant {name}",
        )


def require_template(name: str, template: Template | None, others: Iterable[str] = ()) -> Template:
    """The template of the model called `name`, if there is one; `others` are for special uses.

    Raises:
        UsageError: there is none.
    """
    if template is None:
        raise UsageError(
            f"{name} brings no chat template{' but ' if others else ''}{', '.join(sorted(others))}",
            hint="name one with --chat-template v1, v3 or a Jinja file, or use m7b complete",
        )
    return template


def read_tokenizer(checkpoint: "Checkpoint", chat_template: str | None = None) -> Tokenizer:
    """Read the tokenizer that a checkpoint brings. What a template writes in added tokens, its own or the one
    that the user names, are control tokens to it.

    Raises:
        UnsupportedCheckpoint: it brings none, or one with more ids than the model has.
    """
    if checkpoint.tokenizer is None:
        raise UnsupportedCheckpoint(
            f"{checkpoint.path}: holds no tokenizer",
            hint="put tokenizer.model or tokenizer.json beside the weights",
        )
    named = read_source(chat_template) if chat_template is not None else None
    spelled = named or "\n".join(checkpoint.chat_templates.values())
    tokenizer = load_tokenizer(checkpoint.tokenizer, spelled)
    n_rows = checkpoint.config.vocab_size
    beyond = range(n_rows, tokenizer.vocab_size)
    if len(beyond) <= _MOST_BEYOND and not all(map(tokenizer.is_control, beyond)):
        # As control tokens they are harmless: no text becomes them.
        tokenizer = load_tokenizer(checkpoint.tokenizer, spelled + "".join(map(tokenizer.piece, beyond)))
    if not all(map(tokenizer.is_control, beyond)):
        raise UnsupportedCheckpoint(
            f"{checkpoint.path}: the tokenizer has {tokenizer.vocab_size} ids, the model {n_rows}, "
            f"and text can become {tokenizer.piece(n_rows)!r}, which has no row",
            hint="take the tokenizer that belongs to these weights",
        )
    return tokenizer


def find_stop_ids(
    checkpoint: "Checkpoint", tokenizer: Tokenizer, template: Template | None
) -> frozenset[int]:
    """Find the ids that end an answer: those that the files tell, those that do so by their names, and those
    with which the template ends one. Many fine-tunes tell in one of these places alone.
    """
    written = template.find_ends() if template else frozenset()
    ids = checkpoint.stop_ids | find_end_ids(tokenizer) | written
    return frozenset(token for token in ids if 0 <= token < checkpoint.config.vocab_size)


def _official_tokenizer(choice: ModelChoice) -> Tokenizer | None:
    version = VARIANTS[choice.release].tokenizer if choice.release else None
    if version is None:
        return None
    # The tokenizer.json that Mistral published with v0.3 puts none, those before put one always.
    inner = InnerSpace.NEVER if version is TokenizerVersion.V3 else InnerSpace.ALWAYS
    return load_tokenizer(OfficialVocabulary(version, inner))


def _choose_template(
    name: str | None, tokenizer: Tokenizer, checkpoint: "Checkpoint | None", chat_template: str | None
) -> Template | None:
    """The template that the user names, else Mistral's for a variant of theirs, else the checkpoint's own."""
    stop_ids = sorted(checkpoint.stop_ids) if checkpoint else []
    eos_id = next((token for token in (tokenizer.eos_id, *stop_ids) if token is not None), None)
    eos = "" if eos_id is None else tokenizer.piece(eos_id)
    if chat_template is not None:
        return load_template(chat_template, tokenizer, eos)
    variant = VARIANTS.get(name or "")
    if variant and isinstance(tokenizer, MistralTokenizer):
        return MistralTemplate(tokenizer) if variant.is_instruct else None
    sources = checkpoint.chat_templates if checkpoint else {}
    return choose_template(sources.get("default"), tokenizer, eos, tool_source=sources.get("tool_use"))
