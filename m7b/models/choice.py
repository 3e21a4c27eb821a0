"""Which model is meant: a released variant, a path, or the name of a checkpoint that was downloaded."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from m7b import hub
from m7b.errors import CheckpointNotFound, UsageError
from m7b.parts import name_whole
from m7b.paths import parse_path
from m7b.variants import VARIANTS


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model that is meant: a released `variant`, or by `path` a folder, a GGUF file or a name.

    A name is one that `m7b list` shows, a hub id, or an address on a hub.

    Neither of them means the demo.

    Raises:
        UsageError: both are given.
    """

    variant: str | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.variant and self.path:
            raise UsageError("--variant and --model are both given", hint="name one checkpoint")

    @property
    def release(self) -> str | None:
        """The name of the variant, None where a checkpoint is meant by path or hub id."""
        return None if self.path else str(self.variant or "demo")

    @property
    def shelf_name(self) -> str | None:
        """What the checkpoint is called among those that were downloaded, None where a path is meant."""
        if self.path is None:
            return self.release
        if os.path.exists(self.path):
            return None
        name = self.path.as_posix()
        return name if name in VARIANTS or hub.find(name) or hub.parse_address(name) else None

    @property
    def is_installed(self) -> bool:
        """Whether the checkpoint is on this machine, as far as that can be told without opening it."""
        return self.shelf_name is None or hub.find_path(self.shelf_name) is not None

    @classmethod
    def from_name(cls, name: str) -> Self:
        """What `name` means: a variant, or the path or hub id of a checkpoint.

        Raises:
            CheckpointNotFound: there is nothing of that name.
        """
        if name in VARIANTS:
            return cls(variant=name)
        path = parse_path(name)
        if not os.path.exists(path) and hub.find(name):
            return cls(path=Path(name))
        if not os.path.exists(path):
            raise CheckpointNotFound(
                f"there is no model {name}",
                hint=f"name a folder, a GGUF file, what m7b list shows, or {', '.join(VARIANTS)}",
            )
        return cls(path=path)

    def locate(self) -> tuple[str, Path]:
        """What to call the checkpoint, and where it is.

        Raises:
            CheckpointNotFound: it was not downloaded.
        """
        if name := self.shelf_name:
            path, record = hub.locate(name), hub.find(name)
            address = hub.parse_address(name)
            if address and address.include and hub.find(found_again := f"{address.repo_id}:{path.stem}"):
                return found_again, path  # and not by the name of all files of the repository
            return record.name if record else name, path
        assert self.path is not None
        return name_whole(self.path.resolve().name), self.path


def chat_releases() -> list[str]:
    """The releases that can chat, but for the demo, the oldest first."""
    return [name for name, variant in VARIANTS.items() if variant.is_instruct and name != "demo"]


def installed_variant() -> str | None:
    """The latest release on this machine that can chat, else the demo; None where neither is here."""
    return next((name for name in [*reversed(chat_releases()), "demo"] if hub.find_path(name)), None)
