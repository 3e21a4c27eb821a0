"""Tools whose schemas no grammar enforces: left out with a line, or refused by their own name."""

import json

import pytest

from m7b.errors import UsageError
from m7b.tools import Toolbox, keep_enforceable
from tests.support.tool_files import write


def make_tool(name, **properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


GOOD = make_tool("good", n={"type": "integer", "format": "int64"})
BAD = make_tool("bad", tags={"type": "array", "items": {"type": "string"}, "uniqueItems": True})


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
