"""Which files of a repository make one checkpoint. Knows names; nothing about where they come from."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase

from m7b.errors import CheckpointNotFound, UsageError


class Format(StrEnum):
    """The layouts that checkpoints are published in."""

    HF = "hf"
    NATIVE = "native"
    GGUF = "gguf"


_SMALL = {
    "hf": (
        *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "merges.txt"),
    ),
    "native": ("params.json", "tokenizer.model", "tokenizer.model.v*"),
    "gguf": (),
}
# The first that is there is taken: a repository can hold several copies of the weights, 14 GB each.
_WEIGHTS = {
    "hf": (
        ("model-*-of-*.safetensors", "model.safetensors.index.json"),
        ("model.safetensors",),
        ("pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
        ("pytorch_model.bin",),
    ),
    "native": (("consolidated.safetensors",), ("consolidated.*.pth",)),
    "gguf": (("*.gguf",),),
}


def choose(
    names: Sequence[str], repo_id: str, format: str | None, include: str | None
) -> tuple[str, list[str]]:
    """The format and the files of one layout, a weight file first; `include` is a pattern for weight files,
    small letters or capitals.

    Raises:
        CheckpointNotFound: there are no weights in that format, None: in any.
        UsageError: the pattern fits none of them, or a choice is left to make.
    """
    for one in Format if format is None else (format,):
        chosen = weights(names, one)
        if not chosen:
            continue
        if include is not None:
            chosen = _included(chosen, repo_id, include)
        if one == "gguf" and len(chosen) > 1:
            raise UsageError(
                f"{repo_id} has {len(chosen)} GGUF files: {', '.join(chosen[:12])}",
                hint=f"choose one with --include, such as --include '{chosen[0]}'",
            )
        return one, [*chosen, *_fitting(names, _SMALL[one])]
    wanted = " or ".join(Format) if format is None else format
    raise CheckpointNotFound(
        f"{repo_id} holds no weights as {wanted}", hint="its page shows what it holds: see --format"
    )


def format_of(names: Sequence[str]) -> str | None:
    """The format of the weights among files, None where there are none."""
    return next((one for one in Format if weights(names, one)), None)


def weights(names: Sequence[str], format: str) -> list[str]:
    """The weight files of one layout in a format."""
    return next((found for patterns in _WEIGHTS[format] if (found := _fitting(names, patterns))), [])


def _fitting(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    return [name for pattern in patterns for name in names if fnmatchcase(name, pattern)]


def _included(found: list[str], repo_id: str, include: str) -> list[str]:
    fitting = [name for name in found if fnmatchcase(name.lower(), include.lower())]
    if not fitting:
        raise UsageError(
            f"--include {include} fits none of the weights of {repo_id}",
            hint=f"they are {', '.join(found[:12])}",
        )
    return fitting
