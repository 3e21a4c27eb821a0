"""The examples in docs/tools run, and hold what their text promises."""

import os
import sys
from datetime import datetime
from pathlib import Path

import pytest

from m7b.tools import Toolbox
from tests.support.tool_files import value_of

FOLDER = Path(__file__).parent.parent.parent / "docs" / "tools"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that files.py shares, beside a secret that it does not."""
    place = tmp_path_factory.mktemp("files")
    folder = place / "shared"
    (folder / "sub").mkdir(parents=True)
    (folder / "note.txt").write_text("Grüße\n", encoding="utf-8")
    (folder / "sub" / "deep.txt").write_text("deep", encoding="utf-8")
    (folder / "data.bin").write_bytes(b"\xff\xfe\x00")
    (place / "secret.txt").write_text("secret", encoding="utf-8")
    (place / "shared-too").mkdir()
    (folder / "link.txt").symlink_to(place / "secret.txt")
    (folder / "up").symlink_to(place)
    (folder / "inner.txt").symlink_to(folder / "note.txt")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture(scope="module")
def files(shared):
    with pytest.MonkeyPatch.context() as patch, Toolbox(time_limit=10) as toolbox:
        patch.setenv("M7B_FILES", str(shared))
        toolbox.load(FOLDER / "files.py")
        yield toolbox


def test_the_weather_is_known_in_both_scales():
    with Toolbox() as toolbox:
        (tool,) = toolbox.load(FOLDER / "weather.py")
        assert tool.as_json() == {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Get the current temperature in a city.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {
                            "type": "string",
                            "maxLength": 40,
                            "description": "the name of the city, in English.",
                        },
                        "unit": {
                            "type": "string",
                            "enum": ["celsius", "fahrenheit"],
                            "default": "celsius",
                            "description": "the scale of the answer.",
                        },
                    },
                    "required": ["city"],
                    "additionalProperties": False,
                },
            },
        }
        result = value_of(toolbox.call("get_weather", {"city": "Paris"}))
        assert result == {"city": "Paris", "temperature": 18.5, "unit": "celsius"}
        result = value_of(toolbox.call("get_weather", {"city": "Oslo", "unit": "fahrenheit"}))
        assert result == {"city": "Oslo", "temperature": 44.6, "unit": "fahrenheit"}
        assert toolbox.call("get_weather", {"city": "Atlantis"}).is_error


def test_files_are_listed_and_read(files):
    listed = value_of(files.call("list_files", {}))
    assert listed == ["data.bin", "inner.txt", "link.txt", "note.txt", "pipe", "sub/", "up/"]
    assert value_of(files.call("list_files", {"folder": "sub"})) == ["deep.txt"]
    for path, content in (("note.txt", "Grüße\n"), ("inner.txt", "Grüße\n"), ("sub/../sub/deep.txt", "deep")):
        assert files.call("read_file", {"path": path}).content == content


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "sub/../../secret.txt",
        "/etc/passwd",
        "SECRET",
        "link.txt",
        "up/secret.txt",
        "up",
        "../shared-too",
        "~/.ssh/id_rsa",
        "",
        "sub",
        "pipe",
        "note.txt\0",
        "data.bin",
        "missing.txt",
    ],
    ids=repr,
)
def test_what_is_no_text_file_inside_the_folder_is_not_read(path, files, shared):
    result = files.call("read_file", {"path": path.replace("SECRET", str(shared.parent / "secret.txt"))})
    assert result.is_error
    assert "secret" not in result.content.replace("secret.txt", "")
    assert result.seconds < 5


@pytest.mark.parametrize("folder", ["..", "/", "up", "sub/../..", "../shared-too"])
def test_no_folder_outside_is_listed(folder, files):
    assert "is outside the shared folder" in files.call("list_files", {"folder": folder}).content


def test_without_a_folder_the_working_directory_is_shared(shared, monkeypatch):
    monkeypatch.delenv("M7B_FILES", raising=False)
    monkeypatch.chdir(shared / "sub")
    with Toolbox() as toolbox:
        toolbox.load(FOLDER / "files.py")
        assert value_of(toolbox.call("list_files", {})) == ["deep.txt"]
        assert toolbox.call("read_file", {"path": "../note.txt"}).is_error


def test_the_clock_server_tells_the_time_and_counts_days(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with Toolbox() as toolbox:
        tools = toolbox.load_mcp(FOLDER / "clock.json")
        assert [(tool.name, tool.source) for tool in tools] == [
            ("current_time", "mcp:clock"),
            ("days_between", "mcp:clock"),
        ]
        told = value_of(toolbox.call("current_time", {"timezone": "UTC"}))["result"]
        assert abs(datetime.fromisoformat(told).timestamp() - datetime.now().timestamp()) < 60
        leap = {"first": "2024-02-28", "second": "2024-03-01"}
        assert value_of(toolbox.call("days_between", leap)) == {"result": 2}
        assert toolbox.call("days_between", {"first": "soon", "second": "later"}).is_error


def test_the_tool_file_of_the_readme_works_as_printed(tmp_path):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    (tmp_path / "dice.py").write_text(
        readme.partition("```python\n")[2].partition("```")[0], encoding="utf-8"
    )
    with Toolbox() as toolbox:
        (tool,) = toolbox.load(tmp_path / "dice.py")
        assert tool.name == "roll_dice"
        assert all(1 <= roll <= 6 for roll in value_of(toolbox.call("roll_dice", {"count": 20})))
        assert toolbox.call("roll_dice", {"count": 0}).is_error


def test_the_readme_names_every_example():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    missing = [file.name for file in FOLDER.glob("*.*") if f"({file.name})" not in readme]
    assert missing == ["README.md"]
