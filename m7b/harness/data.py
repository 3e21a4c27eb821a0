"""The questions of a task: from the hub, or from a folder on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m7b.errors import UsageError

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def find_files(folder: Path, name: str, subset: str | None) -> dict[str, str]:
    """The files of the data set `name` in `folder`, by split: `folder/owner/name[/subset]/SPLIT.jsonl`.

    The owner may be left out, and the files may be .json, .parquet or .csv as well.
    """
    for place in (name, name.rpartition("/")[2]):
        for inner in filter(None, (subset, ".")):
            files = sorted((folder / place / inner).glob("*"))
            found = {file.stem: str(file) for file in files if file.suffix in _READERS}
            if found:
                return found
    return {}


@contextmanager
def local_data(folder: Path | None) -> Iterator[None]:
    """Let tasks that are loaded meanwhile find their questions in `folder`; None leaves them to the hub.

    Raises:
        UsageError: a data set is not there, or the hub does not give it.
    """
    import datasets

    load = datasets.load_dataset
    datasets.load_dataset = _load_from(folder, load)
    try:
        yield
    finally:
        datasets.load_dataset = load


def _load_from(folder: Path | None, load: Callable[..., Any]) -> Callable[..., Any]:
    def load_dataset(path: str, name: str | None = None, **settings: Any) -> Any:
        is_local = settings.get("data_files") or settings.get("data_dir")
        if folder is None or is_local:
            return _translate(path, name, lambda: load(path, name, **settings))
        snapshot = folder / path
        if (snapshot / "README.md").is_file():  # as `hf download --repo-type dataset` leaves it
            return _translate(path, name, lambda: load(str(snapshot), name, **settings))
        files = find_files(folder, path, name)
        if not files:
            place = "/".join(filter(None, (path, name)))
            raise UsageError(f"{folder} holds no {place}", hint=f"put it there as {place}/SPLIT.jsonl")
        reader = _READERS[Path(next(iter(files.values()))).suffix]
        return _translate(path, name, lambda: load(reader, data_files=files))

    return load_dataset


def _translate(path: str, name: str | None, load: Callable[[], Any]) -> Any:
    """What `load` returns; its errors are of many kinds, and all mean that the questions are not there."""
    try:
        return load()
    except Exception as error:  # noqa: BLE001 - datasets, its readers and the hub raise what they like
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"cannot load the data set {'/'.join(filter(None, (path, name)))}: {reason}",
            hint="--data names a folder that holds it",
        ) from None
