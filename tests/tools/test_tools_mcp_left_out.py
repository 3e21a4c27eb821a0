"""What cannot be used of MCP servers is left out with a line each, and stops nothing, unless it must not."""

import json
import sys

import pytest

from m7b.errors import UsageError
from m7b.tools import Toolbox
from tests.support.chat_home import ChatHome
from tests.support.mcp_servers import LISTS_ANYTHING
from tests.support.tiny import call
from tests.support.tool_files import write, write_json

OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}
GOOD = {"name": "good", "inputSchema": OBJECT}


def offers(folder, tools):
    """The entry of a server that lists `tools`, or knows no list for None."""
    program = write(folder, LISTS_ANYTHING, "raw.py")
    return {"command": sys.executable, "args": [str(program), json.dumps(tools)]}


def load(folder, *, is_strict=False, start_limit=20.0, **entries):
    """Load servers by their entries; returns the names of the offered tools, and the lines."""
    file = write_json(folder, {"mcpServers": entries}, "mcp.json")
    with Toolbox(start_limit=start_limit) as toolbox:
        toolbox.load_mcp(file, is_strict=is_strict, is_enforced=True)
        return [tool.name for tool in toolbox.tools], [str(fault) for fault in toolbox.left_out]


def bad(name="bad", **parts):
    return {"name": name, "inputSchema": OBJECT} | parts


def takes(**schema):
    return bad(inputSchema={"type": "object"} | schema)


BAD_TOOLS = {
    "properties null": takes(properties=None),
    "a property null": takes(properties={"a": None}),
    "properties a list": takes(properties=[]),
    "required among properties": takes(properties={"a": {"type": "string"}, "required": ["a"]}),
    "required in a property": takes(properties={"a": {"type": "string", "required": True}}),
    "required true": takes(properties={}, required=True),
    "required null": takes(properties={}, required=None),
    "required numbers": takes(properties={}, required=[1]),
    "no type": bad(inputSchema={"properties": {}}),
    "empty schema": bad(inputSchema={}),
    "another type": bad(inputSchema={"type": "array"}),
    "schema null": bad(inputSchema=None),
    "schema absent": {"name": "bad"},
    "unknown type": takes(properties={"a": {"type": "strin"}}),
    "reference to nothing": takes(properties={"a": {"$ref": "#/nowhere"}}),
    "cannot be enforced": takes(properties={"a": {"type": "array", "uniqueItems": True}}),
    "description no text": bad(description=5),
}


@pytest.mark.parametrize("tool", BAD_TOOLS.values(), ids=BAD_TOOLS)
def test_one_bad_tool_is_left_out_with_a_line_that_names_it_and_its_server(tool, tmp_path):
    names, (line,) = load(tmp_path, some=offers(tmp_path, [tool, GOOD]))
    assert names == ["good"]
    assert line.startswith("mcp:some: the tool bad: ")
    with pytest.raises(UsageError, match="mcp:some: the tool bad: "):
        load(tmp_path, is_strict=True, some=offers(tmp_path, [tool, GOOD]))


@pytest.mark.parametrize("tool", [{"inputSchema": OBJECT}, bad(name=""), bad(name=None), 5, None])
def test_a_tool_without_a_name_is_left_out(tool, tmp_path):
    assert load(tmp_path, some=offers(tmp_path, [tool, GOOD])) == (
        ["good"],
        ["mcp:some: one of its tools has no name"],
    )


@pytest.mark.parametrize("parts", [{"outputSchema": 5}, {"annotations": "x"}, {"icons": 1}, {"title": 1}])
def test_faults_in_what_is_not_used_cost_no_tool(parts, tmp_path):
    assert load(tmp_path, some=offers(tmp_path, [GOOD | parts])) == (["good"], [])


@pytest.mark.parametrize(
    ("first", "second", "offered"),
    [
        ("a.b", "a/b", "a_b"),
        ("a_b", "a b", "a_b"),
        ("x", "x", "x"),
        ("y" * 64 + "1", "y" * 64 + "2", "y" * 64),
    ],
    ids=["a.b a/b", "a_b a b", "twice", "long"],
)
def test_of_names_that_become_one_the_first_is_offered(first, second, offered, tmp_path):
    entry = offers(tmp_path, [bad(first), bad(second)])
    names, (line,) = load(tmp_path, some=entry)
    assert names == [offered]
    assert f"the tool {second}: " in line
    with Toolbox() as toolbox:
        toolbox.load_mcp(write_json(tmp_path, {"mcpServers": {"some": entry}}), is_strict=False)
        assert toolbox.call(offered, {}).content == first


def test_a_name_that_a_file_offers_costs_one_tool(tmp_path):
    file = write_json(tmp_path, {"mcpServers": {"some": offers(tmp_path, [GOOD, bad("other")])}}, "mcp.json")
    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path, 'def good():\n    """Good."""\n'))
        assert [tool.name for tool in toolbox.load_mcp(file, is_strict=False)] == ["other"]
        assert str(toolbox.left_out[0]).startswith("tool.py and mcp:some both offer good")


BAD_SERVERS = {
    "missing": ({"command": "/nothing/of/this/name"}, "mcp:bad: the server did not start: No such file"),
    "dies": ({"command": "sh", "args": ["-c", "echo why >&2; exit 3"]}, "the last it printed: why"),
    "ends": ({"command": "true"}, "mcp:bad: the server did not start"),
    "hangs": (
        {"command": "sleep", "args": ["60"]},
        "mcp:bad: the server did not start: it took longer than 3",
    ),
    "refused": (
        {"url": "http://127.0.0.1:9/mcp?key=secret"},
        "mcp:bad: no connection to http://127.0.0.1:9/mcp: ",
    ),
    "no command": ({}, "server 'bad' has no command"),
    "no object": ("npx", "server 'bad' must be an object"),
    "unknown type": ({"type": "ws", "url": "ws://x"}, "server 'bad': m7b knows no type 'ws'"),
    "variable": ({"command": "x", "env": {"A": "${M7B_NO_SUCH}"}}, "the variable M7B_NO_SUCH is not set"),
}


@pytest.mark.parametrize(("entry", "told"), BAD_SERVERS.values(), ids=BAD_SERVERS)
def test_one_bad_server_is_left_out_with_a_line(entry, told, tmp_path):
    names, (line,) = load(tmp_path, start_limit=3, bad=entry, some=offers(tmp_path, [GOOD]))
    assert names == ["good"]
    assert told in line
    assert "secret" not in line
    with pytest.raises(UsageError, match="bad"):
        load(tmp_path, is_strict=True, start_limit=3, bad=entry, some=offers(tmp_path, [GOOD]))


@pytest.mark.parametrize("tools", [None, []])
def test_a_server_without_tools_is_left_out(tools, tmp_path):
    names, lines = load(tmp_path, bare=offers(tmp_path, tools), some=offers(tmp_path, [GOOD]))
    assert (names, lines) == (["good"], ["mcp:bare: the server offers no tools"])


def test_variables_are_filled_in_and_errors_do_not_show_them(tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_TEST_KEY", "secret")
    script = 'echo "$A $B" >&2; exit 1'
    env = {"A": "${M7B_TEST_KEY:-x}${M7B_NO_SUCH:-y}", "B": "${env:M7B_TEST_KEY}"}
    _, (line,) = load(tmp_path, some={"command": "sh", "args": ["-c", script], "env": env})
    assert "the last it printed: secrety secret" in line
    _, (line,) = load(tmp_path, some={"command": "false", "args": ["${M7B_TEST_KEY}"]})
    assert "try its command: false ${M7B_TEST_KEY}" in line
    assert "secret" not in line


@pytest.mark.parametrize("entry", [{"command": "/nothing"}, "bad tool"], ids=str)
def test_a_chat_goes_on_without_a_server_and_says_so_in_one_line(entry, tmp_path):
    home = ChatHome(tmp_path)
    entry = offers(tmp_path, [BAD_TOOLS["cannot be enforced"]]) if entry == "bad tool" else entry
    write_json(home.work, {"mcpServers": {"files": entry}}, "mcp.json")
    ran = home.ask("--mcp", "mcp.json", "hi")
    assert (ran.code, ran.out) == (0, "echo: hi\n")
    assert ran.err.startswith("m7b: left out mcp:files: the ")
    assert ran.err.count("\n") == 1
    ran = home.ask("--strict", "--mcp", "mcp.json", "hi")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("m7b: mcp:files: the ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("choice", ["any", "good"])
def test_a_call_that_is_demanded_needs_a_tool(choice, tmp_path):
    write_json(tmp_path, {"mcpServers": {"files": {"command": "/nothing"}}}, "mcp.json")
    command = ["complete", "--chat", "hi", "--mcp", str(tmp_path / "mcp.json"), "--tool-choice", choice]
    ran = call(*command)
    assert ran.code == 2
    assert f"--tool-choice {choice}: there are no tools" in ran.err
