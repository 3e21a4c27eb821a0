"""Tiny random checkpoints in the real formats. The oracle is transformers, which also writes the HF ones."""

import ctypes
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, quants
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from m7b.runtime.cache import CacheRow
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.engine import Engine
from m7b.runtime.loader import EngineOptions, load_engine
from m7b.runtime.model.batch import Span
from m7b.tokenizer import official_file
from m7b.variants import TokenizerVersion

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def mistral(
    *, window: int | None = None, theta: float = 1e4, tied: bool = False, seed: int = 0, **changes: Any
) -> MistralForCausalLM:
    """A random Mistral model whose weights are large enough that every position matters."""
    torch.manual_seed(seed)
    config = MistralConfig(
        **(TINY | changes),
        sliding_window=window,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = MistralForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def write_hf(model: MistralForCausalLM, folder: Path, **save: Any) -> Path:
    """Save as transformers does: config.json and safetensors."""
    model.save_pretrained(folder, **save)
    return folder


def write_v3(folder: Path, model: MistralForCausalLM | None = None, **changes: Any) -> Path:
    """A Hugging Face folder with v0.3's vocabulary: of `model`, or of a random one with `changes`."""
    write_hf(model or mistral(vocab_size=32768, **changes), folder)
    shutil.copyfile(official_file(TokenizerVersion.V3), folder / "tokenizer.model.v3")
    return folder


def native_tensors(model: MistralForCausalLM) -> dict[str, torch.Tensor]:
    """The weights under Mistral's own names, q and k rows in interleaved order."""
    config = model.config
    tensors = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            half = weight.shape[0] // heads // 2
            rows = [
                head * 2 * half + i + part * half
                for head in range(heads)
                for i in range(half)
                for part in (0, 1)
            ]
            weight = weight[rows]
        tensors[_native_name(name)] = weight.contiguous()
    return tensors


def write_native(model: MistralForCausalLM, folder: Path, *, pickle: bool = False, **changes: Any) -> Path:
    """Save as mistral-inference reads: params.json and consolidated weights."""
    from safetensors.torch import save_file

    config = model.config
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    if config.sliding_window:
        params["sliding_window"] = config.sliding_window
    if config.tie_word_embeddings:
        params["tied_embeddings"] = True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params | changes))
    if pickle:
        torch.save(native_tensors(model), folder / "consolidated.00.pth")
    else:
        save_file(native_tensors(model), folder / "consolidated.safetensors")
    return folder


def write_gguf(
    model: MistralForCausalLM,
    file: Path,
    *,
    arch: str = "llama",
    n_part_tensors: int = 0,
    extra: dict[str, torch.Tensor] | None = None,
    **metadata: Any,
) -> Path:
    """Save as llama.cpp's converter does: interleaved rows, float32; the gguf package writes.

    With `n_part_tensors` it writes parts of so many tensors beside `file`, whose name they end differently.
    """
    from gguf import GGUFWriter

    config = model.config
    writer = GGUFWriter(file, arch, split_max_tensors=n_part_tensors)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    for key, value in metadata.items():
        add = {
            str: writer.add_string,
            float: writer.add_float32,
            int: writer.add_uint32,
            list: writer.add_array,
        }
        add[type(value)](key, value)
    tensors = {_gguf_name(name): weight for name, weight in native_tensors(model).items()}
    for name, weight in (tensors | (extra or {})).items():
        writer.add_tensor(name, weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def transformers_model(file: Path) -> LlamaForCausalLM:
    """The Llama model of a GGUF file in transformers, in float32; the gguf package reads the file."""
    reader = GGUFReader(file)
    config = LlamaConfig(
        hidden_size=_metadata(reader, "embedding_length"),
        num_hidden_layers=_metadata(reader, "block_count"),
        num_attention_heads=_metadata(reader, "attention.head_count"),
        num_key_value_heads=_metadata(reader, "attention.head_count_kv"),
        intermediate_size=_metadata(reader, "feed_forward_length"),
        vocab_size=_metadata(reader, "vocab_size"),
        rms_norm_eps=_metadata(reader, "attention.layer_norm_rms_epsilon"),
        max_position_embeddings=_metadata(reader, "context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": _metadata(reader, "rope.freq_base")},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        attn_implementation="eager",
    )
    with torch.device("meta"):
        names = {_gguf_name(_native_name(name)): name for name in LlamaForCausalLM(config).state_dict()}
    weights = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).copy())
        if "attn_q" in tensor.name or "attn_k" in tensor.name:
            half = config.head_dim // 2
            weight = weight.unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2)
        weights[names[tensor.name]] = weight
    return LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights).eval()


def engine(path: Path, **options: Any) -> Engine:
    """The production loader's engine for `path`, in float32 unless told otherwise."""
    settings = {"dtype": "float32", "prefill_chunk": 16, "is_static": None} | options
    is_static = settings.pop("is_static")
    checkpoint = open_checkpoint(path, window_given=settings.get("window") is not None)
    loading = load_engine(checkpoint, EngineOptions(**settings), is_static=is_static)
    while True:
        try:
            next(loading)
        except StopIteration as done:
            return done.value


def logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) at every position of `ids`, read in chunks from an empty cache."""
    return torch.cat(list(engine.logits(ids)))


def main_row(engine: Engine) -> CacheRow:
    """The row of the cache that a lone sequence has."""
    return engine.cache[engine.rows.main]


def read(engine: Engine, ids: list[int], *, is_prompt: bool = False) -> torch.Tensor:
    """Logits (T, V) after each of `ids`, which follow in one pass what the main row holds."""
    span = Span(engine.rows.main, main_row(engine).length, len(ids), is_prompt)
    return engine._scheduler.read(span, ids)


def rewind(engine: Engine, length: int) -> None:
    """Drop all but the first `length` tokens of the main row."""
    engine.rows.rewind(engine.rows.main, length)


def llama_cpp_logits(file: Path, ids: list[int], adapters: Sequence[tuple[Path, float]] = ()) -> torch.Tensor:
    """Logits (T, V) of llama.cpp for a GGUF file of float32, its cache too, with adapters at scales."""
    llama_cpp = pytest.importorskip("llama_cpp")
    loaded = llama_cpp.Llama(
        str(file),
        n_ctx=64,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
    )
    found = [llama_cpp.llama_adapter_lora_init(loaded.model, str(path).encode()) for path, _ in adapters]
    assert all(found)
    pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(found))(
        *(ctypes.cast(one, llama_cpp.llama_adapter_lora_p_ctypes) for one in found)
    )
    scales = (ctypes.c_float * len(found))(*(scale for _, scale in adapters))
    assert llama_cpp.llama_set_adapters_lora(loaded.ctx, pointers, len(found), scales) == 0
    loaded.eval(ids)
    return torch.from_numpy(loaded.scores[: len(ids)].copy())


@torch.inference_mode()
def oracle_logits(model: MistralForCausalLM, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) of transformers in one shot, without a cache."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def _metadata(reader: GGUFReader, key: str) -> Any:
    return reader.fields[f"llama.{key}"].contents()


def _native_name(name: str) -> str:
    names = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
    }
    return _rename(name, names).removeprefix("model.")


def _gguf_name(name: str) -> str:
    names = {
        "tok_embeddings": "token_embd",
        "attention_norm": "attn_norm",
        "attention.wq": "attn_q",
        "attention.wk": "attn_k",
        "attention.wv": "attn_v",
        "attention.wo": "attn_output",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
        "layers.": "blk.",
    }
    if name == "norm.weight":
        return "output_norm.weight"
    return _rename(name, names)


def _rename(name: str, names: dict[str, str]) -> str:
    """Replace the parts of a tensor's name, in order."""
    for source, target in names.items():
        name = name.replace(source, target)
    return name
