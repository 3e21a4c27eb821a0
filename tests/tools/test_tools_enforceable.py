"""Tools whose schemas no grammar enforces: left out with a line, or refused by their own name."""

import json

import pytest

import m7b
from m7b.errors import UsageError
from m7b.tools import Toolbox, keep_enforceable
from tests.support.call_templates import CALL_TEMPLATES
from tests.support.fine_tunes import write_fine_tune
from tests.support.tool_files import write


def make_tool(name, **properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


GOOD = make_tool("good", n={"type": "integer", "format": "int64"})
BAD = make_tool("bad", tags={"type": "array", "items": {"type": "string"}, "uniqueItems": True})
BARE = make_tool("good")


def test_one_bad_tool_among_many_is_left_out_with_a_line():
    kept, (line,) = keep_enforceable([GOOD, BAD], demanded="auto")
    assert kept == [GOOD]
    assert line.startswith("left out the tool bad: the schema's keyword 'uniqueItems' cannot be enforced")
    assert "#/properties/tags/uniqueItems" in line
    assert "give its items an enum" in line
    assert "--no-constrain" in line


@pytest.mark.parametrize(("tools", "demanded"), [([GOOD, BAD], "bad"), ([BAD], "auto")])
def test_a_bad_tool_that_is_demanded_or_alone_is_refused_by_its_name(tools, demanded):
    with pytest.raises(UsageError, match=r"the tool bad: .*'uniqueItems'.*#/properties/tags"):
        keep_enforceable(tools, demanded=demanded)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    return m7b.load(write_fine_tune(folder, CALL_TEMPLATES["hermes"], special=["<|im_start|>"]))


def ask(tools, **fields):
    return {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": tools,
        "max_tokens": 800,
        "seed": 1,
    } | fields


def test_requests_leave_out_a_bad_tool_by_the_same_rule(tiny):
    """A request with one bad tool among many was refused, in batches, by the server and in the library."""
    made = m7b.answer(tiny, ask([BAD, BARE], tool_choice="required"))
    called = {call["function"]["name"] for call in made["choices"][0]["message"]["tool_calls"]}
    assert called == {"good"}
    _, (line,) = keep_enforceable([BAD, BARE], demanded="auto")
    assert made["left_out"] == [line]
    alone = m7b.answer(tiny, ask([BARE], tool_choice="required"))
    assert alone["choices"][0]["token_ids"] == made["choices"][0]["token_ids"]
    assert "left_out" not in alone
    named = {"type": "function", "function": {"name": "bad"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    for choice in (named, allowed):
        with pytest.raises(UsageError, match="the tool bad"):
            m7b.answer(tiny, ask([BAD, BARE], tool_choice=choice))


def test_a_conversation_of_the_library_leaves_out_a_bad_tool_with_a_warning(tiny):
    with pytest.warns(UserWarning, match="left out the tool bad"):
        session = m7b.chat(tiny, tools=[BAD, BARE], tool_choice="any", max_tokens=800, seed=1)
    answer = m7b.ask(session, "Hi")
    assert {call["function"]["name"] for call in answer.extra["tool_calls"]} == {"good"}
    with pytest.raises(UsageError, match="the tool bad"):
        m7b.chat(tiny, tools=[BAD, BARE], tool_choice="bad")


def test_paths_and_sets_are_offered_as_the_docs_say(tmp_path):
    source = '''
    from pathlib import Path
    from decimal import Decimal
    def f(path: Path, tags: set[str], cost: Decimal = Decimal("0")):
        """F."""
        return sorted(tags)
    '''
    with Toolbox() as toolbox:
        tools = [tool.as_json() for tool in toolbox.load(write(tmp_path, source))]
        assert keep_enforceable(tools, demanded="f") == (tools, [])
        result = toolbox.call("f", {"path": "/tmp", "tags": ["b", "a", "b"]})
    assert json.loads(result.content) == ["a", "b"]
