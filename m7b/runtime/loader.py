"""From a checkpoint to an engine that runs: one tensor at a time, each checked and placed."""

import logging
import math
import tempfile
import weakref
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate import dispatch_model, init_empty_weights
from accelerate.utils import offload_weight, save_offload_index, set_module_tensor_to_device

from m7b.errors import UsageError
from m7b.generation import EngineOptions
from m7b.runtime.adapters import Mix, build_updates, count_bytes
from m7b.runtime.backends import MOST_STATIC_ROWS, Backend, choose_backend
from m7b.runtime.cache import RollingKVCache
from m7b.runtime.checkpoints import Blocks, Checkpoint
from m7b.runtime.engine import Engine
from m7b.runtime.kernels import BlockType, count_packed_bytes
from m7b.runtime.linears import PackedLayer, PackedLinear
from m7b.runtime.linears.blocks import BlockEmbedding, BlockLinear, parse_block_type
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.scaling import DynamicScaling
from m7b.runtime.model.transformer import Embedding, Transformer
from m7b.runtime.placement import (
    DISK,
    DeviceMap,
    check_disk,
    check_memory,
    count_work_bytes,
    execution_device,
    find_device,
    layer_devices,
    memory_errors,
    plan_devices,
    plan_rows,
)
from m7b.runtime.processor import physical_cores
from m7b.runtime.static_cache import StaticCache, count_slots

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""The dtypes a model can run in, by name."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """`done` of `total` bytes of the model are in place."""

    done: int
    total: int


def load_engine(
    checkpoint: Checkpoint,
    options: EngineOptions,
    mixes: Sequence[Mix] = (),
    *,
    is_static: bool | None = None,
) -> Generator[LoadProgress, None, Engine]:
    """Load the weights and set up an empty cache beside them.

    Args:
        checkpoint: the model.
        options: how it is to run.
        mixes: adapters for `Engine.adapted` by their numbers; the engine itself takes the first, if any.
        is_static: whether answers are decoded by static passes, where the device does not decide that.

    Raises:
        DamagedCheckpoint: an adapter holds values that are not finite.
        OutOfResources: memory, disk or the device do not suffice, which is checked before allocating.
    """
    config = checkpoint.config
    if options.window is not None:
        config = replace(config, sliding_window=options.window or None)
    torch.set_num_threads(options.threads or physical_cores())
    dtype = run_dtype(checkpoint.dtype, options.dtype)
    ctx_size = options.ctx_size or config.max_seq_len
    _check_dynamic(config, ctx_size)
    n_slots = config.cache_slots(ctx_size, options.prefill_chunk)
    cache_bytes = n_slots * config.cache_bytes_per_token(dtype.itemsize, options.kv_type)
    backend = choose_backend(
        checkpoint,
        options.quant,
        options.device,
        dtype,
        dtype_given=options.dtype is not None,
        is_static=is_static,
    )
    with init_empty_weights():
        model = Transformer(config, backend.linear, backend.output, backend.operations, backend.embedding)
        model.to(dtype)
    device_map = plan_devices(model, options.device, dtype, cache_bytes, options.max_memory)
    what = f"{checkpoint.path.name} at {ctx_size} tokens"
    added_bytes = count_bytes(mixes, dtype)
    if backend.is_static:
        beside_rows = _weight_bytes(checkpoint, backend, dtype) + added_bytes
        most_rows = _plan_rows(config, options, dtype, execution_device(device_map), beside_rows, what)
    else:
        most_rows = None
        _check_room(checkpoint, backend, dtype, device_map, cache_bytes + added_bytes, what)
    with memory_errors():
        yield from place_weights(model, checkpoint, device_map)
        devices = layer_devices(device_map, config.n_layers)
        model.adapters = [build_updates(model, mix, devices) for mix in mixes]
        make_cache = (
            RollingKVCache
            if most_rows is None
            else partial(StaticCache, ctx_size=ctx_size, most_rows=most_rows)
        )
        cache = make_cache(
            config,
            prefill_chunk=options.prefill_chunk,
            dtype=dtype,
            devices=devices,
            kv_type=options.kv_type,
        )
        return Engine(model, backend, cache, ctx_size, execution_device(device_map), options.draft)


def _check_dynamic(config: ModelConfig, ctx_size: int) -> None:
    """Refuse a context in which a longer text would change the keys that are in the cache already."""
    scaling = config.rope_scaling
    if isinstance(scaling, DynamicScaling) and ctx_size > scaling.original_context:
        raise UsageError(
            f"--ctx-size is {ctx_size}, and dynamic RoPE scaling changes every key of a text that is longer "
            f"than {scaling.original_context} tokens, which no cache can follow",
            hint=f"take at most {scaling.original_context}, or a checkpoint with YaRN or linear scaling",
        )


def _plan_rows(
    config: ModelConfig,
    options: EngineOptions,
    dtype: torch.dtype,
    device: str,
    beside_rows: int,
    what: str,
) -> int:
    """How many rows of a static cache there may be on `device`, beside weights of so many bytes."""
    n_slots = count_slots(config, options.ctx_size or config.max_seq_len, options.prefill_chunk)
    row_bytes = (n_slots + 1) * config.cache_bytes_per_token(dtype.itemsize, options.kv_type)
    row_bytes += row_bytes // (2 * config.n_layers)  # while rows are added, one tensor is there twice
    beside_rows += count_work_bytes(config, options.prefill_chunk, n_slots, dtype.itemsize)
    return plan_rows(device, beside_rows, row_bytes, MOST_STATIC_ROWS, what)


def _check_room(
    checkpoint: Checkpoint,
    backend: Backend,
    dtype: torch.dtype,
    device_map: DeviceMap,
    beside_weights: int,
    what: str,
) -> None:
    """Compare what the backend puts into memory and on disk with what is free there."""
    shapes = checkpoint.config.tensor_shapes()
    on_disk = sum(
        math.prod(shape) * dtype.itemsize
        for name, shape in shapes.items()
        if find_device(name, device_map) == DISK
    )
    check_disk(on_disk, what)
    if execution_device(device_map) == "cpu":
        is_planned = len(device_map) > 1 or on_disk > 0  # then accelerate has weighed the weights
        check_memory(beside_weights + (0 if is_planned else _weight_bytes(checkpoint, backend, dtype)), what)


def _weight_bytes(checkpoint: Checkpoint, backend: Backend, dtype: torch.dtype) -> int:
    """Bytes that the weights will take; an embedding that serves as output too is held twice if packed."""
    config = checkpoint.config
    n_embeddings = config.vocab_size * config.dim
    if backend.bits is None:
        return sum(_stored_bytes(checkpoint, name, dtype) for name in checkpoint.tensors)
    is_packed = backend.bits != 8 * dtype.itemsize
    n_linear = config.n_params - n_embeddings * (not (config.tied_embeddings and is_packed))
    return int(n_linear * backend.bits / 8) + n_embeddings * dtype.itemsize


def _stored_bytes(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> int:
    """Bytes of one tensor in the blocks that it is stored in, or in those that take its place."""
    tensor = checkpoint.tensors[name]
    block_type = parse_block_type(tensor.dtype)
    is_embedding = name == "tok_embeddings.weight"
    n_numbers = math.prod(tensor.shape) * dtype.itemsize
    if len(tensor.shape) < 2 or (
        is_embedding and block_type is None and not checkpoint.config.tied_embeddings
    ):
        return n_numbers
    n_packed = count_packed_bytes(block_type or BlockType.Q8_0, *tensor.shape)
    return n_packed + (n_numbers if is_embedding and block_type is None else 0)


def run_dtype(stored: torch.dtype, wanted: str | None) -> torch.dtype:
    """The dtype to run in: the one named, else the stored one, with bfloat16 for float16."""
    if wanted is not None:
        return DTYPES[wanted]
    return torch.bfloat16 if stored == torch.float16 else stored


def _weight_for(
    layer: PackedLayer, checkpoint: Checkpoint, name: str, dtype: torch.dtype, device: str
) -> torch.Tensor | Blocks:
    """The tensor called `name` as `layer` takes it."""
    if not layer.takes_blocks:
        return checkpoint.read(name).to(device, dtype)
    if checkpoint.read_blocks and parse_block_type(checkpoint.tensors[name].dtype) is not None:
        return checkpoint.read_blocks(name)
    return checkpoint.read(name)


def _tie_packed(model: Transformer, checkpoint: Checkpoint) -> None:
    """Give a packed output the weight of the embedding, which is held once where it can be."""
    embedding, output = model.tok_embeddings, model.output
    assert isinstance(output, PackedLinear)
    if isinstance(output, BlockLinear) and isinstance(embedding, BlockEmbedding):
        output.set_packed(embedding.packed)
    elif output.takes_blocks:
        output.set_weight(
            _weight_for(output, checkpoint, "tok_embeddings.weight", model.norm.weight.dtype, "cpu")
        )
    else:
        assert isinstance(embedding, Embedding)
        output.set_weight(embedding.weight.data)


def place_weights(
    model: Transformer, checkpoint: Checkpoint, device_map: DeviceMap
) -> Generator[LoadProgress, None, None]:
    """Fill a meta `model` from `checkpoint`, one tensor in memory at a time beside what is placed."""
    dtype = model.norm.weight.dtype
    total, done = checkpoint.n_bytes, 0
    places = set(device_map.values())
    is_dispatched = len(places) > 1 or DISK in places
    disk = tempfile.TemporaryDirectory(prefix="m7b-offload-") if DISK in places else None
    disk_index: dict[str, dict[str, object]] = {}

    def place(name: str, tensor: torch.Tensor) -> None:
        if disk is not None and find_device(name, device_map) == DISK:
            offload_weight(tensor, name, disk.name, disk_index)
        else:
            set_module_tensor_to_device(model, name, find_device(name, device_map), value=tensor)

    for name in model.config.tensor_shapes():
        layer = model.get_submodule(name.removesuffix(".weight"))
        if isinstance(layer, PackedLayer):
            layer.set_weight(_weight_for(layer, checkpoint, name, dtype, find_device(name, device_map)))
        else:
            place(name, checkpoint.read(name).to(dtype))
        if model.config.tied_embeddings and layer is model.tok_embeddings:
            if isinstance(model.output, PackedLinear):
                _tie_packed(model, checkpoint)
            elif is_dispatched:
                place("output.weight", checkpoint.read(name).to(dtype))  # parts that move about share nothing
        done += checkpoint.tensors[name].n_bytes
        yield LoadProgress(done, total)
    model.requires_grad_(False)
    if not is_dispatched:
        model.tie()
        return
    if disk is not None:
        save_offload_index(disk_index, disk.name)
        weakref.finalize(model, disk.cleanup)
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it would tell what was asked for
    dispatch_model(
        model,
        device_map=device_map,
        main_device=execution_device(device_map),
        offload_dir=disk.name if disk else None,
    )
