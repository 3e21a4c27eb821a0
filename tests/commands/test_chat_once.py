"""`m7b chat "question"`, pipes and files: one answer on stdout, all else on stderr, exit codes."""

import signal

import pytest

from m7b.messages import Message
from tests.support.chat_home import ChatHome


@pytest.fixture
def home(tmp_path):
    return ChatHome(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "stdin", "asked"),
    [
        (["hello there"], b"", "hello there"),
        (["-"], b"from a pipe\n", "from a pipe"),
        ([], b"from a pipe\n", "from a pipe"),
        (["-f", "notes.txt"], b"", "notes\n"),
        (["-f", "notes.txt", "What is this?"], b"", "notes\n\n\nWhat is this?"),
        (["-f", "-", "What is this?"], b"from a pipe\n", "from a pipe\n\nWhat is this?"),
        (["What is its name?"], b"My cat is Zanzibar.\n", "My cat is Zanzibar.\n\nWhat is its name?"),
        (["-f", "notes.txt", "-f", "notes.txt"], b"", "notes\n\n\nnotes\n"),
        (["-f", "notes.txt", "What?"], b"piped", "piped\n\nnotes\n\n\nWhat?"),
        (["//x"], b"", "//x"),
        (["/help"], b"", "/help"),
        (["naïve 🍝"], b"", "naïve 🍝"),
    ],
    ids=[
        "argument",
        "dash",
        "pipe",
        "file",
        "file and question",
        "dash and question",
        "pipe and question",
        "files",
        "all",
        "//",
        "/",
        "unicode",
    ],
)
def test_one_question_is_answered_with_nothing_else_on_stdout(home, arguments, stdin, asked):
    (home.work / "notes.txt").write_text("notes\n")
    ran = home.ask(*arguments, stdin=stdin)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.rstrip("\n") == f"echo: {asked}".rstrip("\n")
    assert ran.out.endswith("\n")
    assert home.texts()[0] == asked


def test_in_a_pipe_markdown_stays_as_it_is(home):
    answer = "# T\n\n**b** \x1b[31m [/INST]"
    assert home.ask("go", answers={"go": answer}).out == f"{answer}\n"


def test_continue_asks_in_the_conversation_so_far(home):
    home.ask("hello", "--session", "talk")
    assert home.ask("--continue", "more").out == "echo: more\n"
    assert home.ask("--session", "talk", "again").out == "echo: again\n"
    assert home.texts("talk")[::2] == ["hello", "more", "again"]


def test_no_save_leaves_no_file(home):
    before = home.files
    assert home.ask("--no-save", "hello").out == "echo: hello\n"
    assert home.files == before


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([""], 2, "the question is empty"),
        (["-f", "nope.txt"], 2, "cannot read nope.txt"),
        (["--top-p", "2", "hi"], 2, "top_p is 2.0"),
        (["--session", " bad", "hi"], 2, "' bad' is no name"),
        (["--session", "", "hi"], 2, "'' is no name"),
        (["--continue", "hi"], 2, "there is no conversation to continue"),
        (["--variant", "base-v0.1", "hi"], 2, "base-v0.1 was not trained to chat"),
        (["--variant", "instruct-v0.1", "hi"], 3, "instruct-v0.1 is not on this machine"),
        (["-m", "nope", "hi"], 3, "nope"),
        (["-m", "nope", "--tools", "/nowhere.py", "hi"], 2, "/nowhere.py"),
        (["-m", "nope", "--mcp", "/nowhere.json", "hi"], 2, "/nowhere.json"),
        (["--ctx-size", "10", "a long question"], 6, "the prompt has 17 tokens and the context holds 10"),
    ],
    ids=[
        "empty",
        "file",
        "value",
        "bad name",
        "no name",
        "continue",
        "base",
        "absent",
        "path",
        "tools",
        "servers",
        "context",
    ],
)
def test_an_error_is_one_line_on_stderr_and_an_exit_code(home, arguments, code, reason):
    ran = home.ask(*arguments)
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert ran.err.startswith("m7b: ")
    assert ran.err.count("\n") == 1
    assert reason in ran.err
    assert home.messages() == []


def test_an_answer_that_is_cut_short_says_so_on_stderr(home):
    ran = home.ask("-n", 4, "hello")
    assert (ran.code, ran.out) == (0, "echo\n")
    assert ran.err == "m7b: stopped after 4 tokens; --max-tokens allows more\n"
    assert home.messages()[1] == Message("assistant", "echo", is_partial=True)


@pytest.mark.parametrize("n_times", [1, 3])
def test_sigint_ends_with_130_and_keeps_what_was_answered(home, n_times):
    with home.asking("go", answers={"go": "partial ⏸answer"}) as process:
        try:
            assert process.stdout.read(8) == b"partial "
            for _ in range(n_times):
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert (process.returncode, out.strip(), err) == (130, b"", b"")
    assert home.messages() == [Message("user", "go"), Message("assistant", "partial ", is_partial=True)]


def test_a_full_context_is_told_on_stderr(home):
    home.ask("a first question of some length")
    ran = home.ask("--continue", "and another one", "--ctx-size", 100)
    assert (ran.code, ran.out) == (0, "echo: and another one\n")
    assert ran.err.startswith("m7b: the context is full: the oldest 2 messages")
    assert ran.err.count("\n") == 1


def test_another_model_than_the_conversation_s_is_told(tmp_path):
    """Only the chat on a terminal told."""
    home = ChatHome(tmp_path, ("demo", "instruct-v0.3"))
    home.ask("--variant", "instruct-v0.3", "hello")
    ran = home.ask("--continue", "more", "--variant", "demo")
    assert (ran.out, "was with instruct-v0.3 until now" in ran.err) == ("echo: more\n", True)
