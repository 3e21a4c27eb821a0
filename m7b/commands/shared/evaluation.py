"""A text to judge a model by, and how it is read. Shared by perplexity, quantize and its report."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from m7b.commands.shared.options import n_tokens
from m7b.commands.shared.prompt import read_file
from m7b.errors import UsageError
from m7b.models import Model
from m7b.progress import run_with_progress
from m7b.render import Status
from m7b.tokenizer import Tokenizer

Result = TypeVar("Result")

StrideOption = Annotated[
    int | None,
    typer.Option(
        "--stride",
        parser=n_tokens,
        metavar="N",
        help="Tokens by which the window over the text moves on; half a context if not given.",
        show_default=False,
    ),
]

_USUAL_CTX_SIZE = 2048


def usual_ctx_size(model: Model) -> int:
    """The context that texts are read in where none is given: more costs time and changes little."""
    return min(_USUAL_CTX_SIZE, model.ctx_size)


@dataclass(frozen=True, slots=True)
class Text:
    """A text to judge by, and what it is called."""

    name: str
    content: str

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Its ids, as the model expects a text to begin.

        Raises:
            UsageError: they are too few.
        """
        ids = tokenizer.encode(self.content, bos=tokenizer.adds_bos)
        if len(ids) < 3:
            raise UsageError(f"{self.name} has {len(ids)} tokens, which is too few to judge by")
        return ids


def read_text(file: Path) -> Text:
    """The text in `file`, or on stdin for `-`.

    Raises:
        UsageError: it cannot be read, or is no Unicode.
    """
    return Text(str(file), read_file(file))


def choose_stride(stride: int | None, ctx_size: int) -> int:
    """The stride, half a context where none is given.

    Raises:
        UsageError: it leaves gaps.
    """
    if ctx_size < 2:
        raise UsageError("a context of 1 token foretells nothing", hint="raise --ctx-size")
    stride = stride or ctx_size // 2
    if stride >= ctx_size:
        raise UsageError(
            f"a stride of {stride} passes over tokens in a context of {ctx_size}", hint="lower --stride"
        )
    return stride


def read_with_progress(steps: Generator[int, None, Result], name: str, total: int, status: Status) -> Result:
    """Runs the reading of `total` tokens to its end, with its progress on a terminal; returns its result."""
    return run_with_progress(
        steps, lambda done: status.show(f"reading with {name}: {done:,} of {total:,} tokens")
    )
