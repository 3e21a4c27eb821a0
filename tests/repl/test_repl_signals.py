"""Where Ctrl+C stops something and where it waits, in process: signals sent at chosen moments."""

import os
import signal

import pytest

from m7b.generation import SamplingParams, TextDelta
from m7b.repl import Autosaver, Chat, Screen, Toolbelt
from m7b.repl.signals import delay_ctrl_c, ignore_ctrl_c, raise_on_ctrl_c, stop_on_ctrl_c
from m7b.session import Session
from m7b.tools import Approval, Toolbox
from tests.support.fake_chat import fake_model, saying


@pytest.fixture(autouse=True)
def as_in_a_shell():
    """Ctrl+C raises KeyboardInterrupt, and does so again after each test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def ctrl_c(n_times=1):
    for _ in range(n_times):
        os.kill(os.getpid(), signal.SIGINT)


def test_it_does_nothing_where_nobody_listens():
    with ignore_ctrl_c():
        ctrl_c(3)


def test_it_stops_what_is_stoppable_once_and_not_the_cleaning_up():
    done = []

    def stop():
        with raise_on_ctrl_c():
            try:
                ctrl_c()
                done.append("not stopped")
            finally:
                ctrl_c(2)
                done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert done == ["cleaned up"]


def test_it_waits_for_what_must_not_be_cut_in_two():
    done = []

    def save():
        with delay_ctrl_c():
            ctrl_c(2)
            done.append("saved")

    with pytest.raises(KeyboardInterrupt):
        save()
    assert done == ["saved"]


def test_it_ends_the_wait_for_an_event_and_closes_the_events():
    closed = []

    def events():
        try:
            yield 1
            ctrl_c()
            yield 2
        finally:
            ctrl_c(2)
            closed.append(True)

    assert list(stop_on_ctrl_c(events())) == [1]
    assert closed == [True]


def test_it_never_cuts_short_what_is_done_with_an_event():
    done = []
    for event in stop_on_ctrl_c(iter_of(1, 2, 3)):
        ctrl_c(2)
        done.append(event)
    assert done == [1]


def test_text_that_the_session_took_in_that_moment_is_shown(capsys):
    """It was stored and not on the screen."""
    session = Session(fake_model(saying([*map(ord, "abc")])), SamplingParams())
    screen = Screen(is_interactive=False)
    belt = Toolbelt(Toolbox(), screen, approval=Approval.DENY, limit=1)
    talk = Chat(session, screen, Autosaver(None), belt, lambda name: session.model)

    def asked():
        for event in session.send("x"):
            if event == TextDelta("b"):
                ctrl_c()
            yield event

    assert talk.show(asked()) is None
    assert session.messages[-1].text == "ab"
    assert capsys.readouterr().out == "ab\n"


def iter_of(*values):
    yield from values
