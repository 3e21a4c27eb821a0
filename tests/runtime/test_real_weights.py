"""The demo checkpoint against transformers: real weights, real text, the whole vocabulary."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from m7b.generation import SamplingParams, Step
from m7b.runtime.checkpoints import open_checkpoint
from m7b.tokenizer import load_tokenizer
from tests.support.checkpoints import engine, logits, oracle_logits, transformers_model

TEXT = (Path(__file__).parent.parent / "data" / "alice.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ids(demo_file):
    tokens = load_tokenizer(open_checkpoint(demo_file).tokenizer).encode(TEXT, bos=False)
    assert len(tokens) >= 600
    return tokens[:600]


@pytest.fixture(scope="module")
def oracle(demo_file):
    """transformers' own reading of the GGUF, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        demo_file.parent, gguf_file=demo_file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def windowed(oracle, window):
    """The same weights as a Mistral model with a sliding window."""
    llama = oracle.config
    config = MistralConfig(
        hidden_size=llama.hidden_size,
        num_hidden_layers=llama.num_hidden_layers,
        num_attention_heads=llama.num_attention_heads,
        num_key_value_heads=llama.num_key_value_heads,
        intermediate_size=llama.intermediate_size,
        vocab_size=llama.vocab_size,
        rms_norm_eps=llama.rms_norm_eps,
        max_position_embeddings=llama.max_position_embeddings,
        rope_parameters=llama.rope_parameters,
        tie_word_embeddings=True,
        sliding_window=window,
        attn_implementation="eager",
    )
    model = MistralForCausalLM(config).eval()
    model.load_state_dict(oracle.state_dict())
    return model


def test_the_gguf_package_reads_what_transformers_reads(demo_file, oracle):
    """So that other tests may take it for transformers' own reader, which is three times as slow."""
    found, expected = transformers_model(demo_file).state_dict(), oracle.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_logit_of_a_long_text_equals_that_of_transformers(demo_file, oracle, ids):
    ours = logits(engine(demo_file, prefill_chunk=256), ids)
    assert (ours - oracle_logits(oracle, ids)).abs().max() < 2e-3


def test_every_logit_with_a_window_of_128_equals_that_of_transformers(demo_file, oracle, ids):
    ours = logits(engine(demo_file, window=128, prefill_chunk=100), ids)
    expected = oracle_logits(windowed(oracle, 128), ids)
    assert (ours - expected).abs().max() < 2e-3
    assert (oracle_logits(oracle, ids) - expected).abs().max() > 0.1  # the window does show


def test_greedy_continuation_equals_that_of_transformers(demo_file, oracle, ids):
    prompt = ids[:100]
    steps = engine(demo_file).generate(prompt, SamplingParams(max_tokens=64, temperature=0))
    ours = [step.token for step in steps if isinstance(step, Step)]
    expected = oracle.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=-1)
    assert ours == expected[0, len(prompt) :].tolist()


def test_scores_add_up_to_the_loss_of_transformers(demo_file, oracle, ids):
    scores = [score.logprob for score in engine(demo_file).score(ids)]
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        loss = oracle(tokens, labels=tokens).loss.item()
    assert len(scores) == len(ids) - 1
    assert -sum(scores) / len(scores) == pytest.approx(loss, abs=1e-4)
