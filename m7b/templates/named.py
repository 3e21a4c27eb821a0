"""Two templates of one checkpoint: one for conversations with tools, and one for all others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m7b.errors import UsageError
from m7b.templates.base import Template, Tools


@dataclass(frozen=True, slots=True)
class TemplatePair:
    """Encodes by `with_tools` where tools are offered, by `plain` otherwise; a checkpoint may lack that."""

    plain: Template | None
    with_tools: Template

    @property
    def description(self) -> str:
        """The kind and the origin of the templates, for people."""
        if self.plain is None:
            return f"{self.with_tools.description}, for tools alone"
        return f"{self.plain.description}, and another for tools"

    @property
    def source(self) -> str:
        """The templates as they are written down."""
        plain = f"{self.plain.source}\n\n" if self.plain else ""
        return f"{plain}{{# where tools are offered #}}\n{self.with_tools.source}"

    def find_ends(self) -> frozenset[int]:
        """Find the control ids with which either ends an answer."""
        plain = self.plain.find_ends() if self.plain else frozenset()
        return plain | self.with_tools.find_ends()

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Tools | None = None) -> list[int]:
        """Encode a conversation; the answer begins after the last id. See `Template.encode`."""
        template = self.with_tools if tools else self.plain
        if template is None:
            raise UsageError(
                "this checkpoint has a chat template for conversations with tools alone",
                hint="offer tools, or name another with --chat-template",
            )
        return template.encode(messages, tools)
