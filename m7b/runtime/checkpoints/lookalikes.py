"""What files and folders are that are often taken for checkpoints, and the way out."""

from pathlib import Path

# What llama.cpp wrote before GGUF, by the bytes that it begins with.
_OLD_FORMATS = {
    b"lmgg": "a model in the old format ggml",
    b"fmgg": "a model in the old format ggmf",
    b"tjgg": "a model in the old format ggjt",
    b"algg": "a LoRA adapter in the old format ggla",
}
_NO_FILES = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "run git lfs pull in its folder"),
    b"<!doctype html": ("a web page, not a model", "fetch the file itself, not the page about it"),
    b"<html": ("a web page, not a model", "fetch the file itself, not the page about it"),
}
_HINT = "take a folder of safetensors, or a GGUF file"
# Files by which a folder is known.
_FOLDERS = {
    "adapter_config.json": (
        "an adapter, not a model",
        "name the model that it was made for with -m, and this with --adapter",
    ),
    "qmodel.pt": ("quantized by HQQ", _HINT),
    "weights.npz": ("an MLX folder of before safetensors", _HINT),
}


def name_file(path: Path) -> tuple[str, str] | None:
    """What a file is that is taken for weights, with the way out; None where its beginning does not tell."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        first = file.read(32)
    if found := _OLD_FORMATS.get(first[:4]):
        return (
            f"{found}, which llama.cpp reads no more",
            "fetch the model as GGUF, or convert the original again",
        )
    return next((found for start, found in _NO_FILES.items() if first.lower().startswith(start)), None)


def name_folder(path: Path) -> tuple[str, str] | None:
    """What a folder without a checkpoint holds, with the way out; None where nothing tells."""
    return next((found for name, found in _FOLDERS.items() if (path / name).is_file()), None)
