"""llama.cpp as a peer, through the C interface that llama-cpp-python carries."""

import ctypes
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_cpp import llama_cpp as api
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from m7b.bench.runs import Answered, KnownAnswer, Reads, time_steps
from m7b.errors import OutOfResources, UnsupportedCheckpoint
from m7b.runtime.bench.peers.gguf_file import file_bytes, read_bytes, write_gguf
from m7b.runtime.bench.peers.task import Task
from m7b.runtime.checkpoints import Checkpoint, Format
from m7b.runtime.placement import check_disk, check_memory

_CHUNK = 512
_BATCH = 2048  # as many tokens as one call takes: llama.cpp's default
_TOKEN = 1
_F16_BYTES = 2

_Array = np.ndarray[Any, np.dtype[Any]]

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
        with _open_file(checkpoint.path, task, stored_weights(checkpoint)) as runner:
            yield runner
        return
    check_disk(file_bytes(task), "a GGUF file for llama.cpp")
    with tempfile.TemporaryDirectory(prefix="m7b-peer-") as folder:
        file = Path(folder) / "model.gguf"
        write_gguf(task, file)
        kept = task.quant if task.quant not in (None, "none") else str(task.dtype).removeprefix("torch.")
        with _open_file(file, task, (f"{kept} (GGUF)", file_bytes(task), read_bytes(task))) as runner:
            with suppress(PermissionError):  # of Windows
                file.unlink()  # it is mapped; a process that is killed would leave it behind
            yield runner


class LlamaCppRunner:
    """A model in llama.cpp, and a context for as many sequences as are measured; tokens are chosen greedily.

    It computes in a thread of its own: it sets up the tile registers of AMX once a thread, and torch leaves
    them released in the threads that it used.

    Args:
        thread: of one worker, which nothing else uses.
        model: from `llama_model_load_from_file`.
        task: what that model is.
        weights: how they are kept, and their bytes that a decoded token reads.
    """

    name = "llama.cpp"

    @property
    def note(self) -> str:
        """What hinders it, for the user."""
        has_openmp = b"OPENMP = 1" in api.llama_print_system_info()
        is_asleep = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
        return _SHARED_OPENMP if has_openmp and is_asleep else ""

    def __init__(self, thread: ThreadPoolExecutor, model: Any, task: Task, weights: tuple[str, int]) -> None:
        self._thread, self._model, self._task = thread, model, task
        self._context: Any = None
        self._n_sequences = 0
        self._length = 0  # tokens of each sequence
        self._whole = 0  # those of them that `prepare` has read
        self._open_context(1)
        per_token = task.config.cache_bytes_per_token(_F16_BYTES)
        # The whole context: llama.cpp knows no window for models of this kind.
        self.reads = Reads(*weights, api.llama_n_ctx(self._context) * per_token, per_token, None)

    def close(self) -> None:
        """Free the context."""
        if self._context:
            api.llama_free(self._context)
        self._context = None

    def prepare(self, depth: int, n_sequences: int = 1) -> None:
        """Go back to `depth` tokens a sequence, which are read where there are fewer."""
        if n_sequences != self._n_sequences:
            self._open_context(n_sequences)
        self._length = min(depth, self._whole)
        self._rewind()
        if self._length < depth:
            self._thread.submit(self._read_once_for_all, depth - self._length).result()
        self._whole = depth

    def prefill(self, n: int) -> tuple[float, float]:
        """Read `n` tokens a sequence: seconds to the last logits, and to the tokens chosen by them."""
        started = time.perf_counter()
        self._thread.submit(self._read_prompts, n, self._n_sequences).result()
        self.logits()
        read = time.perf_counter() - started
        for _ in range(self._n_sequences):  # logits are as large for each; those of earlier calls are gone
            self.logits().argmax()
        return read, time.perf_counter() - started

    def decode(self, n: int) -> tuple[float, ...]:
        """Read a token a sequence and choose the next by argmax, `n` times: the seconds of each time."""
        first = [_TOKEN] * self._n_sequences
        return self._thread.submit(lambda: time_steps(self._generate(first, n))).result()

    def answer(self, text: KnownAnswer, *, drafts: bool) -> Answered:
        """Decode a known answer behind its prompt, with guesses looked up in the text so far or without."""
        return self._thread.submit(
            self._answer, text, LlamaPromptLookupDecoding() if drafts else None
        ).result()

    def _answer(self, text: KnownAnswer, look_up: LlamaPromptLookupDecoding | None) -> Answered:
        """As llama_cpp's own `generate` does it: guesses behind the last token, checked in one call."""
        ids, answer = list(text.prompt), list(text.answer)
        self._length = 0
        self._rewind()
        self._read_in_turn(ids)
        self.logits().argmax()
        ids.append(answer.pop(0))
        started, drafted, taken = time.perf_counter(), 0, 0
        while answer:
            guesses = look_up(np.array(ids, np.intc)).tolist() if look_up else []
            guesses = guesses[: len(answer) - 1]
            self._read_in_turn([ids[-1], *guesses], all_logits=True)
            drafted += len(guesses)
            for i, guess in enumerate([*guesses, None]):
                self.logits(i).argmax()
                ids.append(answer.pop(0))
                if guess != ids[-1]:
                    break
                taken += 1
            self._length = len(ids) - 1
            self._rewind()
        self._whole = 0
        return Answered(time.perf_counter() - started, drafted, taken)

    def _read_in_turn(self, tokens: list[int], *, all_logits: bool = False) -> None:
        """Read `tokens` in the first sequence; logits of the last alone are wanted, or of all."""
        n = len(tokens)
        positions = np.arange(self._length, self._length + n)
        wanted = np.full(n, all_logits)
        wanted[-1] = True
        for at in range(0, n, _BATCH):
            part = slice(at, at + _BATCH)
            self._read(np.array(tokens[part]), positions[part], np.zeros_like(positions[part]), wanted[part])
        self._length += n

    def logits(self, i: int = -1) -> _Array:
        """The logits (V,) after the token `i` of the last call, waiting for them."""
        row = api.llama_get_logits_ith(self._context, i)
        return np.ctypeslib.as_array(row, (self._task.config.vocab_size,))

    def _open_context(self, n_sequences: int) -> None:
        """Make room for `n_sequences`, all of them empty."""
        self.close()
        self._context = api.llama_init_from_model(self._model, _context_params(self._task, n_sequences))
        if not self._context:
            raise OutOfResources(f"llama.cpp cannot hold {n_sequences} x {self._task.ctx_size} tokens")
        self._n_sequences, self._length, self._whole = n_sequences, 0, 0

    def _rewind(self) -> None:
        """Drop all but `_length` tokens of each sequence."""
        memory = api.llama_get_memory(self._context)
        for sequence in range(self._n_sequences):
            if not api.llama_memory_seq_rm(memory, sequence, self._length, -1):
                api.llama_memory_clear(memory, True)
                self._length = 0

    def _read_once_for_all(self, n: int) -> None:
        """Read `n` tokens in the first sequence, and copy what it then holds to the others."""
        self._read_prompts(n, 1)
        memory, others = api.llama_get_memory(self._context), range(1, self._n_sequences)
        for sequence in others:
            api.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        if others:  # the next call makes the copies, and it is not to be timed
            self._read_step([_TOKEN] * self._n_sequences)
            self._length -= 1
            self._rewind()

    def _read_prompts(self, n: int, n_sequences: int) -> None:
        """Read `n` tokens in each of the first sequences, one sequence behind the other."""
        positions = np.tile(np.arange(self._length, self._length + n), n_sequences)
        sequences = np.repeat(np.arange(n_sequences), n)
        is_last = positions == self._length + n - 1
        for at in range(0, n * n_sequences, _BATCH):
            part = slice(at, at + _BATCH)
            self._read(np.full_like(positions[part], _TOKEN), positions[part], sequences[part], is_last[part])
        self._length += n

    def _generate(self, tokens: list[int], n: int) -> Iterator[list[int]]:
        """Go on with one of `tokens` in each sequence; the `n` that follow, one of each at a time."""
        for _ in range(n):
            self._read_step(tokens)
            tokens = [int(self.logits(i).argmax()) for i in range(self._n_sequences)]
            yield tokens

    def _read_step(self, tokens: list[int]) -> None:
        """Read one token in each sequence."""
        n = len(tokens)
        self._read(np.array(tokens), np.full(n, self._length), np.arange(n), np.ones(n))
        self._length += 1

    def _read(self, tokens: _Array, positions: _Array, sequences: _Array, wanted: _Array) -> None:
        """Read N tokens, (N,) each: which, where in which sequence, and whether logits are wanted."""
        n = len(tokens)
        tokens, positions, sequences = (
            each.astype(np.int32, order="C") for each in (tokens, positions, sequences)
        )
        wanted, counts = wanted.astype(np.int8), np.ones(n, np.int32)  # a token is of one sequence
        lists = sequences.ctypes.data + np.arange(n, dtype=np.uintp) * sequences.itemsize  # where each has it
        integers, addresses = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
        batch = api.llama_batch(
            n_tokens=n,
            token=tokens.ctypes.data_as(integers),
            pos=positions.ctypes.data_as(integers),
            n_seq_id=counts.ctypes.data_as(integers),
            seq_id=lists.ctypes.data_as(addresses),
            logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        code = api.llama_decode(self._context, batch)
        if code:
            raise OutOfResources(f"llama.cpp gave up on {n} tokens with code {code}")


def stored_weights(checkpoint: Checkpoint) -> tuple[str, int, int]:
    """How a GGUF file keeps its weights, their bytes, and those that a decoded token reads."""
    types = [tensor.dtype for tensor in checkpoint.tensors.values()]
    common = max(dict.fromkeys(types), key=types.count)
    embedding = checkpoint.tensors["tok_embeddings.weight"]
    row = embedding.n_bytes // embedding.shape[0]
    unread = 0 if checkpoint.config.tied_embeddings else embedding.n_bytes
    return f"{common} (GGUF)", checkpoint.n_bytes, checkpoint.n_bytes - unread + row


@contextmanager
def _open_file(file: Path, task: Task, weights: tuple[str, int, int]) -> Iterator[LlamaCppRunner]:
    """The model in the GGUF `file`, freed at the end."""
    kept, held, read = weights
    per_token = task.config.cache_bytes_per_token(_F16_BYTES)
    check_memory(held + task.n_sequences * task.ctx_size * per_token, "llama.cpp")
    api.llama_log_set(_SILENT, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
    if not model:
        raise UnsupportedCheckpoint(f"{file}: llama.cpp does not load it")
    try:
        with (
            ThreadPoolExecutor(1) as thread,
            closing(LlamaCppRunner(thread, model, task, (kept, read))) as runner,
        ):
            yield runner
    finally:
        api.llama_model_free(model)


def _context_params(task: Task, n_sequences: int) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx, params.n_seq_max = task.ctx_size * n_sequences, n_sequences
    params.kv_unified = False  # each sequence attends to a cache of its own, not to that of all under a mask
    params.n_batch, params.n_ubatch = _BATCH, _CHUNK
    params.n_threads = params.n_threads_batch = torch.get_num_threads()
    return params
