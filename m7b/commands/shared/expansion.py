"""Groups of options: what a command takes as one value, its users give as one option for each field."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Annotated, Any, get_origin

import typer

from m7b.options import Option, list_options

_METAVARS: dict[Any, str] = {int: "N", float: "X"}


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let each parameter of `command` that is a dataclass be filled from options, one for each of its fields.

    A field is an option where it is declared as one (`m7b.options`), or annotated as Typer has it. The
    defaults are those of the parameter's own default, else those of the class. So this command has `--seed`,
    `--top-k` and so on, and answers at most 1024 tokens where `--max-tokens` is not given:

        def chat(question: str, sampling: SamplingParams = SamplingParams(max_tokens=1024)) -> None: ...
    """
    signature = inspect.signature(command)
    groups: dict[str, tuple[Any, list[str]]] = {}  # each with the names of its options
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.annotation):
            owner: Any = parameter.annotation
            group = owner() if parameter.default is inspect.Parameter.empty else parameter.default
            expanded = list(_list_parameters(group))
            groups[parameter.name] = (group, [one.name for one in expanded])
            parameters += expanded
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        values = {
            name: _fill(group, {option: given.pop(option) for option in options})
            for name, (group, options) in groups.items()
        }
        command(**given, **values)

    del run.__dict__["__wrapped__"]  # Typer is to see the signature with all options
    run.__dict__["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def flag(option: Option) -> Any:
    """The option as Typer takes it."""
    is_number = option.kind in _METAVARS
    return typer.Option(
        *((option.short, option.flag) if option.short else ()),
        parser=functools.partial(read_option, option) if is_number else None,
        metavar=option.metavar or (_METAVARS[option.kind] if is_number else None),
        help=option.help,
        show_default=option.default is not None and option.collect is None,
    )


def read_option(option: Option, text: str, hint: str | None = None) -> Any:
    """The value that `text` says, in the way of Typer's parsers; `hint` names the flag where Typer does not.

    Raises:
        typer.BadParameter: it says none.
    """
    try:
        return option.read(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from None


def collect_option(option: Option, texts: Sequence[str] | None) -> Any:
    """The value that all the `texts` of an option that can be repeated make.

    Raises:
        typer.BadParameter: one says none.
    """
    assert option.collect, "it can be repeated"
    return option.collect([read_option(option, text, f"'{option.flag}'") for text in texts or ()])


def _list_parameters(group: Any) -> Iterator[inspect.Parameter]:
    """A parameter for each field of `group` that is an option, with the field's value as its default."""
    options = list_options(type(group))
    for field in fields(group):
        annotation, default = field.type, getattr(group, field.name)
        if option := options.get(field.name):
            if option.is_apart:
                continue
            if option.collect:
                annotation, default = list[str] | None, None
            elif isinstance(option.kind, type) and issubclass(option.kind, Enum):
                annotation = option.kind | None
            annotation = Annotated[annotation, flag(option)]
        elif get_origin(annotation) is not Annotated:
            continue
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )


def _fill(group: Any, values: dict[str, Any]) -> Any:
    """`group` with the `values` of its options."""
    for name, option in list_options(type(group)).items():
        if option.collect and name in values:
            values[name] = collect_option(option, values[name])
    return replace(group, **values)
