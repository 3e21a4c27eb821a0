"""What the documentation claims about itself: links lead somewhere, tables match the code, examples parse."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from m7b.cli import app
from m7b.errors import ExitCode
from tests.support.eval_tasks import write_questions

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = [
    command.callback
    for command in typer.main.get_command(app).commands.values()
    if not isinstance(command, TyperGroup)
]


def examples_of(command):
    """The lines of a help text that are commands to type."""
    lines = (line.strip() for line in command.__doc__.partition("Examples:")[2].splitlines())
    return [line for line in lines if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[^)]+)\)", (folder / "README.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in folder.glob("[0-9]*.md")}


def test_the_page_of_exit_codes_is_the_enumeration():
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in ExitCode]


def test_the_architecture_page_names_every_module():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = [path.name for path in (ROOT / "m7b").glob("*.py") if not path.name.startswith("__")]
    modules += [
        path.name for path in (ROOT / "m7b" / "runtime").glob("*.py") if not path.name.startswith("__")
    ]
    assert [name for name in modules if name not in page] == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_each_help_text_ends_with_two_examples_of_its_command(command):
    examples = examples_of(command)
    assert len(examples) == 2
    assert all(f"m7b {command.__name__.rstrip('_')}" in example for example in examples)
    assert command.__doc__.rstrip().endswith(examples[-1])


@pytest.mark.parametrize("line", [line for command in COMMANDS for line in examples_of(command)])
def test_every_example_of_the_help_texts_runs(line, demo_home, tmp_path):
    (tmp_path / "prompt.txt").write_text("Once upon a time", encoding="utf-8")
    write_questions(tmp_path / "questions")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shutil.copytree(demo_home, tmp_path / "home", copy_function=os.link)  # some remove what is there
    if line.startswith("m7b serve"):
        line = re.sub(r"--keep-alive \d+", "--keep-alive 1", line)
        line += "" if "--uds" in line else " --port 0"  # the usual one may be taken
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "M7B_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_examples_of_the_library_page_run(demo_home):
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=ROOT,
        env=os.environ | {"M7B_HOME": str(demo_home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
