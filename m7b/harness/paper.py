"""The evaluations of the paper: their tasks and settings in lm-eval's words, and what the paper reports.

Figures are those of table 2 of "Mistral 7B" (arXiv:2310.06825), for the base model. The paper names shots and
votes, but not its prompts: these are lm-eval's.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m7b.harness.programs import run_program

_TABLE = "arXiv:2310.06825, table 2"
_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
_MATH = (
    "algebra",
    "counting_and_prob",
    "geometry",
    "intermediate_algebra",
    "num_theory",
    "prealgebra",
    "precalc",
)
_ANSWER = r"The answer is (\-?[0-9\.\,]*[0-9]+)"


@dataclass(frozen=True, slots=True)
class PaperTask:
    """One row of the paper's table.

    Attributes:
        name: what `m7b eval` calls it, and its results.
        title: the paper's name for it.
        members: the tasks that it is made of: a name or a tag of lm-eval's and what is set, or all of a task.
        settings: shots and votes, for people.
        metric: the figure that counts, and lm-eval's filter behind a comma.
        paper: what the paper reports, in percent.
        source: where.
        runs_code: whether answers are programs that have to be run.
    """

    name: str
    title: str
    members: tuple[Mapping[str, Any], ...]
    settings: str
    metric: str
    paper: float
    source: str = _TABLE
    runs_code: bool = False

    def list_specs(self, index: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What lm-eval, whose tasks are in `index`, is to load: its own tasks with what is set, and ours."""
        theirs: list[dict[str, Any]] = []
        ours: list[dict[str, Any]] = []
        for member in self.members:
            if "tag" in member:
                settings = {name: value for name, value in member.items() if name != "tag"}
                theirs += [settings | {"task": task} for task in sorted(index[member["tag"]].tags)]
            else:
                (ours if "dataset_path" in member else theirs).append(dict(member))
        return [*([{"group": f"paper_{self.name}", "task": theirs}] if theirs else ()), *ours]


def _choose(task: str) -> tuple[Mapping[str, Any], ...]:
    return ({"task": task, "num_fewshot": 0},)


def vote_on_solutions(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """One solution for each question: the first of those whose final answer most of them have."""
    from lm_eval.tasks.minerva_math.utils import get_unnormalized_answer, normalize_final_answer

    chosen = []
    for solutions in resps:
        answers = [normalize_final_answer(get_unnormalized_answer(solution)) for solution in solutions]
        # One that gives no answer has no vote, as long as another does.
        votes = Counter(answer for answer in answers if answer not in ("", "[invalidanswer]"))
        best = votes.most_common(1)[0][0] if votes else answers[0]
        chosen.append([solutions[answers.index(best)]])
    return chosen


def check_human_eval(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the function that the answer completes passes its tests."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(run_program(program).passed)}


def check_mbpp(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the program that the answer holds passes its tests."""
    code = re.sub(r"\A\s*```(?:python)?\n|\n```\s*\Z", "", results[0])
    tests = [*(doc.get("test_imports") or []), code, *doc["test_list"]]
    return {"pass@1": float(run_program("\n".join(tests) + "\n").passed)}


_PASS = [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}]
_HUMAN_EVAL = {
    "task": "humaneval_programs",
    "dataset_path": "openai/openai_humaneval",
    "unsafe_code": True,
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{canonical_solution}}",
    "process_results": check_human_eval,
    "generation_kwargs": {
        "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
        "max_gen_toks": 512,
        "do_sample": False,
    },
    "metric_list": _PASS,
    "num_fewshot": 0,
}
_MBPP = {
    "task": "mbpp_programs",
    "dataset_path": "google-research-datasets/mbpp",
    "dataset_name": "sanitized",  # the paper: "the hand-verified subset"
    "unsafe_code": True,
    "output_type": "generate_until",
    "test_split": "test",
    "fewshot_split": "prompt",
    "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "Task: {{prompt}}\nTests:\n{{test_list | join('\n')}}\nProgram:\n",
    "doc_to_target": "{{code}}\n[DONE]",
    "target_delimiter": "",
    "process_results": check_mbpp,
    "generation_kwargs": {"until": ["[DONE]", "\nTask:"], "max_gen_toks": 512, "do_sample": False},
    "metric_list": _PASS,
    "num_fewshot": 3,
}
_MMLU = tuple(
    {"tag": f"mmlu_{part}_tasks", "num_fewshot": 5}
    for part in ("humanities", "other", "social_sciences", "stem")
)
_GSM8K = {
    "task": "gsm8k_cot_self_consistency",
    "num_fewshot": 8,
    "repeats": 8,
    "generation_kwargs": _SAMPLING | {"until": ["Q:", "\n\n"], "max_gen_toks": 512},
    "filter_list": [
        {
            "name": "maj@8",
            "filter": [
                {"function": "regex", "regex_pattern": _ANSWER},
                {"function": "majority_vote"},
                {"function": "take_first"},
            ],
        }
    ],
}
_MATHS = tuple(
    {
        "task": f"minerva_math_{subject}",
        "num_fewshot": 4,
        "repeats": 4,
        "generation_kwargs": _SAMPLING | {"until": ["Problem:"], "max_gen_toks": 1024},
        "filter_list": [
            {
                "name": "maj@4",
                "filter": [
                    {"function": "custom", "filter_fn": vote_on_solutions},
                    {"function": "take_first"},
                ],
            }
        ],
    }
    for subject in _MATH
)

PAPER = (
    PaperTask("mmlu", "MMLU", _MMLU, "5-shot", "acc,none", 60.1),
    PaperTask("hellaswag", "HellaSwag", _choose("hellaswag"), "0-shot", "acc_norm,none", 81.3),
    PaperTask("winogrande", "WinoGrande", _choose("winogrande"), "0-shot", "acc,none", 75.3),
    PaperTask("piqa", "PIQA", _choose("piqa"), "0-shot", "acc_norm,none", 83.0),
    PaperTask("arc_easy", "ARC-Easy", _choose("arc_easy"), "0-shot", "acc_norm,none", 80.0),
    PaperTask("arc_challenge", "ARC-Challenge", _choose("arc_challenge"), "0-shot", "acc_norm,none", 55.5),
    PaperTask(
        "nq_open",
        "NaturalQuestions",
        ({"task": "nq_open", "num_fewshot": 5},),
        "5-shot",
        "exact_match,remove_whitespace",
        28.8,
    ),
    PaperTask(
        "triviaqa",
        "TriviaQA",
        ({"task": "triviaqa", "num_fewshot": 5},),
        "5-shot",
        "exact_match,remove_whitespace",
        69.9,
    ),
    PaperTask("humaneval", "HumanEval", (_HUMAN_EVAL,), "0-shot", "pass@1,none", 30.5, runs_code=True),
    PaperTask("mbpp", "MBPP", (_MBPP,), "3-shot", "pass@1,none", 47.5, runs_code=True),
    PaperTask("math", "MATH", _MATHS, "4-shot, maj@4", "exact_match,maj@4", 13.1),
    PaperTask("gsm8k", "GSM8K", (_GSM8K,), "8-shot, maj@8", "exact_match,maj@8", 52.2),
)
"""The rows, in the paper's order."""

BY_NAME = {task.name: task for task in PAPER}
