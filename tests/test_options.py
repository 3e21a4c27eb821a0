"""Options that are declared once: what flags, JSON, /set and settings derive from one declaration."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from m7b.cli import app
from m7b.commands.shared.expansion import expand_options
from m7b.completions import CompletionRequest, parse_request
from m7b.errors import UsageError
from m7b.generation import EngineOptions, SamplingParams
from m7b.options import list_options, option
from m7b.repl.parameters import PARAMETERS
from m7b.settings import SETTINGS

SAMPLING = list_options(SamplingParams)
COMMANDS = typer.main.get_command(app).commands


@dataclass(frozen=True, slots=True)
class Colours:
    """A group of options for the tests."""

    red: int = option(1, "How red.", low=0, high=255, short="-r")
    names: tuple[str, ...] = option((), "What they are called.", collect=tuple)
    is_bright: Annotated[bool, typer.Option("--bright")] = False
    hidden: int = 7


def run(*arguments, default=None):
    """The group that a command with these arguments is given, or what it says of them."""
    found = []
    default = default or Colours()

    def command(*, word: Annotated[str, typer.Argument()], colours: Colours = default) -> None:
        found.append((word, colours))

    program = typer.Typer()
    program.command()(expand_options(command))
    ran = CliRunner().invoke(program, arguments)
    return found[0] if found else ran.output


def test_a_group_is_filled_from_an_option_for_each_field():
    given = ["-r", "9", "--names", "a", "--names", "b", "--bright", "hi"]
    assert run(*given) == ("hi", Colours(9, ("a", "b"), True))


def test_what_is_not_given_is_as_the_default_of_the_group():
    default = Colours(5, (), True, 8)
    assert run("hi", default=default) == ("hi", default)


def test_a_text_that_is_no_value_is_refused_by_name():
    assert "'x' is not a whole number" in run("hi", "--red", "x")
    assert "--hidden" in run("hi", "--hidden", "1")


@pytest.mark.parametrize("name", ["complete", "chat"])
def test_every_sampling_and_engine_option_is_a_flag_with_its_help(name):
    flags = {param.name: param for param in COMMANDS[name].params}
    options = [*SAMPLING.values(), *list_options(EngineOptions).values()]
    wanted = [entry for entry in options if not entry.is_apart or name == "complete"]
    assert [entry.name for entry in wanted if flags[entry.name].help != entry.help] == []
    assert [entry.name for entry in wanted if entry.flag not in flags[entry.name].opts] == []


def test_every_number_in_json_reaches_its_field():
    names = [name for name, entry in SAMPLING.items() if entry.kind in (int, float)]
    assert len(names) >= 12
    for name in names:
        value = min(SAMPLING[name].high, 1)
        request = parse_request({"prompt": "a", name: value}, CompletionRequest("", SamplingParams()))
        assert getattr(request.params, name) == value


@pytest.mark.parametrize("name", [name for name, entry in SAMPLING.items() if entry.kind in (int, float)])
def test_a_number_below_its_range_is_refused_by_name(name):
    with pytest.raises(UsageError, match=f"{name} is "):
        SamplingParams(**{name: SAMPLING[name].low - 1})


def test_whatever_set_takes_is_a_field_and_whatever_is_a_setting_has_a_sample():
    assert PARAMETERS.keys() <= SAMPLING.keys()
    for owner in (SamplingParams, EngineOptions):
        for name, entry in list_options(owner).items():
            assert (name in SETTINGS) == (entry.sample is not None)


def test_words_stand_for_values_that_no_number_writes():
    window = list_options(EngineOptions)["window"]
    assert window.read("off") == 0
    with pytest.raises(ValueError, match="nor off"):
        window.read("0")
    window.check(0)
