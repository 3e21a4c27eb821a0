"""The adapters that are meant, opened for a model: which ones, and what to call them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m7b.errors import UsageError
from m7b.generation import AdapterChoice
from m7b.models.choice import ModelChoice

if TYPE_CHECKING:
    from m7b.runtime.adapters import Adapter, Mix
    from m7b.runtime.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class OpenAdapter:
    """An adapter that fits a model. `name` is what m7b calls it, `scale` the share of it that is added."""

    name: str
    adapter: "Adapter"
    scale: float

    @property
    def label(self) -> str:
        """The name, with the scale where that is not 1."""
        return self.name if self.scale == 1 else f"{self.name}:{self.scale:g}"

    @property
    def description(self) -> str:
        """What people may want to know of it."""
        adapter = self.adapter
        ranks = ", ".join(map(str, adapter.ranks))
        base = f", made for {adapter.base}" if adapter.base else ""
        return f"{self.label} ({adapter.format}, rank {ranks}, {len(adapter.parts)} linears{base})"


def find_adapter(choice: AdapterChoice) -> ModelChoice:
    """Where an adapter is, or what it is called among what was downloaded, as of a model."""
    return ModelChoice(path=Path(choice.name))


def open_adapters(choices: Sequence[AdapterChoice], config: "ModelConfig") -> list[OpenAdapter]:
    """Look at adapters for a model of `config`; this reads no weights.

    Raises:
        CheckpointNotFound: one is not on this machine.
        UnsupportedCheckpoint: one is none, or of a kind that m7b does not add.
        DamagedCheckpoint: one is cut short, or does not fit the model.
    """
    from m7b.runtime.adapters import open_adapter

    found = []
    for choice in choices:
        name, path = find_adapter(choice).locate()
        found.append(OpenAdapter(name, open_adapter(path, config), choice.scale))
    return found


def mix_adapters(adapters: Sequence[OpenAdapter]) -> "Mix":
    """All of them added together."""
    from m7b.runtime.adapters import Weighted

    return [Weighted(each.adapter, each.scale) for each in adapters]


def check_names(model: str, adapters: Sequence[OpenAdapter]) -> None:
    """See that each adapter can be a model of its own beside `model`.

    Raises:
        UsageError: two have one name.
    """
    names = [model, *(each.name for each in adapters)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"two models would be called {twice}",
            hint="a model or an adapter is called like its file or folder: rename one, or link to it",
        )
