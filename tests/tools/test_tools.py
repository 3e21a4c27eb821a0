"""Tools in Python and JSON files: what is refused, and what a hostile file cannot do."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from m7b.errors import UsageError
from m7b.tools import Toolbox
from tests.support.memory import peak_of
from tests.support.tool_files import MARK, marked, value_of, wait_until, write, write_json

IDLE = '''
def fine() -> str:
    """Answer."""
    return "fine"
'''


@pytest.fixture
def mark(monkeypatch):
    """A mark in the environment of all that the test starts, of which nothing may be left in the end."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    yield mark
    deadline = time.monotonic() + 5
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)  # what was killed is there until the system has noticed
    for process in left:
        process.kill()
    assert left == []


def acting(body, name="act"):
    """A tool file with one function of `body`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f'def {name}() -> str:\n    """Act."""\n    import os, sys, time\n{lines}\n'


@pytest.fixture
def act(tmp_path, mark):
    """A function that runs a body of Python as a tool, in half a second, and then a quiet tool."""

    def act(body, *, time_limit=0.5):
        with Toolbox(time_limit=time_limit) as toolbox:
            toolbox.load(write(tmp_path, acting(body) + IDLE))
            result = toolbox.call("act", {})
            assert toolbox.call("fine", {}).content == "fine"
            return result

    return act


# hostile tools

TO_ALL_PIPES = """
for descriptor in range(3, 30):
    try:
        os.write(descriptor, DATA)
    except OSError:
        pass
time.sleep(60)
"""
HOSTILE = {
    "hangs": ("time.sleep(60)", "longer than 0.5 seconds"),
    "spins": ("while True: pass", "longer than 0.5 seconds"),
    "holds the GIL": ("import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", "longer than 0.5 seconds"),
    "ignores SIGTERM": (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "longer than 0.5 seconds",
    ),
    "floods stdout": ("while True: print('x' * 100_000)", "longer than 0.5 seconds"),
    "floods stderr": ("while True: os.write(2, b'x' * 100_000)", "longer than 0.5 seconds"),
    "awaits for ever": (
        "import asyncio\nasync def wait(): await asyncio.sleep(60)\nreturn wait()",
        "longer than 0.5 seconds",
    ),
    "exits at once": ("os._exit(3)", "ended with exit code 3"),
    "exits with success": ("os._exit(0)", "ended with exit code 0"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", "died of SIGSEGV"),
    "aborts": ("os.abort()", "died of SIGABRT"),
    "kills itself": ("os.kill(os.getpid(), 9)", "closed its pipes or was killed"),
    "closes its pipes": ("os.closerange(3, 64); time.sleep(60)", "closed its pipes or was killed"),
    "writes garbage": (TO_ALL_PIPES.replace("DATA", r"b'garbage\n'"), "no answer"),
    "writes bytes": (TO_ALL_PIPES.replace("DATA", r"b'\xff\xfe\x00\n'"), "no answer"),
    "writes deep JSON": (TO_ALL_PIPES.replace("DATA", r"b'[' * 5_000 + b'\n'"), "no answer"),
    "writes other JSON": (TO_ALL_PIPES.replace("DATA", r"b'[]\n'"), "no answer"),
    "answers another call": (
        TO_ALL_PIPES.replace("DATA", r"""b'{"id":9,"content":"","is_error":false,"left_out":0}\n'"""),
        "no answer",
    ),
    "answers twice": (
        TO_ALL_PIPES.replace("DATA", r"""2 * b'{"id":1,"content":"","is_error":false,"left_out":0}\n'"""),
        "no answer",
    ),
    "writes without end": (
        "while True:\n"
        "    for descriptor in range(3, 30):\n"
        "        try: os.write(descriptor, b'x' * 60_000)\n"
        "        except OSError: pass",
        "wrote without end",
    ),
    "starts a program": ("import subprocess; subprocess.run(['sleep', '60'])", "longer than"),
    "starts a session": (
        "import subprocess; subprocess.run(['sleep', '60'], start_new_session=True)",
        "longer than",
    ),
    "forks": ("for _ in range(4): os.fork()\ntime.sleep(60)", "longer than"),
    "leaves an orphan": (
        "if os.fork() == 0:\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\ntime.sleep(60)",
        "longer than",
    ),
    "dies, its child does not": (
        "if os.fork() == 0: time.sleep(60)\nelse: os._exit(4)",
        "ended with exit code 4",
    ),
    "raises": ("raise ValueError('no such city')", "ValueError: no such city"),
    "raises an error that cannot be told": (
        "class Sly(Exception):\n    def __str__(self): raise ValueError\nraise Sly",
        "Sly: <exception str() failed>",
    ),
    "exits politely": ("sys.exit('enough')", "SystemExit: enough"),
    "interrupts itself": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "recurses": ("f = lambda: f()\nf()", "RecursionError"),
    "reads the keyboard": ("input('Password: ')", "EOFError"),
    "returns deep JSON text": ("return '[' * 5_000", "JSON of more than 100 levels"),
    "returns JSON text of 101 levels": ("return '[' * 101 + ']' * 101", "JSON of more than 100 levels"),
    "returns a number nobody reads": ("return '1' * 5_000", "more digits than Python reads"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A toolbox with all hostile tools and a quiet one, and the mark of what it starts."""
    source = "".join(acting(body, f"act{index}") for index, (body, _) in enumerate(HOSTILE.values()))
    with pytest.MonkeyPatch.context() as patch, Toolbox(time_limit=0.5) as toolbox:
        patch.setenv(MARK, uuid.uuid4().hex)
        toolbox.load(write(tmp_path_factory.mktemp("hostile"), source + IDLE))
        yield toolbox, os.environ[MARK]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tool_is_an_error_result_and_the_next_call_works(name, hostile):
    toolbox, mark = hostile
    result = toolbox.call(f"act{list(HOSTILE).index(name)}", {})
    assert result.is_error
    assert HOSTILE[name][1] in result.content
    assert result.seconds < 10
    assert toolbox.call("fine", {}).content == "fine"
    assert len(marked(mark)) == 1, "the worker, and nothing that the tool started"


HARMLESS = {
    "a child that returns": "os.fork()\nreturn 'done'",
    "a child that returns with files open": (
        "child = os.fork()\n"
        "if child == 0: act.files = [open(os.devnull, 'w') for _ in range(30)]\n"
        "else: os.waitpid(child, 0)\n"
        "return 'done'"
    ),
    "a child that raises": "if os.fork() == 0: raise ValueError\nreturn 'done'",
    "a child that hangs": "if os.fork() == 0: time.sleep(60)\nreturn 'done'",
    "a program in the background": "import subprocess; subprocess.Popen(['sleep', '60'])\nreturn 'done'",
    "a closed stdout": "sys.stdout.close(); sys.stderr.close()\nreturn 'done'",
    "closed descriptors": "os.close(1); os.close(2)\nreturn 'done'",
    "a thread": "import threading as t; t.Thread(target=time.sleep, args=(60,)).start()\nreturn 'done'",
    "a megabyte printed": "print('x' * 1_000_000)\nreturn 'done'",
}


@pytest.mark.parametrize("body", HARMLESS.values(), ids=HARMLESS)
def test_a_tool_may_leave_mess_behind_and_answer(body, act):
    result = act(body, time_limit=20)
    assert (result.content, result.is_error) == ("done", False)


def test_what_a_tool_prints_does_not_fill_our_memory(act):
    assert peak_of(lambda: act("while True: os.write(1, b'x' * 1_000_000)")) < 2_000_000


def test_nothing_that_a_tool_prints_reaches_our_terminal(act, capfd):
    act("print('\\x1b[2J loud'); os.write(2, b'louder')\nopen('/dev/tty', 'w').write('loudest')")
    assert capfd.readouterr() == ("", "")


def test_the_last_line_printed_is_quoted_without_control_bytes(act):
    result = act(r"os.write(2, b'first\n\x1b[31mAssertion\x1b[0m\x07 failed\n\n'); os._exit(1)")
    assert result.content.endswith("exit code 1; the last it printed: Assertion failed")


def test_each_worker_has_a_session_of_its_own_which_ctrl_c_does_not_reach(act):
    session, group, process = value_of(act("return [os.getsid(0), os.getpgid(0), os.getpid()]"))
    assert session == group == process


def test_a_tool_has_our_environment_and_working_directory(act, mark, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert value_of(act(f"return [os.getcwd(), os.environ['{MARK}']]")) == [str(tmp_path), mark]


def test_a_file_keeps_its_variables_between_calls(tmp_path):
    source = 'CALLS = []\ndef count() -> int:\n    """Count."""\n    CALLS.append(1)\n    return len(CALLS)\n'
    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path, source))
        assert [toolbox.call("count", {}).content for _ in range(3)] == ["1", "2", "3"]


def test_modules_in_the_way_are_not_taken_for_pythons_own(tmp_path, monkeypatch):
    for name in ("types.py", "json.py", "pydantic.py"):
        write(tmp_path, "raise SystemExit('wrong module')", name)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "ANSWER = 42", "beside.py")
    source = 'import beside\ndef ask() -> int:\n    """Ask."""\n    return beside.ANSWER\n'
    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path, source))
        assert toolbox.call("ask", {}).content == "42"


def test_closing_ends_the_workers(tmp_path, mark):
    toolbox = Toolbox()
    toolbox.load(write(tmp_path, IDLE))
    assert len(marked(mark)) == 1
    toolbox.close()
    assert marked(mark) == []
    assert toolbox.call("fine", {}).is_error


def test_a_worker_does_not_outlive_m7b_whatever_it_is_doing(tmp_path, mark):
    source = (
        'def hang() -> str:\n    """Hang."""\n    import subprocess\n    subprocess.run(["sleep", "60"])\n'
    )
    program = "import sys; from pathlib import Path; from m7b.tools import Toolbox; box = Toolbox()\n"
    program += "box.load(Path(sys.argv[1])); box.call('hang', {})"
    with subprocess.Popen([sys.executable, "-c", program, write(tmp_path, source)]) as process:
        assert wait_until(lambda: len(marked(mark)) == 3)
        process.kill()
    assert wait_until(lambda: marked(mark) == [])


def test_ctrl_c_stops_the_tool_and_not_the_chat(tmp_path, mark):
    started = tmp_path / "started"
    source = f'''
import time

def nap() -> str:
    """Nap."""
    open({str(started)!r}, "w")
    time.sleep(60)
'''

    def interrupt():
        wait_until(started.exists)
        os.kill(os.getpid(), signal.SIGINT)

    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path, source + IDLE))
        thread = threading.Thread(target=interrupt)
        thread.start()
        result = toolbox.call("nap", {})
        thread.join()
        assert (result.content, result.is_error) == ("stopped by the user", True)
        assert marked(mark) == []
        assert toolbox.call("fine", {}).content == "fine"


# loading


def test_only_what_is_offered_is_called(tmp_path):
    source = IDLE + "def _private(): raise SystemExit\nfrom os import getpid\n"
    with Toolbox() as toolbox:
        assert [tool.name for tool in toolbox.load(write(tmp_path, source))] == ["fine"]
        for name in ("_private", "getpid", "os", "fine.__call__", "", "__import__"):
            assert toolbox.call(name, {}).content == f"there is no tool {name}; there are: fine"


@pytest.mark.parametrize(
    ("source", "told"),
    {
        "syntax": ("def f(:\n", "tool.py: SyntaxError: invalid syntax (tool.py, line 1)"),
        "raises": ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        "exits": ("raise SystemExit('bye')", "tool.py: SystemExit: bye"),
        "dies": ("import os; os._exit(5)", "tool.py: its process ended with exit code 5"),
        "prints and dies": ("import os; os.write(2, b'why\\n'); os._exit(5)", "the last it printed: why"),
        "hangs": ("import time; time.sleep(60)", "it took longer than 2 seconds and was stopped"),
        "garbage": (
            "import os\nfor d in range(3, 9):\n    try: os.write(d, b'{}\\n')\n    except OSError: pass",
            "no ",
        ),
        "is empty": ("", "tool.py: it defines no function without a leading _"),
        "is a NUL": ("\0", "null bytes"),
    }.values(),
    ids=lambda value: value[:20],
)
def test_a_file_that_cannot_be_imported_is_refused_in_one_line(source, told, tmp_path, mark):
    with Toolbox(start_limit=2) as toolbox, pytest.raises(UsageError) as refused:
        toolbox.load(write(tmp_path, source))
    assert told in str(refused.value)
    assert str(refused.value).isprintable()
    assert toolbox.tools == []


@pytest.mark.parametrize("name", ["missing.py", ".", "tools.txt", "tools"])
def test_only_files_of_python_and_json_are_loaded(name, tmp_path):
    write(tmp_path, IDLE, "tools.txt")
    write(tmp_path, IDLE, "tools")
    with Toolbox() as toolbox, pytest.raises(UsageError, match=r"\.py or \.json"):
        toolbox.load(tmp_path / name)


def test_a_name_that_is_taken_is_refused_with_both_sources_and_nothing_else_is_offered(tmp_path, mark):
    first = write(tmp_path, IDLE, "first.py")
    second = write(tmp_path, 'def other() -> int:\n    """Other."""\n' + IDLE, "second.py")
    with Toolbox() as toolbox:
        tools = toolbox.load(first)
        with pytest.raises(UsageError, match=r"first\.py and second\.py both offer fine"):
            toolbox.load(second)
        assert toolbox.tools == tools
        assert len(marked(mark)) == 1


FUNCTION = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}
DESCRIBED = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize("value", [[DESCRIBED], {"tools": [DESCRIBED]}], ids=["list", "object"])
def test_a_json_file_offers_tools_that_have_no_code(value, tmp_path):
    with Toolbox() as toolbox:
        (tool,) = toolbox.load(write_json(tmp_path, value))
        assert tool.as_json() == DESCRIBED
        result = toolbox.call("look", {})
        assert result.is_error
        assert result.content == "look is described in tools.json, which holds no code"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({}, "no list of tools"),
        ([], "no list of tools"),
        ({"tools": [DESCRIBED], "model": 1}, "unknown key 'model'"),
        ([{"type": "function"}], "tool 1 is none"),
        ([DESCRIBED, FUNCTION], "tool 2 is none"),
        ([DESCRIBED | {"id": 1}], "tool 1: unknown key 'id'"),
        ([{"type": "function", "function": FUNCTION | {"returns": {}}}], "tool 1: unknown key 'returns'"),
        ([{"type": "function", "function": FUNCTION | {"name": "a b"}}], "'a b' cannot be the name"),
        ([{"type": "function", "function": FUNCTION | {"name": "x" * 65}}], "cannot be the name"),
        ([{"type": "function", "function": FUNCTION | {"name": "x\n"}}], "cannot be the name"),
        ([{"type": "function", "function": FUNCTION | {"name": None}}], "None cannot be the name"),
        (
            [{"type": "function", "function": FUNCTION | {"description": 3}}],
            "description of look must be text",
        ),
        ([{"type": "function", "function": FUNCTION | {"parameters": []}}], "parameters of look must be"),
        (
            [{"type": "function", "function": FUNCTION | {"parameters": {"type": "string"}}}],
            '"type": "object"',
        ),
        (
            [
                {
                    "type": "function",
                    "function": FUNCTION | {"parameters": {"type": "object", "properties": {"a": 1}}},
                }
            ],
            "property 'a' must be a schema",
        ),
        (
            [
                {
                    "type": "function",
                    "function": FUNCTION | {"parameters": {"type": "object", "required": [1]}},
                }
            ],
            '"required" must be a list of names',
        ),
        ([DESCRIBED, DESCRIBED], "both offer look"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_json_file_is_checked_strictly(value, told, tmp_path):
    with Toolbox() as toolbox, pytest.raises(UsageError) as refused:
        toolbox.load(write_json(tmp_path, value))
    assert told in str(refused.value)
    assert toolbox.tools == []


@pytest.mark.parametrize("data", [b"[", b"\xff", b"[NaN]", b"[" * 5_000, b""], ids=repr)
def test_a_json_file_that_is_not_json_is_refused(data, tmp_path):
    file = tmp_path / "tools.json"
    file.write_bytes(data)
    with Toolbox() as toolbox, pytest.raises(UsageError, match=r"^tools\.json"):
        toolbox.load(file)


def test_strict_is_no_part_of_what_is_offered(tmp_path):
    strict = {"type": "function", "function": FUNCTION | {"strict": True}}
    with Toolbox() as toolbox:
        assert toolbox.load(write_json(tmp_path, [strict]))[0].as_json() == DESCRIBED


def test_importing_tools_imports_nothing_heavy():
    code = (
        "import sys, m7b.tools; print({'torch', 'pydantic', 'mcp', 'asyncio', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "set()\n"


def test_a_tool_file_is_never_imported_in_our_process(tmp_path):
    log = tmp_path / "log"
    source = f"import os\nprint(os.getpid(), file=open({str(log)!r}, 'a'))\n" + IDLE
    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path, source))
        toolbox.call("fine", {})
    (pid,) = log.read_text().split()
    assert int(pid) != os.getpid()
