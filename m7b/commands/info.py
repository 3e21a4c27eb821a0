"""`m7b info`: what a checkpoint is and what it takes to run it."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from m7b.commands.shared.options import (
    AdapterOption,
    JsonOption,
    KvTypeOption,
    ModelOption,
    PrefillChunkOption,
    VariantOption,
    WindowOption,
    read_adapters,
)
from m7b.errors import UnsupportedCheckpoint
from m7b.generation import AdapterChoice, KvType
from m7b.models import (
    ModelChoice,
    ModelFiles,
    OpenAdapter,
    find_stop_ids,
    load_texts,
    open_adapters,
    open_model,
)
from m7b.render import Output
from m7b.tokenizer import OfficialVocabulary, load_tokenizer
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint
    from m7b.runtime.model.config import ModelConfig

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_STORED = "blocks"
_CONTEXTS = (4096, 8192, 16384, 32768)


def info(
    variant: VariantOption = None,
    model: ModelOption = None,
    window: WindowOption = None,
    adapter: AdapterOption = None,
    prefill_chunk: PrefillChunkOption = 512,
    kv_type: KvTypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's configuration, exact size, and the memory it takes at each context; loads no weights.

    Examples:

      m7b info --variant base-v0.1

      m7b info --window 4096 --json
    """
    report = _report(ModelChoice(variant, model), window, prefill_chunk, kv_type, read_adapters(adapter))
    output = Output()
    if as_json:
        output.write_json(report)
    else:
        output.write("".join(f"{line}\n" for line in _lines(report)))


def _report(
    choice: ModelChoice,
    window: int | None,
    prefill_chunk: int,
    kv_type: KvType | None,
    adapters: tuple[AdapterChoice, ...] = (),
) -> dict[str, Any]:
    import psutil

    from m7b.runtime.model.config import ModelConfig

    checkpoint: Checkpoint | None = None
    files: ModelFiles | None = None
    if choice.release and not choice.is_installed:
        name, config = choice.release, ModelConfig.of_variant(VARIANTS[choice.release])
        if window is not None:
            config = replace(config, sliding_window=window or None)
    else:
        files = open_model(choice, window=window)
        name, checkpoint, config = files.name, files.checkpoint, files.config
    weights = {dtype: config.n_params * size for dtype, size in _ITEM_BYTES.items()}
    if checkpoint and checkpoint.list_quantized():
        weights = {_STORED: checkpoint.n_bytes, **weights}
    n_slots = config.cache_slots(config.max_seq_len, prefill_chunk)
    available = psutil.virtual_memory().available
    return {
        "name": name,
        "release": _release(name),
        "checkpoint": files and _checkpoint(choice, files),
        "adapters": [_adapter(each) for each in open_adapters(adapters, config)],
        "note": checkpoint.note if checkpoint else "",
        "config": asdict(config),
        "parameters": config.n_params,
        "tokenizer": _tokenizer(name, checkpoint),
        "chat_template": _template(name, checkpoint),
        "weight_bytes": weights,
        "cache": {
            "dtype": str(kv_type) if kv_type == KvType.Q8_0 else "bfloat16",
            "bytes_per_token": config.cache_bytes_per_token(2, kv_type),
            "prefill_chunk": prefill_chunk,
            "contexts": [
                _cache_at(config, ctx_size, prefill_chunk, kv_type) for ctx_size in _contexts(config)
            ],
        },
        "memory": {
            "available_bytes": available,
            "fits": {
                dtype: n_bytes + n_slots * config.cache_bytes_per_token(_ITEM_BYTES.get(dtype, 2), kv_type)
                <= available
                for dtype, n_bytes in weights.items()
            },
        },
    }


def _checkpoint(choice: ModelChoice, files: ModelFiles) -> dict[str, Any]:
    checkpoint = files.checkpoint
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format.value,
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.tensors.values()}),
        "bytes": checkpoint.n_bytes,
        "stop_ids": sorted(_stop_ids(choice, files)),
    }


def _adapter(opened: OpenAdapter) -> dict[str, Any]:
    adapter = opened.adapter
    return {
        "name": opened.name,
        "scale": opened.scale,
        "path": str(adapter.path),
        "format": adapter.format.value,
        "ranks": list(adapter.ranks),
        "linears": len(adapter.parts),
        "bytes": adapter.n_bytes,
        "base": adapter.base,
        "description": opened.description,
    }


def _stop_ids(choice: ModelChoice, files: ModelFiles) -> frozenset[int]:
    """What ends an answer; what the files tell of it alone, where they lack a tokenizer that fits."""
    try:
        return find_stop_ids(files.checkpoint, *load_texts(choice, files, None))
    except UnsupportedCheckpoint:
        return files.checkpoint.stop_ids


def _release(name: str) -> dict[str, str] | None:
    """What is known of a variant as it was released, None for a checkpoint by path."""
    variant = VARIANTS.get(name)
    return {"summary": variant.summary, "hub_id": variant.hub_id} if variant else None


def _tokenizer(name: str, checkpoint: "Checkpoint | None") -> dict[str, Any] | None:
    version = VARIANTS[name].tokenizer if checkpoint is None else None
    source = checkpoint.tokenizer if checkpoint else OfficialVocabulary(version) if version else None
    if source is None:
        return None
    tokenizer = load_tokenizer(source)
    return {
        "description": tokenizer.description,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "adds_bos": tokenizer.adds_bos,
    }


def _template(name: str, checkpoint: "Checkpoint | None") -> str | None:
    """What turns a conversation into ids, None where the model was not trained to chat."""
    if checkpoint and checkpoint.chat_templates:
        others = sorted(checkpoint.chat_templates.keys() - {"default"})
        return f"the checkpoint's own (Jinja){''.join(f', {other}' for other in others)}"
    variant = VARIANTS.get(name)
    return f"Mistral {variant.tokenizer}" if variant and variant.is_instruct and variant.tokenizer else None


def _contexts(config: "ModelConfig") -> list[int]:
    return [n for n in _CONTEXTS if n < config.max_seq_len] + [config.max_seq_len]


def _cache_at(
    config: "ModelConfig", ctx_size: int, prefill_chunk: int, kv_type: KvType | None
) -> dict[str, int]:
    """Cache bytes at one context; the window's own share and the bytes of full attention beside it."""
    per_token = config.cache_bytes_per_token(2, kv_type)
    return {
        "context": ctx_size,
        "bytes": config.cache_slots(ctx_size, prefill_chunk) * per_token,
        "window_bytes": min(ctx_size, config.sliding_window or ctx_size) * per_token,
        "full_attention_bytes": ctx_size * per_token,
    }


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    config, checkpoint, cache = report["config"], report["checkpoint"], report["cache"]

    def row(label: str, value: object) -> str:
        return f"{label:<18}{value}"

    yield row("model", report["name"])
    if report["release"]:
        yield row("released as", f"{report['release']['hub_id']}: {report['release']['summary']}")
    if checkpoint:
        yield row(
            "checkpoint", f"{checkpoint['path']} ({checkpoint['format']}, {', '.join(checkpoint['dtypes'])})"
        )
        yield row("on disk", f"{checkpoint['bytes']:,} bytes")
    else:
        yield row("checkpoint", "not on this machine: figures are those of the release")
    for adapter in report["adapters"]:
        yield row("adapter", f"{adapter['description']}, {adapter['bytes']:,} bytes")
    if report["note"]:
        yield row("note", report["note"])
    yield row("parameters", f"{report['parameters']:,}")
    for key, value in config.items():
        yield row("  " + key, "off" if key == "sliding_window" and value is None else value)
    tokenizer = report["tokenizer"]
    yield row(
        "tokenizer",
        f"{tokenizer['description']}, {tokenizer['vocab_size']:,} ids" if tokenizer else "in the checkpoint",
    )
    yield row("chat template", report["chat_template"] or "none: use m7b complete")
    for dtype, size in report["weight_bytes"].items():
        verdict = "fits" if report["memory"]["fits"][dtype] else "does not fit"
        yield row("weights", f"{size:>15,} bytes in {dtype}: {verdict} this machine with its cache")
    yield row("memory free", f"{report['memory']['available_bytes']:>15,} bytes")
    yield ""
    per_token, chunk = cache["bytes_per_token"], cache["prefill_chunk"]
    yield f"KV cache in {cache['dtype']}, {per_token:,} bytes a token, prefill chunk {chunk}"
    yield f"{'context':>9}{'cache bytes':>18}{'of it window':>18}{'full attention':>18}"
    for at in cache["contexts"]:
        window, full = at["window_bytes"], at["full_attention_bytes"]
        yield f"{at['context']:>9}{at['bytes']:>18,}{window:>18,}{full:>18,}"
