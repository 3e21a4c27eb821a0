"""Files of requests cut into parts, and the folder of their answers, without Ray."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from m7b.errors import OutOfResources, SomeFailed, UsageError
from m7b.scale import AnswerFolder, Tally
from m7b.scale.cluster import Crew, choose_crew, translate_error
from m7b.scale.folder import write_part
from m7b.scale.parts import Rows, as_line, list_sources

LINES = [b'{"id": %d}' % i for i in range(23)]


@pytest.fixture
def source(tmp_path):
    """Lines of which some are blank, without a last line break."""
    file = tmp_path / "requests.jsonl"
    file.write_bytes(b"\n".join([b"", *LINES[:9], b"  ", b"\r", *LINES[9:]]))
    return file


def answer(parts, target, failed=()):
    """Write the answers to `parts`; those of `failed` rows are errors."""
    target.mkdir(exist_ok=True)
    for part in parts:
        ids = [json.loads(line)["id"] for line in part.read()]
        answers = ({"id": i, **({"error": {}} if i in failed else {"choices": []})} for i in ids)
        write_part(target, part.name, "".join(json.dumps(each) + "\n" for each in answers))


@pytest.mark.parametrize("size", [1, 2, 7, 22, 23, 100])
def test_parts_have_every_row_once_and_in_order(source, size):
    parts = list(Rows(source).cut([], size))
    assert [line.strip() for part in parts for line in part.read()] == LINES
    assert all(part.n_rows == len(part.read()) <= size for part in parts)
    assert [part.name for part in parts] == sorted(part.name for part in parts)


@pytest.mark.parametrize("group", [1, 4, 10, 100])
@pytest.mark.parametrize("size", [1, 5, 23])
def test_rows_of_parquet_are_those_of_the_lines(tmp_path, group, size):
    file = tmp_path / "requests.parquet"
    parquet.write_table(pyarrow.table({"id": list(range(23))}), file, row_group_size=group)
    parts = list(Rows(file).cut([], size))
    assert [line for part in parts for line in part.read()] == LINES


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "é\u2028", "n": 2, "temperature": 0.5, "echo": True},
        {"messages": [{"role": "user", "content": "hi"}], "stop": ["a", "b"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ],
    ids=["a prompt", "messages", "parts"],
)
def test_a_request_survives_parquet(row, tmp_path):
    file = tmp_path / "one.parquet"
    other = {"messages": [{"role": "tool", "tool_call_id": "1"}], "seed": 1}
    columns = {name: [row.get(name), other.get(name)] for name in row | other}
    parquet.write_table(pyarrow.table(columns), file)
    (part,) = Rows(file).cut([], 9)
    first, _ = map(json.loads, part.read())
    assert first == row


def test_what_json_cannot_say_becomes_text_or_what_no_field_takes():
    assert json.loads(as_line({"prompt": "é".encode(), "n": None})) == {"prompt": "é"}
    assert json.loads(as_line({"prompt": b"\xff"})) == {"prompt": {"bytes": "b'\\xff'"}}


def test_a_folder_is_read_file_by_file(tmp_path):
    for name in ("b.jsonl", "a.parquet", "notes.txt", "c.ndjson"):
        (tmp_path / name).touch()
    assert [file.name for file in list_sources(tmp_path)] == ["a.parquet", "b.jsonl", "c.ndjson"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no requests"):
        list_sources(tmp_path / "empty")


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"a\.parquet is no Parquet"):
        Rows(tmp_path / "a.parquet")


@pytest.mark.parametrize("lost", [[0], [1], [4], [0, 1, 2, 3, 4], [1, 3]], ids=str)
def test_resume_asks_for_exactly_what_is_missing(source, tmp_path, lost):
    parts = AnswerFolder(source, tmp_path / "out").cut(1)
    assert len(parts) == 4
    parts = list(Rows(source).cut([], 5))
    answer([part for i, part in enumerate(parts) if i not in lost], tmp_path / "out", failed={3})
    folder = AnswerFolder(source, tmp_path / "out", resume=True)
    left = folder.cut(3)
    assert {line.strip() for part in left for line in part.read()} == {
        line.strip() for i in lost for line in parts[i].read()
    }
    assert sum(part.n_rows for part in left) + folder.kept.n_rows == folder.n_rows == 23
    assert folder.kept.n_failed == (0 not in lost)
    answer(left, tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    written = "".join((tmp_path / "out" / name).read_text() for name in names)
    assert [json.loads(line)["id"] for line in written.splitlines()] == list(range(23))
    assert AnswerFolder(source, tmp_path / "out", resume=True).cut(3) == []


def test_rows_that_came_since_are_the_rest(source, tmp_path):
    answer(Rows(source).cut([], 5), tmp_path / "out")
    source.write_bytes(source.read_bytes() + b"\n" + b'{"id": 23}')
    (part,) = AnswerFolder(source, tmp_path / "out", resume=True).cut(1)
    assert part.read() == [b'{"id": 23}']


def test_what_a_crash_left_is_no_answer_and_goes(source, tmp_path):
    rest = tmp_path / "out" / ".requests.jsonl-0000000001-0000000005.jsonl.7.part"
    rest.parent.mkdir()
    rest.write_text('{"id": 0, "choi')
    folder = AnswerFolder(source, tmp_path / "out", resume=True)
    assert folder.kept == Tally()
    assert list(folder.prepare().iterdir()) == []


def test_a_folder_is_not_carried_on_unasked(source, tmp_path):
    answer(list(Rows(source).cut([], 5))[:1], tmp_path / "out")
    with pytest.raises(UsageError, match="--resume"):
        AnswerFolder(source, tmp_path / "out")


def shift(file):
    file.rename(file.with_name("requests.jsonl-0000000002-0000000006.jsonl"))


def overlap(file):
    file.with_name("requests.jsonl-0000000005-0000000009.jsonl").write_bytes(file.read_bytes())


def exceed(file):
    file.rename(file.with_name("requests.jsonl-0000000022-0000000026.jsonl"))


def rename(file):
    file.rename(file.with_name("others.jsonl-0000000001-0000000005.jsonl"))


def shorten(file):
    file.write_bytes(file.read_bytes()[:-3])


def spoil(file):
    file.write_bytes(b"{}\n" * 5)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shift, "row 2, the request is 1"),
        (overlap, "the same rows"),
        (exceed, "other rows than the 23"),
        (rename, "others.jsonl, which is not among"),
        (shorten, "4 answers to 5 rows; remove it"),
        (spoil, "line 1 is no answer"),
    ],
)
def test_resume_refuses_other_answers_and_leaves_them(source, tmp_path, damage, words):
    (part,) = list(Rows(source).cut([], 5))[:1]
    answer([part], tmp_path / "out")
    damage(tmp_path / "out" / part.name)
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(UsageError) as error:
        AnswerFolder(source, tmp_path / "out", resume=True)
    assert words in str(error.value)
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_missing_parts_are_told_before_failed_rows(source, tmp_path):
    parts = list(Rows(source).cut([], 5))
    answer(parts[1:], tmp_path / "out", failed={20})
    folder = AnswerFolder(source, tmp_path / "out", resume=True)
    with pytest.raises(SomeFailed, match=r"5 of 23 rows have no answer: the disk is full; --resume"):
        folder.finish(parts[:1], Tally(), "the disk is full")
    answer(parts[:1], tmp_path / "out")
    with pytest.raises(SomeFailed, match=r"2 of 23 lines failed"):
        folder.finish(parts[:1], Tally(5, 1), "")


@pytest.mark.parametrize(
    ("cpus", "actors", "threads", "crew"),
    [
        ([2], None, None, Crew(1, 2)),
        ([2], 2, None, Crew(2, 1)),
        ([16, 16, 0], None, None, Crew(2, 16)),
        ([16, 8], None, None, Crew(3, 8)),
        ([16, 16], 4, None, Crew(4, 8)),
        ([16, 16], None, 4, Crew(8, 4)),
        ([16, 16], 3, 4, Crew(3, 4)),
        ([4, 64], 1, 64, Crew(1, 64)),
    ],
)
def test_actors_share_the_machines(cpus, actors, threads, crew):
    assert choose_crew(cpus, actors, threads) == crew


@pytest.mark.parametrize(
    ("cpus", "actors", "threads", "words"),
    [
        ([2], 3, None, "3 actors of 1 thread each do not fit: there is room for 2"),
        ([2], None, 3, "the largest machine has 2 CPUs"),
        ([7, 7], 3, 4, "room for 2"),
        ([0], None, None, "no machine with a CPU"),
    ],
)
def test_what_cannot_run_is_refused(cpus, actors, threads, words):
    with pytest.raises(OutOfResources, match=words):
        choose_crew(cpus, actors, threads)


@pytest.mark.parametrize(
    ("last", "code", "words"),
    [
        ("m7b.errors.CheckpointNotFound: no such; fetch it", 3, "no such; fetch it"),
        ("m7b.errors.OutOfResources: 5 GB are free", 5, "5 GB are free"),
        ("ModuleNotFoundError: No module named 'm7b'", 2, "not installed on a machine"),
        ("The actor died unexpectedly", 5, "an actor died while it loaded"),
    ],
)
def test_an_actors_end_is_told_as_the_error_that_it_was(last, code, words):
    error = translate_error(f"The actor died\n  File x\n{last}\n")
    assert (error.exit_code, words in str(error)) == (code, True)
