"""What a tool returns as the model reads it: JSON kept faithfully, what is none refused, what is long cut."""

import pytest

from m7b.tools import Toolbox
from tests.support.tool_files import write

RETURNED = {
    "'sunny'": "sunny",
    "''": "",
    "'22'": "22",
    "'Zürich 😀\\n'": "Zürich 😀\n",
    "None": "null",
    "True": "true",
    "-7": "-7",
    "10**30": "1" + "0" * 30,
    "0.1": "0.1",
    "1e22": "1e+22",
    "-0.0": "-0.0",
    "[]": "[]",
    "'[' * 100 + ']' * 100": "[" * 100 + "]" * 100,
    "(1, 'two')": '[1, "two"]',
    "{'b': 1, 'a': [None, {'é': '😀'}]}": '{"b": 1, "a": [null, {"é": "😀"}]}',
    "{1: 'one', True and 2: 'two', False: 'no'}": '{"1": "one", "2": "two", "false": "no"}',
    "Colour.RED": '"red"',
    "[Colour.RED]": '["red"]',
    "Point(1, datetime.date(2024, 2, 29))": '{"x": 1, "day": "2024-02-29"}',
    "{'at': [Model(size=1.5)]}": '{"at": [{"Size": 1.5, "inner": null}]}',
    "Model(size=1, inner=Model(size=2))": '{"Size": 1.0, "inner": {"Size": 2.0, "inner": null}}',
    "chr(0xd800) + 'x'": "\ufffdx",
    "[chr(0xd83d) + chr(0xde00)]": '["😀"]',
}
REFUSED = {
    "b'abc'": "returned bytes;",
    "bytearray(3)": "returned bytearray;",
    "{1, 2}": "returned set;",
    "{'a': [0, {1}]}": "returned set at ['a'] at [1];",
    "float('nan')": "returned the number nan,",
    "[float('inf')]": "returned the number inf at [0],",
    "Point(float('nan'), None)": "returned the number nan at ['x'],",
    "Model(size=float('inf'))": "returned the number inf at ['Size'],",
    "object()": "returned object;",
    "print": "returned builtin_function_or_method;",
    "(n for n in 'abc')": "returned generator;",
    "Point": "returned type",
    "Point(object(), None)": "Point: Unable to serialize unknown type",
    "datetime.date(2024, 2, 29)": "returned datetime.date;",
    "{(1, 2): 3}": "returned a dict with tuple as a key",
    "{1.5: 3}": "returned a dict with float as a key",
    "{1: 'a', '1': 'b'}": "keys that are the same in JSON",
    "loop()": "contains itself",
    "10**5000": "a number that is too long",
}
VALUES = '''
import dataclasses, datetime, enum
from typing import Any
from pydantic import BaseModel, Field

class Colour(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Point:
    x: Any
    day: Any

class Model(BaseModel):
    size: float = Field(serialization_alias="Size")
    inner: "Model | None" = None

def loop():
    """Make a list that contains itself."""
    loop = []
    loop.append(loop)
    return loop

def value(source: str) -> Any:
    """Evaluate Python."""
    return eval(source)
'''


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path_factory.mktemp("values"), VALUES))
        yield lambda source: toolbox.call("value", {"source": source})


@pytest.mark.parametrize(("source", "content"), RETURNED.items())
def test_a_json_value_is_json_and_a_string_is_itself(source, content, values):
    result = values(source)
    assert (result.content, result.is_error) == (content, False)


@pytest.mark.parametrize(("source", "told"), REFUSED.items())
def test_what_is_no_json_is_an_error_that_names_its_type(source, told, values):
    result = values(source)
    assert result.is_error
    assert told in result.content


@pytest.fixture(scope="module")
def short_values(tmp_path_factory):
    with Toolbox(output_limit=10) as toolbox:
        toolbox.load(write(tmp_path_factory.mktemp("short"), VALUES))
        yield lambda source: toolbox.call("value", {"source": source})


@pytest.mark.parametrize("length", [9, 10, 11, 1_000_000])
@pytest.mark.parametrize("letter", ["x", "é", "😀", "\x00"])
def test_a_long_result_is_cut_between_characters_and_says_what_is_missing(length, letter, short_values):
    result = short_values(f"{letter!r} * {length}")
    more = f"\n[{length - 10} more characters left out]" if length > 10 else ""
    assert result.content == letter * min(length, 10) + more
    assert not result.is_error


def test_a_long_error_is_cut_too(short_values):
    result = short_values("1 / 0")
    assert result.is_error
    assert result.content == "ZeroDivisi\n[25 more characters left out]"
