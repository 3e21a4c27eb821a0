"""`m7b chat`: talk with a model on a terminal, or ask it one question."""

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m7b import __version__
from m7b.commands.choosing import named_model, usual_variant, variant_of
from m7b.commands.grammar_options import (
    AnswerFormat,
    FormatOption,
    GrammarOption,
    JsonSchemaOption,
    RegexOption,
    grammar_of,
)
from m7b.commands.loading import chat_template_of, chosen_variant, load_model, refuse_base
from m7b.commands.options import (
    ChatTemplateOption,
    CtxSizeOption,
    DeviceOption,
    DTypeOption,
    ModelOption,
    OfflineOption,
    PrefillChunkOption,
    QuantOption,
    ThreadsOption,
    VariantName,
    VariantOption,
    WindowOption,
    is_flag,
    number,
)
from m7b.commands.prompt import read_prompt
from m7b.commands.sampling_options import (
    FrequencyPenaltyOption,
    LogitBiasOption,
    MaxTokensOption,
    MinPOption,
    PresencePenaltyOption,
    RepeatLastNOption,
    RepetitionPenaltyOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TypicalPOption,
    logit_bias_of,
)
from m7b.commands.tool_options import (
    ConstrainOption,
    McpOption,
    ToolChoiceOption,
    ToolLimitOption,
    ToolsOption,
    fill,
)
from m7b.errors import UsageError
from m7b.generation import SamplingParams
from m7b.paths import history_file, sessions_file
from m7b.session import ChatModel, OnFull, Session
from m7b.store import Store, StoredConversation, check_name
from m7b.tools import Approval, Toolbox

if TYPE_CHECKING:
    from m7b.repl import Chat


def chat(
    ctx: typer.Context,
    question: Annotated[
        str | None,
        typer.Argument(help="Ask this and exit; - or a pipe reads it from stdin.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", help="Put a file in front of QUESTION; - is stdin.", show_default=False),
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
    vi: Annotated[bool, typer.Option("--vi/--emacs", help="Keys at the prompt.")] = False,
    tools: ToolsOption = None,
    mcp: McpOption = None,
    tool_choice: ToolChoiceOption = "auto",
    tool_approval: Annotated[
        Approval, typer.Option("--tool-approval", help="Whether a tool may run: ask, or always, or never.")
    ] = Approval.ASK,
    tool_limit: ToolLimitOption = 5,
    tool_timeout: Annotated[
        float, typer.Option("--tool-timeout", parser=number, metavar="S", help="Most seconds of one call.")
    ] = 30.0,
    constrain: ConstrainOption = True,
    json_schema: JsonSchemaOption = None,
    answer_format: FormatOption = AnswerFormat.TEXT,
    grammar: GrammarOption = None,
    regex: RegexOption = None,
    max_tokens: MaxTokensOption = 1024,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    typical_p: TypicalPOption = 1.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    presence_penalty: PresencePenaltyOption = 0.0,
    frequency_penalty: FrequencyPenaltyOption = 0.0,
    repeat_last_n: RepeatLastNOption = -1,
    logit_bias: LogitBiasOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    threads: ThreadsOption = None,
    dtype: DTypeOption = None,
    quant: QuantOption = None,
    device: DeviceOption = "cpu",
    window: WindowOption = None,
    ctx_size: CtxSizeOption = None,
    prefill_chunk: PrefillChunkOption = 512,
    offline: OfflineOption = False,
) -> None:
    """Talk with a model, or ask it one question.

    Examples:

      m7b chat "Why is the sky blue?" -n 40

      m7b chat --no-save -n 40 < prompt.txt
    """
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repeat_last_n=repeat_last_n,
        logit_bias=logit_bias_of(logit_bias),
        seed=seed,
        stop=tuple(stop or ()),
    )
    if go_on and session is not None:
        raise UsageError("--continue and --session are both given", hint="name one conversation")
    if not save and (go_on or session is not None):
        raise UsageError(
            "nothing is kept to carry on with", hint="--no-save, or save in the settings, says so"
        )
    if session is not None and not session.isdigit():
        check_name(session)
    keep_to = grammar_of(json_schema, answer_format, grammar, regex)
    if keep_to is not None and (params.stop or tools or mcp):
        raise UsageError("a grammar goes with neither --stop nor tools", hint="ask for one")
    is_interactive = question is None and file is None and _is_terminal()
    asked = None if is_interactive else _question(question, file)
    with Store(sessions_file() if save else None) as store, ExitStack() as stack:
        kept = _conversation(store, latest=go_on, reference=session)
        if (of_kept := variant_of(kept)) and not (is_flag(ctx, "variant") or is_flag(ctx, "model")):
            variant, model = of_kept, None
        if variant is None and model is None:
            variant = usual_variant(can_ask=is_interactive)
        load = partial(
            _load,
            window=window,
            ctx_size=ctx_size,
            prefill_chunk=prefill_chunk,
            dtype=dtype,
            quant=quant,
            device=device,
            threads=threads,
        )
        from m7b.repl import Autosaver, Chat, Screen, Toolbelt
        from m7b.repl.keys import silence_keys

        if is_interactive:
            stack.enter_context(silence_keys())
        loaded = load(variant, model, chat_template=chat_template)

        messages = store.load_messages(kept.id) if kept else []
        conversation = Session(
            loaded,
            params,
            messages=messages,
            tool_choice=tool_choice,
            constrains_calls=constrain,
            grammar=keep_to,
            on_full=on_full,
        )
        if system is not None and (kept is None or is_flag(ctx, "system")):
            conversation.system = system
        toolbox = stack.enter_context(Toolbox(time_limit=tool_timeout))
        fill(toolbox, tools, mcp)
        screen = Screen(markdown=markdown, is_interactive=is_interactive)
        talk = Chat(
            conversation,
            screen,
            Autosaver(store if save else None, kept, messages, session),
            Toolbelt(toolbox, screen, approval=tool_approval, limit=tool_limit),
            lambda name: load(*named_model(name)),
        )
        if kept and kept.model != loaded.name:
            screen.note(f"this conversation was with {kept.model} until now", "yellow")
        if asked is None:
            _talk(talk, kept, vi=vi)
        elif talk.say(asked) is None:
            raise KeyboardInterrupt


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
        history_file=history_file() if is_remembered else None,
        vi=vi,
    )
    talk.run(prompt)


def _load(
    variant: VariantName | None, model: Path | None, *, chat_template: str | None = None, **options: Any
) -> ChatModel:
    """Load a model that can chat; `options` are those of `load_model`."""
    refuse_base(chosen_variant(variant, model), chat_template)
    loaded = load_model(variant, model, chat_template=chat_template, **options)
    return ChatModel(
        loaded.name,
        loaded.engine,
        loaded.tokenizer,
        chat_template_of(loaded.name, loaded.template),
        loaded.stop_ids,
        vocab_size=loaded.vocab_size,
        ctx_size=loaded.ctx_size,
        window=loaded.window,
        about=loaded.about,
        license=loaded.license,
    )


def _is_terminal() -> bool:
    """Whether somebody can type and read."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _question(question: str | None, file: Path | None) -> str:
    """What to ask: the file, an empty line, and the question, as far as they are given."""
    texts = [read_prompt(None, file)] if file else []
    if question is not None or not file:
        texts.append(read_prompt(question, None))
    if not any(text.strip() for text in texts):
        raise UsageError("the question is empty", hint="write one")
    return "\n\n".join(texts)


def _conversation(store: Store, *, latest: bool, reference: str | None) -> StoredConversation | None:
    """The conversation to carry on with, None for a new one."""
    if latest:
        found = store.find_latest()
        if found is None:
            raise UsageError("there is no conversation to continue", hint="leave out --continue")
        return found
    if reference is None:
        return None
    return store.find(reference) if reference.isdigit() else store.find_named(reference)
