"""`m7b eval` end to end on the demo, over questions of our own in the shape of public sets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")

import lm_eval

from m7b.cli import main
from m7b.errors import ExitCode
from m7b.harness import require_lm_eval
from m7b.harness.evaluation import Figure
from m7b.harness.paper import PAPER, vote_on_solutions
from m7b.harness.programs import run_program
from tests.support.eval_tasks import make_tasks, write_exam, write_questions

# One row of every kind: choices, generation, votes, programs, and votes over several tasks.
ROWS = ("arc_easy", "piqa", "triviaqa", "nq_open", "gsm8k", "humaneval", "mbpp", "math")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture
def home(demo_home, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(demo_home))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def read_results(folder):
    return {row["task"]: row for row in json.loads((folder / "results.json").read_text())["results"]}


def test_the_rows_of_the_paper_run_and_are_kept(questions, home, tmp_path, capsys):
    folder = tmp_path / "results"
    arguments = ["--data", str(questions), "--limit", "1", "-o", str(folder), "--allow-code"]
    assert main(["eval", *ROWS, *arguments]) == ExitCode.OK
    out = capsys.readouterr().out
    found = read_results(folder)
    assert list(found) == list(ROWS)
    assert all(name in out for name in ROWS)
    paper = {row.name: row.paper for row in PAPER}
    assert [row["paper"] for row in found.values()] == [paper[name] for name in ROWS]
    assert found["math"]["n"] == 7
    assert all(0 <= row["value"] <= 100 for row in found.values())
    (sample,) = map(json.loads, (folder / "samples" / "arc_easy.jsonl").read_text().splitlines())
    assert len(sample["resps"]) == 4
    (sample,) = map(
        json.loads, (folder / "samples" / "gsm8k_cot_self_consistency.jsonl").read_text().splitlines()
    )
    assert len(sample["resps"][0]) == 8


def test_mmlu_is_all_its_subjects_and_the_other_choices_run_too(home, tmp_path):
    tasks = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    subjects = [file.stem.removeprefix("mmlu_") for file in tasks.glob("mmlu_*.yaml")]
    data = str(write_exam(tmp_path / "exam", subjects))
    rows = ("mmlu", "hellaswag", "winogrande", "arc_challenge")
    assert main(["eval", *rows, "--data", data, "--limit", "1", "-o", str(tmp_path / "out")]) == ExitCode.OK
    found = read_results(tmp_path / "out")
    assert [(name, found[name]["n"]) for name in rows] == [
        ("mmlu", 57),
        ("hellaswag", 1),
        ("winogrande", 1),
        ("arc_challenge", 1),
    ]
    asked = (tmp_path / "out" / "samples" / "mmlu_anatomy.jsonl").read_text()
    prompt = json.loads(asked)["arguments"][0][0]
    assert prompt.count("Answer:") == 6, "five examples and the question"


def test_a_run_goes_on_behind_kill_9(questions, home, tmp_path, capsys):
    """Nothing that was answered is asked again, and the result is that of a run in one piece."""
    line = ["eval", "triviaqa", "--data", str(questions), "--limit", "5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*line, "-o", str(whole)]) == ExitCode.OK
    command = [sys.executable, "-m", "m7b", *line, "-o", str(killed)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    answers = killed / "answers.jsonl"
    while not (answers.exists() and len(answers.read_bytes().splitlines()) > 2):
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    kept = answers.read_text()
    kept = kept[: kept.rindex("\n") + 1]
    capsys.readouterr()
    assert main([*line, "-o", str(killed)]) == ExitCode.USAGE
    assert "--resume" in capsys.readouterr().err
    assert main([*line, "-o", str(killed), "--resume"]) == ExitCode.OK
    assert answers.read_text().startswith(kept)
    assert sorted(answers.read_text().splitlines()) == sorted(
        (whole / "answers.jsonl").read_text().splitlines()
    )
    assert read_results(killed) == read_results(whole)


def test_a_task_of_ones_own_runs_from_its_file(home, tmp_path, capsys):
    import yaml

    config = {"task": "colours"} | make_tasks(tmp_path)["choices"]
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(config))
    assert main(["eval", str(tmp_path / "colours.yaml"), "--json"]) == ExitCode.OK
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(row["task"], row["metric"], row["n"]) for row in results] == [
        ("colours", "acc,none", 5),
        ("colours", "acc_norm,none", 5),
    ]


def test_the_report_of_a_quantization_tells_what_both_come_to(questions, home, tmp_path, capsys):
    out = tmp_path / "demo-q4_0.gguf"
    text = tmp_path / "text.txt"
    text.write_text("The river ran slowly through the valley. " * 3)
    arguments = ["-o", str(out), "--to", "q4_0", "--eval-file", str(text)]
    exam = ["--tasks", "arc_easy,piqa", "--data", str(questions), "--limit", "2"]
    assert main(["quantize", "demo", *arguments, *exam]) == ExitCode.OK
    told = capsys.readouterr().out
    report = json.loads(out.with_name(f"{out.name}.report.json").read_text())
    assert [each["original"]["task"] for each in report["tasks"]] == ["arc_easy", "piqa"]
    for each in report["tasks"]:
        assert each["original"]["n"] == each["quantized"]["n"] == 2
        assert each["difference"] == each["quantized"]["value"] - each["original"]["value"]
    assert "arc_easy" in told
    assert "piqa" in out.with_name(f"{out.name}.report.md").read_text()


def test_the_command_of_lm_eval_knows_our_model(demo_file, tmp_path):
    import yaml

    config = {"task": "colours"} | make_tasks(tmp_path)["choices"]
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(config))
    model = ["--model", "m7b", "--model_args", f"pretrained={demo_file},ctx_size=512"]
    line = [sys.executable, "-m", "m7b.harness", *model, "--tasks", str(tmp_path / "colours.yaml")]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "acc_norm" in ran.stdout


@pytest.fixture
def judge():
    """A judge behind OpenAI's protocol: what it was asked, and what it says."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        says = "Fair. [[7]]"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            answer = json.dumps({"choices": [{"message": {"content": Handler.says}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/v1", asked=asked, handler=Handler)
        server.shutdown()


def test_a_judge_rates_both_turns_of_each_talk(questions, home, judge, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr("m7b.harness.mt_bench._MAX_TOKENS", 12)
    folder = tmp_path / "results"
    arguments = ["--data", str(questions), "-o", str(folder), "--judge", judge.url, "--judge-model", "other"]
    judge.handler.says = "I cannot say."
    assert main(["eval", "mt_bench", *arguments]) == ExitCode.SOME_FAILED
    assert "no rating" in capsys.readouterr().err
    judge.handler.says = "Good, not [[3]]. [[7]]"
    judge.asked.clear()
    assert main(["eval", "mt_bench", *arguments, "--resume"]) == ExitCode.OK
    found = read_results(folder)["mt_bench"]
    assert (found["value"], found["n"], found["paper"]) == (7.0, 2, 6.84)
    assert len(judge.asked) == 4
    path, key, body = judge.asked[3]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "other")
    talks = [json.loads(line) for line in (folder / "samples" / "mt_bench.jsonl").read_text().splitlines()]
    shown = body["messages"][0]["content"]
    assert all(text in shown for text in ["1 + 1?", "And 2 + 2?", "4", *talks[1]["answers"]])
    assert "secret" not in (folder / "answers.jsonl").read_text()
    judge.asked.clear()
    assert main(["eval", "mt_bench", *arguments, "--resume"]) == ExitCode.OK
    assert judge.asked == []


@pytest.mark.parametrize(
    ("exam", "words"),
    [
        (["--tasks", "arc_eazy"], "no task arc_eazy"),
        (["--tasks", "winogrande", "--data", "."], "SPLIT.jsonl"),
        (["--tasks", "piqa", "--no-report"], "--no-report"),
    ],
    ids=["no such task", "no questions", "no report"],
)
def test_tasks_that_cannot_be_done_are_told_before_anything_is_written(exam, words, home, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    assert main(["quantize", "demo", "-o", str(out), "--to", "q4_0", *exam]) == ExitCode.USAGE
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_questions_of_another_shape_are_no_bug_of_ours(questions, home, tmp_path, capsys):
    """A folder without a split or a column that the task reads ended in a traceback."""
    original = next(questions.glob("**/piqa"))
    folder = tmp_path / original.relative_to(questions)
    shutil.copytree(original, folder)
    (folder / "train.jsonl").unlink()
    odd = tmp_path / "odd" / original.relative_to(questions)
    odd.mkdir(parents=True)
    for file in original.glob("*.jsonl"):
        (odd / file.name).write_text('{"question": "Why?"}\n')
    for data, word in ((tmp_path, "train"), (tmp_path / "odd", "piqa")):
        assert main(["eval", "piqa", "--data", str(data)]) == ExitCode.SOME_FAILED
        err = capsys.readouterr().err
        assert f"{data} does not hold what piqa reads" in err
        assert word in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["arc_eazy"], ExitCode.USAGE, ["no task arc_eazy"]),
        (["humaneval"], ExitCode.USAGE, ["--allow-code"]),
        (["mt_bench"], ExitCode.USAGE, ["--judge"]),
        (["mt_bench", "--judge", "localhost:8000"], ExitCode.USAGE, ["--judge", "no address"]),
        (["piqa", "--resume"], ExitCode.USAGE, ["-o"]),
        (["piqa", "--data", "nowhere"], ExitCode.USAGE, ["nowhere"]),
        (["piqa", "--limit", "0"], ExitCode.USAGE, ["0 is not at least 1"]),
        (["winogrande", "--data", "."], ExitCode.SOME_FAILED, ["winogrande", "SPLIT.jsonl", "1 of 1"]),
        (["winogrande"], ExitCode.SOME_FAILED, ["winogrande", "--data"]),
    ],
    ids=[
        "no such task",
        "code",
        "no judge",
        "a judge without an address",
        "nothing to resume",
        "no folder",
        "no questions",
        "no data",
        "offline",
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, code, words, home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments]) == code
    err = capsys.readouterr().err
    assert [word for word in words if word not in err] == []
    assert "Traceback" not in err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["eval", "piqa"]) == ExitCode.USAGE
    assert "pip install 'm7b[eval]'" in capsys.readouterr().err
    with pytest.raises(Exception, match="eval"):
        require_lm_eval()


def test_the_list_names_each_row_with_its_source(capsys):
    assert main(["eval", "--list"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert all(f"{row.name} " in out and f"{row.paper:.1f}" in out for row in PAPER)
    assert out.count("arXiv:2310.06825") == len(PAPER) + 1


@pytest.mark.parametrize(
    ("value", "error", "is_within"),
    [(60.0, 0.5, True), (61.2, 0.5, False), (61.14, 0.5, True), (60.0, None, None)],
)
def test_a_figure_lies_within_two_standard_errors_or_not(value, error, is_within):
    assert Figure("mmlu", "5-shot", "acc", value, error, 10, paper=60.1).is_within is is_within


PROGRAMS = {
    "passes": ("assert 1 + 1 == 2", True),
    "fails a test": ("assert 1 + 1 == 3", False),
    "is no Python": ("def", False),
    "leaves before the tests": ("import sys\nsys.exit(0)\nassert False", False),
    "leaves hard": ("import os\nos._exit(0)", False),
    "prints a lot": ("print('x' * 10_000_000)", True),
    "takes all memory": ("x = bytearray(8 << 30)", False),
    "never ends": ("while True: pass", False),
    "waits for input": ("input()", False),
    "leaves a child": ("import os, time\nif not os.fork(): time.sleep(60)", True),
    "is half a character": ("x = '\ud800'", True),
    "writes a large file": ("open('f', 'wb').write(b'x' * (8 << 20))", False),
    "sees our environment": ("import os\nassert 'M7B_SECRET' in os.environ", False),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_passes_where_it_runs_to_its_end(name, monkeypatch):
    monkeypatch.setenv("M7B_SECRET", "1")
    source, passes = PROGRAMS[name]
    began = time.monotonic()
    assert run_program(source, seconds=3).passed is passes
    assert time.monotonic() - began < 8


def test_a_vote_takes_the_answer_that_most_solutions_have():
    def solve(answer):
        return f"Final Answer: The final answer is ${answer}$. I hope it is correct."

    solutions = [solve(3), "I do not know.", solve(4), "No idea.", "Perhaps.", solve(4)]
    assert vote_on_solutions([solutions], [{}]) == [[solve(4)]]
