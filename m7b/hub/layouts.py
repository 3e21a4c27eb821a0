"""Which files of a repository make one checkpoint. Knows names; nothing about where they come from."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase

from m7b.errors import CheckpointNotFound, UsageError
from m7b.parts import gather_splits, list_part_names


class DownloadFormat(StrEnum):
    """The layouts that checkpoints are published in, and adapters."""

    HF = "hf"
    NATIVE = "native"
    GGUF = "gguf"
    PEFT = "peft"


_SMALL = {
    "hf": (
        *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
        "additional_chat_templates/*.jinja",
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "merges.txt", "quantize_config.json", "quant_config.json"),
    ),
    "native": ("params.json", "tokenizer.model", "tokenizer.model.v*"),
    "gguf": (),
    "peft": ("adapter_config.json",),
}
# The first layout that is there is taken: a repository can hold several copies of the weights, 14 GB each.
_WEIGHTS = {
    "hf": (
        ("model-*-of-*.safetensors", "model.safetensors.index.json"),
        ("model.safetensors",),
        ("pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
        ("pytorch_model.bin",),
        ("gptq_model-*.safetensors",),
    ),
    "native": (("consolidated.safetensors",), ("consolidated.*.pth",)),
    "gguf": (("*.gguf",),),
    "peft": (("adapter_model.safetensors",),),
}


def choose_files(
    names: Sequence[str], repo_id: str, format: str | None, include: str | None
) -> tuple[str, list[str]]:
    """Choose one layout; returns its format and its files, a weight file first.

    Args:
        names: all files of the repository.
        repo_id: named in errors.
        format: the format to choose; None takes the first that the repository has.
        include: a pattern for the names of weight files, in small letters or capitals.

    Raises:
        CheckpointNotFound: there are no weights in that format, or with None in any; or a part is missing.
        UsageError: no weight file fits the pattern, or several GGUF files do.
    """
    for one in DownloadFormat if format is None else (format,):
        chosen = find_weights(names, one)
        if not chosen:
            continue
        if include is not None:
            chosen = _filter_included(chosen, repo_id, include)
        if one == "gguf":
            chosen = _choose_gguf(chosen, names, repo_id)
        return one, [*chosen, *_match_names(names, _SMALL[one])]
    wanted = " or ".join(DownloadFormat) if format is None else format
    raise CheckpointNotFound(
        f"{repo_id} holds no weights as {wanted}", hint="its page shows what it holds: see --format"
    )


def fits(name: str, include: str | None) -> bool:
    """Whether a file's `name` fits the pattern `include`, in small letters or capitals; None takes all."""
    return include is None or fnmatchcase(name.lower(), include.lower())


def detect_format(names: Sequence[str]) -> str | None:
    """Return the format of the weights among the files `names`, None where there are none."""
    return next((one for one in DownloadFormat if find_weights(names, one)), None)


def find_weights(names: Sequence[str], format: str) -> list[str]:
    """Find the weight files of one layout in a format, none where there is none."""
    return next((found for patterns in _WEIGHTS[format] if (found := _match_names(names, patterns))), [])


def _choose_gguf(chosen: list[str], names: Sequence[str], repo_id: str) -> list[str]:
    """The one GGUF file among those that were `chosen`: all its parts, in order, where it was split.

    Raises:
        CheckpointNotFound: the repository lacks a part.
        UsageError: several files were chosen.
    """
    first, *others = gather_splits(chosen)
    if others:
        shown = ", ".join(_describe_split(one) for one in [first, *others][:12])
        raise UsageError(
            f"{repo_id} has {len(others) + 1} GGUF files: {shown}",
            hint=f"choose one with --include, such as --include '{first}'",
        )
    parts = list_part_names(first)
    for number, part in enumerate(parts, start=1):
        if part not in names:
            raise CheckpointNotFound(
                f"{repo_id} lacks part {number} of {len(parts)}: {part}",
                hint="all parts of a split are needed: choose another file, or another place",
            )
    return parts


def _describe_split(first: str) -> str:
    n_parts = len(list_part_names(first))
    return first if n_parts == 1 else f"{first} ({n_parts} parts)"


def _match_names(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    return [name for pattern in patterns for name in names if fnmatchcase(name, pattern)]


def _filter_included(found: list[str], repo_id: str, include: str) -> list[str]:
    fitting = [name for name in found if fits(name, include)]
    if not fitting:
        raise UsageError(
            f"--include {include} fits none of the weights of {repo_id}",
            hint=f"they are {', '.join(found[:12])}",
        )
    return fitting
