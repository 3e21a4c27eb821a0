"""Slash commands that show something and change nothing."""

from typing import TYPE_CHECKING

from m7b.errors import UsageError
from m7b.repl.slash.registry import Argument, command
from m7b.repl.slash.settings import show_parameters

if TYPE_CHECKING:
    from m7b.repl.chat import Chat

_WINDOW_TEXT = 60  # characters to show of where the window begins

TOPICS = ("info", "parameters", "system", "template", "license")


@command("show", usage="[TOPIC]", argument=Argument.TOPIC)
def show(chat: "Chat", argument: str) -> None:
    """Show one of info, parameters, system, template and license."""
    session, screen = chat.session, chat.screen
    match argument:
        case "" | "info":
            screen.show_table(session.model.about.items())
        case "parameters":
            show_parameters(chat)
        case "system":
            screen.note(session.system or "there is no system prompt")
        case "template":
            screen.note(session.model.chat_template.description)
            screen.show_raw(session.model.chat_template.source)
        case "license":
            screen.note(session.model.license or "the checkpoint names no license")
        case _:
            raise UsageError(
                f"there is nothing to show of {argument!r}", hint=f"topics are {', '.join(TOPICS)}"
            )


@command("tokens", usage="[TEXT]")
def show_tokens(chat: "Chat", argument: str) -> None:
    """Show the exact prompt that TEXT, or an empty message, would make."""
    ids, tokenizer = chat.session.encode_prompt(chat.compose(argument)), chat.session.model.tokenizer
    chat.screen.show_pieces((tokenizer.piece(token), tokenizer.is_control(token)) for token in ids)
    chat.screen.note(f"{len(ids)} of {chat.session.model.ctx_size} tokens")


@command("window")
def show_window(chat: "Chat", argument: str) -> None:
    """Show what the model can still attend to."""
    session, model, note = chat.session, chat.session.model, chat.screen.note
    ids = session.encode_prompt("")
    note(f"the prompt has {len(ids)} of {model.ctx_size} tokens")
    if model.window is None:
        note("full attention: every token sees all before it")
    elif len(ids) < model.window:
        note(f"a window of {model.window}: every token still sees all before it")
    else:
        seen = model.tokenizer.decode(ids[len(ids) + 1 - model.window :])
        note(f"a window of {model.window}: the next token sees itself and {model.window - 1} before it, from")
        note(f"  …{' '.join(seen[:_WINDOW_TEXT].split())}…")
        note("and what came earlier only through what the layers below made of it")
    if session.n_dropped:
        note(f"the oldest {session.n_dropped} messages are left out (--on-full {session.on_full})")


@command("stats")
def show_stats(chat: "Chat", argument: str) -> None:
    """Show the figures of the last answer."""
    usage = chat.session.usage
    if usage is None:
        chat.screen.note("there is no answer yet")
        return
    drafts = f"{usage.drafted_tokens} tokens, {usage.taken_tokens} taken"
    chat.screen.show_table(
        (
            (
                "prompt",
                f"{usage.prompt_tokens} tokens, reused {usage.reused_tokens} of {usage.prompt_tokens}",
            ),
            ("prefill", f"{usage.prefill_s:.2f} s{_format_speed(usage.prefill_tps)}"),
            ("answer", f"{usage.completion_tokens} tokens"),
            ("decode", f"{usage.decode_s:.2f} s{_format_speed(usage.decode_tps)}"),
            *([("drafted", drafts)] if usage.drafted_tokens else []),
        )
    )


def _format_speed(tps: float | None) -> str:
    return f", {tps:.1f} tok/s" if tps else ""
