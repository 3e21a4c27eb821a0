"""Tools of Model Context Protocol servers: a good one, several, and servers that misbehave."""

import os
import signal
import subprocess
import sys
import threading
import uuid

import pytest

from m7b.errors import UsageError
from m7b.tools import Toolbox
from tests.support.tool_files import MARK, marked, value_of, wait_until, write, write_json

SERVER = '''
import asyncio, os, sys
import mcp_types as types
from mcp.server import Server
from mcp.server.stdio import stdio_server

NAMES = [*sys.argv[1:], "text", "image", "both", "wrong", "error", "die", "hang", "flood", "files.read"]
print("\\x1b[31mnoise\\x1b[0m", file=sys.stderr, flush=True)

async def list_tools(ctx, params):
    """Two tools a page."""
    start = int(params.cursor or 0) if params else 0
    schema = {"type": "object", "title": "A", "properties": {"title": {"type": "string", "title": "T"}}}
    tools = [types.Tool(name=name, description=f"Do {name}.", input_schema=schema) for name in NAMES]
    more = str(start + 2) if start + 2 < len(NAMES) else None
    return types.ListToolsResult(tools=tools[start:start + 2], next_cursor=more)

async def call_tool(ctx, params):
    text = types.TextContent(text="one")
    match params.name:
        case "text":
            return types.CallToolResult(content=[text, types.TextContent(text="zwei 😀")])
        case "image":
            image = types.ImageContent(data="aGk=", mime_type="image/png")
            link = types.ResourceLink(name="l", uri="file:///l")
            held = types.TextResourceContents(uri="file:///t", text="held")
            resource = types.EmbeddedResource(resource=held)
            return types.CallToolResult(content=[text, image, link, resource])
        case "both":
            return types.CallToolResult(content=[text], structured_content={"zwei": [1, 2.5, None, "😀"]})
        case "wrong":
            return types.CallToolResult(content=[types.TextContent(text="no such city")], is_error=True)
        case "error":
            raise ValueError("private")
        case "die":
            os._exit(3)
        case "hang":
            open(os.environ["STARTED"], "w").close()
            await asyncio.sleep(60)
        case "flood":
            os.write(2, b"x" * 3_000_000)
            return types.CallToolResult(content=[types.TextContent(text="x" * 100_000)])
        case name:
            return types.CallToolResult(content=[types.TextContent(text=f"{name} of {os.getcwd()}")])

async def main():
    server = Server("test", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

asyncio.run(main())
'''


@pytest.fixture
def mark():
    """A mark for the environment of servers, of which nothing may be left in the end."""
    mark = uuid.uuid4().hex
    yield mark
    left = marked(mark)
    for process in left:
        process.kill()
    assert left == []


def config(folder, mark, **servers):
    """A config file; a server is the source of a Python program, or its entry in the file."""
    entries = {}
    for name, entry in servers.items():
        if isinstance(entry, str):
            entry = {"args": [str(write(folder, entry, f"{name}.py"))]}
        entries[name] = {"command": sys.executable, "env": {MARK: mark}} | entry
    return write_json(folder, {"mcpServers": entries}, "mcp.json")


@pytest.fixture(scope="module")
def toolbox(tmp_path_factory):
    """A toolbox with the tools of SERVER, of which calls take at most a second."""
    mark = uuid.uuid4().hex
    folder = tmp_path_factory.mktemp("mcp")
    entry = {"args": [str(write(folder, SERVER))], "env": {MARK: mark, "STARTED": str(folder / "started")}}
    with Toolbox(time_limit=1, output_limit=1_000) as toolbox:
        toolbox.load_mcp(config(folder, mark, test=entry))
        yield toolbox
    assert marked(mark) == []


def test_all_pages_of_tools_are_offered_with_plain_schemas(toolbox):
    names = ["text", "image", "both", "wrong", "error", "die", "hang", "flood", "files_read"]
    assert [tool.name for tool in toolbox.tools] == names
    tool = toolbox.tools[0]
    assert (tool.description, tool.source) == ("Do text.", "mcp:test")
    assert tool.parameters == {"type": "object", "properties": {"title": {"type": "string"}}}


@pytest.mark.parametrize(
    ("name", "content", "is_error"),
    [
        ("text", "one\nzwei 😀", False),
        ("image", "one\n[image left out]\n[link to file:///l]\nheld", False),
        ("both", '{"zwei": [1, 2.5, null, "😀"]}', False),
        ("wrong", "no such city", True),
        ("flood", "x" * 1_000 + "\n[99000 more characters left out]", False),
    ],
)
def test_a_result_is_its_structured_content_or_its_texts(name, content, is_error, toolbox):
    result = toolbox.call(name, {})
    assert (result.content, result.is_error) == (content, is_error)


def test_a_tool_is_called_by_the_name_that_its_server_knows(toolbox):
    assert toolbox.call("files_read", {}).content.startswith("files.read of ")


def test_an_error_of_the_protocol_is_an_error_result(toolbox):
    result = toolbox.call("error", {})
    assert result.is_error
    assert result.content.startswith("error failed: ")


def test_a_call_that_hangs_ends_in_time_and_the_server_lives_on(toolbox):
    result = toolbox.call("hang", {})
    assert (result.content, result.is_error) == ("hang failed: it took longer than 1 seconds", True)
    assert result.seconds < 10
    assert toolbox.call("text", {}).content == "one\nzwei 😀"


def test_ctrl_c_stops_the_call_and_the_server_lives_on(tmp_path, mark):
    started = tmp_path / "started"

    def interrupt():
        wait_until(started.exists)
        os.kill(os.getpid(), signal.SIGINT)

    entry = {"args": [str(write(tmp_path, SERVER))], "env": {MARK: mark, "STARTED": str(started)}}
    with Toolbox() as toolbox:
        toolbox.load_mcp(config(tmp_path, mark, test=entry))
        thread = threading.Thread(target=interrupt)
        thread.start()
        result = toolbox.call("hang", {})
        thread.join()
        text = toolbox.call("text", {})
    assert (result.content, result.is_error) == ("stopped by the user", True)
    assert text.content == "one\nzwei 😀"


def test_a_server_that_dies_is_an_error_result_from_then_on(tmp_path, mark):
    with Toolbox() as toolbox:
        toolbox.load_mcp(config(tmp_path, mark, test=SERVER))
        for name in ("die", "text"):
            result = toolbox.call(name, {})
            assert result.is_error
            assert result.content.startswith(f"{name} failed: ")
            assert result.seconds < 10
        assert wait_until(lambda: marked(mark) == [])


def test_names_that_servers_share_get_the_servers_name_in_front(tmp_path, mark):
    shared = {
        name: {"args": [str(write(tmp_path, SERVER, "s.py")), "own_" + name], "cwd": "."} for name in "ab"
    }
    with Toolbox() as toolbox:
        tools = toolbox.load_mcp(config(tmp_path, mark, **shared))
        assert [tool.name for tool in tools[:2]] == ["own_a", "a_text"]
        assert {"own_b", "b_text", "b_files_read"} < {tool.name for tool in tools}
        assert toolbox.call("own_b", {}).content == f"own_b of {tmp_path}"
        assert len(marked(mark)) == 2


def test_nothing_that_a_server_prints_reaches_our_terminal(tmp_path, mark):
    """In a process of its own: where pytest has its handlers, the SDK's log does not fall back to stderr."""
    source = "print('no JSON', flush=True)\nimport sys; sys.stderr.write('noise')\n" + SERVER
    program = "import sys; from pathlib import Path; from m7b.tools import Toolbox\n"
    program += "with Toolbox() as box: box.load_mcp(Path(sys.argv[1])); box.call('die', {})"
    command = [sys.executable, "-c", program, str(config(tmp_path, mark, test=source))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("entry", "told"),
    {
        "dies": ("import os; os.write(2, b'reason\\n'); os._exit(3)", "the last it printed: reason"),
        "raises": ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        "ends politely": ("", "the server did not start"),
        "is not there": ({"command": "/nothing/of/this/name"}, "No such file or directory"),
        "has no folder": ({"cwd": "nowhere"}, "No such file or directory"),
    }.values(),
    ids=lambda value: str(value)[:20],
)
def test_a_server_that_does_not_start_is_refused_in_one_line(entry, told, tmp_path, mark, capfd):
    with Toolbox() as toolbox, pytest.raises(UsageError) as refused:
        toolbox.load_mcp(config(tmp_path, mark, bad=entry))
    assert str(refused.value).startswith("mcp:bad: the server did not start: ")
    assert told in str(refused.value)
    assert str(refused.value).isprintable()
    assert capfd.readouterr() == ("", "")


def test_a_server_that_never_answers_and_ignores_every_hint_is_killed(tmp_path, mark, capfd):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: print('garbage')"
    with Toolbox(start_limit=1) as toolbox, pytest.raises(UsageError, match="longer than 1 seconds"):
        toolbox.load_mcp(config(tmp_path, mark, deaf=deaf))
    assert marked(mark) == []
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_while_a_server_starts_ends_the_server(tmp_path, mark):
    def interrupt():
        wait_until(lambda: marked(mark))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with Toolbox() as toolbox:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            toolbox.load_mcp(config(tmp_path, mark, slow="import time; time.sleep(60)"))
    thread.join()
    assert marked(mark) == []


def test_when_one_server_fails_the_others_are_ended(tmp_path, mark):
    with Toolbox() as toolbox:
        with pytest.raises(UsageError, match="mcp:bad"):
            toolbox.load_mcp(config(tmp_path, mark, good=SERVER, bad=""))
        assert toolbox.tools == []
        assert marked(mark) == []


def test_a_name_that_a_file_offers_is_refused_and_the_server_ended(tmp_path, mark):
    with Toolbox() as toolbox:
        (tool,) = toolbox.load(write(tmp_path, 'def text():\n    """Text."""\n'))
        with pytest.raises(UsageError, match=r"tool\.py and mcp:test both offer text"):
            toolbox.load_mcp(config(tmp_path, mark, test=SERVER))
        assert toolbox.tools == [tool]
        assert marked(mark) == []
        assert value_of(toolbox.call("text", {})) is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "no servers"),
        ({}, "no servers"),
        ({"mcpServers": []}, "no servers"),
        ({"mcpServers": {}}, "no server in it is enabled"),
        ({"mcpServers": {"a": {"command": "x", "disabled": True}}}, "no server in it is enabled"),
        ({"mcpServers": {"a": "x"}}, "server 'a' must be an object"),
        ({"mcpServers": {"a": {}}}, "server 'a' has no command"),
        ({"mcpServers": {"a": {"command": ["x"]}}}, "server 'a' has no command"),
        ({"mcpServers": {"a": {"command": "x", "args": "y"}}}, "args must be a list of strings"),
        ({"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}, "env must be an object of strings"),
        ({"mcpServers": {"a": {"command": "x", "cwd": 1}}}, "cwd must be a path"),
        ({"mcpServers": {"a": {"command": "x\0"}}}, "NUL"),
    ],
)
def test_a_config_that_starts_nothing_is_refused(value, told, tmp_path):
    with Toolbox() as toolbox, pytest.raises(UsageError) as refused:
        toolbox.load_mcp(write_json(tmp_path, value, "mcp.json"))
    assert told in str(refused.value)


@pytest.mark.parametrize("data", [None, b"{", b"\xff"])
def test_a_config_that_cannot_be_read_is_refused(data, tmp_path):
    file = tmp_path / "mcp.json"
    if data is not None:
        file.write_bytes(data)
    with Toolbox() as toolbox, pytest.raises(UsageError, match=r"mcp\.json"):
        toolbox.load_mcp(file)
