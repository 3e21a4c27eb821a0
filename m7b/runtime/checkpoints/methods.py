"""Which program has quantized a Hugging Face folder, told from its JSON files; picks the reader for it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.runtime.checkpoints.bnb import gather_bnb
from m7b.runtime.checkpoints.checkpoint import StoredTensor
from m7b.runtime.checkpoints.fields import Fields, read_json
from m7b.runtime.checkpoints.gptq import gather_awq, gather_gptq
from m7b.runtime.checkpoints.mlx import gather_mlx
from m7b.runtime.checkpoints.quantized import Quantized

_READERS: dict[str, Callable[[Fields, Mapping[str, StoredTensor]], Quantized]] = {
    "bitsandbytes": gather_bnb,
    "gptq": gather_gptq,
    "awq": gather_awq,
    "mlx": gather_mlx,
}
_HINT = "m7b reads folders of GPTQ, AWQ and MLX with 4 bits, and of bitsandbytes; or take a GGUF file"
# Files in which older programs say it, with the program.
_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def gather(fields: Fields, inventory: Mapping[str, StoredTensor]) -> Quantized:
    """What the folder with the config.json in `fields` holds, quantized or not.

    Raises:
        UnsupportedCheckpoint: it is quantized in a way that m7b does not read.
        DamagedCheckpoint: its files contradict each other.
    """
    found = find_method(fields)
    if found is None:
        packed = next((name for name in inventory if name.endswith(".qweight")), None)
        if packed is not None:
            raise DamagedCheckpoint(
                f"{fields.file}: {packed} is quantized, and no file says how",
                hint="fetch config.json, or quantize_config.json of GPTQ, from where the weights come from",
            )
        return Quantized(dict(inventory), {})
    method, settings = found
    return _READERS[method](settings, inventory)


def find_method(fields: Fields) -> tuple[str, Fields] | None:
    """The method and its settings, None where nothing says that the weights are quantized."""
    for key in ("quantization_config", "quantization"):
        settings = fields.raw(key)
        if settings is None:
            continue
        method = _name_method(settings, is_mlx=key == "quantization")
        if method not in _READERS:
            raise UnsupportedCheckpoint(f"{fields.file}: {key} is {method or str(settings)[:60]}", hint=_HINT)
        return method, Fields(fields.file, settings)
    return _find_old_file(fields.file.parent)


def _name_method(settings: object, *, is_mlx: bool) -> str:
    """The method that the settings name; only MLX and early files of bitsandbytes name none."""
    if not isinstance(settings, dict):
        return ""
    is_mlx = is_mlx or "group_size" in settings  # mlx-lm writes its settings under both keys
    method = settings.get("quant_method", "mlx" if is_mlx else "bitsandbytes")
    return method[:60] if isinstance(method, str) else ""


def _find_old_file(folder: Path) -> tuple[str, Fields] | None:
    for name, method in _OLD_FILES.items():
        file = folder / name
        if file.is_file():
            return method, Fields(file, read_json(file))
    return None
