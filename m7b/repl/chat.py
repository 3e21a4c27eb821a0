"""A chat in progress: takes lines, asks the session, shows the answers and saves them."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol, assert_never

from m7b.detokenizer import REPLACEMENT
from m7b.errors import M7bError, UsageError
from m7b.generation import CallDelta, Finished, FinishReason, PromptProgress, TextDelta
from m7b.models import Model
from m7b.offer import check_template, describe_form
from m7b.repl.autosaver import Autosaver
from m7b.repl.screen import Screen
from m7b.repl.signals import ignore_ctrl_c, raise_on_ctrl_c, stop_on_ctrl_c
from m7b.repl.slash import find_command
from m7b.repl.toolbelt import Toolbelt
from m7b.session import Dropped, Session, SessionEvent
from m7b.tools import keep_enforceable

COMMAND_LINE = re.compile(r"/(?!/)(?P<name>\S*)(?P<argument>.*)", re.DOTALL)


class Reader(Protocol):
    """Where lines come from."""

    def read(self, draft: str) -> str:
        """Return the next message; the user types over `draft`.

        Raises:
            EOFError: there will be no more messages.
        """
        ...


class Chat:
    """One conversation on a screen.

    Args:
        session: generates the answers.
        screen: shows them.
        autosaver: saves them.
        toolbelt: runs the tools that the model calls.
        open_model: loads the model with a name or at a path, for /model.
    """

    def __init__(
        self,
        session: Session,
        screen: Screen,
        autosaver: Autosaver,
        toolbelt: Toolbelt,
        open_model: Callable[[str], Model],
    ) -> None:
        self.session = session
        self.screen = screen
        self.autosaver = autosaver
        self.toolbelt = toolbelt
        self.open_model = open_model
        self.is_multiline = False
        self.is_over = False
        self.draft = ""  # what the next prompt begins with
        self._token_count: tuple[object, int] = (None, 0)
        self.attached: dict[Path, str] = {}  # files whose text goes in front of the next message
        self.offer_tools()

    def run(self, reader: Reader) -> None:
        """Read lines and run them until there are no more, or a command ends the chat."""
        with ignore_ctrl_c():
            while not self.is_over:
                draft, self.draft = self.draft, ""
                try:
                    line = reader.read(draft)
                except EOFError:
                    return
                except KeyboardInterrupt:
                    continue
                self.run_line(line)

    def run_line(self, line: str) -> None:
        """Run a command, or send a message to the model."""
        if not unquote(line).strip():
            return
        try:
            with raise_on_ctrl_c():
                if found := COMMAND_LINE.fullmatch(line.lstrip()):
                    find_command(found["name"]).run(self, found["argument"].strip())
                else:
                    is_escaped = line.lstrip().startswith("//")
                    self.say(line.lstrip()[1:] if is_escaped else unquote(line), draft=line)
        except M7bError as error:
            self.screen.note(str(error), "red")
        except KeyboardInterrupt:
            pass
        except Exception:  # noqa: BLE001 - a bug of ours is no reason to lose a conversation
            self.screen.note(f"{traceback.format_exc()}this is a bug in m7b; the chat goes on", "red")

    def say(self, text: str, *, draft: str = "") -> Finished | None:
        """Send `text` to the model, with the attached files in front of it; see `ask`."""
        finished = self.ask(self.session.send(self.compose(text)), draft=draft)
        if not self.draft:
            self.attached.clear()
        return finished

    def compose(self, text: str) -> str:
        """Put the attached files in front of `text`; returns the whole message."""
        return "\n\n".join([*self.attached.values(), text])

    def ask(self, events: Iterator[SessionEvent], *, draft: str) -> Finished | None:
        """Show an answer; where there is none in the end, the next prompt begins with `draft`."""
        before = self.session.messages
        try:
            return self.show(events)
        finally:
            if self.session.messages == before:
                self.draft = draft

    def offer_tools(self) -> None:
        """Offer the tools to the model, if they are on.

        Raises:
            UsageError: the chat template has no place for tools, or answers keep to a grammar; then no
                tool is offered.
        """
        self.session.tools = None
        if offered := self.toolbelt.list_offered():
            if self.session.grammar is not None:
                raise UsageError("an answer cannot both keep to a grammar and call tools", hint="/tools off")
            template = self.session.model.chat_template
            check_template(template)
            if self.session.constrains_calls:
                offered, left_out = keep_enforceable(offered, demanded=self.session.tool_choice)
                for line in left_out:
                    self.screen.note(line, "yellow")
            self.session.tools = offered
            if remark := describe_form(template):
                self.screen.note(remark, "yellow")

    def show(self, events: Iterator[SessionEvent], *, continues: bool = False) -> Finished | None:
        """Show an answer while it comes, and save it; run its calls, and show the answer to their results.

        Returns:
            The end of the last answer, None where it was interrupted.
        """
        finished = self._show_one(events, continues=continues)
        for n_left in reversed(range(self.toolbelt.limit)):
            if finished is None or not finished.calls:
                break
            with ignore_ctrl_c():
                results = list(self.toolbelt.run_calls(finished.calls))
            finished = self._show_one(self.session.return_results(results, may_call=n_left > 0))
        return finished

    def _show_one(self, events: Iterator[SessionEvent], *, continues: bool = False) -> Finished | None:
        """Show one answer while it comes, and save it. Ctrl-C ends the answer; its text until then stays.

        Returns:
            The end of the answer, None where it was interrupted.
        """
        finished: Finished | None = None
        before = self.session.messages
        shown = before[-1].text.rstrip(f" {REPLACEMENT}") if continues else ""
        n_shown = len(shown)
        with ignore_ctrl_c():
            try:
                with (
                    self.screen.begin_answer(after=shown) as answer,
                    closing(stop_on_ctrl_c(events)) as heard,
                ):
                    for event in heard:
                        match event:
                            case PromptProgress():
                                if event.done < event.total:
                                    answer.show_progress(format_progress(event))
                            case TextDelta():
                                answer.write(event.text)
                                n_shown = len(self.session.messages[-1].text)
                            case CallDelta():
                                answer.write_call(event.text)
                            case Dropped():
                                answer.remark(format_dropped(event, self.session.on_full))
                            case Finished():
                                finished = event
                            case other:
                                assert_never(other)
                        # A disk that fails ends no answer: the last save below reports the failure.
                        with suppress(M7bError):
                            self.autosaver.save_if_due(self.session)
                    if self.session.messages != before:  # the event that Ctrl-C took may have been text
                        answer.write(self.session.find_last("assistant").text[n_shown:])
            finally:
                self.autosaver.save(self.session)
                if self.autosaver.notice:
                    self.screen.note(self.autosaver.notice, "yellow")
                    self.autosaver.notice = ""
            self._remark(finished, has_more=self.session.messages != before)
        return finished

    def format_toolbar(self) -> str:
        """Format the state of the chat as one line."""
        session, model = self.session, self.session.model
        usage = session.usage
        parts = [model.name, f"{self._count_tokens()} of {model.ctx_size} tokens"]
        if model.window:
            parts.append(f"window {model.window}")
        if usage:
            parts.append(f"reused {usage.reused_tokens} of {usage.prompt_tokens}")
            if usage.decode_tps:
                parts.append(f"{usage.decode_tps:.1f} tok/s")
        parts += (f"+ {file.name}" for file in self.attached)
        if self.is_multiline:
            parts.append("Alt+Enter sends")
        return " · ".join(parts)

    def _count_tokens(self) -> int:
        """Count the tokens of the next prompt before anything is typed; count again only after a change."""
        session = self.session
        counted = (session.model, session.n_dropped, session.messages, tuple(self.attached))
        if self._token_count[0] != counted:
            try:
                self._token_count = counted, len(session.encode_prompt(self.compose("")))
            except M7bError:  # the next message will meet the error again and show it
                self._token_count = counted, 0
        return self._token_count[1]

    def _remark(self, finished: Finished | None, *, has_more: bool) -> None:
        """Say why an answer ended, where it did not end by itself."""
        session, screen = self.session, self.screen
        if finished is None:
            if screen.is_interactive:
                screen.note(f"stopped{'; /continue goes on, /regen answers anew' if has_more else ''}")
            return
        usage = finished.usage
        if finished.reason is not FinishReason.LENGTH:
            if not finished.tokens:
                screen.note("the model said nothing")
        elif usage.prompt_tokens + usage.completion_tokens >= session.model.ctx_size:
            screen.note(
                f"the context of {session.model.ctx_size} tokens is full; --on-full roll goes on", "yellow"
            )
        else:
            is_text = screen.is_interactive and has_more  # calls that were cut off leave nothing
            way_out = "/continue goes on" if is_text else "--max-tokens allows more"
            screen.note(f"stopped after {usage.completion_tokens} tokens; {way_out}")


def unquote(line: str) -> str:
    '''Return the text of a line, or of a block between """ and """.'''
    text = line.strip()
    if len(text) >= 6 and text.startswith('"""') and text.endswith('"""'):
        return text[3:-3].strip("\n")
    return line


def format_progress(event: PromptProgress) -> str:
    """Say how far the model has read the prompt."""
    return f"reading the conversation: {event.done} of {event.total} tokens, {event.reused} reused"


def format_dropped(event: Dropped, on_full: str) -> str:
    """Say which messages no longer fit the context."""
    messages = "message" if event.n_messages == 1 else f"{event.n_messages} messages"
    return (
        f"the context is full: the oldest {messages} ({event.n_tokens} tokens) are out of the model's sight "
        f"(--on-full {on_full})"
    )
