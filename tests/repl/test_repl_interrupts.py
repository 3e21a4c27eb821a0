"""Ctrl+C during an answer of `m7b chat`, and kill -9: what is on the screen is what is stored."""

import random
import time

import pytest

from m7b.messages import Message
from tests.support.chat_home import ChatHome

STOPPED = "stopped; /continue goes on, /regen answers anew"
LONG = {"--ctx-size": "100000", "--max-tokens": "50000"}
LONG_OPTIONS = [word for pair in LONG.items() for word in pair]


@pytest.fixture
def home(tmp_path):
    return ChatHome(tmp_path)


def counting(n: int) -> str:
    """An answer that lasts: word 0 to 3999, each with the number of the answer."""
    return " ".join(f"{n}.{word}" for word in range(4000))


def answers_on(terminal) -> dict[str, str]:
    """Each message on the screen with the answer below it, without blanks: rows end within words."""
    found: dict[str, list[str]] = {}
    for line in terminal.until_cursor[1:]:
        if line.startswith(">>>"):
            message = line[4:]
            assert message not in found or not message, "one message is on the screen twice"
            found[message] = []
        elif line != STOPPED:
            found[message] += line.split()
    return {message: "".join(words) for message, words in found.items() if words}


def answers_in(home) -> dict[str, str]:
    """Each stored message with its answer, without blanks."""
    texts = home.texts()
    return {message: "".join(answer.split()) for message, answer in zip(texts[::2], texts[1::2], strict=True)}


def settle(terminal, mark: str) -> None:
    """After Ctrl+C, once or more: wait for the prompt, and leave it empty."""
    terminal.type(mark)
    terminal.wait_for(lambda: terminal.draft.endswith(mark))
    terminal.key("ctrl+c")
    terminal.wait_for_draft("")
    terminal.skip_prompts()


@pytest.mark.parametrize("n_times", [1, 2, 3])
def test_ctrl_c_keeps_what_was_answered_and_goes_on(home, n_times):
    with home.chat(answers={"go": "one **two** thr⏸ee"}) as terminal:
        start = terminal.row
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for("one two thr")
        terminal.key(*["ctrl+c"] * n_times)
        settle(terminal, "#")
        assert terminal.until_cursor[start:] == [">>> go", "one two thr", STOPPED, ">>>"]
        assert home.messages() == [
            Message("user", "go"),
            Message("assistant", "one **two** thr", is_partial=True),
        ]
        home.go_on()
        assert terminal.submit("next") == ["echo: next"]
        terminal.key("ctrl+d")
        assert terminal.exit_code() == 0


def test_an_interrupted_answer_goes_on_with_continue(home):
    with home.chat(answers={"go": "one two th⏸ree four"}) as terminal:
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for("one two th")
        terminal.key("ctrl+c")
        settle(terminal, "#")
        home.go_on()
        assert terminal.submit("/continue") == ["ree four"]
    assert home.messages()[1] == Message("assistant", "one two three four")


@pytest.mark.parametrize("seed", range(3))
def test_twenty_answers_interrupted_at_random_moments_are_stored_as_they_are_shown(home, seed):
    """A second Ctrl+C could end the line, the saving or the start of the next prompt half-way; the last
    word could be stored and not shown; and the terminal threw away what it had not drawn yet.
    """
    chance = random.Random(seed)
    scripts = {f"q{n}": counting(n) for n in range(20)}
    with home.chat(*LONG_OPTIONS, answers=scripts, delay=0.001 * seed) as terminal:
        for n in range(20):
            terminal.type(f"q{n}")
            terminal.key("enter")
            terminal.wait_for(f"\n{n}.0")
            terminal.draw_for(chance.random() * 0.05)
            for _ in range(chance.choice([1, 1, 2, 3, 5])):
                terminal.key("ctrl+c")
                if chance.random() < 0.5:
                    time.sleep(chance.random() * 0.004)
            settle(terminal, f"#{n}")
        assert terminal.submit("last") == ["echo: last"]
        shown = answers_on(terminal)
        terminal.key("ctrl+d")
        assert terminal.exit_code() == 0
        assert terminal.n_prompts == 22
    assert len(shown) == 21
    assert shown == answers_in(home)


def test_ctrl_c_before_the_first_word_takes_the_message_back_into_the_prompt(home):
    """Behind an answer that was cut short, it said that /continue went on with this one."""
    with home.chat("-n", 5, "--prefill-chunk", 1, prefill_delay=0.01) as terminal:
        terminal.submit("hello")
        start = terminal.row
        message = "a message that takes a while to be read " * 20
        terminal.paste(message)
        terminal.key("enter")
        terminal.wait_for("reading the conversation")
        terminal.key("ctrl+c")
        terminal.wait_for_prompt()
        shown = "".join(terminal.until_cursor[start:])
        assert "reading" not in shown
        assert [line for line in terminal.until_cursor[start:] if "stopped" in line] == ["stopped"]
        assert shown.count("takes") == 40, "in the line that was sent, and in the new prompt"
    assert home.texts() == ["hello", "echo:"]


def test_a_message_typed_ahead_survives_ctrl_c(home):
    """The terminal threw it away."""
    with home.chat(answers={"go": "begun⏸"}) as terminal:
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for("begun")
        terminal.type("ahead")
        terminal.key("ctrl+c")
        terminal.wait_for_draft("ahead")


def test_half_a_character_at_the_end_is_shown_and_made_whole_by_continue(home):
    with home.chat("-n", 6, answers={"go": "four 🍝 five"}) as terminal:
        first = terminal.submit("go")
        assert first == ["four �", "stopped after 6 tokens; /continue goes on"]
        assert home.texts()[1] == "four �"
        terminal.submit("/set max_tokens 100")
        assert terminal.submit("/continue") == ["🍝 five"]
    assert home.messages()[1] == Message("assistant", "four 🍝 five")


def test_a_chat_killed_at_random_moments_goes_on_with_whole_turns_and_a_partial_answer(home):
    chance = random.Random(1)
    scripts = {"first": "a **whole** answer"} | {f"q{n}": counting(n) for n in range(4)}
    with home.chat(answers=scripts) as terminal:
        terminal.submit("first")
    expected = ["first", "a **whole** answer"]
    for n in range(4):
        with home.chat("--continue", *LONG_OPTIONS, answers=scripts, delay=0.0005) as terminal:
            terminal.type(f"q{n}")
            terminal.key("enter")
            terminal.wait_for(f"\n{n}.0")
            terminal.draw_for(chance.random() * 0.3)
            terminal.kill()
        *whole, asked, answer = home.messages()
        assert [message.text for message in whole] == expected
        assert asked == Message("user", f"q{n}")
        assert answer.is_partial
        assert counting(n).startswith(answer.text)
        expected += [f"q{n}", answer.text]
    *_, short = expected
    scripts["q3"] = f"{short} THE END"
    with home.chat("--continue", answers=scripts) as terminal:
        terminal.wait_for("this answer was cut off; /continue goes on")
        assert "".join(terminal.submit("/continue")).replace(" ", "").endswith("THEEND")
    assert home.messages()[-1] == Message("assistant", f"{short} THE END")


def test_a_question_is_on_disk_before_its_answer_begins(home):
    with home.chat(answers={"go": "⏸"}) as terminal:
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for(lambda: home.sessions.exists() and home.texts() == ["go"])
        terminal.kill()
    home.go_on()
    with home.chat("--continue", answers={"go": "answered"}) as terminal:
        assert "this message has no answer yet; /regen answers it" in terminal.text
        assert terminal.submit("/regen") == ["answered"]
    assert home.texts() == ["go", "answered"]
