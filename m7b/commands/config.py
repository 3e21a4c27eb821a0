"""`m7b config`: where the settings are, what they are, and how to change them.

Also hands them to the options of every command. An option itself says whether its setting is sound.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup, TyperOption

from m7b.commands.shared.lazy import COMMANDS
from m7b.commands.shared.options import JsonOption, plain
from m7b.editor import edit_file
from m7b.errors import UsageError
from m7b.generation import EngineOptions, SamplingParams
from m7b.options import list_options
from m7b.paths import NoHome, config_file
from m7b.render import Output, note
from m7b.settings import SETTINGS, Setting, find_similar_variables, load

config = typer.Typer(help="Show or change the settings.", rich_markup_mode=None)

_OPTIONS = {**list_options(SamplingParams), **list_options(EngineOptions)}


@config.command()
def path() -> None:
    """Print where config.toml is, or would be.

    Examples:

      m7b config path

      m7b config path | xargs dirname
    """
    Output().write(f"{config_file()}\n")


@config.command()
def show(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show every setting in effect and what set it.

    Examples:

      m7b config show

      m7b config show --json
    """
    settings = list(_in_effect(ctx))
    output = Output()
    if as_json:
        output.write_json({s.name: {"value": value, "source": s.source} for s, value in settings})
    else:
        texts = [s.text if s.text.isprintable() else repr(s.text) for s, _ in settings]
        widths = max(len(s.name) for s, _ in settings), max(map(len, texts))
        for (s, _), text in zip(settings, texts, strict=True):
            output.write(f"{s.name:<{widths[0]}}  {text:<{widths[1]}}  {s.source}\n")
    for variable, meant in find_similar_variables(os.environ, _options(ctx)).items():
        note(f"{variable} is no setting; did you mean {meant}?")


@config.command()
def edit(ctx: typer.Context) -> None:
    """Open config.toml in $VISUAL or $EDITOR, and check it afterwards.

    Examples:

      m7b config edit

      m7b config edit && m7b config show
    """
    file, options = config_file(), _options(ctx)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(
            os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as stream:
            stream.write(_template(options))
    edit_file(file)
    for setting in load({}, file, options).values():
        _check(setting, options, ctx)


def apply_settings(ctx: typer.Context) -> None:
    """Make the settings the defaults of the options, from the context of the root command.

    Settings that are wrong stop the commands that have such options, but neither their --help nor
    `m7b config`.
    """
    invoked = str(ctx.invoked_subcommand)
    try:
        settings = load(os.environ, _find_file(), SETTINGS)
        options = _find_options(ctx, settings, invoked) if settings else {}
        defaults = {
            name: _default(setting, _check(setting, options, ctx)) for name, setting in settings.items()
        }
    except UsageError as error:
        defaults = dict.fromkeys(SETTINGS, _refusal(error))
    if defaults and invoked in COMMANDS:
        ctx.default_map = {invoked: _find_defaults(_root(ctx).commands[invoked], defaults)}


def _find_defaults(command: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """The `defaults` of what Click's `command` takes, and by their names of the commands below it."""
    below = command.commands if isinstance(command, TyperGroup) else {}
    own = {str(param.name): defaults[param.name] for param in command.params if param.name in defaults}
    return own | {name: _find_defaults(each, defaults) for name, each in below.items()}


def _find_file() -> Path | None:
    """The file of the settings, None where the user has no home for it."""
    try:
        return config_file()
    except NoHome:
        return None


def _refusal(error: UsageError) -> Callable[[], NoReturn]:
    """A default that is an error as soon as an option needs it."""

    def refuse() -> NoReturn:
        raise error

    return refuse


def _default(setting: Setting, value: Any) -> Any:
    """The text of a setting as a shell would have passed it with the flag."""
    return os.path.expanduser(setting.text) if isinstance(value, Path) else setting.text


def _root(ctx: typer.Context) -> TyperGroup:
    root = ctx.find_root().command
    assert isinstance(root, TyperGroup)
    return root


def _options(ctx: typer.Context) -> dict[str, TyperOption]:
    """The option of each setting, in the order of the table."""
    return _find_options(ctx, SETTINGS)


def _find_options(ctx: typer.Context, names: Iterable[str], first: str = "") -> dict[str, TyperOption]:
    """The options of settings; commands that share one agree on it.

    No more commands are asked, and so imported, than it takes: that called `first` before others.
    """
    commands = _root(ctx).commands
    missing, found = set(names), dict[str, TyperOption]()
    for command in sorted(commands, key=lambda name: name != first):
        if not missing:
            break
        for param in commands[command].params:
            if param.name in missing and isinstance(param, TyperOption):
                missing.remove(param.name)
                found[param.name] = param
    return {name: found[name] for name in names}


def _in_effect(ctx: typer.Context) -> Iterator[tuple[Setting, Any]]:
    """Every setting with its value; those that nobody set are those of the options."""
    options = _options(ctx)
    settings = load(os.environ, _find_file(), options)
    for name, option in options.items():
        if name in settings:
            value = _check(settings[name], options, ctx)
            yield settings[name], str(value) if isinstance(value, Path) else value
        else:
            yield Setting(name, _default_text(name, option.default, ctx), "default"), option.default


def _default_text(name: str, default: Any, ctx: typer.Context) -> str:
    """The default, and in brackets those of commands that have another: `256 (chat: 1024)`."""
    others = [
        f"{command}: {_text(param.default)}"
        for command, found in _root(ctx).commands.items()
        for param in found.params
        if param.name == name and param.default != default
    ]
    return f"{_text(default)} ({', '.join(others)})" if others else _text(default)


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def _check(setting: Setting, options: dict[str, TyperOption], ctx: typer.Context) -> Any:
    """The value of a setting as its option reads it.

    Raises:
        UsageError: it means nothing to the option, or is out of range.
    """
    option = options[setting.name]
    try:
        value = option.process_value(ctx, setting.text)
        if setting.name in _OPTIONS:
            _OPTIONS[setting.name].check(value)
    except typer.BadParameter as error:
        reason = f"{setting.text!r} is neither true nor false" if option.is_flag else plain(error.message)
        raise UsageError(f"{setting.place}: {reason}") from None
    except UsageError as error:
        raise UsageError(f"{setting.place} is {setting.text}", hint=error.hint) from None
    return value


def _template(options: dict[str, TyperOption]) -> str:
    """A config.toml that sets nothing and shows everything."""
    lines = ["# Settings of m7b. Remove a # to set one. M7B_* variables are stronger, flags are strongest."]
    for name, option in options.items():
        lines += ["", f"# {option.help}", f"# {name} = {json.dumps(SETTINGS[name])}"]
    return "\n".join(lines) + "\n"
