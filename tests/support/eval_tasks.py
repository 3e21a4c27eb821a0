"""Tasks of lm-eval in files of their own: questions of ours, one kind of task each."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_COLOURS = [("grass", "green"), ("snow", "white"), ("blood", "red"), ("coal", "black"), ("the sea", "blue")]
_NAMES = ["white", "red", "green", "black"]
_CAPITALS = [
    ("France", "Paris"),
    ("Italy", "Rome"),
    ("Spain", "Madrid"),
    ("Japan", "Tokyo"),
    ("Egypt", "Cairo"),
]
_TEXTS = [
    "The river ran slowly through the valley, and nobody was in a hurry.",
    "Once there was a miller who had three sons, and a mill, and a cat.",
    "Bread is made of flour, water, salt and time.",
]
_LETTERS = "ABCD"
_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A file of JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def make_tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """The configuration of one task of every kind, its data in `folder`."""
    colours = [
        {"thing": thing, "names": _NAMES if name in _NAMES else [*_NAMES[:3], name], "colour": name}
        for thing, name in _COLOURS
    ]
    capitals = [{"country": country, "capital": capital} for country, capital in _CAPITALS]
    sums = [{"a": a, "b": a + 3, "answer": str(2 * a + 3)} for a in range(2, 8)]
    pairs = [
        {
            "sentence": "The cup did not fit into the bag because the _ was too big.",
            "options": ["cup", "bag"],
        },
        {"sentence": "The dog chased the cat until the _ climbed a tree.", "options": ["dog", "cat"]},
    ]
    letters = [
        {"question": f"What colour is {row['thing']}?", "choices": row["names"], "answer": n % 4}
        for n, row in enumerate(colours)
    ]
    data = {
        "colours": colours,
        "capitals": capitals,
        "sums": sums,
        "texts": [{"text": text} for text in _TEXTS],
        "pairs": pairs,
        "letters": letters,
    }
    files = {name: str(write_lines(folder / f"{name}.jsonl", rows)) for name, rows in data.items()}

    def local(name: str) -> dict[str, Any]:
        splits = {"test": files[name], "train": files[name]}
        return {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": splits},
            "test_split": "test",
            "training_split": "train",
        }

    accuracy = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ]
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}]
    vote = [
        {"function": "regex", "regex_pattern": "(-?[0-9]+)"},
        {"function": "majority_vote"},
        {"function": "take_first"},
    ]
    rolling = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    lettered = "\n".join(f"{letter}. {{{{choices[{n}]}}}}" for n, letter in enumerate(_LETTERS))
    return {
        "choices": local("colours")
        | {
            "output_type": "multiple_choice",
            "doc_to_text": "The colour of {{thing}} is",
            "doc_to_choice": "{{names}}",
            "doc_to_target": "{{names.index(colour)}}",
            "metric_list": accuracy,
            "num_fewshot": 0,
        },
        "letters": local("letters")
        | {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\n" + lettered + "\nAnswer:",
            "doc_to_choice": list(_LETTERS),
            "doc_to_target": "answer",
            "metric_list": accuracy,
            "num_fewshot": 3,
            "fewshot_config": {"sampler": "first_n"},
        },
        "pairs": local("pairs")
        | {
            "output_type": "multiple_choice",
            "doc_to_text": "{{0 if 'cup' in options else 1}}",
            "doc_to_choice": "{{[sentence.split(' _')[0] + ' ' + options[0],"
            " sentence.split(' _')[0] + ' ' + options[1]]}}",
            "doc_to_target": "{{sentence.split('_ ')[1]}}",
            "metric_list": accuracy[:1],
            "num_fewshot": 0,
        },
        "rolling": local("texts")
        | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": name} for name in rolling],
            "num_fewshot": 0,
        },
        "generation": local("capitals")
        | {
            "output_type": "generate_until",
            "doc_to_text": "Q: What is the capital of {{country}}?\nA:",
            "doc_to_target": "{{capital}}",
            "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False},
            "metric_list": exact,
            "num_fewshot": 2,
            "fewshot_config": {"sampler": "first_n"},
        },
        "voting": local("sums")
        | {
            "output_type": "generate_until",
            "doc_to_text": "{{a}} + {{b}} =",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
            "repeats": 3,
            "filter_list": [{"name": "maj@3", "filter": vote}],
            "metric_list": exact,
            "num_fewshot": 3,
            "fewshot_config": {"sampler": "first_n"},
        },
    }


def write_questions(folder: Path) -> Path:
    """A folder for `m7b eval --data`: questions of our own in the shape of public sets, of every kind."""
    labels = list(_LETTERS)
    arc = [
        {
            "question": f"Which colour is {thing}?",
            "choices": {"text": names, "label": labels},
            "answerKey": labels[names.index(colour)],
        }
        for thing, colour in _COLOURS
        for names in [_NAMES if colour in _NAMES else [*_NAMES[:3], colour]]
    ]
    piqa = [
        {"goal": "dry a shirt", "sol1": "hang it in the sun", "sol2": "hang it in the rain", "label": 0}
    ] * 2
    gsm8k = [
        {"question": f"Ann has {n} pears and buys 2. How many has she?", "answer": f"{n} + 2.\n#### {n + 2}"}
        for n in range(9)
    ]
    human = [
        {
            "task_id": "ours/0",
            "prompt": 'def add_one(x):\n    """Return x plus one."""\n',
            "canonical_solution": "    return x + 1\n",
            "test": "def check(f):\n    assert f(1) == 2\n",
            "entry_point": "add_one",
        }
    ]
    mbpp = [
        {
            "prompt": f"Write a function add{n} that adds {n}.",
            "code": f"def add{n}(x):\n    return x + {n}",
            "test_imports": [],
            "test_list": [f"assert add{n}(0) == {n}"],
        }
        for n in range(1, 6)
    ]
    trivia = [
        {"question": f"What is the capital of {country}", "answer": {"value": city, "aliases": [city]}}
        for country, city in [*_CAPITALS, ("Peru", "Lima")]
    ]
    nq = [{"question": row["question"].lower(), "answer": row["answer"]["aliases"]} for row in trivia]
    sums = [{"problem": f"What is ${n}+1$?", "solution": f"It is $\\boxed{{{n + 1}}}$."} for n in range(2)]
    talks: list[dict[str, Any]] = [
        {"prompt_id": 1, "category": "writing", "prompt": ["Name a colour.", "Another."], "reference": []},
        {"prompt_id": 2, "category": "math", "prompt": ["1 + 1?", "And 2 + 2?"], "reference": ["2", "4"]},
    ]
    sets: dict[str, list[dict[str, Any]]] = {
        "HuggingFaceH4/mt_bench_prompts/train": talks,
        "allenai/ai2_arc/ARC-Easy/train": arc,
        "allenai/ai2_arc/ARC-Easy/validation": arc,
        "allenai/ai2_arc/ARC-Easy/test": arc,
        "baber/piqa/train": piqa,
        "baber/piqa/validation": piqa,
        "openai/gsm8k/main/train": gsm8k,
        "openai/gsm8k/main/test": gsm8k,
        "openai/openai_humaneval/test": human,
        "google-research-datasets/mbpp/sanitized/prompt": mbpp[:4],
        "google-research-datasets/mbpp/sanitized/test": mbpp[4:],
        "mandarjoshi/trivia_qa/rc.nocontext/train": trivia,
        "mandarjoshi/trivia_qa/rc.nocontext/validation": trivia,
        "google-research-datasets/nq_open/train": nq,
        "google-research-datasets/nq_open/validation": nq,
    }
    for subject in _SUBJECTS:
        sets[f"EleutherAI/hendrycks_math/{subject}/train"] = sums
        sets[f"EleutherAI/hendrycks_math/{subject}/test"] = sums
    return _write_sets(folder, sets)


def write_exam(folder: Path, subjects: Iterable[str]) -> Path:
    """The same for MMLU's `subjects`, HellaSwag, ARC-Challenge and WinoGrande."""
    sets: dict[str, list[dict[str, Any]]] = {}
    for subject in subjects:
        rows = [
            {
                "question": f" Which colour is {thing} in {subject}?",
                "subject": subject,
                "choices": _NAMES if colour in _NAMES else [*_NAMES[:3], colour],
                "answer": n % 4,
            }
            for n, (thing, colour) in enumerate(_COLOURS)
        ]
        sets[f"cais/mmlu/{subject}/dev"], sets[f"cais/mmlu/{subject}/test"] = rows, rows[:2]
    endings = ["dries it with a towel.", "[step] paints it blue.", "eats  the bucket.", "sings to the wheel."]
    sets["Rowan/hellaswag/validation"] = [
        {
            "ind": n,
            "activity_label": "Washing a car",
            "ctx_a": f"A man [title] fills {n + 2} buckets.",
            "ctx_b": "then he washes the car. he",
            "endings": endings[n:] + endings[:n],
            "label": str(-n % 4),
        }
        for n in range(3)
    ]
    sets["allenai/ai2_arc/ARC-Challenge/test"] = [
        {
            "question": "Why is ice lighter than water?",
            "choices": {"text": ["it is wider", "it is white", "it is wet"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        },
        {
            "question": "What does a magnet pull?",
            "choices": {"text": ["wood", "iron", "glass", "wool"], "label": list(_LETTERS)},
            "answerKey": "B",
        },
    ]
    sets["allenai/winogrande/winogrande_xl/validation"] = [
        {
            "sentence": "The cup is not in the bag, as the _ is big.",
            "option1": "cup",
            "option2": "bag",
            "answer": "1",
        },
        {
            "sentence": "The dog chased the cat until the _ was up.",
            "option1": "dog",
            "option2": "cat",
            "answer": "2",
        },
    ]
    for name in [name for name in sets if name.endswith(("/test", "/validation")) and "mmlu" not in name]:
        sets[f"{name.rpartition('/')[0]}/train"] = sets[name]
        sets[f"{name.rpartition('/')[0]}/validation"] = sets[name]
    return _write_sets(folder, sets)


def _write_sets(folder: Path, sets: Mapping[str, list[dict[str, Any]]]) -> Path:
    for name, rows in sets.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_lines(file, rows)
    return folder
