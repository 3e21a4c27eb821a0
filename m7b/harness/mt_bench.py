"""MT-Bench: two turns of conversation, each rated from 1 to 10 by a judge behind OpenAI's protocol.

Questions are not ours and come from the hub or a folder. The judge is asked in our own words, so that ratings
compare with each other, and only roughly with those that others publish.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m7b.errors import UsageError
from m7b.harness.answers import Answers, name_requests
from m7b.harness.data import local_data

if TYPE_CHECKING:
    from m7b.harness.model import HarnessModel, Progress

NAME = "mt_bench"
PAPER = 6.84
SOURCE = "arXiv:2310.06825, table 3"
_DATA = "HuggingFaceH4/mt_bench_prompts"
_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # the benchmark's; else 0
_MAX_TOKENS = 1024
_SECONDS = 300
_RATING = re.compile(r"\[\[\s*(10|[1-9])(?:\.0)?\s*\]\]")
_REQUEST = """\
You rate the answers of an assistant. Look at the last answer below: is it helpful, right, to the point, deep
enough and careful? Length by itself is no merit. Say in a few sentences what is good and bad about it, then
end with a whole number from 1 (useless) to 10 (could not be better) in double brackets, like this: [[5]]."""


@dataclass(frozen=True, slots=True)
class Question:
    """Both turns of the user, what they are about, and right answers where there are any."""

    turns: tuple[str, str]
    category: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """A model behind OpenAI's protocol.

    Attributes:
        url: where it listens, up to `/v1`.
        model: what it is called there.
        key: what it lets us in with, empty for none.
    """

    url: str
    model: str
    key: str = ""

    def ask(self, text: str) -> str:
        """What it says to `text`.

        Raises:
            UsageError: it cannot be reached, or refuses.
        """
        import requests

        fields: Any = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": text}]}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            answer = requests.post(
                f"{self.url.rstrip('/')}/chat/completions", json=fields, headers=headers, timeout=_SECONDS
            )
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"])
        except (requests.RequestException, ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"the judge at {self.url} gives no rating: {error}",
                hint="answers are kept with -o; --resume asks for the rest",
            ) from None


def load_questions(data: Path | None, limit: int | None) -> list[Question]:
    """The questions, in either of the shapes that they are published in.

    Raises:
        UsageError: they are not there.
    """
    import datasets

    with local_data(data):
        rows = datasets.load_dataset(_DATA)["train"]
    return [_read(row) for row in list(rows)[:limit]]


def answer_questions(model: "HarnessModel", questions: Sequence[Question]) -> list[list[str]]:
    """The answers to both turns of each question: all first turns together, then all second ones."""
    answers: list[list[str]] = [[] for _ in questions]
    for _ in range(2):
        prompts = [
            (model.apply_chat_template(_write_turns(question, given)), _settings(question))
            for question, given in zip(questions, answers, strict=True)
        ]
        for given, text in zip(answers, model.answer_prompts(prompts), strict=True):
            given.append(text)
    return answers


def rate(
    judge: Judge,
    questions: Sequence[Question],
    answers: Sequence[Sequence[str]],
    kept: Answers,
    report: "Progress",
) -> list[float]:
    """The rating of both answers to each question, in order.

    Raises:
        UsageError: the judge cannot be reached, or gives no rating.
    """
    texts = [
        _ask_for_rating(question, given[:n])
        for question, given in zip(questions, answers, strict=True)
        for n in (1, 2)
    ]
    names = name_requests("rate", [(judge.url, judge.model, text) for text in texts])
    for done, (name, text) in enumerate(zip(names, texts, strict=True)):
        report("rating", done, len(texts))
        if name not in kept:
            said = judge.ask(text)
            found = _RATING.findall(said)
            if not found:
                raise UsageError(
                    f"the judge gives no rating such as [[5]], but: {said[-100:]}", hint="take another judge"
                )
            kept.keep(name, float(found[-1]))
    return [float(kept[name]) for name in names]


def _read(row: Mapping[str, Any]) -> Question:
    turns = row.get("turns") or row.get("prompt")
    if not isinstance(turns, list) or len(turns) != 2:
        raise UsageError(f"a question of {NAME} has no two turns, but {turns!r}")
    return Question(tuple(turns), str(row.get("category", "")), tuple(row.get("reference") or ()))


def _settings(question: Question) -> dict[str, Any]:
    temperature = _TEMPERATURES.get(question.category, 0.0)
    settings = {"max_gen_toks": _MAX_TOKENS, "until": [], "do_sample": temperature > 0}
    return settings | ({"temperature": temperature} if temperature else {})


def _write_turns(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    """The conversation up to the turn behind `answers`."""
    talk = [{"role": "user", "content": question.turns[0]}]
    for answer in answers:
        talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": question.turns[1]}]
    return talk


def _ask_for_rating(question: Question, answers: Sequence[str]) -> str:
    parts = [_REQUEST]
    for n, (turn, answer) in enumerate(zip(question.turns, answers, strict=False)):
        parts.append(f"<user>\n{turn}\n</user>")
        if n < len(question.references):
            parts.append(f"<right_answer>\n{question.references[n]}\n</right_answer>")
        parts.append(f"<assistant>\n{answer}\n</assistant>")
    return "\n\n".join(parts)
