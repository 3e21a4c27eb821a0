"""The store of conversations: what goes in comes out, whatever is killed, locked, full or damaged."""

import itertools
import os
import random
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m7b.errors import M7bError, OutOfResources, UsageError
from m7b.messages import Message
from m7b.store import Store, StoredConversation, fold

TALK = [
    Message("system", "Be brief."),
    Message("user", "Hello?"),
    Message("assistant", "Hi."),
    Message("user", "Bye"),
]
EXOTIC = {
    "empty": "",
    "NUL and control characters": "a\0b\x1b[31m\x07\r\n\t",
    "every line separator": "a\u2028b\u2029c\x85d\x0be\x0c",
    "beyond the BMP": "👩‍👩‍👧‍👦𝔘\U0010ffff",
    "right to left": "שלום \u202eabc\u202c",
    "decomposed": "e\u0301 is not é",
    "half a surrogate pair": "\ud800",
    "both halves, each alone": "\ud83d\ude00",
    "an undecodable byte": "\udcff",
    "noncharacters": "\ufffe\uffff\ufeff",
    "SQL": "'); DROP TABLE messages; --",
    "JSON": '{"a": "\\ud800"}',
    "long": "word " * 200_000,
}

chars = st.characters(categories=None)  # surrogates too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(chars),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(chars), inner, max_size=3),
    max_leaves=6,
)
message_lists = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.none() | st.text(chars) | st.lists(values, max_size=3),
        st.dictionaries(
            st.text(chars).filter(lambda key: key not in ("role", "content")), values, max_size=2
        ),
        st.booleans(),
    ),
    max_size=6,
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "m7b" / "sessions.sqlite3"


@pytest.fixture
def store(file):
    with Store(file) as opened:
        yield opened


@pytest.fixture
def clock(monkeypatch):
    """Every look at the time is one second later than the last."""
    monkeypatch.setattr("m7b.store.time.time", itertools.count(1000.0).__next__)


def connecting(monkeypatch, connect):
    """Make the next store connect through `connect`, which gets the real one as its first argument."""
    real = sqlite3.connect
    monkeypatch.setattr("m7b.database.sqlite3.connect", lambda *a, **k: connect(real, *a, **k))


# what goes in comes out


@settings(max_examples=100, deadline=None)
@given(st.lists(message_lists, min_size=1, max_size=4))
def test_messages_come_back_as_last_saved(saves):
    with Store(None) as store:
        id = store.create("m")
        for messages in saves:
            store.save(id, messages)
            assert store.load_messages(id) == messages


@pytest.mark.parametrize("text", EXOTIC.values(), ids=EXOTIC.keys())
def test_exotic_text_comes_back_from_disk(text, file):
    messages = [
        Message("user", text),
        Message("assistant", [{"type": "text", "text": text}], {"name": text}, is_partial=True),
    ]
    with Store(file) as store:
        id = store.create(model=text)
        store.save(id, messages)
    with Store(file) as store:
        assert store.load_messages(id) == messages
        (found,) = store.list_conversations()
        assert (found.model + found.title).encode("utf-8").decode("utf-8") == found.model + found.title


def test_save_writes_only_from_the_first_difference(monkeypatch, file):
    written = []

    class Spying(sqlite3.Connection):
        def executemany(self, sql, rows):
            rows = list(rows)
            written.append([row[1] for row in rows])
            return super().executemany(sql, rows)

    connecting(monkeypatch, lambda real, *a, **k: real(*a, factory=Spying, **k))
    with Store(file) as store:
        id = store.create("m")
        changed = [*TALK[:2], Message("assistant", "Hi.", is_partial=True), TALK[3]]
        for messages in (TALK[:3], TALK[:3], TALK, TALK[:1], TALK, changed):
            store.save(id, messages)
            assert store.load_messages(id) == messages
    assert written == [[0, 1, 2], [], [3], [], [1, 2, 3], [2, 3]]


def test_conversations_keep_apart(store):
    first, second = store.create("a"), store.create("b")
    store.save(first, TALK)
    store.save(second, TALK[:2])
    store.save(first, TALK[:1])
    store.remove(first)
    assert (store.load_messages(first), store.load_messages(second)) == ([], TALK[:2])


# the list


def test_the_list_has_the_last_saved_first_with_its_figures(clock, store):
    first, second = store.create("base-v0.1"), store.create("demo", "recipes")
    store.save(second, TALK)
    store.save(first, TALK[:1], model="demo")
    assert store.list_conversations() == [
        StoredConversation(first, None, "demo", 1000.0, 1003.0, 1, ""),
        StoredConversation(second, "recipes", "demo", 1001.0, 1002.0, 4, "Hello?"),
    ]


def test_a_save_without_a_model_leaves_the_model(store):
    id = store.create("demo")
    store.save(id, TALK)
    assert store.find(str(id)).model == "demo"


def test_latest_is_the_last_saved_that_has_messages(clock, store):
    assert store.find_latest() is None
    first, second, emptied = (store.create("m") for _ in range(3))
    assert store.find_latest() is None
    store.save(second, TALK)
    store.save(first, TALK)
    store.save(emptied, [])
    assert store.find_latest().id == first


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("a\n\n  b\tc ", "a b c"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ([{"type": "text", "text": "from a chunk"}], "from a chunk"),
        ("\ud800", "\\ud800"),
        (None, ""),
    ],
)
def test_the_title_is_the_first_text_of_the_user_in_one_short_line(content, title, store):
    store.save(store.create("m"), [Message("assistant", "no"), Message("user", content), *TALK])
    assert store.list_conversations()[0].title == title


# names and references


@pytest.mark.parametrize("name", ["a", "recipes of 2026", "x" * 80, "日本語", "1a", "-f"])
def test_a_conversation_is_found_by_name_and_by_id(name, store):
    id = store.create("m", name)
    assert store.find(name) == store.find(str(id)) == store.find_named(name)
    assert store.find_named("other") is None


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "x" * 81, "a\nb", "\x1b", "\ud800", "1", "007", "²"])
def test_what_is_no_name_is_refused(name, store):
    id = store.create("m", "good")
    for name_it in (lambda: store.create("m", name), lambda: store.rename(id, name)):
        with pytest.raises(UsageError, match="is no name"):
            name_it()
    assert [found.name for found in store.list_conversations()] == ["good"]


def test_a_name_belongs_to_one_conversation(store):
    first, second = store.create("m", "a"), store.create("m")
    for take_it in (lambda: store.create("m", "a"), lambda: store.rename(second, "a")):
        with pytest.raises(UsageError, match=f"conversation {first} is called 'a' already"):
            take_it()
    store.rename(first, "a")
    store.rename(first, "b")
    store.rename(second, "a")
    assert (store.find("b").id, store.find("a").id) == (first, second)


@pytest.mark.parametrize("reference", ["nope", "", "9" * 5000, "-1", "1.0", "²", "\ud800"])
def test_an_unknown_reference_is_refused_with_what_there_is(reference, store):
    with pytest.raises(UsageError, match="there are none yet"):
        store.find(reference)
    store.create("m", "recipes")
    store.create("m")
    with pytest.raises(UsageError, match="the latest are 2, recipes: see m7b sessions list"):
        store.find(reference)


def test_renaming_what_is_gone_is_refused(store):
    with pytest.raises(UsageError, match="no conversation 7"):
        store.rename(7, "a")


# search


@pytest.mark.parametrize(
    ("text", "positions"),
    [("STRASSE", [0, 1]), ("straße", [0, 1]), ("ΣΊΣΥΦΟΣ", [2]), ("%", [3]), ("_", []), ("nowhere", [])],
)
def test_search_finds_text_in_any_case(text, positions, store):
    id = store.create("m")
    texts = ["Straße", "in der STRASSE 5", "Σίσυφος", "100%"]
    store.save(id, [Message("user", text) for text in texts])
    assert [(found.id, at) for found, at, _ in store.search(text)] == [(id, at) for at in positions]


ALIKE = {
    "an accent": ("caf\u00e9", "cafe\u0301"),
    "two accents": ("\u1e69", "s\u0307\u0323"),
    "accents in another order": ("s\u0323\u0307", "s\u0307\u0323"),
    "a capital with an accent": ("\u00c9COLE", "e\u0301cole"),
    "Hangul": ("\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
    "kana and its mark": ("\u304c", "\u304b\u3099"),
    "the sign of the \u00c5ngstr\u00f6m": ("\u212bngstr\u00f6m", "a\u030angstro\u0308m"),
    "a ligature": ("\ufb01le", "FILE"),
    "wide letters": ("\uff2d\uff17\uff22", "m7b"),
    "half-width kana": ("\uff76\uff9e", "\u30ac"),
    "a superscript": ("x\u00b2", "x2"),
    "iota below": ("\u1fb3", "\u03b1\u0345"),
    "Greek capitals": ("\u1f88", "\u1f80"),
}


@pytest.mark.parametrize(("a", "b"), ALIKE.values(), ids=ALIKE)
def test_search_finds_text_however_its_letters_are_written(a, b, store):
    """A letter and its accent as one character were not found where two were stored, nor the reverse."""
    store.save(store.create("m"), [Message("user", f"x {a} y"), Message("user", f"x {b} y")])
    assert [at for wanted in (a, b) for _, at, _ in store.search(wanted)] == [0, 1, 0, 1]


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")), form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_folding_is_the_same_for_every_normal_form(text, form):
    assert fold(text) == fold(unicodedata.normalize(form, text)) == fold(fold(text))


def test_search_tells_letters_with_an_accent_from_those_without(store):
    store.save(store.create("m"), [Message("user", "cafe\u0301"), Message("user", "cafe")])
    assert [at for _, at, _ in store.search("cafe")] == [1]


def test_a_name_is_found_however_its_letters_are_written(store):
    id = store.create("m", "cafe\u0301")
    assert store.find("caf\u00e9").id == store.find_named("cafe\u0301").id == id
    with pytest.raises(UsageError, match="already"):
        store.create("m", "caf\u00e9")


def test_a_slow_reader_of_a_search_does_not_stop_others_from_saving(file, store, monkeypatch):
    monkeypatch.setattr("m7b.database.PATIENCE_S", 0.0)
    id = store.create("m")
    store.save(id, TALK)
    found = store.search("")
    next(found)
    with Store(file) as other:
        other.save(id, TALK[:2])
    assert len(list(found)) == 3


# removal


def test_a_removed_text_leaves_the_file(file, store):
    id = store.create("m")
    store.save(id, [Message("user", "SECRET" * 3000)])
    assert b"SECRET" in file.read_bytes()
    store.remove(id)
    store.remove(id)
    assert store.list_conversations() == []
    assert b"SECRET" not in file.read_bytes()


def test_an_id_is_never_used_again(store):
    first = store.create("m")
    store.remove(first)
    assert store.create("m") > first


def test_a_save_brings_back_what_another_process_removed(file, store):
    id = store.create("m", "recipes")
    store.save(id, TALK[:2])
    with Store(file) as other:
        other.remove(other.find("recipes").id)
        newcomer = other.create("m", "recipes")
    store.save(id, TALK, model="demo")
    assert store.load_messages(id) == TALK
    assert (store.find(str(id)).model, store.find("recipes").id) == ("demo", newcomer)


# the file


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_the_store_and_its_journal(umask, file, monkeypatch):
    modes = set()

    class Spying(sqlite3.Connection):
        def execute(self, sql, *parameters):
            done = super().execute(sql, *parameters)
            modes.update((path.suffix, stat.S_IMODE(path.stat().st_mode)) for path in file.parent.iterdir())
            return done

    connecting(monkeypatch, lambda real, *a, **k: real(*a, factory=Spying, **k))
    before = os.umask(umask)
    try:
        with Store(file) as store:
            store.save(store.create("m"), TALK)
            store.remove(1)
    finally:
        os.umask(before)
    assert modes == {(".sqlite3", 0o600), (".sqlite3-journal", 0o600)}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_store_at_rest_is_one_file(file, store):
    store.save(store.create("m"), TALK)
    assert list(file.parent.iterdir()) == [file]


def test_an_odd_path_is_taken_as_it_is(tmp_path):
    file = tmp_path / "a?mode=memory#%41 é\udcff" / "s.sqlite3"
    with Store(file) as store:
        store.create("m")
    assert file.stat().st_size > 0


def test_an_empty_file_becomes_a_store(file):
    """This is what a kill between making the file and filling it leaves."""
    file.parent.mkdir()
    file.touch()
    with Store(file) as store:
        assert store.list_conversations() == []
        store.create("m")


def not_a_database(file):
    file.write_bytes(b"these are my notes, not a database\n" * 100)


def short(file):
    file.write_bytes(b"my notes\n")


def tables_of_something_else(file):
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE recipes (name)")


def our_version_without_our_tables(file):
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 1")


def of_a_future_version(file):
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 99")


def cut_short(file):
    with Store(file) as store:
        store.save(store.create("m"), [Message("user", "x" * 50_000)])
    os.truncate(file, 9000)


def a_role_that_is_none(file):
    with Store(file) as store:
        store.save(store.create("m"), TALK)
    with sqlite3.connect(file) as db:
        db.execute("UPDATE messages SET role = 'king', content = 5")


def read_all(file):
    with Store(file) as store:
        return list(store.search(""))


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (not_a_database, "not a file of m7b's"),
        (short, "not a file of m7b's"),
        (tables_of_something_else, "not a file of m7b's"),
        (our_version_without_our_tables, "no such table"),
        (of_a_future_version, "has version 99, this m7b knows 1; use a newer m7b"),
        (cut_short, "not a file of m7b's"),
        (a_role_that_is_none, "cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(damage, fragment, file):
    file.parent.mkdir()
    damage(file)
    before = file.read_bytes()
    with pytest.raises(UsageError) as caught:
        read_all(file)
    assert str(file) in str(caught.value)
    assert fragment in str(caught.value)
    assert file.read_bytes() == before


def test_flipped_bytes_are_read_or_refused_but_never_a_traceback(file):
    with Store(file) as store:
        for _ in range(3):
            store.save(store.create("m", None), [*TALK, Message("user", "x" * 5000)])
    whole = file.read_bytes()
    chance = random.Random(7)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 20)):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            with Store(file) as store:
                list(store.search("x"))
                store.save(2, TALK)
        except M7bError:
            pass


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file" / "s.sqlite3", tmp_path / "folder", tmp_path / "link"):
        with pytest.raises(OutOfResources) as caught:
            Store(path)
        assert str(path) in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


# other processes, full disks


@pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE", "DEFERRED"])
def test_a_store_that_stays_locked_says_so_and_loses_nothing(lock, file, monkeypatch):
    monkeypatch.setattr("m7b.database.PATIENCE_S", 0.1)
    with Store(file) as store:
        id = store.create("m")
        store.save(id, TALK[:2])
        other = sqlite3.connect(file, isolation_level=None)
        other.execute(f"BEGIN {lock}")
        if lock == "DEFERRED":
            other.execute("SELECT * FROM messages").fetchone()  # a reader stops the commit, not the writing
        with pytest.raises(OutOfResources, match=r"in use by another process for 0\.1 s; try again"):
            store.save(id, TALK)
        other.close()
        assert store.load_messages(id) == TALK[:2]
        store.save(id, TALK)
        assert store.load_messages(id) == TALK


def test_a_read_only_store_can_be_read(file, monkeypatch):
    with Store(file) as store:
        store.save(store.create("m"), TALK)
    # Permissions do not bind root, who may run this test.
    connecting(monkeypatch, lambda real, address, **k: real(address.replace("mode=rw", "mode=ro"), **k))
    with Store(file) as store:
        assert store.load_messages(1) == TALK
        with pytest.raises(OutOfResources, match="readonly database"):
            store.save(1, TALK[:1])


def test_a_full_disk_says_so_and_loses_nothing(file, store):
    id = store.create("m")
    store.save(id, TALK)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, limits[1]))
    try:
        with pytest.raises(OutOfResources, match="disk"):
            store.save(id, [*TALK, Message("user", "x" * (1 << 20))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.load_messages(id) == TALK
    store.save(id, TALK[:1])
    assert store.load_messages(id) == TALK[:1]


def test_an_interrupted_save_changes_nothing(file, monkeypatch):
    class Interrupting(sqlite3.Connection):
        def executemany(self, sql, rows):
            super().executemany(sql, rows)
            raise KeyboardInterrupt

    with Store(file) as store:
        id = store.create("m")
        store.save(id, TALK)
    connecting(monkeypatch, lambda real, *a, **k: real(*a, factory=Interrupting, **k))
    with Store(file) as store:
        with pytest.raises(KeyboardInterrupt):
            store.save(id, [])
        assert store.load_messages(id) == TALK


CHATTING = """
import sys
from pathlib import Path
from m7b.messages import Message
from m7b.store import Store

def answers(turn):
    for n in range(1, 9):
        yield Message("assistant", f"answer {turn}. " * (200 * n), is_partial=n < 8)

if __name__ == "__main__":
    with Store(Path(sys.argv[1])) as store:
        id, messages = store.create(sys.argv[2]), []
        for turn in range(int(sys.argv[3])):
            messages.append(Message("user", f"question {turn}"))
            for answer in answers(turn):
                store.save(id, [*messages, answer])
                print(id, turn, flush=True)
            messages.append(answer)
"""


@pytest.fixture
def chat(tmp_path):
    """Starts a process that saves an answer as it grows, and prints the id and the turn after each save."""
    script = tmp_path / "chatting.py"
    script.write_text(CHATTING)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}

    def start(file, name, n_turns):
        command = [sys.executable, script, file, name, str(n_turns)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    return start


def assert_whole_but_for_its_end(messages):
    """Every turn is whole, and only the last answer may be part of one."""
    for turn, (question, answer) in enumerate(zip(messages[::2], messages[1::2], strict=True)):
        assert question == Message("user", f"question {turn}")
        is_last = 2 * turn + 2 == len(messages)
        n = len(answer.content) // len(f"answer {turn}. ") // 200
        assert n == 8 or is_last
        assert answer == Message("assistant", f"answer {turn}. " * (200 * n), is_partial=n < 8)


def test_a_kill_at_any_moment_loses_no_save_that_was_done(chat, file):
    chance = random.Random()
    for run in range(10):
        process = chat(file, f"run {run}", 10_000)
        with process:
            for _ in range(chance.randint(1, 25)):
                id, turn = map(int, process.stdout.readline().split())
            process.kill()
            rest = process.stdout.read().splitlines()
        turn = int(rest[-1].split()[1]) if rest else turn
        with Store(file) as store:
            assert len(store.load_messages(id)) in (2 * turn + 2, 2 * turn + 4)
            for conversation in store.list_conversations():
                assert_whole_but_for_its_end(store.load_messages(conversation.id))
            assert len(store.list_conversations()) == run + 1


def test_a_journal_left_by_a_kill_is_rolled_back(file, tmp_path, monkeypatch):
    crashed = tmp_path / "crashed"

    class Snapping(sqlite3.Connection):
        def __exit__(self, *details):
            if (file.parent / "sessions.sqlite3-journal").exists():
                shutil.copytree(file.parent, crashed, dirs_exist_ok=True)
            return super().__exit__(*details)

    big = [Message("user", "a" * 3_000_000)]  # more than the page cache, so that pages go to disk early
    with Store(file) as store:
        id = store.create("m")
        store.save(id, big)
    connecting(monkeypatch, lambda real, *a, **k: real(*a, factory=Snapping, **k))
    with Store(file) as store:
        store.save(id, [Message("user", "b" * 6_000_000)])
    assert b"bbbb" in (crashed / "sessions.sqlite3").read_bytes()
    with Store(crashed / "sessions.sqlite3") as store:
        assert store.load_messages(id) == big


def test_processes_that_save_at_once_do_not_disturb_each_other(chat, file):
    processes = [chat(file, name, 4) for name in "abc"]
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0, 0, 0]
    with Store(file) as store:
        conversations = store.list_conversations()
        assert sorted(found.model for found in conversations) == ["a", "b", "c"]
        for found in conversations:
            assert found.n_messages == 8
            assert_whole_but_for_its_end(store.load_messages(found.id))
