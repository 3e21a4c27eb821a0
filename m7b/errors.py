"""The errors that a user can meet, and the exit code of each.

Knows the words of an error and its exit code; knows nothing about where it is printed.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """The process exit codes, documented in docs/exit-codes.md."""

    OK = 0
    BUG = 1
    USAGE = 2
    CHECKPOINT = 3
    DAMAGED = 4
    RESOURCES = 5
    PROMPT_TOO_LONG = 6
    SOME_FAILED = 7
    TOO_SLOW = 8
    NO_SERVER = 9
    HUNG_UP = 129
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


class M7bError(Exception):
    """An error that the user can act on: `message` says what is wrong, with figures, `hint` the way out.

    Messages quote file names and values that nobody vouches for, so they become one line of printable
    characters.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = _printable(message)
        self.hint = _printable(hint)

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def report(self) -> dict[str, str]:
        """The error as JSON tells it."""
        return {"type": type(self).__name__, "message": str(self)}


class UsageError(M7bError):
    """An option, a request or a file of ours makes no sense.

    `param` is the place of the fault in a request, such as `messages[2].content`.
    """

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, hint: str = "", param: str = "") -> None:
        super().__init__(message, hint=hint)
        self.param = _printable(param)

    def report(self) -> dict[str, str]:
        """The error as JSON tells it, with the place of the fault."""
        return super().report() | ({"param": self.param} if self.param else {})


class InvalidConversation(UsageError):
    """A chat template does not take these messages or tools.

    `kind` names the rule that was broken; for Mistral's templates it is mistral-common's exception.
    """

    def __init__(self, kind: str, message: str, *, hint: str = "", param: str = "") -> None:
        super().__init__(message, hint=hint, param=param)
        self.kind = kind

    def report(self) -> dict[str, str]:
        """The error as JSON tells it, under the name of the rule."""
        message = f"{self.args[0]}; {self.hint}" if self.hint else str(self.args[0])
        return super().report() | {"type": self.kind, "message": message}


class CheckpointNotFound(M7bError):
    """There is no checkpoint where one was named."""

    exit_code = ExitCode.CHECKPOINT


class UnsupportedCheckpoint(M7bError):
    """A sound checkpoint of a model that m7b does not run."""

    exit_code = ExitCode.CHECKPOINT


class DamagedCheckpoint(M7bError):
    """A checkpoint that is truncated, contradicts itself or fails its checksum."""

    exit_code = ExitCode.DAMAGED


class OutOfResources(M7bError):
    """Not enough memory or disk, or no such device."""

    exit_code = ExitCode.RESOURCES


class ContextOverflow(M7bError):
    """The prompt does not fit the context."""

    exit_code = ExitCode.PROMPT_TOO_LONG


class SomeFailed(M7bError):
    """A batch ended, and some of its lines failed."""

    exit_code = ExitCode.SOME_FAILED


class TooSlow(M7bError):
    """A benchmark ended, slower than was allowed."""

    exit_code = ExitCode.TOO_SLOW


class NoServer(M7bError):
    """There is no server where one was expected, or it ended in the middle of an answer."""

    exit_code = ExitCode.NO_SERVER


def _printable(text: str, limit: int = 600) -> str:
    """Escape control characters, and leave out the middle of a very long text."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"
