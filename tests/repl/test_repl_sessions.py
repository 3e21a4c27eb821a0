"""What `m7b chat` keeps and carries on with; where its settings come from; what it offers at first."""

import sqlite3

import pytest

from m7b.messages import Message
from m7b.store import Store
from tests.support.chat_home import ChatHome, mode_of


@pytest.fixture
def home(tmp_path):
    return ChatHome(tmp_path)


def leave(terminal) -> None:
    """End the chat, as a user does."""
    terminal.key("ctrl+d")
    assert terminal.exit_code() == 0


# what is kept


def test_what_is_kept_is_readable_to_its_owner_only(home):
    with home.chat() as terminal:
        terminal.submit("hello")
        leave(terminal)
    assert mode_of(home.history) == 0o600
    assert mode_of(home.sessions) == 0o600
    assert "hello" in home.history.read_text()


@pytest.mark.parametrize(
    ("arguments", "env"),
    [(["--no-save"], {}), ([], {"M7B_SAVE": "false"})],
    ids=["flag", "variable"],
)
def test_without_saving_nothing_is_written(home, arguments, env):
    before = home.files
    with home.chat(*arguments, env=env) as terminal:
        terminal.submit("hello")
        assert "nothing is kept in this chat" in " ".join(terminal.submit("/save x"))
        assert "nothing is kept in this chat" in " ".join(terminal.submit("/sessions"))
        assert terminal.submit("/copy") == ["handed 11 characters to the terminal"]
        leave(terminal)
    assert home.files == before


def test_no_history_keeps_conversations_and_not_the_lines(home):
    with home.chat(env={"M7B_NO_HISTORY": "1"}) as terminal:
        terminal.submit("hello")
        leave(terminal)
    assert not home.history.exists()
    assert home.texts() == ["hello", "echo: hello"]


def test_a_chat_in_which_nothing_was_said_leaves_no_conversation(home):
    with home.chat("--system", "Be brief.") as terminal:
        terminal.submit("/help")
        terminal.submit("/system Be long.")
        leave(terminal)
    with Store(home.sessions) as store:
        assert store.list_conversations() == []


# carrying on


def test_two_chats_on_one_conversation_lose_nothing(home):
    """The one that saved last once removed the other's turns."""
    home.ask("hello", "--session", "both")
    with home.chat("--session", "both") as first:
        first.submit("from the first")
        with home.chat("--session", "both") as second:
            second.submit("from the second")
            leave(second)
        shown = " ".join(first.submit("again, from the first"))
        assert "another chat has changed conversation 1; this one goes on as 2" in shown
        leave(first)
    assert home.texts("both")[::2] == ["hello", "from the first", "from the second"]
    assert home.texts("2")[::2] == ["hello", "from the first", "again, from the first"]


def test_a_name_that_was_taken_meanwhile_costs_no_conversation(home):
    """Every save failed, and so did /save with another name."""
    with home.chat("--session", "talk") as terminal:
        home.ask("hello", "--session", "talk")
        assert "this one is 2" in " ".join(terminal.submit("from the terminal"))
        terminal.submit("/save other")
        leave(terminal)
    assert home.texts("talk")[0] == "hello"
    assert home.texts("other")[0] == "from the terminal"


def test_a_system_prompt_of_the_settings_leaves_kept_conversations_alone(home):
    """It replaced the one that was kept."""
    home.ask("--system", "You are a pirate.", "hello")
    home.ask("--continue", "more", env={"M7B_SYSTEM": "Answer briefly."})
    assert home.texts()[0] == "You are a pirate."
    home.ask("--continue", "more", "--system", "Answer briefly.")
    assert home.texts()[0] == "Answer briefly."


def test_continue_shows_the_last_turn_and_carries_on_with_all_of_it(home):
    with home.chat() as terminal:
        terminal.submit("first")
        terminal.submit("second")
        leave(terminal)
    with home.chat("--continue") as terminal:
        assert terminal.until_cursor[1:-1] == [
            "conversation 1, 4 messages: first",
            ">>> second",
            "echo: second",
        ]
        terminal.submit("third")
        leave(terminal)
    assert home.texts()[::2] == ["first", "second", "third"]


def test_continue_takes_the_conversation_that_was_saved_last(home):
    for message in ("first", "second"):
        home.ask(message)
    home.ask("--session", "1", "more of the first")
    with home.chat("--continue") as terminal:
        assert "conversation 1, 4 messages: first" in terminal.text


def test_a_session_is_begun_by_name_and_carried_on_by_name_or_id(home):
    with home.chat("--session", "recipes") as terminal:
        assert "conversation" not in terminal.text
        terminal.submit("hello")
        leave(terminal)
    for reference in ("recipes", "1"):
        with home.chat("--session", reference) as terminal:
            assert "messages: recipes" in terminal.text
            terminal.submit(f"by {reference}")
            leave(terminal)
    assert home.texts("recipes")[::2] == ["hello", "by recipes", "by 1"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--continue"], "there is no conversation to continue"),
        (["--session", "7"], "there is no conversation '7'"),
        (["--continue", "--session", "x"], "--continue and --session are both given"),
        (["--continue", "--no-save"], "nothing is kept to carry on with"),
    ],
)
def test_what_cannot_be_carried_on_is_refused(home, arguments, reason):
    with home.chat(*arguments, is_ready=False) as terminal:
        assert terminal.exit_code() == 2
        assert reason in " ".join(terminal.text.split())


def test_a_conversation_goes_on_with_the_model_it_was_with(tmp_path):
    home = ChatHome(tmp_path, ("demo", "instruct-v0.3"))
    home.ask("--variant", "demo", "hello")
    with home.chat("--continue") as terminal:
        assert terminal.toolbar.startswith("demo ")


def test_a_conversation_that_goes_on_with_another_model_says_so(tmp_path):
    home = ChatHome(tmp_path, ("demo", "instruct-v0.3"))
    home.ask("--variant", "demo", "hello")
    with home.chat("--continue", "--variant", "instruct-v0.3") as terminal:
        assert "this conversation was with demo until now" in terminal.text
        terminal.submit("more")
        leave(terminal)
    with home.chat("--continue") as terminal:
        assert "until now" not in terminal.text
        assert terminal.toolbar.startswith("instruct-v0.3 ")


def test_a_partial_answer_says_so_when_it_is_carried_on_with(home):
    home.ask("-n", 8, "hello")
    with home.chat("--continue") as terminal:
        assert "this answer was cut off; /continue goes on" in terminal.text
        assert terminal.submit("/continue") == ["llo"]
    assert home.messages()[1] == Message("assistant", "echo: hello")


# settings


def test_config_toml_and_variables_reach_the_chat_and_flags_beat_them(home):
    (home.home / "config.toml").write_text(
        'system = "From the file."\ntemperature = 0.1\ntop_p = 0.2\nmax_tokens = 500\nctx_size = 900\n'
    )
    env = {"M7B_TOP_P": "0.3", "M7B_MAX_TOKENS": "600"}
    with home.chat("-n", 700, env=env, answers={"go": "{temperature} {top_p} {max_tokens}"}) as terminal:
        assert terminal.submit("/system") == ["From the file."]
        assert terminal.submit("go") == ["0.1 0.3 700"]
        assert "of 900 tokens" in terminal.toolbar


def test_vi_of_config_toml_reaches_the_prompt(home):
    (home.home / "config.toml").write_text("vi = true\n")
    with home.chat() as terminal:
        terminal.type("xabc")
        terminal.key("esc", "0", "x")
        terminal.wait_for_draft("abc")


# disks that fail


def broken(home) -> None:
    """Make the stored conversations refuse every change, as a full disk does."""
    with sqlite3.connect(home.sessions) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON messages BEGIN"
            " SELECT RAISE(ABORT, 'database or disk is full'); END"
        )


def test_a_disk_that_is_full_ends_no_answer_and_is_told(home):
    with home.chat(answers={"go": "a whole ⏸answer"}) as terminal:
        terminal.submit("hello")
        broken(home)
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for("a whole")
        home.go_on()
        terminal.wait_for_prompt()
        assert "a whole answer" in terminal.lines
        told = " ".join(" ".join(terminal.until_cursor).split())
        assert "disk is full; it needs free disk space" in told
        assert "Traceback" not in told
        assert "bug" not in told
        leave(terminal)
    assert home.texts() == ["hello", "echo: hello"]


def test_conversations_that_cannot_be_kept_are_refused_before_the_model_is_loaded(home):
    home.sessions.mkdir()
    ran = home.ask("hello", loads_slowly=True)
    assert (ran.code, ran.out) == (5, ""), ran.err
    assert ran.err.count("\n") == 1
    assert home.ask("--no-save", "hello").out == "echo: hello\n"


def test_a_history_that_cannot_be_kept_stops_nobody(home):
    home.history.mkdir()
    with home.chat() as terminal:
        assert terminal.submit("hello") == ["echo: hello"]
        terminal.key("up")
        terminal.wait_for_draft("hello")


# nothing downloaded


@pytest.fixture
def bare(tmp_path):
    return ChatHome(tmp_path, ())


@pytest.mark.parametrize("choice", ["", "1"])
def test_without_a_model_the_demo_is_offered_and_fetched(bare, choice):
    with bare.chat(is_ready=False) as terminal:
        terminal.wait_for("Which one? [1]")
        assert "1  demo, 93 MB to fetch" in terminal.text
        assert "2  instruct-v0.3, 14.5 GB" in terminal.text
        terminal.type(choice)
        terminal.key("enter")
        terminal.wait_for_prompt()
        assert terminal.submit("hello") == ["echo: hello"]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["x", "enter"], "no model was chosen; see m7b download --help"),
        (["ctrl+d"], "no model was chosen; see m7b download --help"),
    ],
    ids=["x", "ctrl+d"],
)
def test_another_choice_ends_with_code_3_and_the_way_out(bare, keys, reason):
    with bare.chat(is_ready=False) as terminal:
        terminal.wait_for("Which one? [1]")
        terminal.key(*keys)
        assert terminal.exit_code() == 3
        assert reason in " ".join(terminal.text.split())
    assert not (bare.home / "checkpoints").exists()


def test_without_a_model_and_a_terminal_nothing_is_offered(bare):
    ran = bare.ask("hello")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == "m7b: demo is not on this machine; fetch it with: m7b download --variant demo\n"


def test_the_latest_release_on_the_machine_is_taken(tmp_path):
    home = ChatHome(tmp_path, ("demo", "instruct-v0.1", "instruct-v0.2", "base-v0.3"))
    assert home.ask("hello", answers={"hello": "{model}"}).out == "instruct-v0.2\n"
