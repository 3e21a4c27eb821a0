"""Run tasks one after another, keep what they tell, and lay it beside the paper's figures."""

import io
import json
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from m7b.bench.formats import Table
from m7b.errors import M7bError, UsageError
from m7b.harness import mt_bench
from m7b.harness.data import local_data
from m7b.harness.model import HarnessModel
from m7b.harness.paper import BY_NAME, PaperTask
from m7b.network import check_endpoint

_PERCENT = {"acc", "acc_norm", "exact_match", "f1", "em", "pass@1"}
_N_BOOTSTRAPS = 1000
_SEED, _EXAMPLE_SEED = 0, 1234  # those that `lm_eval` takes where none is given


@dataclass(frozen=True, slots=True)
class Figure:
    """What one task came to.

    Attributes:
        task: its name.
        settings: shots and votes, for people.
        metric: what was measured.
        value: the figure, in percent where it is a share.
        error: its standard error, None where there is none.
        n: the questions.
        paper: what the paper reports, None where it has no such row.
        source: where it does.
    """

    task: str
    settings: str
    metric: str
    value: float
    error: float | None
    n: int
    paper: float | None = None
    source: str = ""

    @property
    def difference(self) -> float | None:
        """From the paper's figure."""
        return None if self.paper is None else self.value - self.paper

    @property
    def is_within(self) -> bool | None:
        """Whether the paper's figure lies within two standard errors; None where that makes no sense."""
        if self.difference is None or self.error is None:
            return None
        return abs(self.difference) <= 2 * self.error + 0.05  # the paper rounds

    def as_json(self) -> dict[str, Any]:
        """The figure and what follows from it."""
        return asdict(self) | {"difference": self.difference, "is_within": self.is_within}


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that could not be run, and why."""

    task: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The failure as JSON tells it."""
        return asdict(self)


Outcome = Figure | Failure


@cache
def open_tasks() -> Any:
    """All tasks that lm-eval knows; it takes seconds to read what they are.

    Raises:
        UsageError: the hub's address is none.
    """
    check_endpoint()
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager()


def check_tasks(
    names: Sequence[str], manager: Any, *, allows_code: bool, has_judge: bool = False
) -> list[str]:
    """The tasks that are meant; `paper` is all of the paper's for which there is what they need.

    Raises:
        UsageError: there is no such task, or it runs code, or needs a judge.
    """
    known = {*manager.all_tasks, *BY_NAME, mt_bench.NAME}
    chosen = []
    for name in names or ["paper"]:
        if name == "paper":
            chosen += [task.name for task in BY_NAME.values() if allows_code or not task.runs_code]
            chosen += [mt_bench.NAME] if has_judge else []
        elif name not in known and not name.endswith((".yaml", ".yml")):
            near = sorted(each for each in known if name.lower() in each.lower())[:5]
            raise UsageError(
                f"there is no task {name}",
                hint=f"there are {', '.join(near or BY_NAME)}, and lm-eval's others",
            )
        elif name in BY_NAME and BY_NAME[name].runs_code and not allows_code:
            raise UsageError(f"{name} runs programs that the model writes", hint="--allow-code lets it")
        elif name == mt_bench.NAME and not has_judge:
            raise UsageError(
                f"{name} needs a judge", hint="--judge URL names one, as http://localhost:8000/v1"
            )
        else:
            chosen.append(name)
    return list(dict.fromkeys(chosen))


def load_task(manager: Any, name: str, data: Path | None) -> Any:
    """A row of the paper, a task of lm-eval, or one in a file, with its questions.

    Raises:
        UsageError: its questions are not there, or those in `data` are not what the task reads.
    """
    row = BY_NAME.get(name)
    with _quiet(), local_data(data):
        try:
            return manager.load(row.list_specs(manager.task_index) if row else [name])
        except M7bError:
            raise
        except Exception as error:
            if data is None:
                raise
            raise UsageError(
                f"{data} does not hold what {name} reads: {type(error).__name__}: {error}",
                hint="it takes the hub's columns, and every split that the task names",
            ) from None


def run_task(
    model: HarnessModel,
    manager: Any,
    name: str,
    folder: "Folder | None" = None,
    *,
    limit: int | None = None,
    data: Path | None = None,
    chats: bool = False,
    allows_code: bool = False,
) -> list[Figure]:
    """The figures of one task.

    Args:
        model: answers.
        manager: what knows lm-eval's tasks.
        name: of a row of the paper, a task of lm-eval, or a file that describes one.
        folder: where samples are kept.
        limit: ask this many questions at most, of each part of the task.
        data: the folder with the questions; None takes them from the hub.
        chats: whether questions go through the chat template.
        allows_code: whether programs that the model writes may run.

    Raises:
        UsageError: its questions are not there.
    """
    from lm_eval.evaluator import evaluate

    row = BY_NAME.get(name)
    with _quiet():
        loaded = load_task(manager, name, data)
        _settle(loaded["tasks"].values())
        results: Any = evaluate(
            lm=model,
            task_dict={"tasks": loaded["tasks"], "groups": {}} if row else loaded,
            limit=limit,
            bootstrap_iters=_N_BOOTSTRAPS,
            apply_chat_template=chats,
            fewshot_as_multiturn=chats,
            confirm_run_unsafe_code=allows_code,
        )
    for part, samples in results["samples"].items() if folder else ():
        assert folder
        folder.keep_samples(part, samples)
    return [_read_row(results, row)] if row else list(_read_figures(results))


def tabulate(outcomes: Sequence[Outcome]) -> Table:
    """The table: task, settings, paper, here with its standard error, difference, within or not."""
    rows = []
    for each in outcomes:
        if isinstance(each, Failure):
            rows.append((each.task, "", "", "", "failed", "", ""))
            continue
        error = "" if each.error is None else f" ± {each.error:.2f}"
        paper = "" if each.paper is None else f"{each.paper:.1f}"
        difference = "" if each.difference is None else f"{each.difference:+.1f}"
        verdict = {True: "within", False: "outside", None: ""}[each.is_within]
        metric = each.metric.removesuffix(",none")
        rows.append(
            (each.task, each.settings, metric, paper, f"{each.value:.2f}{error}", difference, verdict)
        )
    columns = ("task", "settings", "metric", "paper", "here", "difference", "two errors")
    return Table(columns, tuple(rows), text_columns=3)


def _settle(tasks: Iterable[Any]) -> None:
    """Let tasks draw their examples as lm-eval's own command does."""
    random.seed(_SEED)
    np.random.seed(_EXAMPLE_SEED)
    for task in tasks:
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_EXAMPLE_SEED)


def _read_row(results: Mapping[str, Any], row: PaperTask) -> Figure:
    """One figure over all questions of a row, however many tasks they are in."""
    metric, _, filter_name = row.metric.partition(",")
    scores = [
        100 * float(sample[metric])
        for samples in results["samples"].values()
        for sample in samples
        if sample["filter"] == filter_name
    ]
    error = _find_error(scores)
    return Figure(row.name, row.settings, row.metric, mean(scores), error, len(scores), row.paper, row.source)


def _read_figures(results: Mapping[str, Any]) -> Iterator[Figure]:
    for task, found in results["results"].items():
        shots = results["n-shot"].get(task)
        for key, value in found.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            scale = 100 if metric in _PERCENT else 1
            error = found.get(f"{metric}_stderr,{filter_name}")
            n = results["n-samples"].get(task, {}).get("effective", 0)
            settings = "" if shots is None else f"{shots}-shot"
            yield Figure(task, settings, key, scale * value, _scale(error, scale), n)


def _find_error(scores: Sequence[float]) -> float | None:
    """The standard error of the mean, None where one score tells none."""
    return stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None


def _scale(error: Any, scale: int) -> float | None:
    return error * scale if isinstance(error, int | float) and error == error else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval and datasets from writing to stderr: what matters of it, our messages and errors tell."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with redirect_stderr(io.StringIO()):  # bars of tqdm, which is told by no argument
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        datasets.enable_progress_bars()


class Folder:
    """Where an evaluation keeps what it finds: answers, samples by task, results.

    Args:
        path: the folder, made where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        (path / "samples").mkdir(parents=True, exist_ok=True)

    @property
    def answers(self) -> Path:
        """The file of answers, from which a run goes on."""
        return self._path / "answers.jsonl"

    def keep_samples(self, task: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Write the samples of a task, in place of those of an earlier run."""
        file = self._path / "samples" / f"{task.replace('/', '_').replace(':', '_')}.jsonl"
        lines = (json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
        _replace(file, "".join(lines))

    def keep_results(self, about: Mapping[str, Any], outcomes: Sequence[Outcome], table: str) -> None:
        """Write what is known so far, in place of what was."""
        report = {"about": about, "results": [each.as_json() for each in outcomes]}
        _replace(self._path / "results.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        _replace(self._path / "results.md", table)


def _replace(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def run_tasks(
    model: HarnessModel,
    manager: Any,
    names: Sequence[str],
    folder: Folder | None,
    judge: mt_bench.Judge | None = None,
    **settings: Any,
) -> Iterator[Outcome]:
    """The outcomes of tasks, one after another; one that fails does not stop the others."""
    for name in names:
        try:
            if name == mt_bench.NAME:
                assert judge, "check_tasks asks for one"
                figures = [_hold_talks(model, judge, folder, settings["limit"], settings["data"])]
            else:
                figures = run_task(model, manager, name, folder, **settings)
        except M7bError as error:
            yield Failure(name, str(error))
            continue
        yield from figures


def _hold_talks(
    model: HarnessModel, judge: mt_bench.Judge, folder: Folder | None, limit: int | None, data: Path | None
) -> Figure:
    """The mean rating of all answers of MT-Bench."""
    with _quiet():
        questions = mt_bench.load_questions(data, limit)
    answers = mt_bench.answer_questions(model, questions)
    if folder:  # before the judge is asked: it may be somebody else's, another day
        samples = [
            {"turns": question.turns, "category": question.category, "answers": given}
            for question, given in zip(questions, answers, strict=True)
        ]
        folder.keep_samples(mt_bench.NAME, samples)
    ratings = mt_bench.rate(judge, questions, answers, model.answers, model.report)
    error = _find_error(ratings)
    settings, metric = "2 turns, instruct", f"rating by {judge.model}"
    return Figure(
        mt_bench.NAME,
        settings,
        metric,
        mean(ratings),
        error,
        len(questions),
        mt_bench.PAPER,
        mt_bench.SOURCE,
    )
