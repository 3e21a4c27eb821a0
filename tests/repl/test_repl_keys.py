"""The keys of `m7b chat` on a pseudo-terminal: typing, pasting, editing, history, completion."""

import pytest

from tests.support.chat_home import ChatHome


@pytest.fixture
def home(tmp_path):
    return ChatHome(tmp_path)


def test_enter_sends(home):
    with home.chat() as terminal:
        assert terminal.submit("hello") == ["echo: hello"]
    assert home.texts() == ["hello", "echo: hello"]


def test_alt_enter_and_ctrl_j_begin_a_new_line(home):
    with home.chat() as terminal:
        terminal.type("a")
        terminal.key("alt+enter")
        terminal.type("b")
        terminal.wait_for_draft("b")
        terminal.key("ctrl+j")
        terminal.type("c")
        terminal.wait_for_draft("c")
        assert terminal.until_cursor[-3:] == [">>> a", "... b", "... c"]
        assert terminal.submit("d") == ["echo: a", "b", "cd"]
    assert home.texts()[0] == "a\nb\ncd"


def test_enter_begins_a_new_line_between_triple_quotes(home):
    with home.chat() as terminal:
        terminal.type('"""one')
        terminal.key("enter")
        terminal.type("two")
        terminal.key("enter")
        terminal.wait_for_draft("")
        terminal.submit('three"""')
        terminal.submit('"""all in one line"""')
    assert home.texts()[::2] == ["one\ntwo\nthree", "all in one line"]


def test_a_block_that_begins_with_a_slash_is_a_message(home):
    """Its quotes were taken off first, and then it was a command: this one ended the chat."""
    with home.chat() as terminal:
        terminal.type('"""')
        terminal.key("enter")
        terminal.type("/bye")
        terminal.key("enter")
        terminal.wait_for_draft("")
        assert terminal.submit('"""')[-1] == "echo: /bye"
        assert terminal.submit('"""//x"""') == ["echo: //x"]


PASTES = ["one line\n", "first\n/bye\n\nlast\n", "/bye\n", '"""\nx\n"""\n', "a\r\nb\n"]


def test_what_is_pasted_is_never_sent(home):
    with home.chat() as terminal:
        for n, pasted in enumerate(PASTES):
            terminal.paste(pasted)
            terminal.type(f"END{n}")
            terminal.wait_for_draft(f"END{n}")
            assert terminal.n_prompts == 1, pasted
            terminal.key("ctrl+c")
            terminal.wait_for_draft("")
        assert terminal.submit("next") == ["echo: next"]
    assert home.texts() == ["next", "echo: next"]


def test_a_paste_is_sent_as_it_is_with_the_next_enter(home):
    with home.chat() as terminal:
        terminal.paste("def f():\n    /bye\n\n    return 1\n")
        terminal.type("# END")
        terminal.wait_for_draft("# END")
        terminal.key("enter")
        terminal.wait_for_prompt()
    assert home.texts()[0] == "def f():\n    /bye\n\n    return 1\n# END"


def test_ctrl_c_at_the_prompt_clears_the_line_and_never_ends_the_chat(home):
    with home.chat() as terminal:
        terminal.type("first")
        terminal.wait_for_draft("first")
        terminal.key(*["ctrl+c"] * 5)
        terminal.type("second")
        terminal.wait_for_draft("second")
        terminal.key(*["ctrl+c"] * 5)
        terminal.wait_for_draft("")
        assert terminal.submit("third") == ["echo: third"]
        assert terminal.n_prompts == 2
    assert home.texts()[::2] == ["third"]


def test_ctrl_d_ends_the_chat_with_code_0_on_a_line_of_its_own(home):
    with home.chat() as terminal:
        terminal.submit("hello")
        terminal.key("ctrl+d")
        assert terminal.exit_code() == 0
        assert terminal.lines[-1] == ">>>"
        assert (terminal.row, terminal.column) == (len(terminal.lines), 0)


def test_ctrl_d_in_a_line_with_text_does_not_end_the_chat(home):
    with home.chat() as terminal:
        terminal.type("hell")
        terminal.key("ctrl+d", "ctrl+d")
        assert terminal.submit("o") == ["echo: hello"]


@pytest.mark.parametrize("keys", [["ctrl+g"], ["ctrl+x", "ctrl+e"]], ids=["ctrl+g", "ctrl+x ctrl+e"])
def test_the_editor_opens_the_draft_and_sends_nothing(home, keys):
    editor = home.executable("editor", 'cp "$1" "$HOME/seen"; printf "edited\\n/bye" > "$1"')
    with home.chat(env={"EDITOR": editor}) as terminal:
        terminal.type("draft")
        terminal.key("ctrl+j")
        terminal.type("more")
        terminal.wait_for_draft("more")
        terminal.key(*keys)
        terminal.wait_for_draft("/bye")
        assert (home.folder / "seen").read_text() == "draft\nmore"
        terminal.type(" bye")
        terminal.wait_for_draft("/bye bye")
        assert home.messages() == []
        terminal.skip_prompts()
        assert terminal.submit("") == ["echo: edited", "/bye bye"]
    assert home.texts()[0] == "edited\n/bye bye"


def test_an_editor_that_fails_leaves_the_draft(home):
    with home.chat(env={"EDITOR": home.executable("editor", "exit 1")}) as terminal:
        terminal.type("draft")
        terminal.wait_for_draft("draft")
        terminal.key("ctrl+g")
        terminal.wait_for_prompt()  # until then the terminal itself shows what is typed
        terminal.type("!")
        terminal.wait_for_draft("draft!")
        assert terminal.submit("") == ["echo: draft!"]


def test_ctrl_r_and_up_find_what_was_typed_in_an_earlier_chat(home):
    with home.chat() as terminal:
        terminal.submit("alpha one")
        terminal.submit("beta two")
        terminal.key("ctrl+d")
        terminal.exit_code()
    with home.chat() as terminal:
        terminal.key("ctrl+r")
        terminal.type("alp")
        terminal.wait_for("alpha one")
        terminal.key("enter")
        terminal.wait_for_draft("alpha one")
        terminal.key("ctrl+c")
        terminal.wait_for_draft("")
        terminal.key("up")
        terminal.wait_for_draft("beta two")
        assert terminal.submit("!") == ["echo: beta two!"]


def test_ctrl_c_leaves_the_search_in_the_history(home):
    with home.chat() as terminal:
        terminal.submit("alpha one")
        terminal.key("ctrl+r")
        terminal.type("alp")
        terminal.wait_for(lambda: "search" in terminal.until_cursor[-1])
        terminal.key("ctrl+c")
        terminal.wait_for(lambda: "search" not in terminal.until_cursor[-1])
        assert terminal.submit("next") == ["echo: next"]


@pytest.mark.parametrize(
    ("arguments", "env"), [(["--vi"], {}), ([], {"M7B_VI": "true"})], ids=["flag", "variable"]
)
def test_vi_has_the_keys_of_vi(home, arguments, env):
    """Esc and Enter typed quickly were Alt+Enter, which began a new line."""
    with home.chat(*arguments, env=env) as terminal:
        terminal.type("xabc")
        terminal.key("esc", "0", "x", "$", "a")
        terminal.type("d")
        terminal.wait_for_draft("abcd")
        terminal.key("esc")
        assert terminal.submit("") == ["echo: abcd"]


# typing ahead


def test_lines_typed_during_an_answer_are_sent_after_it_in_their_order(home):
    with home.chat(answers={"go": "begun⏸ and done"}) as terminal:
        start = terminal.row
        terminal.type("go")
        terminal.key("enter")
        terminal.wait_for("begun")
        for line in ("second", "/system Be brief.", "//third"):
            terminal.type(line)
            terminal.key("enter")
        terminal.type("unsent")
        home.go_on()
        terminal.wait_for_prompt(4)
        terminal.wait_for_draft("unsent")
        assert terminal.until_cursor[start:] == [
            ">>> go",
            "begun and done",
            ">>> second",
            "echo: second",
            ">>> /system Be brief.",
            "Be brief.",
            ">>> //third",
            "echo: /third",
            ">>> unsent",
        ]
    assert home.texts()[1::2] == ["go", "second", "/third"]


def test_a_line_typed_while_the_model_loads_is_sent_when_it_is_there(home):
    """Enter was read as Ctrl+J, because the terminal still turned it into one, and showed what was typed."""
    with home.chat(is_ready=False, loads_slowly=True) as terminal:
        terminal.wait_for("loading")
        terminal.type("early")
        terminal.key("enter")
        home.go_on()
        terminal.wait_for_prompt(2)
        assert terminal.until_cursor[1:] == [">>> early", "echo: early", ">>>"]


# completion

COMPLETIONS = [
    ("/und", "/undo"),
    ("/help und", "/help undo"),
    ("/set temp", "/set temperature"),
    ("/set parameter temp", "/set parameter temperature"),
    ("/regen top_p=1 min", "/regen top_p=1 min_p"),
    ("/show lic", "/show license"),
    ("/edit an", "/edit answer"),
    ("/read no", "/read notes.txt"),
    ("/export sub", "/export sub"),
    ("/load rec", "/load recipes"),
    ("/model instruct-v0.1", "/model instruct-v0.1"),
    ("/model no", "/model notes.txt"),
    ("/model instr", "/model instruct-v0."),
    ("plain no", "plain no"),
    ("//und", "//und"),
    ("/nope no", "/nope no"),
]


def test_tab_completes_commands_parameters_paths_and_conversations_and_nothing_else(home):
    (home.work / "notes.txt").touch()
    (home.work / "sub").mkdir()
    with home.chat() as terminal:
        terminal.submit("hello")
        terminal.submit("/save recipes")
        found = []
        for typed, _ in COMPLETIONS:
            terminal.type(typed)
            terminal.key("tab")
            terminal.type("~")
            terminal.wait_for(lambda: terminal.draft.endswith("~"))
            found.append((typed, terminal.draft.removesuffix("~")))
            terminal.key("ctrl+c")
            terminal.wait_for_draft("")
        assert found == COMPLETIONS
