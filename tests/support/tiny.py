"""A tiny random checkpoint with Mistral's own tokenizer, and the program run on it in process."""

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from m7b.cli import main
from m7b.runtime.model.config import ModelConfig
from m7b.tokenizer import official_file
from m7b.variants import TokenizerVersion
from tests.support.checkpoints import mistral, write_hf

CTX_SIZE = 256
WINDOW = 16
MODEL = {"vocab_size": 32000, "max_position_embeddings": CTX_SIZE}

# A model for which random weights will do.
CONFIG = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=32,
    hidden_dim=128,
    vocab_size=96,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=None,
    max_seq_len=256,
    tied_embeddings=False,
)


@dataclass(frozen=True, slots=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The one JSON object on stdout, which nothing but strict JSON may be."""
        (answer,) = self.answers
        return answer

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The JSON object on each line of stdout."""
        *whole, rest = self.out.split("\n")  # splitlines would split strings at U+2028 too
        assert rest == "", "the last line has no newline"
        return [json.loads(line, parse_constant=_refuse) for line in whole]


def tiny_model(**changes: Any):
    """The transformers model behind the tiny checkpoint, for use as an oracle."""
    return mistral(window=WINDOW, **(MODEL | changes))


def write_tiny(folder: Path) -> Path:
    """A whole checkpoint as the hub would serve it."""
    write_hf(tiny_model(), folder)
    shutil.copyfile(official_file(TokenizerVersion.V1), folder / "tokenizer.model")
    return folder


def call(*arguments: object, stdin: str | bytes = b"") -> Ran:
    """Run `m7b` on `arguments` in this process; stdin, stdout and stderr are pipes."""
    data = stdin.encode("utf-8") if isinstance(stdin, str) else stdin
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        code = main([str(argument) for argument in arguments])
    return Ran(code, _written(out), _written(err))


def assert_refused(ran: Ran, code: int, *fragments: str) -> None:
    """One line on stderr that holds every fragment, and nothing on stdout."""
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert ran.err.startswith("m7b: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert [fragment for fragment in fragments if fragment not in ran.err] == [], ran.err


def lines(*values: Any) -> bytes:
    """A JSONL file of `values`; bytes stand as they are."""
    return b"".join(
        (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n" for value in values
    )


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8")


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")
