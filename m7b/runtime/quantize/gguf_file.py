"""One GGUF file of arch `llama`, as llama.cpp's own converter lays it out: metadata, then tensors."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    quants,
)

from m7b.errors import UsageError
from m7b.generation import QuantizeTarget
from m7b.runtime.checkpoints import Blocks, Checkpoint, gguf
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.scaling import attention_factor
from m7b.runtime.kernels import BlockType
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.rope import native_rows
from m7b.runtime.model.scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from m7b.runtime.quantize.recipe import choose_types
from m7b.runtime.quantize.rounding import best_blocks
from m7b.runtime.quantize.writing import ROWS, Written, relative_error
from m7b.tokenizer import GGUFVocabulary, Tokenizer, select_ends, to_gguf

if TYPE_CHECKING:
    from m7b.runtime.quantize import Settings

_FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_MAGIC_BYTES = 4


def plan(checkpoint: Checkpoint, tokenizer: Tokenizer, settings: "Settings") -> "FilePlan":
    """What will be written; nothing is yet."""
    types = _choose_types(checkpoint.config, settings)
    assert checkpoint.tokenizer is not None, "the tokenizer came from it"
    vocabulary = to_gguf(checkpoint.tokenizer, tokenizer, checkpoint.config.vocab_size)
    return FilePlan(checkpoint, vocabulary, settings, types)


def _choose_types(config: ModelConfig, settings: "Settings") -> Mapping[str, GGMLQuantizationType]:
    """The type of each tensor: norms are small and stay in F32."""
    target, shapes = settings.target, config.tensor_shapes()
    if target in (QuantizeTarget.F16, QuantizeTarget.BF16):
        chosen = dict.fromkeys((name for name in shapes if len(shapes[name]) > 1), target.upper())
    else:
        blocks = choose_types(config, target, has_importance=settings.importance is not None)
        chosen = {name: type_.stored for name, type_ in blocks.items()}
    return {name: GGMLQuantizationType[chosen.get(name, "F32")] for name in shapes}


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file to be written: `types` by the canonical names of its tensors."""

    checkpoint: Checkpoint
    vocabulary: GGUFVocabulary
    settings: "Settings"
    types: Mapping[str, GGMLQuantizationType]

    @property
    def n_bytes(self) -> int:
        """Bytes of the file, roughly: tensors, and some for the vocabulary."""
        return sum(map(self._n_bytes, self.types)) + 64 * len(self.vocabulary.pieces) + (1 << 16)

    def write(self, file: Path) -> Iterator[Written]:
        """Write the file. It has no magic, so that nobody reads it, until it is whole."""
        writer = GGUFWriter(file, "llama")
        try:
            self._describe(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            with file.open("r+b") as head:
                magic = head.read(_MAGIC_BYTES)
                head.seek(0)
                head.write(bytes(_MAGIC_BYTES))
            done, total = 0, sum(map(self._n_bytes, self.types))
            for name in self.types:
                data, error = self._encode(name)
                writer.write_tensor_data(data)
                done += data.nbytes
                yield Written(name, error, done, total)
        finally:
            writer.close()
        with file.open("r+b") as head:
            head.write(magic)

    def _n_bytes(self, name: str) -> int:
        size, n_block_bytes = GGML_QUANT_SIZES[self.types[name]]
        return math.prod(self.checkpoint.config.tensor_shapes()[name]) // size * n_block_bytes

    def _encode(self, name: str) -> tuple[np.ndarray, float]:
        """The bytes of one tensor, and how far their numbers are from the checkpoint's."""
        type_, weight = self.types[name], self.checkpoint.read(name)
        if type_ in _FLOATS:
            stored = weight.to(_FLOATS[type_])
            if not torch.isfinite(stored).all():
                raise UsageError(f"{name} has values that {type_.name} cannot hold", hint="use --to bf16")
            data, pieces = stored, zip(torch.split(weight, ROWS), torch.split(stored, ROWS), strict=True)
        else:
            block_type = BlockType[type_.name]
            data = best_blocks(block_type, weight, (self.settings.importance or {}).get(name))
            pieces = zip(
                torch.split(weight, ROWS),
                (
                    Blocks(block_type.stored, rows).dequantize(torch.float32)
                    for rows in torch.split(data, ROWS)
                ),
                strict=True,
            )
        error = relative_error(pieces)
        if not math.isfinite(error):
            raise UsageError(
                f"{name} has values that {type_.name} cannot hold",
                hint="look for NaN in it, or use --to bf16",
            )
        ordered = native_rows(name, data, self.checkpoint.config).contiguous()
        return ordered.view(torch.uint8).numpy(), error

    def _describe(self, writer: GGUFWriter) -> None:
        checkpoint = self.checkpoint
        writer.add_name(checkpoint.path.stem)
        if checkpoint.license:
            writer.add_license(checkpoint.license)
        writer.add_file_type(LlamaFileType[f"MOSTLY_{self.settings.target.upper()}"])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        add_shape(writer, checkpoint.config)
        _add_vocabulary(writer, self.vocabulary)
        for add, token in zip(
            (writer.add_eot_token_id, writer.add_eom_token_id), self._list_other_ends(), strict=False
        ):
            add(token)
        if checkpoint.chat_templates:
            named = checkpoint.chat_templates.items()
            writer.add_chat_template([{"name": name, "template": text} for name, text in named])
        for name, type_ in self.types.items():
            shape: tuple[int, ...] = checkpoint.config.tensor_shapes()[name]
            is_float = type_ in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
            stored = shape if is_float else quants.quant_shape_to_byte_shape(shape, type_)
            dtype = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
            writer.add_tensor_info(
                translate_name(name, gguf.NAMES),
                stored,
                np.dtype(dtype.get(type_, np.uint8)),
                self._n_bytes(name),
                raw_dtype=type_,
            )

    def _list_other_ends(self) -> list[int]:
        """What ends an answer beside EOS, those first that readers do not know by their names."""
        pieces, others = self.vocabulary.pieces, self.checkpoint.stop_ids - {self.vocabulary.eos_id}
        known = select_ends(pieces)
        within = (token for token in others if 0 <= token < len(pieces))
        return sorted(within, key=lambda token: (pieces[token] in known, token))


def add_shape(writer: GGUFWriter, config: ModelConfig) -> None:
    """The metadata of a model's shape; its window too, which llama.cpp passes over and m7b honours."""
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    _add_scaling(writer, config.rope_scaling)
    writer.add_vocab_size(config.vocab_size)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)


def _add_scaling(writer: GGUFWriter, scaling: RopeScaling | None) -> None:
    """The metadata of a scaling of RoPE, as llama.cpp heeds them.

    Raises:
        UsageError: it cannot be told there.
    """
    match scaling:
        case None | DynamicScaling():  # up to the context length, which is told, that scales nothing
            return
        case LinearScaling(factor):
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        case YarnScaling(factor, original, attention, 32.0, 1.0, True):
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(attention / attention_factor(factor))
        case YarnScaling() | Llama3Scaling():
            raise UsageError(
                "the scaling of RoPE of this model cannot be told in GGUF",
                hint="nf4, fp4 and int8 write a folder, which can tell it",
            )
        case other:
            assert_never(other)
    writer.add_rope_scaling_factor(factor)


def _add_vocabulary(writer: GGUFWriter, vocabulary: GGUFVocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        if 2 in vocabulary.types:
            writer.add_unk_token_id(vocabulary.types.index(2))
    else:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    if vocabulary.eos_id is not None:
        writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_space_prefix(vocabulary.adds_space)
