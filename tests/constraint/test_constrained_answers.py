"""Answers under a grammar, from real weights and from random ones: valid whatever the sampling."""

import json
from itertools import cycle, islice

import jsonschema
import pytest

from m7b import models
from m7b.completions import Completion, CompletionRequest
from m7b.constraint import JsonSchema
from m7b.generation import FinishReason, SamplingParams
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.engine.scheduler import Scheduler
from m7b.tokenizer import load_tokenizer
from tests.support.checkpoints import engine, write_v3
from tests.support.schemas import SCHEMAS

N_SEEDS = 200
# Keys or values of any length may follow
ENDLESS = {"anything", "map", "all of", "names like keywords", "pattern properties", "patterns beside others"}
ENDLESS |= {"tuple"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random checkpoint with the tokenizer of v0.3."""
    return write_v3(tmp_path_factory.mktemp("tiny-v3"), max_position_embeddings=1024)


class Model:
    """An engine with all that a completion asks for, loaded once."""

    def __init__(self, path, dtype="float32"):
        checkpoint = open_checkpoint(path, window_given=True)
        self.engine = engine(path, ctx_size=1024, threads=2, dtype=dtype)
        self.tokenizer = load_tokenizer(checkpoint.tokenizer, checkpoint.chat_template or "")
        self.stop_ids, self.vocab_size = checkpoint.stop_ids, checkpoint.config.vocab_size
        parts = (self.engine, self.tokenizer, None, self.stop_ids, self.vocab_size)
        self.model = models.Model("tiny", *parts, ctx_size=1024, window=None)

    def answer(self, schema, **params):
        """The one finished choice."""
        request = CompletionRequest(
            "JSON: ", SamplingParams(stop_ids=self.stop_ids, **params), grammar=JsonSchema(schema)
        )
        completion = Completion(self.model, request)
        for events in completion.samples():
            for _ in events:
                pass
        return completion.choices[0]


@pytest.fixture(scope="module")
def tiny_model(tiny):
    return Model(tiny)


@pytest.fixture(scope="module")
def demo_model(demo_file):
    return Model(demo_file, dtype=None)  # in its blocks, which is fastest


def is_valid(text, schema):
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def bounded(schema):
    """The schema with an end to strings, lists and objects that it gives none."""
    if isinstance(schema, list):
        return [bounded(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    ends = {}
    if schema.get("type") == "string" and not schema.keys() & {"pattern", "format"}:
        ends = {"maxLength": 6}
    if schema.get("type") == "array":
        ends = {"maxItems": max(3, schema.get("minItems", 0))}
    if schema.get("type") == "object" and "properties" in schema:
        ends = {"additionalProperties": False}
    return ends | {key: bounded(value) if key != "const" else value for key, value in schema.items()}


# A step of the demo takes 60 ms: answers that need more than 24 are cut off, and told so.
@pytest.mark.parametrize("name", ["tiny_model", "demo_model"])
def test_200_seeds_at_temperature_1_5_give_200_valid_answers(name, request):
    """A schema that contains itself may have no end in sight: the answer is cut off then, and says so."""
    model = request.getfixturevalue(name)
    schemas = {name: bounded(schema) for name, schema in SCHEMAS.items() if name not in ENDLESS}
    assert len(schemas) >= 30
    failed = []
    for seed, (name, schema) in enumerate(islice(cycle(schemas.items()), N_SEEDS)):
        choice = model.answer(schema, temperature=1.5, seed=seed, max_tokens=120)
        is_cut = choice.finished.reason is FinishReason.LENGTH and "recursi" in name
        if not is_cut and not (choice.finished.reason is FinishReason.STOP and is_valid(choice.text, schema)):
            failed.append((name, seed, choice.finished.reason, choice.text))
    assert failed == []


def test_an_answer_that_finds_no_end_is_told_as_cut_off(tiny_model):
    """The schemas as they are: what ends is valid, what does not is `length` with the text so far."""
    n_cut = 0
    for seed, schema in enumerate(SCHEMAS.values()):
        choice = tiny_model.answer(schema, temperature=1.5, seed=seed, max_tokens=60)
        if choice.finished.reason is FinishReason.STOP:
            assert is_valid(choice.text, schema), choice.text
            continue
        n_cut += 1
        assert (choice.finished.reason, choice.finished.usage.completion_tokens) == (FinishReason.LENGTH, 60)
        assert choice.text
    assert 0 < n_cut < len(SCHEMAS) / 2


SETTINGS = {
    "top_k 1": {"top_k": 1},
    "top_p 0.1": {"top_p": 0.1},
    "argmax": {"temperature": 0},
    "hot": {"temperature": 100},
    "min_p 1": {"min_p": 1},
    "typical_p": {"typical_p": 0.01},
    "penalties": {"repetition_penalty": 100, "presence_penalty": 100, "frequency_penalty": 100},
    "negative penalties": {"repetition_penalty": 0.01, "presence_penalty": -100, "frequency_penalty": -100},
    "bias to the end": {"logit_bias": {2: 100.0}},
    "bias to words": {"logit_bias": dict.fromkeys(range(3000, 4000), 100.0)},
    "bias from all but bytes": {"logit_bias": dict.fromkeys(range(780, 32768), -100.0)},
    "much forbidden": {"logit_bias": dict.fromkeys(range(3, 32767), float("-inf"))},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_no_sampling_setting_breaks_an_answer(tiny_model, settings):
    n_finished = 0
    for name in ("weather", "tagged union", "array bounds", "integer bounds", "unicode", "nested"):
        choice = tiny_model.answer(SCHEMAS[name], seed=1, max_tokens=300, **settings)
        if choice.finished.reason is FinishReason.STOP:
            n_finished += 1
            assert is_valid(choice.text, SCHEMAS[name]), (name, choice.text)
    assert n_finished >= 4


@pytest.fixture
def passes(monkeypatch):
    """One entry for each forward pass."""
    made = []
    compute = Scheduler._compute

    def count(self, spans, ids, wanted):
        made.append(len(ids))
        return compute(self, spans, ids, wanted)

    monkeypatch.setattr(Scheduler, "_compute", count)
    return made


def both_ways(model, names, passes, max_tokens):
    """How many passes it takes in runs and in single tokens, which must come to the same."""
    n_passes = [0, 0]
    for seed, name in enumerate(names):
        found = []
        for way, logprobs in enumerate((None, 0)):  # a report of probabilities needs every pass
            passes.clear()
            choice = model.answer(
                SCHEMAS[name], temperature=1.5, seed=seed, max_tokens=max_tokens, logprobs=logprobs
            )
            found.append((choice.finished.tokens, choice.finished.reason, choice.text))
            n_passes[way] += len(passes)
        assert found[0] == found[1], name
    return n_passes


def test_forced_runs_change_no_token_and_save_passes(tiny_model, passes):
    in_runs, one_by_one = both_ways(tiny_model, SCHEMAS, passes, 60)
    assert in_runs < 0.95 * one_by_one


def test_forced_runs_change_no_token_of_real_weights(demo_file, passes):
    names = ("const object", "tagged union", "unicode")
    in_runs, one_by_one = both_ways(Model(demo_file), names, passes, 40)
    assert in_runs < 0.8 * one_by_one
