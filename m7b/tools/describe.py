"""Functions as tools: find them in a file, build the schema of each, check the arguments of a call.

Runs in the worker, after the tool file was imported. Knows pydantic; nothing about pipes.
"""

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from m7b.tools.schema import allow_repeats, simplify_schema

if TYPE_CHECKING:
    from pydantic import BaseModel

_SECTION = re.compile(r"^(Args|Arguments):[ \t]*\n((?:[ \t]+\S.*(?:\n|$)|[ \t]*\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^\*{0,2}(\w+)(?: ?\([^)]*\))?: *(.*)$")


class Refused(Exception):
    """A function that cannot be offered, or arguments that it does not take; `str(error)` says why."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of a tool file. `arguments` is the pydantic model of its parameters, in their order."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    signature: inspect.Signature
    arguments: "type[BaseModel]"
    run: Callable[..., Any]

    def call(self, arguments: str) -> Any:
        """Call the function with JSON `arguments`; returns its result, a coroutine where it is `async`.

        Raises:
            Refused: the function does not take these arguments.
        """
        from pydantic import ValidationError

        try:
            checked = self.arguments.model_validate_json(arguments)
        except ValidationError as error:
            raise Refused(f"wrong arguments for {self.name}: {_format_error(error)}") from None
        values = [getattr(checked, field) for field in self.arguments.model_fields]
        is_positional = [
            parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            for parameter in self.signature.parameters.values()
        ]
        positional = [value for value, first in zip(values, is_positional, strict=True) if first]
        named = dict(list(zip(self.signature.parameters, values, strict=True))[len(positional) :])
        return self.run(*positional, **named)


def find_functions(module: ModuleType) -> dict[str, Function]:
    """Find the public functions that `module` defines.

    Raises:
        Refused: one of them cannot be offered, or there is none.
    """
    functions: dict[str, Function] = {}
    seen: set[int] = set()
    for name, value in vars(module).items():
        is_here = getattr(value, "__module__", None) == module.__name__ and not inspect.isclass(value)
        if name.startswith("_") or not is_here or not inspect.isfunction(_unwrap(value)) or id(value) in seen:
            continue
        seen.add(id(value))
        functions[name] = _build_function(name, value)
    if not functions:
        raise Refused("it defines no function without a leading _")
    return functions


def _build_function(name: str, function: Callable[..., Any]) -> Function:
    description, told = _split_docstring(inspect.getdoc(function) or "")
    if not description:
        raise Refused(f"{name}() has no docstring")
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        _check_parameter(name, parameter, function)
    fields: dict[str, Any] = {
        # pydantic reserves some names of fields; p0, p1, … are free
        f"p{index}": _build_field(parameter, function)
        for index, parameter in enumerate(signature.parameters.values())
    }
    from pydantic import ConfigDict, create_model

    model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    schema = model.model_json_schema()
    for parameter_name, text in told.items():
        if parameter_name in schema["properties"]:
            schema["properties"][parameter_name].setdefault("description", text)
    small = allow_repeats(simplify_schema(schema))
    return Function(name, description, _sort_keys(small), signature, model, function)


def _check_parameter(name: str, parameter: inspect.Parameter, function: Callable[..., Any]) -> None:
    """Refuse a parameter that has no schema."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    what = f"{name}(), parameter {parameter.name}"
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise Refused(f"{what}: a model cannot fill *args or **kwargs")
    if parameter.annotation is inspect.Parameter.empty:
        raise Refused(f"{what}: has no type")
    try:
        hint = _resolve_hint(parameter, function)
    except Exception as error:  # noqa: BLE001 - evaluating an annotation runs code of the tool file
        raise Refused(f"{what}: its type cannot be read: {type(error).__name__}: {error}") from None
    try:
        TypeAdapter(hint).json_schema()
    except (PydanticUserError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"{what}: its type has no JSON schema: {reason}") from None


def _resolve_hint(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    names = getattr(_unwrap(function), "__globals__", {})
    owner = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    return typing.get_type_hints(owner, globalns=names, include_extras=True)[parameter.name]


def _build_field(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    from pydantic import Field

    hint = _resolve_hint(parameter, function)
    field: Any = Annotated[hint, Field(alias=parameter.name)]
    return field if parameter.default is inspect.Parameter.empty else (field, parameter.default)


def _sort_keys(schema: dict[str, Any]) -> dict[str, Any]:
    """Sort the keys of a schema as people write them: type, properties, required, then the rest."""
    first = ("type", "properties", "required")
    return {key: schema[key] for key in first if key in schema} | schema


def _split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into its text without `Args:`, and the text of each argument."""
    match = _SECTION.search(docstring)
    if match is None:
        return docstring.strip(), {}
    told: dict[str, str] = {}
    name = ""
    lines = inspect.cleandoc("\n" + match[2]).splitlines()
    for line in lines:
        entry = None if line.startswith((" ", "\t")) else _ENTRY.match(line)
        if entry:
            name = entry[1]
            told[name] = entry[2]
        elif name and line.strip():
            told[name] = f"{told[name]} {line.strip()}".strip()
    rest = f"{docstring[: match.start()].rstrip()}\n\n{docstring[match.end() :].lstrip()}"
    return rest.strip(), {name: text for name, text in told.items() if text}


def _format_error(error: Any) -> str:
    """Format a pydantic ValidationError as one line."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, f["loc"])), f["msg"]))) for f in faults)


def _unwrap(function: Any) -> Any:
    try:
        return inspect.unwrap(function)
    except ValueError:  # it wraps itself
        return function
