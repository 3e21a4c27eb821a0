"""Settings: flag over variable over config.toml over default; `m7b config`; completion in the shells."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from m7b.cli import app
from m7b.settings import SETTINGS, variable
from tests.support.tiny import assert_refused, call

COMMANDS = {
    name: [param for param in command.params if param.name in SETTINGS]
    for name, command in typer.main.get_command(app).commands.items()
}
OPTIONS = {param.name: param for params in reversed(COMMANDS.values()) for param in params}
OPTIONS_IN_ORDER = [name for name in SETTINGS if name in OPTIONS]
FIRST = {name: next(c for c, params in COMMANDS.items() if OPTIONS[name] in params) for name in OPTIONS}

# What config.toml, the variable and the flag say of each setting.
SAMPLES = {
    "variant": ("base-v0.1", "base-v0.3", "demo"),
    "model": ("/config", "/variable", "/flag"),
    "device": ("cuda", "cuda:1", "mps"),
    "dtype": ("float16", "bfloat16", "float32"),
    "quant": ("q8_0", "q4_0", "none"),
    "threads": (1, 2, 3),
    "window": (16, 32, 64),
    "ctx_size": (16, 32, 64),
    "prefill_chunk": (16, 32, 64),
    "draft": ("lookup", "off", "lookup"),
    "max_tokens": (0, 1, 2),
    "temperature": (0.0, 1.5, 2.0),
    "top_p": (0.25, 0.5, 0.75),
    "top_k": (1, 2, 3),
    "min_p": (0.25, 0.5, 0.75),
    "typical_p": (0.25, 0.5, 0.75),
    "repetition_penalty": (1.25, 1.5, 1.75),
    "presence_penalty": (-1.0, 0.5, 1.0),
    "frequency_penalty": (-1.0, 0.5, 1.0),
    "repeat_last_n": (0, 1, 2),
    "seed": (0, 1, 2),
    "system": ("config", "variable", "two\nlines"),
    "chat_template": ("v1", "v3", "v1"),
    "on_full": ("drop-oldest", "roll", "stop"),
    "vi": (True, False, True),
    "markdown": (False, True, False),
    "theme": ("light", "dark", "none"),
    "save": (False, True, False),
    "server": ("off", "auto", "off"),
    "prompt_cache": ("auto", "off", "auto"),
    "kv_type": ("q8_0", "bf16", "q8_0"),
}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A home of its own for each test, with nothing set."""
    for name in [name for name in os.environ if name.startswith("M7B_") or name in ("VISUAL", "EDITOR")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("M7B_HOME", str(tmp_path))
    return tmp_path


ARGUMENTS = {"perplexity": ["text.txt"]}  # without which a command does not start


@pytest.fixture
def given(monkeypatch):
    """Calls a command whose body only records what its options came to."""

    def given(name, *flags):
        command = typer.main.get_command(app).commands[name]
        values = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "callback", lambda **options: values.update(options))
            ran = call(name, *ARGUMENTS.get(name, ()), *flags)
        assert (ran.code, ran.err) == (0, "")
        return values

    return given


@pytest.fixture
def editor(monkeypatch, tmp_path):
    """Sets $EDITOR to a shell script."""

    def editor(script):
        file = tmp_path / "my editor"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o700)
        monkeypatch.setenv("EDITOR", f"'{file}' --wait")

    return editor


def config(home, *lines):
    file = home / "config.toml"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def flag(name, value):
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option}={value}"


def text(value):
    return json.dumps(value) if isinstance(value, bool) else str(value)


# precedence


@pytest.mark.parametrize("name", OPTIONS)
def test_the_stronger_source_of_a_setting_wins(name, given, home, monkeypatch):
    of_config, of_variable, of_flag = SAMPLES[name]
    command = FIRST[name]
    default = next(param.default for param in COMMANDS[command] if param.name == name)

    config(home)
    assert given(command)[name] == default
    config(home, f"{name} = {json.dumps(of_config)}")
    assert text(given(command)[name]) == text(of_config)
    monkeypatch.setenv(variable(name), text(of_variable))
    assert text(given(command)[name]) == text(of_variable)
    assert text(given(command, flag(name, of_flag))[name]) == text(of_flag)


@pytest.mark.parametrize("command", [name for name, params in COMMANDS.items() if params])
def test_every_command_takes_the_settings_of_all_its_options(command, given, home):
    names = [param.name for param in COMMANDS[command] if param.name != "model"]
    config(home, *(f"{name} = {json.dumps(SAMPLES[name][0])}" for name in names))
    values = given(command)
    assert {name: text(values[name]) for name in names} == {name: text(SAMPLES[name][0]) for name in names}


def test_settings_reach_the_answer(home, monkeypatch):
    config(home, 'variant = "base-v0.1"', 'window = "off"', "prefill_chunk = 7")
    monkeypatch.setenv("M7B_PREFILL_CHUNK", "9")
    report = call("info", "--json").answer
    assert (report["name"], report["config"]["sliding_window"]) == ("base-v0.1", None)
    assert report["cache"]["prefill_chunk"] == 9


def test_an_empty_variable_sets_nothing(given, home, monkeypatch):
    config(home, "temperature = 0.5")
    monkeypatch.setenv("M7B_TEMPERATURE", "")
    assert given("complete")["temperature"] == 0.5


def test_a_home_folder_in_a_path_is_meant(given, home, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config(home, 'model = "~/models/mine"')
    assert given("info")["model"] == Path("/home/me/models/mine")


@pytest.mark.parametrize("source", ["config.toml", "variable"])
@pytest.mark.parametrize(
    ("name", "value", "flags", "checkpoint"),
    [
        ("variant", "base-v0.1", ["-m", "/flag"], (None, "/flag")),
        ("variant", "base-v0.1", ["--model=/flag"], (None, "/flag")),
        ("model", "/set", ["--variant", "demo"], ("demo", None)),
    ],
)
def test_a_checkpoint_of_the_flags_wins_however_it_is_named(
    name, value, flags, checkpoint, source, given, home, monkeypatch
):
    if source == "variable":
        monkeypatch.setenv(variable(name), value)
    else:
        config(home, f'{name} = "{value}"')
    values = given("info", *flags)
    assert (values["variant"], values["model"] and str(values["model"])) == checkpoint


@pytest.mark.parametrize(("weaker", "stronger"), [("variant", "model"), ("model", "variant")])
def test_a_checkpoint_of_a_variable_beats_one_of_the_file(weaker, stronger, given, home, monkeypatch):
    config(home, f'{weaker} = "base-v0.1"')
    monkeypatch.setenv(variable(stronger), "base-v0.3")
    values = given("info")
    assert (values[weaker], str(values[stronger])) == (None, "base-v0.3")


# errors

BAD_FILES = {
    "misspelt": ("temprature = 1", ["temprature is no setting", "did you mean temperature?"]),
    "unknown": ("zzz = 1", ["zzz is no setting", "variant, model"]),
    "another variable": ("home = 1", ["home is no setting"]),
    "a table": ("[complete]\ntemperature = 1", ["complete is no setting"]),
    "a dotted key": ("temperature.x = 1", ["temperature", "neither a number nor a text"]),
    "a list": ("seed = [1]", ["seed", "neither a number nor a text"]),
    "a date": ("seed = 2023-09-27", ["seed", "neither a number nor a text"]),
    "no number": ('temperature = "hot"', ["temperature: 'hot' is not a number"]),
    "a switch for a number": ("threads = true", ["threads: 'true' is not a whole number"]),
    "no whole number": ("top_k = 1.5", ["top_k: '1.5' is not a whole number"]),
    "out of range": ("temperature = 200", ["temperature is 200", "from 0 to 100"]),
    "below its range": ("threads = 0", ["threads", "0", "1 to 1024"]),
    "not a number, nor off": ('window = "4k"', ["window", "'4k'", "off"]),
    "a NUL": (r'model = "a\u0000b"', ["model holds a NUL"]),
    "infinite": ("top_p = inf", ["top_p is inf", "to 1"]),
    "NaN": ("top_p = nan", ["top_p is nan", "to 1"]),
    "huge": (f"seed = 0x{'f' * 5000}", ["seed is too large"]),
    "too many digits": (f"seed = 1{'0' * 5000}", ["not TOML"]),
    "no variant": ('variant = "nope"', ["variant: 'nope'", "base-v0.1"]),
    "no dtype": ('dtype = "int8"', ["dtype: 'int8'", "bfloat16"]),
    "two checkpoints": ('variant = "demo"\nmodel = "/x"', ["variant and model are both set"]),
    "no TOML": ("temperature", ["not TOML", "m7b config edit"]),
    "set twice": ("seed = 1\nseed = 2", ["not TOML"]),
    "no UTF-8": (b'system = "\xff"', ["not TOML", "0xff"]),
    "nested beyond all reason": ("seed = " + "[" * 100_000, ["not TOML"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line_that_names_it(case, home):
    content, fragments = BAD_FILES[case]
    (home / "config.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(call("info"), 2, "config.toml", *fragments)


@pytest.mark.parametrize(
    ("name", "value", "fragments"),
    [
        ("TEMPERATURE", "hot", ["M7B_TEMPERATURE: 'hot' is not a number"]),
        ("TEMPERATURE", "200", ["M7B_TEMPERATURE is 200", "from 0 to 100"]),
        ("VARIANT", "nope", ["M7B_VARIANT: 'nope'", "base-v0.1"]),
        ("THREADS", "0", ["M7B_THREADS: '0'", "1 to 1024"]),
        ("DTYPE", "\udcff", ["M7B_DTYPE is not UTF-8"]),
    ],
)
def test_a_bad_variable_is_one_line_that_names_it(name, value, fragments, monkeypatch):
    monkeypatch.setenv(f"M7B_{name}", value)
    assert_refused(call("info"), 2, *fragments)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.is_flag])
def test_a_switch_is_true_or_false(name, monkeypatch):
    monkeypatch.setenv(variable(name), "perhaps")
    assert_refused(call("info"), 2, f"{variable(name)}: 'perhaps' is neither true nor false")


def test_two_checkpoints_in_the_environment_are_refused(monkeypatch):
    monkeypatch.setenv("M7B_VARIANT", "demo")
    monkeypatch.setenv("M7B_MODEL", "/x")
    assert_refused(call("info"), 2, "variant and model are both set in the environment")


def test_a_file_that_cannot_be_read_is_named(home):
    (home / "config.toml").mkdir()
    assert_refused(call("info"), 2, str(home / "config.toml"), "directory")


def test_a_bom_is_no_part_of_the_file(home):
    (home / "config.toml").write_text("prefill_chunk = 7\n", encoding="utf-8-sig")
    assert call("info", "--json").answer["cache"]["prefill_chunk"] == 7


@pytest.mark.parametrize("line", ["--help", "--version", "complete --help", "config path", "config --help"])
def test_a_bad_file_stops_no_help(line, home):
    config(home, "temprature = 1")
    ran = call(*line.split())
    assert (ran.code, ran.err) == (0, "")


def test_variables_of_other_meaning_are_let_be(monkeypatch):
    for name in ("M7B_NO_HISTORY", "M7B_OFFLINE", "M7B_WHATEVER"):
        monkeypatch.setenv(name, "1")
    assert (call("info").code, call("config", "show").err) == (0, "")


# config path, show and edit


def test_config_path_is_below_the_home_if_that_is_set(home):
    assert call("config", "path").out == f"{home / 'config.toml'}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_config_path_is_where_the_platform_wants_it(monkeypatch):
    monkeypatch.delenv("M7B_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/conf")
    assert call("config", "path").out == "/conf/m7b/config.toml\n"


def test_config_show_tells_each_value_and_its_source(home, monkeypatch):
    config(home, "temperature = 0.25", 'window = "off"', 'dtype = "float32"', 'model = "/x"')
    monkeypatch.setenv("M7B_TOP_K", "5")
    ran = call("config", "show")
    rows = [line.split() for line in ran.out.splitlines()]
    assert [row[0] for row in rows] == OPTIONS_IN_ORDER
    for row in (
        ["temperature", "0.25", "config.toml"],
        ["window", "off", "config.toml"],
        ["top_k", "5", "M7B_TOP_K"],
        ["top_p", "1.0", "default"],
        ["seed", "-", "default"],
    ):
        assert row in rows
    assert len({line.index(row[-1]) for row, line in zip(rows, ran.out.splitlines(), strict=True)}) == 1

    answer = call("config", "show", "--json").answer
    assert list(answer) == OPTIONS_IN_ORDER
    assert answer["temperature"] == {"value": 0.25, "source": "config.toml"}
    assert answer["window"] == {"value": 0, "source": "config.toml"}
    assert answer["dtype"] == {"value": "float32", "source": "config.toml"}
    assert answer["model"] == {"value": "/x", "source": "config.toml"}
    assert answer["top_k"] == {"value": 5, "source": "M7B_TOP_K"}
    assert answer["seed"] == {"value": None, "source": "default"}


def test_config_show_keeps_a_value_on_its_line(home):
    config(home, r'model = "two\nlines"')
    rows = call("config", "show").out.splitlines()
    assert len(rows) == len(OPTIONS)
    assert r"'two\nlines'" in rows[1]


def test_config_show_notes_a_variable_that_looks_misspelt(monkeypatch):
    monkeypatch.setenv("M7B_TEMPRATURE", "1")
    ran = call("config", "show")
    assert ran.code == 0
    assert ran.err == "m7b: M7B_TEMPRATURE is no setting; did you mean M7B_TEMPERATURE?\n"


def test_config_show_refuses_what_the_commands_refuse(home):
    config(home, "seed = -1")
    assert_refused(call("config", "show"), 2, "config.toml: seed is -1")


def test_config_edit_creates_a_private_file_that_sets_nothing(editor, monkeypatch, tmp_path):
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "not" / "there"))
    editor("exit 0")
    assert call("config", "edit").code == 0
    file = tmp_path / "not" / "there" / "config.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(file.read_text()) == {}


def test_the_new_file_shows_every_setting_with_its_default(editor, home):
    editor("exit 0")
    call("config", "edit")
    lines = (home / "config.toml").read_text().splitlines()
    shown = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines if " = " in line))
    assert list(shown) == OPTIONS_IN_ORDER
    defaults = {name: option.default for name, option in OPTIONS.items() if option.default is not None}
    assert {name: shown[name] for name in defaults} == defaults
    for name in shown:
        config(home, f"{name} = {json.dumps(shown[name])}")
        assert call("config", "show").code == 0


def test_config_edit_runs_the_editor_with_its_arguments(editor, home):
    editor('[ "$1" = --wait ] && echo "temperature = 0.3" > "$2"')
    assert call("config", "edit").code == 0
    assert (home / "config.toml").read_text() == "temperature = 0.3\n"


def test_visual_comes_before_editor(editor, home, monkeypatch):
    editor("exit 1")
    monkeypatch.setenv("VISUAL", "true")
    assert call("config", "edit").code == 0


@pytest.mark.skipif(os.name == "nt", reason="looks for the editors of Unix")
def test_without_a_choice_the_editor_of_the_machine_is_taken(home, monkeypatch, tmp_path):
    vi = tmp_path / "bin" / "vi"
    vi.parent.mkdir()
    vi.write_text('#!/bin/sh\necho "seed = 5" > "$1"\n')
    vi.chmod(0o700)
    monkeypatch.setenv("PATH", str(vi.parent))
    assert call("config", "edit").code == 0
    assert (home / "config.toml").read_text() == "seed = 5\n"
    monkeypatch.setenv("PATH", "")
    assert_refused(call("config", "edit"), 2, "no editor", "EDITOR")


def test_config_edit_keeps_what_is_there(editor, home):
    config(home, "seed = 5")
    editor("exit 0")
    assert call("config", "edit").code == 0
    assert (home / "config.toml").read_text() == "seed = 5\n"


def test_config_edit_says_what_is_wrong_and_leaves_it(editor, home):
    config(home, "seed =")  # wrong before, too
    editor('echo "temprature = 1" > "$2"')
    assert_refused(call("config", "edit"), 2, "config.toml: temprature", "temperature?")
    assert (home / "config.toml").read_text() == "temprature = 1\n"


def test_config_edit_blames_the_file_for_the_file_only(editor, monkeypatch):
    monkeypatch.setenv("M7B_TEMPERATURE", "hot")
    editor("exit 0")
    assert call("config", "edit").code == 0


@pytest.mark.parametrize(
    ("command", "fragments"),
    [
        ("/nope/editor -w", ["/nope/editor", "No such file", "EDITOR"]),
        ("false", ["false", "exit code 1"]),
        ("unclosed 'quote", ["unclosed", "quotation"]),
        ("  ", ["no editor", "EDITOR"]),
    ],
)
def test_an_editor_that_fails_is_one_line(command, fragments, monkeypatch):
    monkeypatch.setenv("EDITOR", command)
    assert_refused(call("config", "edit"), 2, *fragments)


@pytest.mark.parametrize("name", ["path", "show", "edit"])
def test_help_of_config_shows_two_examples(name):
    ran = call("config", name, "--help")
    examples = [line.strip() for line in ran.out.splitlines() if line.startswith("    m7b config ")]
    assert len(examples) == 2
    assert all(example.startswith(f"m7b config {name}") for example in examples)


def test_a_wrong_subcommand_is_told_where_help_is():
    assert_refused(call("config", "nope"), 2, "'nope'", "m7b config --help")


# completion

COMPLETIONS = {
    "m7b con": ["config"],
    "m7b config ": ["path", "show", "edit"],
    "m7b complete --tem": ["--temperature"],
    "m7b complete --variant base": ["base-v0.1", "base-v0.3"],
}
SHELLS = {
    "bash": """
        eval "$(_M7B_COMPLETE=source_bash m7b)"
        line=$1; COMP_WORDS=($line); [[ $line == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _m7b_completion m7b; printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() {}; _arguments() { eval "print -rl -- ${${1#*\\(\\(}%\\)\\)}" }
        eval "$(_M7B_COMPLETE=source_zsh m7b)"
        words=(${(s: :)1}); [[ $1 == *" " ]] && words+=(""); CURRENT=$#words
        _m7b_completion | sed 's/:.*//'
    """,
    "fish": """
        _M7B_COMPLETE=source_fish m7b | source
        complete -C "$argv[1]" | string replace -r '\\t.*' ''
    """,
}


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Runs a script in a shell that finds `m7b`."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "m7b"
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -X importtime -m m7b "$@" 2>>"{folder}/imports"\n'
    )
    program.chmod(0o700)
    root = str(Path(__file__).parent.parent.parent)
    env = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": root, "HOME": str(folder)}

    def shell(name, script, *arguments):
        command = {"bash": ["bash", "--norc"], "zsh": ["zsh", "-f"], "fish": ["fish", "--no-config"]}[name]
        rest = ["_", *arguments] if name != "fish" else arguments
        done = subprocess.run(
            [*command, "-c", script, *rest], env=os.environ | env, capture_output=True, text=True, timeout=60
        )
        assert done.stderr == ""
        imports = (folder / "imports").read_text()
        assert "typer" in imports
        assert [name for name in ("torch", "transformers", "tokenizers") if f" {name}\n" in imports] == []
        return done.stdout

    return shell


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize("line", COMPLETIONS)
def test_a_shell_completes(line, name, shell):
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    assert sorted(shell(name, SHELLS[name], line).split()) == sorted(COMPLETIONS[line])


@pytest.mark.parametrize("name", SHELLS)
def test_show_completion_prints_the_script_of_the_shell_around(name, shell):
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    script = shell(name, "m7b --show-completion; true")
    assert f"complete_{name}" in script
    assert script.strip() == shell(name, f"_M7B_COMPLETE=source_{name} m7b").strip()


@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("bash", lambda words: {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}),
        ("zsh", lambda words: {"_TYPER_COMPLETE_ARGS": words}),
        ("fish", lambda words: {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
    ids=SHELLS,
)
def test_the_answer_to_a_shell_is_right_whatever_the_settings(name, request_of, home):
    config(home, "temprature = 1")
    env = os.environ | {"_M7B_COMPLETE": f"complete_{name}"} | request_of("m7b config s")
    done = subprocess.run([sys.executable, "-m", "m7b"], env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "show" in done.stdout
    assert "edit" not in done.stdout


@pytest.mark.parametrize("command", ["complete", "tokenize"])
def test_the_setting_of_a_chat_template_stops_no_command_without_chat(command, monkeypatch, tmp_path):
    """`--chat-template goes with --chat` was said of a flag that nobody gave."""
    monkeypatch.setenv("M7B_CHAT_TEMPLATE", "v1")
    ran = call(command, "--variant", "base-v0.1", "hi")
    assert "--chat-template" not in ran.err
