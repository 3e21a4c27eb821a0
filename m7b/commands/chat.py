"""`m7b chat`: talk with a model on a terminal, or ask it one question."""

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m7b import hub
from m7b.commands.shared.expansion import expand_options
from m7b.commands.shared.fetching import choose_usual
from m7b.commands.shared.grammar_options import GrammarOptions
from m7b.commands.shared.loading import load_model, open_prompt_cache
from m7b.commands.shared.options import (
    ChatTemplateOption,
    ModelOption,
    OfflineOption,
    PromptCacheOption,
    VariantOption,
    integer,
    is_flag,
    number,
)
from m7b.commands.shared.prompt import read_parts
from m7b.commands.shared.tool_options import ConstrainOption, ToolOptions
from m7b.errors import OutOfResources, UsageError
from m7b.generation import EngineOptions, SamplingParams
from m7b.models import Model, ModelChoice, refuse_base, require_template, split_name
from m7b.paths import NoHome, history_file, sessions_file
from m7b.render import Theme, note
from m7b.session import CHAT_SAMPLING, OnFull, Session
from m7b.store import Store, StoredConversation, check_name
from m7b.tools import Approval, Toolbox
from m7b.variants import VARIANTS
from m7b.version import __version__

if TYPE_CHECKING:
    from m7b.repl import Chat


@expand_options
def chat(
    ctx: typer.Context,
    *,
    question: Annotated[
        str | None,
        typer.Argument(help="Ask this and exit, behind what a pipe brings; - is stdin.", show_default=False),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "-f",
            "--file",
            help="Put a file in front of QUESTION; - is stdin; can be repeated.",
            show_default=False,
        ),
    ] = None,
    variant: VariantOption = None,
    model: ModelOption = None,
    chat_template: ChatTemplateOption = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.", show_default=False)
    ] = None,
    go_on: Annotated[
        bool, typer.Option("-c", "--continue", help="Carry on with the latest conversation.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(
            "-s",
            "--session",
            metavar="NAME",
            help="Carry on with a conversation by name or id, or begin one of that name.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the conversation on disk.")] = True,
    on_full: Annotated[
        OnFull, typer.Option("--on-full", help="What to do when the context is full.")
    ] = OnFull.DROP_OLDEST,
    markdown: Annotated[
        bool, typer.Option("--markdown/--no-markdown", help="On a terminal: render answers as Markdown.")
    ] = True,
    theme: Annotated[
        Theme, typer.Option("--theme", help="On a terminal: colours for its background, or none.")
    ] = Theme.AUTO,
    vi: Annotated[bool, typer.Option("--vi/--emacs", help="Keys at the prompt.")] = False,
    tools: ToolOptions,
    tool_approval: Annotated[
        Approval, typer.Option("--tool-approval", help="Whether a tool may run: ask, or always, or never.")
    ] = Approval.ASK,
    tool_limit: Annotated[
        int,
        typer.Option(
            "--tool-limit",
            parser=integer,
            metavar="N",
            help="Most rounds of calls before the model must answer.",
        ),
    ] = 5,
    tool_timeout: Annotated[
        float, typer.Option("--tool-timeout", parser=number, metavar="S", help="Most seconds of one call.")
    ] = 30.0,
    constrain: ConstrainOption = True,
    grammar: GrammarOptions,
    sampling: SamplingParams = CHAT_SAMPLING,
    engine: EngineOptions,
    prompt_cache: PromptCacheOption = None,
    offline: OfflineOption = False,
) -> None:
    """Talk with a model, or ask it one question.

    Examples:

      m7b chat "Why is the sky blue?" -n 40

      m7b chat --no-save -n 40 < prompt.txt
    """
    _check_kept(session, go_on=go_on, save=save)
    keep_to = grammar.read()
    if keep_to is not None and (sampling.stop or tools.are_given):
        raise UsageError("a grammar goes with neither --stop nor tools", hint="ask for one")
    read = open_prompt_cache(prompt_cache, keeps=save or prompt_cache != "auto")
    is_interactive = question is None and not file and _is_terminal()
    asked = None if is_interactive else _read_question(question, file or [])
    is_brief = asked is not None and not go_on and session is None
    with _open_store(save, may_forget=is_brief) as store, ExitStack() as stack:
        kept = _find_kept(store, latest=go_on, reference=session)
        choice, engine = _choose_model(ctx, kept, variant, model, engine, asks=is_interactive)
        toolbox = stack.enter_context(Toolbox(time_limit=tool_timeout))
        tools.fill(toolbox, constrain=constrain)  # whose errors need not wait for the model
        from m7b.repl import Autosaver, Chat, Screen, Toolbelt
        from m7b.repl.background import resolve_theme
        from m7b.repl.keys import silence_keys
        from m7b.repl.signals import raise_on_termination

        stack.enter_context(raise_on_termination())
        if is_interactive:
            stack.enter_context(silence_keys())
        look = resolve_theme(theme)
        messages = store.load_messages(kept.id) if kept else []
        loaded = _load(choice, engine, chat_template)
        if read:
            read.check(loaded)
            stack.callback(read.save_last)
        conversation = Session(
            loaded,
            sampling,
            messages=messages,
            tool_choice=tools.tool_choice,
            constrains_calls=constrain,
            grammar=keep_to,
            on_full=on_full,
            prompt_cache=read,
        )
        if system is not None and (kept is None or is_flag(ctx, "system")):
            conversation.system = system
        screen = Screen(markdown=markdown, is_interactive=is_interactive, theme=look)
        record = Autosaver(store if save else None, kept, messages, session, may_forget=is_brief)
        toolbelt = Toolbelt(toolbox, screen, approval=tool_approval, limit=tool_limit)
        talk = Chat(
            conversation,
            screen,
            record,
            toolbelt,
            # What is added to one model does not fit another.
            lambda name: _load(ModelChoice.from_name(name), replace(engine, adapter=())),
        )
        if kept and kept.model != conversation.model.name:
            screen.note(f"this conversation was with {kept.model} until now", "yellow")
        if asked is None:
            _talk(talk, kept, vi=vi)
        elif talk.say(asked) is None:
            raise KeyboardInterrupt


def _open_store(save: bool, *, may_forget: bool) -> Store:
    """The store of conversations; one in memory where nothing is to be saved, or where it may and must be.

    Raises:
        OutOfResources: it cannot be opened, though it is there or the conversation is to be kept.
    """
    file = None
    try:
        file = sessions_file() if save else None
        return Store(file)
    except OutOfResources as error:
        if not may_forget or (file and os.path.exists(file)):  # what is there is not to be passed over
            raise
        note(f"this conversation is not kept: {error.message}")
        return Store(None)


def _check_kept(session: str | None, *, go_on: bool, save: bool) -> None:
    """See that the options name one conversation at most, and one that is kept.

    Raises:
        UsageError: they do not.
    """
    if go_on and session is not None:
        raise UsageError("--continue and --session are both given", hint="name one conversation")
    if not save and (go_on or session is not None):
        raise UsageError(
            "nothing is kept to carry on with", hint="--no-save, or save in the settings, says so"
        )
    if session is not None and not session.isdigit():
        check_name(session)


def _choose_model(
    ctx: typer.Context,
    kept: StoredConversation | None,
    variant: str | None,
    model: Path | None,
    engine: EngineOptions,
    *,
    asks: bool,
) -> tuple[ModelChoice, EngineOptions]:
    """The model that flags name, else that of the conversation, that of the settings, or what is usual.

    That of a conversation is known again by the name that m7b list shows, and so are its adapters.
    """
    if kept and not (is_flag(ctx, "variant") or is_flag(ctx, "model")):
        name, adapters = split_name(kept.model)
        known = tuple(each for each in adapters if hub.find(each.name))
        engine = replace(engine, adapter=engine.adapter or known)
        if name in VARIANTS:
            return ModelChoice(name), engine
        if hub.find(name):
            return ModelChoice(path=Path(name)), engine
    choice = ModelChoice(variant, model) if variant or model else choose_usual(asks=asks)
    return choice, engine


def _talk(talk: "Chat", kept: StoredConversation | None, *, vi: bool) -> None:
    """Talk until the user has had enough."""
    from m7b.repl import Prompt, SlashCompleter, show_last_turn

    model = talk.session.model
    talk.screen.note(f"m7b {__version__} · {model.name} · /help lists the commands, Ctrl+D ends")
    if kept:
        show_last_turn(talk, kept)
    is_remembered = talk.autosaver.store is not None and not os.environ.get("M7B_NO_HISTORY")
    prompt = Prompt(
        SlashCompleter(talk),
        talk.format_toolbar,
        lambda: talk.is_multiline,
        history_file=_find_history() if is_remembered else None,
        vi=vi,
    )
    talk.run(prompt)


def _find_history() -> Path | None:
    try:
        return history_file()
    except NoHome:
        return None


def _load(choice: ModelChoice, options: EngineOptions, chat_template: str | None = None) -> Model:
    """Load a model that can chat.

    Raises:
        UsageError: it cannot.
    """
    refuse_base(choice, chat_template)
    model = load_model(choice, options, chat_template=chat_template)
    require_template(model.name, model.template)
    return model


def _is_terminal() -> bool:
    """Whether somebody can type and read."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _read_question(question: str | None, files: list[Path]) -> str:
    """What to ask: what is piped in, the files and the question, with empty lines between."""
    parts = [part for part in read_parts(question, files) if part.strip()]
    if not parts:
        raise UsageError("the question is empty", hint="write one")
    return "\n\n".join(parts)


def _find_kept(store: Store, *, latest: bool, reference: str | None) -> StoredConversation | None:
    """The conversation to carry on with, None for a new one."""
    if latest:
        found = store.find_latest()
        if found is None:
            raise UsageError("there is no conversation to continue", hint="leave out --continue")
        return found
    if reference is None:
        return None
    return store.find(reference) if reference.isdigit() else store.find_named(reference)
