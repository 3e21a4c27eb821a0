"""Functions as tools: the schema of each kind of parameter, the docstring, and what arrives at a call."""

import json

import jsonschema
import pytest

from m7b.errors import UsageError
from m7b.tools import Toolbox
from m7b.tools.schema import simplify_schema
from tests.support.tool_files import parameters_of, value_of, write

HEADER = '''
import dataclasses, datetime, decimal, enum, pathlib, uuid
from typing import Annotated, Any, Literal, Optional, TypedDict, Union
from pydantic import BaseModel, Field

class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"

@dataclasses.dataclass
class Point:
    """A place."""
    x: int
    y: int = 0

class Item(BaseModel):
    name: str
    title: Annotated[str, Field(title="Title of the title")] = ""

class Tree(BaseModel):
    value: int
    children: list["Tree"] = []

class Cat(BaseModel):
    kind: Literal["cat"]

class Dog(BaseModel):
    kind: Literal["dog"]

class Stub: ...
'''
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "default": 0}},
    "required": ["x"],
    "additionalProperties": False,
    "description": "A place.",
}
ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "title": {"type": "string", "default": ""}},
    "required": ["name"],
}
# the parameter as written: its schema, values that are taken, values that are not
PARAMETERS = {
    "p: str": ({"type": "string"}, ["", "é"], [1, None]),
    "p: int": ({"type": "integer"}, [1, -5], ["x", 1.5]),
    "p: float": ({"type": "number"}, [1, 1.5], ["x"]),
    "p: bool": ({"type": "boolean"}, [True], ["perhaps"]),
    "p: 'int'": ({"type": "integer"}, [1], ["x"]),
    "p: int = 3": ({"type": "integer", "default": 3}, [1], ["x"]),
    "p: str | None": ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["", None], [1]),
    "p: Optional[int] = None": (
        {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        [1, None],
        ["x"],
    ),
    "p: Union[int, str]": ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, [1, "x"], [[]]),
    "p: Literal['a', 'b']": ({"type": "string", "enum": ["a", "b"]}, ["a"], ["c"]),
    "p: Literal['a']": ({"type": "string", "const": "a"}, ["a"], ["b"]),
    "p: Colour": ({"type": "string", "enum": ["red", "blue"]}, ["red"], ["RED"]),
    "p: list[int]": ({"type": "array", "items": {"type": "integer"}}, [[], [1]], [["x"], 1]),
    "p: dict[str, int]": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        [{}, {"title": 1}],
        [{"a": "x"}],
    ),
    "p: Annotated[int, Field(ge=1, le=5, description='How many')]": (
        {"type": "integer", "minimum": 1, "maximum": 5, "description": "How many"},
        [1, 5],
        [0, 6],
    ),
    "p: int = Field(2, ge=1)": ({"type": "integer", "minimum": 1, "default": 2}, [1], [0]),
    "p: Annotated[int, Field(default=7)]": ({"type": "integer", "default": 7}, [1], ["x"]),
    "p: Annotated[list[str], Field(min_length=1)]": (
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        [["a"]],
        [[]],
    ),
    "p: Point": (POINT, [{"x": 1}, {"x": 1, "y": 2}], [{}, {"x": "a"}]),
    "p: Item": (ITEM, [{"name": "a"}, {"name": "a", "title": "b"}], [{}]),
    "p: set[str]": ({"type": "array", "items": {"type": "string"}}, [[], ["a", "a"]], [[1], "a"]),
    "p: set[Literal['a', 'b']]": (
        {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "uniqueItems": True},
        [[], ["b", "a"]],
        [["c"]],
    ),
    "p: pathlib.Path": ({"type": "string", "format": "path"}, ["/tmp"], [1]),
    "p: tuple[int, str]": (
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "minItems": 2,
            "maxItems": 2,
        },
        [[1, "a"]],
        [[1], ["a", 1]],
    ),
    "p: datetime.date": ({"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29"]),
    "p: Any": ({}, [None, 1, {"a": []}], []),
    "p: Annotated[Cat | Dog, Field(discriminator='kind')]": (
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"type": "string", "const": kind}},
                    "required": ["kind"],
                }
                for kind in ("cat", "dog")
            ]
        },
        [{"kind": "cat"}, {"kind": "dog"}],
        [{"kind": "cow"}],
    ),
    "p: int, /": ({"type": "integer"}, [1], ["x"]),
    "*, p: int": ({"type": "integer"}, [1], ["x"]),
}


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """A toolbox with one function for each of PARAMETERS."""
    source = HEADER + "".join(
        f'\ndef f{index}({parameter}):\n    """F."""\n    return type(p).__name__\n'
        for index, parameter in enumerate(PARAMETERS)
    )
    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path_factory.mktemp("functions"), source))
        yield toolbox


@pytest.fixture(params=enumerate(PARAMETERS), ids=lambda numbered: numbered[1])
def case(request, functions):
    """One function's tool, the schema its parameter should have, good and bad values, and a call of it."""
    index, parameter = request.param
    tool = functions.tools[index]
    return tool, *PARAMETERS[parameter], lambda value: functions.call(tool.name, {"p": value})


def test_each_parameter_has_a_plain_schema(case):
    tool, schema, *_ = case
    required = {} if "default" in schema else {"required": ["p"]}
    whole = {"type": "object", "properties": {"p": schema}, **required, "additionalProperties": False}
    assert tool.parameters == whole
    assert next(iter(tool.parameters)) == "type"


def test_schema_and_call_take_the_same_values(case):
    tool, _, good, bad, call = case
    jsonschema.Draft202012Validator.check_schema(tool.parameters)
    schema = jsonschema.Draft202012Validator(
        tool.parameters, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    for values, is_good in ((good, True), (bad, False)):
        assert [schema.is_valid({"p": value}) for value in values] == [is_good] * len(values)
        assert [not call(value).is_error for value in values] == [is_good] * len(values)


ARRIVING = {
    "datetime.datetime": ("2024-02-29T12:00:00Z", "datetime"),
    "datetime.date": ("2024-02-29", "date"),
    "Point": ({"x": 1}, "Point"),
    "Item": ({"name": "a"}, "Item"),
    "Colour": ("red", "Colour"),
    "decimal.Decimal": ("1.10", "Decimal"),
    "uuid.UUID": ("12345678123456781234567812345678", "UUID"),
    "pathlib.Path": ("/tmp", "PosixPath"),
    "set[int]": ([1, 1], "set"),
    "tuple[int, str]": ([1, "a"], "tuple"),
    "bytes": ("abc", "bytes"),
    "int": ("22", "int"),
    "float": (1, "float"),
}


def test_arguments_arrive_as_what_the_function_asks_for(tmp_path):
    source = HEADER + "".join(
        f'\ndef f{index}(p: {hint}):\n    """F."""\n    return type(p).__name__\n'
        for index, hint in enumerate(ARRIVING)
    )
    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path, source))
        arrived = {
            hint: toolbox.call(f"f{index}", {"p": value}).content
            for index, (hint, (value, _)) in enumerate(ARRIVING.items())
        }
    assert arrived == {hint: kind for hint, (_, kind) in ARRIVING.items()}


def test_each_kind_of_parameter_gets_its_own_argument(tmp_path):
    source = '''
    def f(a: int, b: int = 2, /, c: int = 3, *, d: int, copy: int = 5, model_config: int = 6, _s: int = 7):
        """F."""
        return [a, b, c, d, copy, model_config, _s]
    '''
    with Toolbox() as toolbox:
        (tool,) = toolbox.load(write(tmp_path, source))
        assert list(tool.parameters["properties"]) == ["a", "b", "c", "d", "copy", "model_config", "_s"]
        assert tool.parameters["required"] == ["a", "d"]
        assert value_of(toolbox.call("f", {"d": 4, "a": 1})) == [1, 2, 3, 4, 5, 6, 7]
        assert value_of(toolbox.call("f", {"a": 0, "d": 0, "copy": 0, "b": 1})) == [0, 1, 3, 0, 0, 6, 7]


def test_wrong_arguments_are_told_by_name_and_reason(tmp_path):
    source = 'def f(city: str, days: int = 1):\n    """F."""\n    raise SystemExit("called")\n'
    with Toolbox() as toolbox:
        toolbox.load(write(tmp_path, source))
        result = toolbox.call("f", {"days": "two", "town": "Paris"})
    assert result.is_error
    assert result.content == (
        "wrong arguments for f: city: Field required; "
        "days: Input should be a valid integer, unable to parse string as an integer; "
        "town: Extra inputs are not permitted"
    )


@pytest.mark.parametrize(
    "source",
    [
        'import asyncio\nasync def f(n: int):\n    """F."""\n    return await asyncio.sleep(0, n + 1)\n',
        'import functools\n@functools.cache\ndef f(n: int):\n    """F."""\n    return n + 1\n',
        'from __future__ import annotations\ndef f(n: int):\n    """F."""\n    return n + 1\n',
        'def f(n: "Later"):\n    """F."""\n    return n + 1\nLater = int\n',
        "def _w(g):\n    import functools\n    return functools.wraps(g)(lambda n: g(n))\n"
        '@_w\ndef f(n: int):\n    """F."""\n    return n + 1\n',
        'def f(n: int):\n    """F."""\n    return n + 1\ng = f\n',
    ],
    ids=["async", "cached", "future annotations", "forward reference", "wrapped", "alias"],
)
def test_a_function_however_written_is_one_tool(source, tmp_path):
    with Toolbox() as toolbox:
        assert [tool.name for tool in toolbox.load(write(tmp_path, source))] == ["f"]
        assert toolbox.call("f", {"n": 1}).content == "2"


def test_classes_imports_values_and_private_functions_are_no_tools(tmp_path):
    source = HEADER + 'from json import dumps\nLIMIT = 3\ndef _g(): ...\ndef f():\n    """F."""\n'
    with Toolbox() as toolbox:
        assert [tool.name for tool in toolbox.load(write(tmp_path, source))] == ["f"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(a: int): ...", "f() has no docstring"),
        ('def f(a: int):\n    """\n    """', "f() has no docstring"),
        ('def f(a):\n    """F."""', "f(), parameter a: has no type"),
        ('def f(a: int, b=1):\n    """F."""', "f(), parameter b: has no type"),
        ('def f(*a: int):\n    """F."""', "f(), parameter a: a model cannot fill *args or **kwargs"),
        ('def f(**a: int):\n    """F."""', "f(), parameter a: a model cannot fill *args or **kwargs"),
        ('def f(a: Stub):\n    """F."""', "f(), parameter a: its type has no JSON schema: "),
        ('def f(a: list[Stub]):\n    """F."""', "f(), parameter a: its type has no JSON schema: "),
        (
            'from typing import Callable\ndef f(a: Callable):\n    """F."""',
            "parameter a: its type has no JSON",
        ),
        ('def f(a: "Nothing"):\n    """F."""', "f(), parameter a: its type cannot be read: NameError"),
        ('def f(a: "1/0"):\n    """F."""', "f(), parameter a: its type cannot be read: ZeroDivisionError"),
        ("f = lambda a: a", "f() has no docstring"),
        ('def größe():\n    """F."""', "'größe' cannot be the name of a tool"),
    ],
    ids=lambda text: text[-24:],
)
def test_a_function_that_cannot_be_described_is_refused_with_its_name(source, told, tmp_path):
    with Toolbox() as toolbox, pytest.raises(UsageError) as refused:
        toolbox.load(write(tmp_path, HEADER + source))
    assert str(refused.value).startswith("tool.py: ")
    assert told in str(refused.value)


DOCSTRING = '''
def f(city: str, unit: str = "c", when: Annotated[str, Field(description="own")] = "", where: Point = None):
    """Find the weather.

    It may rain.

    Args:
        city: where to look:
            a name in English.
        unit (str): the scale.
        when: of the docstring
        where: the place
        nobody: is no parameter

    Returns:
        what it finds
    """
'''


def test_the_docstring_is_the_description_and_tells_of_each_argument(tmp_path):
    with Toolbox() as toolbox:
        (tool,) = toolbox.load(write(tmp_path, HEADER + DOCSTRING))
    assert tool.description == "Find the weather.\n\nIt may rain.\n\nReturns:\n    what it finds"
    told = {name: schema["description"] for name, schema in tool.parameters["properties"].items()}
    assert told == {
        "city": "where to look: a name in English.",
        "unit": "the scale.",
        "when": "own",
        "where": "the place",
    }


@pytest.mark.parametrize(
    ("docstring", "description"),
    [
        ("One line.", "One line."),
        ("Args: in a sentence.", "Args: in a sentence."),
        ("Look.\n\n    Args:\n        a: it\n    ", "Look."),
        ("Look.\n\n    Args:\n\n        a: it\n\n    More.\n    ", "Look.\n\nMore."),
    ],
)
def test_a_docstring_loses_nothing_but_its_arguments(docstring, description, tmp_path):
    with Toolbox() as toolbox:
        (tool,) = toolbox.load(write(tmp_path, f'def f(a: int):\n    """{docstring}"""\n'))
    assert tool.description == description


def test_a_type_that_contains_itself_stays_a_definition(tmp_path):
    schema = parameters_of(tmp_path, HEADER + 'def f(p: Tree):\n    """F."""\n')
    assert schema["properties"] == {"p": {"$ref": "#/$defs/Tree"}}
    assert schema["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    check = jsonschema.Draft202012Validator(schema)
    assert check.is_valid({"p": {"value": 1, "children": [{"value": 2, "children": [{"value": 3}]}]}})
    assert not check.is_valid({"p": {"value": 1, "children": [{"value": 2, "children": [{"value": "x"}]}]}})


def test_a_type_that_is_used_twice_is_written_once(tmp_path):
    schema = parameters_of(tmp_path, HEADER + 'def f(a: Point, b: list[Point]):\n    """F."""\n')
    assert schema["$defs"] == {"Point": POINT}
    assert schema["properties"]["a"] == {"$ref": "#/$defs/Point"}


def test_a_plain_schema_takes_what_pydantics_own_takes():
    """Over models that nest, recurse into each other and carry properties named as keywords."""
    from pydantic import BaseModel

    class Inner(BaseModel):
        title: str = "title"
        definitions: int = 1

    class Right(BaseModel):
        left: "Left | None" = None
        inner: Inner = Inner()

    class Left(BaseModel):
        right: Right | None = None

    class Whole(BaseModel):
        left: Left
        items: dict[str, Inner] = {}

    Right.model_rebuild(_types_namespace={"Left": Left})
    theirs = Whole.model_json_schema()
    before = json.dumps(theirs)
    ours = simplify_schema(theirs)
    assert json.dumps(theirs) == before
    assert len(json.dumps(ours)) < len(before)
    values = [
        {"left": {}},
        {"left": {"right": {"left": {"right": None}, "inner": {"title": "x", "definitions": 2}}}},
        {"left": {"right": {"left": {"right": 3}}}},
        {"left": {"right": {"inner": {"title": 3}}}},
        {"left": {}, "items": {"title": {"definitions": "x"}}},
        {"items": {}},
    ]
    both = [
        [jsonschema.Draft202012Validator(schema).is_valid(value) for value in values]
        for schema in (theirs, ours)
    ]
    assert both == [[True, True, False, False, False, False]] * 2
