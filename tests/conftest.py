"""Fixtures that several test files share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test talks to a hub
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is, as m7b.runtime does
# Whoever runs the tests in the background may have them ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Of workers side by side (gw0, gw1, …) each gets a core, or the threads of all fight for all of them.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Leave the environment as it was: `--offline`, called in the process, sets variables for good."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def demo_home(request: pytest.FixtureRequest) -> Path:
    """A data folder that holds the demo checkpoint, fetched once by the production code."""
    from m7b import hub
    from m7b.commands.shared.fetching import fetch_default

    home = Path(request.config.cache.mkdir("m7b-home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M7B_HOME", str(home))
        if hub.find_path("demo") is None:
            fetch_default("demo", asks=False)
    return home


@pytest.fixture(scope="session")
def demo_file(demo_home: Path) -> Path:
    """The demo checkpoint's GGUF file."""
    return next((demo_home / "checkpoints" / "demo.gguf").glob("*.gguf"))
