"""Wheels with and without a compiler: both install, both run."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("m7b", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def installed(folder, **environment):
    """The files of a wheel that is built from a copy of the sources."""
    for name in SOURCES:
        source, copy = ROOT / name, folder / "sources" / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, folder / "sources"]
    subprocess.run(command, check=True, env=os.environ | environment, timeout=300)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def m7b(place, home, *arguments):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "m7b", *arguments],
        env=os.environ | {"PYTHONPATH": str(place), "M7B_HOME": str(home)},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_compiler_everything_but_the_kernels_is_there(tmp_path, demo_home):
    place = installed(tmp_path, CC="/nonexistent", CXX="/nonexistent")
    assert list(place.rglob("*.so")) == []
    machine = json.loads(m7b(place, demo_home, "doctor", "--json"))["machine"]
    assert machine["kernels"] == "none"
    assert "not built" in machine["kernels_missing"]
    answer = m7b(place, demo_home, "complete", "The capital of France is", "-n", "4", "--temperature", "0")
    assert "Paris" in answer


def test_a_wheel_to_hand_on_is_not_built_without_its_kernels(tmp_path):
    environment = {"CC": "/nonexistent", "CXX": "/nonexistent", "M7B_REQUIRE_KERNELS": "1"}
    with pytest.raises(subprocess.CalledProcessError):
        installed(tmp_path, **environment)
    assert list(tmp_path.glob("*.whl")) == []


@pytest.mark.parametrize(
    ("system", "is_free_threaded", "n_extensions", "tag"),
    [
        pytest.param("linux", 0, 1, {"py_limited_api": "cp311"}, id="Linux"),
        pytest.param("darwin", None, 1, {"py_limited_api": "cp311"}, id="macOS"),
        pytest.param("linux", 1, 1, None, id="a Python without its lock, which has no stable ABI"),
        pytest.param("win32", 0, 0, None, id="Windows, for whose compiler the kernels are not written"),
    ],
)
def test_kernels_are_built_for_the_stable_abi_where_they_can_be(
    monkeypatch, system, is_free_threaded, n_extensions, tag
):
    told = {}
    monkeypatch.setattr("setuptools.setup", told.update)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": is_free_threaded}.get)
    runpy.run_path(str(ROOT / "setup.py"))
    assert told["options"].get("bdist_wheel") == tag
    assert [extension.py_limited_api for extension in told["ext_modules"]] == [tag is not None] * n_extensions


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler here")
def test_with_a_compiler_the_kernels_are_there(tmp_path, demo_home):
    place = installed(tmp_path, M7B_CXXFLAGS="-O0")  # compiles in a fraction of the time
    assert [path.name for path in place.rglob("*.so")] == ["_native.abi3.so"]
    assert json.loads(m7b(place, demo_home, "doctor", "--json"))["machine"]["kernels"] != "none"
    answer = m7b(place, demo_home, "complete", "The capital of France is", "-n", "4", "--temperature", "0")
    assert "Paris" in answer
