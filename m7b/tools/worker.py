"""The process that runs the tools of one Python file: `python -m m7b.tools.worker REQUESTS REPLIES FILE`.

REQUESTS and REPLIES are descriptors of two pipes with one JSON object a line. The first reply describes the
file. The other end trusts nothing here: the file shares this process and can do with it what it likes.
"""

import inspect
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from m7b.tools.describe import Function, Refused, find_functions
from m7b.tools.tool import CallOutcome, cut
from m7b.tools.values import NotJson, format_value


def main(arguments: list[str]) -> None:
    """Import the file, describe it, and answer calls until m7b hangs up."""
    requests, replies = (int(argument) for argument in arguments[:2])
    owner = os.getpid()
    for end in (requests, replies):
        os.set_inheritable(end, False)
        # So m7b notices when this process dies.
        os.register_at_fork(after_in_child=lambda end=end: os.close(end))

    def send(reply: dict[str, Any]) -> None:
        if os.getpid() != owner:  # a tool forked, and its child came back from the call
            os._exit(0)
        data = json.dumps(reply).encode() + b"\n"
        while data:
            data = data[os.write(replies, data) :]

    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()
    try:
        functions = find_functions(_import_file(Path(arguments[2])))
        described = [
            {"name": f.name, "description": f.description, "parameters": f.parameters}
            for f in functions.values()
        ]
        send({"id": 0, "tools": described})
    except BaseException as error:  # noqa: BLE001 - the file may raise anything, SystemExit included
        send({"id": 0, "error": str(error) if isinstance(error, Refused) else format_error(error)})
        return
    while True:
        request = json.loads(lines.get())
        answer = _run_call(functions, request)
        content, left_out = cut(answer.content, request["limit"])
        send({"id": request["id"], "content": content, "is_error": answer.is_error, "left_out": left_out})


def format_error(error: BaseException) -> str:
    """Format the last lines of the traceback of `error`."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"  # unlike others, it says in its message where
    return "".join(traceback.format_exception_only(error)).strip()


def _run_call(functions: Mapping[str, Function], request: dict[str, Any]) -> CallOutcome:
    """Run one call; whatever the function raises becomes an outcome."""
    function = functions.get(request["name"])
    if function is None:
        return CallOutcome(f"there is no longer a function {request['name']}", is_error=True)
    try:
        return CallOutcome(format_value(_await_result(function.call(request["arguments"]))))
    except Refused as error:
        return CallOutcome(str(error), is_error=True)
    except NotJson as error:
        message = f"{function.name} returned {error}; a tool can return JSON values and text"
        return CallOutcome(message, is_error=True)
    except BaseException as error:  # noqa: BLE001 - a tool may raise anything, SystemExit included
        return CallOutcome(format_error(error), is_error=True)


def _await_result(value: Any) -> Any:
    """Run a coroutine to its end and return its result; return any other value as it is."""
    if not inspect.iscoroutine(value):
        return value
    import asyncio

    return asyncio.run(value)


def _import_file(file: Path) -> ModuleType:
    """Import `file` as a module under a name that hides no other module.

    Its folder comes last on the path: it can import a `helper.py` beside it, and a `types.py` there hides
    none of Python's modules.
    """
    module = ModuleType(f"tools_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    sys.path.append(str(file.parent))
    sys.argv = [str(file)]
    exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), vars(module))
    return module


def _read(requests: int, lines: "SimpleQueue[bytes]") -> None:
    """Put lines that arrive into the queue; when m7b has gone, kill this process and all that it started."""
    received = b""
    while data := os.read(requests, 65_536):
        *whole, received = (received + data).split(b"\n")
        for line in whole:
            lines.put(line)
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
