"""Which tools can be offered with calls that are valid: those whose schemas a grammar can enforce."""

from collections.abc import Mapping, Sequence
from typing import Any

from m7b.constraint import check_schema
from m7b.errors import UsageError


def check_tool(tool: Mapping[str, Any]) -> None:
    """Check that the arguments of a tool, which is in OpenAI's shape, can be kept valid.

    Raises:
        UsageError: they cannot; the message names the tool, the keyword and its place.
    """
    function = tool["function"]
    try:
        check_schema(function["parameters"])
    except UsageError as error:
        hint = f"{error.hint or 'change its schema'}, or let calls be unchecked: --no-constrain"
        raise UsageError(f"the tool {function['name']}: {error.message}", hint=hint) from None


def keep_enforceable(
    tools: Sequence[dict[str, Any]], *, demanded: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Leave out the tools that cannot be kept valid; returns the others, and a line for each of them.

    Raises:
        UsageError: none is left, or the tool `demanded` is left out.
    """
    kept: list[dict[str, Any]] = []
    faults: dict[str, UsageError] = {}
    for tool in tools:
        try:
            check_tool(tool)
            kept.append(tool)
        except UsageError as error:
            faults[tool["function"]["name"]] = error
    if demanded in faults:
        raise faults[demanded]
    if faults and not kept:
        raise next(iter(faults.values()))
    return kept, [f"left out {error}" for error in faults.values()]
