"""The transformers library as a peer: its own Mistral classes and cache."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
)

from m7b.bench.runs import Answered, KnownAnswer, Reads, time_steps
from m7b.runtime.bench.peers.task import Task
from m7b.runtime.bench.weights import count_bytes
from m7b.runtime.checkpoints import hf
from m7b.runtime.checkpoints.checkpoint import translate_name
from m7b.runtime.checkpoints.random import cut
from m7b.runtime.checkpoints.scaling import write_scaling
from m7b.runtime.machine import synchronize
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.placement import check_memory, memory_errors

_BLOCK = 1_048_573
_TOKEN = 1
_GUESSES = 10  # as its documentation has it


class TransformersRunner:
    """`MistralForCausalLM` with its dynamic cache, scaled dot product attention, and argmax of the logits."""

    name = "transformers"
    note = ""

    def __init__(self, task: Task) -> None:
        config = task.config
        cache_bytes = task.n_sequences * task.ctx_size * task.kv_bytes_per_token
        if task.device == "cpu":
            check_memory(config.n_params * _item_bytes(task) + cache_bytes, "transformers")
        with memory_errors():
            self._model = _load(task)
        self._config, self._dtype, self._device = config, task.dtype, task.device
        self._cache, self._n_sequences = DynamicCache(config=self._model.config), 1
        body, embedding = self._model.model, self._model.model.embed_tokens
        weight_bytes = embedding.weight[0].nbytes + sum(
            count_bytes(part) for part in (body.layers, body.norm, self._model.lm_head)
        )
        self.reads = Reads(
            weights=_weights(task),
            weight_bytes=weight_bytes,
            kv_bytes=min(task.ctx_size, config.sliding_window or task.ctx_size) * task.kv_bytes_per_token,
            kv_bytes_per_token=task.kv_bytes_per_token,
            window=config.sliding_window,
        )

    @torch.inference_mode()
    def prepare(self, depth: int, n_sequences: int = 1) -> None:
        """Make a cache of `depth` tokens a sequence with random keys and values."""
        config, self._n_sequences = self._config, n_sequences
        self._cache = DynamicCache(config=self._model.config)
        block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).to(self._device, self._dtype)
        shape = torch.Size((n_sequences, config.n_kv_heads, depth, config.head_dim))
        for layer in range(config.n_layers if depth else 0):
            starts = (2 * layer * shape.numel(), (2 * layer + 1) * shape.numel())
            keys, values = (cut(block, shape.numel(), start).view(shape) for start in starts)
            self._cache.update(keys, values, layer)

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens a sequence in one pass: seconds to the last logits, and to the tokens chosen."""
        tokens = torch.full((self._n_sequences, n), _TOKEN, device=self._device)
        started = time.perf_counter()
        logits = self._forward(tokens)
        synchronize(self._device)
        read = time.perf_counter() - started
        logits.argmax(-1).tolist()
        return read, time.perf_counter() - started

    def decode(self, n: int) -> tuple[float, ...]:
        """Read a token a sequence and choose the next by argmax, `n` times: the seconds of each time."""
        return time_steps(self._generate(torch.full((self._n_sequences, 1), _TOKEN, device=self._device), n))

    def answer(self, text: KnownAnswer, *, drafts: bool) -> Answered:
        """Decode a known answer behind its prompt, with guesses looked up in the text so far or without."""
        script = _Script(text)
        prompt, n = torch.tensor([text.prompt]), len(text.answer)
        guessing = {"prompt_lookup_num_tokens": _GUESSES} if drafts else {}
        with memory_errors():
            found = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=n,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([script]),
                **guessing,
            )
        seconds = time.perf_counter() - script.started
        assert found[0, len(text.prompt) :].tolist() == list(text.answer)
        return Answered(seconds)

    def _generate(self, tokens: Tensor, n: int) -> Iterator[list[int]]:
        """The `n` tokens that follow `tokens` (N, T) in each sequence, one of each at a time."""
        for _ in range(n):
            tokens = self._forward(tokens).argmax(-1, keepdim=True)
            yield tokens[:, 0].tolist()  # an answer is told token by token

    @torch.inference_mode()
    def _forward(self, tokens: Tensor) -> Tensor:
        """The logits (N, V) after `tokens` (N, T)."""
        with memory_errors():
            answer = self._model(
                input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        return answer.logits[:, -1]


class _Script(LogitsProcessor):
    """Leaves no token but the next one of the answer."""

    def __init__(self, text: KnownAnswer) -> None:
        self._text = text
        self.started = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.started = self.started or time.perf_counter()
        at = input_ids.shape[1] - len(self._text.prompt)
        forced = torch.full_like(scores, -torch.inf)
        if at < len(self._text.answer):  # guesses may run past the end
            forced[:, self._text.answer[at]] = 0
        return forced


def hf_config(config: ModelConfig) -> MistralConfig:
    """The configuration under transformers' names."""
    make: Any = MistralConfig  # its annotations leave some of the fields out
    config_of_theirs: MistralConfig = make(
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.hidden_dim,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_theta": config.rope_theta}
        | (write_scaling(config.rope_scaling) or {"rope_type": "default"}),
        sliding_window=config.sliding_window,
        max_position_embeddings=config.max_seq_len,
        tie_word_embeddings=config.tied_embeddings,
        attn_implementation="sdpa",
    )
    return config_of_theirs


def _load(task: Task) -> Any:
    """The model filled from the checkpoint, one tensor in memory at a time beside it."""
    with init_empty_weights(include_buffers=False):
        model: Any = MistralForCausalLM(hf_config(task.config))
        model.to(task.dtype)
    for name in task.config.tensor_shapes():
        tensor = task.checkpoint.read(name).to(task.dtype)
        theirs = translate_name(name, hf.NAMES)
        if _is_quantized(task) and tensor.dim() == 2 and name != "tok_embeddings.weight":
            model.set_submodule(theirs.removesuffix(".weight"), _quantize(tensor, task))
        else:
            set_module_tensor_to_device(model, theirs, task.device, value=tensor)
    if task.config.tied_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb.to(task.device)
    model.requires_grad_(False)
    return model.eval()


def _quantize(weight: Tensor, task: Task) -> nn.Module:
    """A layer of bitsandbytes with `weight` (out, in)."""
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    rows, columns = weight.shape
    if task.quant == "int8":
        layer: Any = layers.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, device="meta")
        layer.weight = layers.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        layer = layers.Linear4bit(
            columns, rows, bias=False, compute_dtype=task.dtype, quant_type=task.quant, device="meta"
        )
        layer.weight = layers.Params4bit(
            weight, requires_grad=False, quant_type=task.quant, compress_statistics=False
        )
    placed: nn.Module = layer.to(task.device).eval()  # which quantizes
    if getattr(placed, "support_avx512bf16_for_cpu", False):
        with torch.inference_mode():
            placed(
                torch.zeros(1, columns, dtype=task.dtype, device=task.device)
            )  # the first call reorders it
    return placed


def _is_quantized(task: Task) -> bool:
    return task.quant not in (None, "none")


def _item_bytes(task: Task) -> int:
    return 1 if _is_quantized(task) else task.dtype.itemsize


def _weights(task: Task) -> str:
    return str(task.quant) if _is_quantized(task) else str(task.dtype).removeprefix("torch.")
