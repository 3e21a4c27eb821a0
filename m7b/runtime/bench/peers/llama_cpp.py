"""llama.cpp as a peer, through the C interface that llama-cpp-python carries."""

import ctypes
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_cpp import llama_cpp as api

from m7b.bench.runs import Reads, time_steps
from m7b.errors import OutOfResources, UnsupportedCheckpoint
from m7b.runtime.bench.peers.gguf_file import file_bytes, read_bytes, write_gguf
from m7b.runtime.bench.peers.task import Task
from m7b.runtime.checkpoints import Checkpoint, Format
from m7b.runtime.placement import check_disk, check_memory

_CHUNK = 512
_BATCH = 2048  # as many tokens as one call takes: llama.cpp's default
_TOKEN = 1
_F16_BYTES = 2


_SHARED_OPENMP = (
    "llama.cpp shares OpenMP with torch here, whose threads sleep while they wait; that can halve its speed: "
    "build it with -DGGML_OPENMP=off, or run both with OMP_WAIT_POLICY=active on an idle machine"
)

_SILENT = api.llama_log_callback(lambda level, text, data: None)
"""Takes what llama.cpp would write to stderr; kept for as long as it may be called."""


@contextmanager
def open_llama_cpp(task: Task) -> Iterator["LlamaCppRunner"]:
    """llama.cpp with the model of `task`: its GGUF file as it is, or one written for the while.

    Raises:
        OutOfResources: memory or disk do not suffice.
        UnsupportedCheckpoint: llama.cpp does not take the model.
    """
    checkpoint = task.checkpoint
    if checkpoint.format == Format.GGUF and task.quant is None:
        with _opened(checkpoint.path, task, stored_weights(checkpoint)) as runner:
            yield runner
        return
    check_disk(file_bytes(task), "a GGUF file for llama.cpp")
    with tempfile.TemporaryDirectory(prefix="m7b-peer-") as folder:
        file = Path(folder) / "model.gguf"
        write_gguf(task, file)
        kept = task.quant if task.quant not in (None, "none") else str(task.dtype).removeprefix("torch.")
        with _opened(file, task, (f"{kept} (GGUF)", file_bytes(task), read_bytes(task))) as runner:
            with suppress(PermissionError):  # of Windows
                file.unlink()  # it is mapped; a process that is killed would leave it behind
            yield runner


class LlamaCppRunner:
    """One context of llama.cpp, with greedy choice of tokens.

    It computes in a thread of its own: it sets up the tile registers of AMX once a thread, and torch leaves
    them released in the threads that it used.

    Args:
        thread: of one worker, which nothing else uses.
        context: from `llama_init_from_model`.
        vocab_size: the logits of a token.
        reads: the bytes that it holds and reads.
    """

    name = "llama.cpp"

    @property
    def note(self) -> str:
        """What hinders it, for the user."""
        has_openmp = b"OPENMP = 1" in api.llama_print_system_info()
        is_asleep = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
        return _SHARED_OPENMP if has_openmp and is_asleep else ""

    def __init__(self, thread: ThreadPoolExecutor, context: Any, vocab_size: int, reads: Reads) -> None:
        self._thread, self._context, self._vocab_size, self.reads = thread, context, vocab_size, reads
        self._whole = 0  # tokens in the cache that `prepare` has read

    def prepare(self, depth: int) -> None:
        """Go back to `depth` tokens, which are read where there are fewer."""
        memory = api.llama_get_memory(self._context)
        kept = min(depth, self._whole)
        if not api.llama_memory_seq_rm(memory, 0, kept, -1):
            api.llama_memory_clear(memory, True)
            kept = 0
        self._thread.submit(self._read_all, depth - kept).result()
        self._whole = depth

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens: seconds to the last logits, and to the token chosen by them."""
        started = time.perf_counter()
        self._thread.submit(self._read_all, n).result()
        self.logits()
        read = time.perf_counter() - started
        self.logits().argmax()
        return read, time.perf_counter() - started

    def decode(self, n: int) -> tuple[float, ...]:
        """Read a token and choose the next by argmax, `n` times: the seconds of each."""
        return self._thread.submit(lambda: time_steps(self._chosen(n))).result()

    def _chosen(self, n: int) -> Iterator[int]:
        token = _TOKEN
        for _ in range(n):
            self._read([token])
            token = int(self.logits().argmax())
            yield token

    def logits(self) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """The logits (V,) after the last token, waiting for them."""
        return np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, -1), (self._vocab_size,))

    def _read_all(self, n: int) -> None:
        for at in range(0, n, _BATCH):
            self._read([_TOKEN] * min(_BATCH, n - at))

    def _read(self, tokens: list[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        code = api.llama_decode(self._context, api.llama_batch_get_one(array, len(tokens)))
        if code:
            raise OutOfResources(f"llama.cpp gave up on {len(tokens)} tokens with code {code}")


def stored_weights(checkpoint: Checkpoint) -> tuple[str, int, int]:
    """How a GGUF file keeps its weights, their bytes, and those that a decoded token reads."""
    types = [tensor.dtype for tensor in checkpoint.tensors.values()]
    common = max(dict.fromkeys(types), key=types.count)
    embedding = checkpoint.tensors["tok_embeddings.weight"]
    row = embedding.n_bytes // embedding.shape[0]
    unread = 0 if checkpoint.config.tied_embeddings else embedding.n_bytes
    return f"{common} (GGUF)", checkpoint.n_bytes, checkpoint.n_bytes - unread + row


@contextmanager
def _opened(file: Path, task: Task, weights: tuple[str, int, int]) -> Iterator[LlamaCppRunner]:
    """A context over the GGUF `file`; both are freed at the end."""
    kept, held, read = weights
    per_token = task.config.cache_bytes_per_token(_F16_BYTES)
    check_memory(held + task.ctx_size * per_token, "llama.cpp")
    api.llama_log_set(_SILENT, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
    if not model:
        raise UnsupportedCheckpoint(f"{file}: llama.cpp does not load it")
    try:
        context = api.llama_init_from_model(model, _context_params(task))
        if not context:
            raise OutOfResources(f"llama.cpp cannot hold {task.ctx_size} tokens")
        try:
            # The whole context: llama.cpp knows no window for models of this kind.
            cache_bytes = api.llama_n_ctx(context) * per_token
            reads = Reads(kept, read, cache_bytes, per_token, None)
            with ThreadPoolExecutor(1) as thread:
                yield LlamaCppRunner(thread, context, task.config.vocab_size, reads)
        finally:
            api.llama_free(context)
    finally:
        api.llama_model_free(model)


def _context_params(task: Task) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx = task.ctx_size
    params.n_batch, params.n_ubatch = _BATCH, _CHUNK
    params.n_threads = params.n_threads_batch = torch.get_num_threads()
    return params
