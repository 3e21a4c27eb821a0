"""Low-rank adapters against transformers, peft and llama.cpp, and beside each other."""

import pytest
import torch

from m7b.generation import SamplingParams, Step
from m7b.runtime import kernels
from tests.support.adapters import (
    LINEARS,
    adapted_engine,
    add_to,
    draw_pairs,
    mixed_engine,
    name_tensors,
    write_gguf_adapter,
    write_peft,
)
from tests.support.checkpoints import (
    engine,
    llama_cpp_logits,
    logits,
    mistral,
    oracle_logits,
    transformers_model,
    write_gguf,
    write_hf,
    write_native,
)

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
IDS = torch.randint(0, 64, (41,), generator=torch.Generator().manual_seed(1)).tolist()
NATIVE = pytest.mark.skipif(kernels.instruction_set() is None, reason="the kernels were not built")
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_hf(mistral(window=None, **SHAPE), tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("write", [write_hf, write_native])
def test_an_adapter_is_added_to_the_weights_of_any_format(tmp_path, write):
    model = mistral(window=None, **SHAPE)
    pairs = draw_pairs(model)
    path = write(model, tmp_path / "base")
    folder = write_peft(tmp_path / "peft", pairs, lora_alpha=6)
    file = write_gguf_adapter(tmp_path / "adapter.gguf", pairs, model, alpha=6.0)
    expected = oracle_logits(add_to(model, pairs, 6 / 4), IDS)
    for adapter in (folder, file):
        torch.testing.assert_close(logits(adapted_engine(path, adapter, window=0), IDS), expected, **CLOSE)


def test_several_adapters_add_up_by_their_scales(tmp_path, base):
    model = mistral(window=None, **SHAPE)
    first, second = draw_pairs(model), draw_pairs(model, 3, targets=["q_proj", "down_proj"], seed=9)
    paths = [write_peft(tmp_path / "a", first), write_peft(tmp_path / "b", second)]
    ours = logits(adapted_engine(base, (paths[0], 0.5), (paths[1], -1.25)), IDS)
    expected = oracle_logits(add_to(add_to(model, first, 0.5 * 8 / 4), second, -1.25 * 8 / 3), IDS)
    torch.testing.assert_close(ours, expected, **CLOSE)


def test_a_scale_of_0_is_the_base_model_to_the_bit(tmp_path, base):
    adapter = write_peft(tmp_path / "a", draw_pairs(mistral(**SHAPE)))
    assert torch.equal(logits(adapted_engine(base, (adapter, 0.0)), IDS), logits(engine(base), IDS))


@pytest.mark.parametrize(
    ("ranks", "config", "scales"),
    [
        ({}, {"use_rslora": True}, dict.fromkeys(LINEARS, 8 / 2)),
        (
            {"v_proj": 2},
            {"rank_pattern": {"v_proj": 2}},
            dict.fromkeys(LINEARS, 2.0) | {"v_proj": 4.0},
        ),
        (
            {},
            {"alpha_pattern": {r"model\.layers\.\d+\.self_attn\.(q|k)_proj": 3, "o_proj": 0.5}},
            dict.fromkeys(LINEARS, 2.0) | {"q_proj": 0.75, "k_proj": 0.75, "o_proj": 0.125},
        ),
        (
            {"up_proj": 9},
            {"rank_pattern": {"mlp.up_proj": 9}, "alpha_pattern": {"up_proj": 6}, "use_rslora": True},
            dict.fromkeys(LINEARS, 4.0) | {"up_proj": 2.0},
        ),
        ({}, {"rank_pattern": None, "alpha_pattern": {}, "lora_alpha": 3.0}, dict.fromkeys(LINEARS, 0.75)),
        # What only says how it was trained.
        (
            {},
            {"lora_dropout": 0.1, "init_lora_weights": "gaussian", "fan_in_fan_out": False, "of_later": [1]},
            dict.fromkeys(LINEARS, 2.0),
        ),
    ],
    ids=["rslora", "rank_pattern", "alpha_pattern", "all", "empty", "harmless"],
)
def test_patterns_of_a_configuration_hold(tmp_path, base, ranks, config, scales):
    model = mistral(window=None, **SHAPE)
    pairs = draw_pairs(model, ranks=ranks)
    folder = write_peft(tmp_path / "a", pairs, **({"r": 4} | config))
    expected = oracle_logits(add_to(model, pairs, scales), IDS)
    torch.testing.assert_close(logits(adapted_engine(base, folder), IDS), expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["base_model.model.", "", "base_model.model.of a bare model"])
def test_tensors_may_have_any_float_and_the_usual_names(tmp_path, base, dtype, prefix):
    model = mistral(window=None, **SHAPE)
    pairs = {
        name: (down.to(dtype), up.to(dtype))
        for name, (down, up) in draw_pairs(model, targets=["q_proj", "up_proj"]).items()
    }
    tensors = name_tensors(pairs, prefix.removesuffix("of a bare model"))
    if prefix.endswith("of a bare model"):
        tensors = {name.replace("model.model.model.", "model.model."): each for name, each in tensors.items()}
    folder = write_peft(tmp_path / "a", pairs, tensors=tensors)
    wide = {name: (down.float(), up.float()) for name, (down, up) in pairs.items()}
    expected = oracle_logits(add_to(model, wide, 2.0), IDS)
    torch.testing.assert_close(logits(adapted_engine(base, folder), IDS), expected, **CLOSE)


@pytest.mark.parametrize("alpha", [None, 0.0, 12.0])
def test_alpha_of_a_gguf_adapter_may_be_missing(tmp_path, base, alpha):
    model = mistral(window=None, **SHAPE)
    pairs = draw_pairs(model, ranks={"o_proj": 6})
    file = write_gguf_adapter(tmp_path / "a.gguf", pairs, model, alpha=alpha)
    scales = dict.fromkeys(LINEARS, 3.0) | {"o_proj": 2.0} if alpha else 1.0
    expected = oracle_logits(add_to(model, pairs, scales), IDS)
    torch.testing.assert_close(logits(adapted_engine(base, file), IDS), expected, **CLOSE)


# ---- the oracles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True, "rank_pattern": {"v_proj": 3}}])
def test_logits_equal_those_of_peft(tmp_path, base, config, is_merged):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(
        mistral(window=None, **SHAPE),
        peft.LoraConfig(r=8, lora_alpha=12, target_modules=list(LINEARS), **config),
    )
    torch.manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    model = wrapped.merge_and_unload() if is_merged else wrapped.eval()
    ours = logits(adapted_engine(base, tmp_path / "adapter"), IDS)
    torch.testing.assert_close(ours, oracle_logits(model, IDS), **CLOSE)


def test_logits_of_the_demo_equal_those_of_peft(tmp_path, demo_file):
    """The demo's own weights in float32, with the adapter beside them and merged."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules=list(LINEARS))
    wrapped = peft.get_peft_model(transformers_model(demo_file), config)
    torch.manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    wrapped.save_pretrained(tmp_path)
    ids = list(range(500, 540))
    plain = logits(engine(demo_file, ctx_size=256), ids)
    ours = logits(adapted_engine(demo_file, tmp_path, ctx_size=256), ids)
    assert (ours - plain).abs().max() > 1, "the adapter does show"
    theirs = oracle_logits(wrapped.eval(), ids)
    exact = oracle_logits(wrapped.double(), ids)
    # Sums in float32 of logits up to 32 are off by about 1e-4, those of the oracle too.
    bound = max(1e-4, 1.5 * float((theirs - exact).abs().max()))
    assert bound < 2e-4
    torch.testing.assert_close(ours, exact, atol=bound, rtol=0)
    torch.testing.assert_close(ours, oracle_logits(wrapped.merge_and_unload(), ids), atol=bound, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_logits_equal_those_of_llama_cpp(tmp_path, scale):
    model = mistral(window=None, **SHAPE)
    sizes = dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), 16)
    keys = {"tokenizer.ggml.model": "no_vocab"} | {f"llama.{key}": size for key, size in sizes.items()}
    base = write_gguf(model, tmp_path / "base.gguf", **keys)
    adapter = write_gguf_adapter(tmp_path / "a.gguf", draw_pairs(model, 8), model)
    ours = logits(adapted_engine(base, (adapter, scale), window=0), IDS)
    torch.testing.assert_close(ours, llama_cpp_logits(base, IDS, [(adapter, scale)]), **CLOSE)


# ---- by the kernels, and beside each other ---------------------------------------------------------------

FORMS = [
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "quant": "q8_0"},
    {"dtype": "bfloat16", "quant": "q4_0"},
    {"dtype": "bfloat16", "quant": "nf4"},
    {"dtype": "float32", "quant": "q8_0"},
]


def name_form(form):
    return "-".join(form.values())


@pytest.mark.parametrize("form", FORMS, ids=name_form)
def test_every_backend_adds_the_same(tmp_path, base, form):
    """What is added is that of float32, as near as rounding lets it."""
    model = mistral(window=None, **SHAPE)
    folder = write_peft(tmp_path / "a", draw_pairs(model, 5, std=0.15))
    plain, exact = logits(engine(base), IDS), logits(adapted_engine(base, folder), IDS)
    added = logits(adapted_engine(base, folder, **form), IDS) - logits(engine(base, **form), IDS)
    assert (added - (exact - plain)).norm() < 0.25 * (exact - plain).norm()


@NATIVE
@pytest.mark.parametrize("form", FORMS[1:4], ids=name_form)
@pytest.mark.parametrize("rank", [1, 16, 21])
def test_whole_layers_add_the_bits_of_single_operations(tmp_path, base, form, rank):
    model = mistral(window=None, **SHAPE)
    folder = write_peft(tmp_path / "a", draw_pairs(model, rank, targets=["q_proj", "v_proj", "down_proj"]))
    whole = adapted_engine(base, folder, **form)
    assert torch.equal(logits(whole, IDS), logits(whole.unfuse(), IDS))


def answer_together(mixed, prompts, params):
    """The tokens of each prompt under the mix of its number, all at once."""
    sequences = [mixed.with_adapter(mix).submit(prompt, params) for mix, prompt in prompts]
    found = [[] for _ in sequences]
    while not all(sequence.is_done for sequence in sequences):
        mixed.step()
        for tokens, sequence in zip(found, sequences, strict=True):
            tokens += [(e.token, e.logprob) for e in sequence.take() if isinstance(e, Step)]
    return found


@NATIVE
@pytest.mark.parametrize("form", FORMS[2:4], ids=name_form)
def test_rows_with_other_adapters_get_what_each_gets_alone(tmp_path, base, form):
    """To the bit, though they begin with the same tokens and are read side by side."""
    model = mistral(window=None, **SHAPE)
    first = write_peft(tmp_path / "a", draw_pairs(model, 16, std=0.2))
    second = write_peft(
        tmp_path / "b", draw_pairs(model, 3, targets=["k_proj", "gate_proj"], seed=5, std=0.2)
    )
    mixes = [[], [first], [second], [(first, 0.5), (second, 2.0)]]
    params = SamplingParams(max_tokens=10, temperature=0, logprobs=3)
    prompts = [(mix, IDS[: 20 + 3 * mix]) for mix in (0, 1, 2, 3, 1, 0)]
    together = answer_together(mixed_engine(base, mixes, **form), prompts, params)
    alone = [
        answer_together(mixed_engine(base, [mixes[mix]], **form), [(0, prompt)], params)[0]
        for mix, prompt in prompts
    ]
    assert together == alone
    assert len({str(tokens) for tokens in together[:4]}) == 4, "the adapters make a difference"


@pytest.mark.parametrize("form", FORMS[:3], ids=name_form)
def test_nothing_that_was_read_is_shared_with_another_adapter(tmp_path, base, form):
    adapter = write_peft(tmp_path / "a", draw_pairs(mistral(**SHAPE), std=0.2))
    mixed = mixed_engine(base, [[], [adapter]], **form)
    params = SamplingParams(max_tokens=4, temperature=0, logprobs=2)
    adapted = adapted_engine(base, adapter, **form)
    for each, mix in ((mixed, 0), (mixed, 1), (mixed, 0)):
        events = list(each.with_adapter(mix).generate(IDS, params))
        expected = engine(base, **form) if mix == 0 else adapted
        expected.forget()
        assert [e for e in events if isinstance(e, Step)] == [
            e for e in expected.generate(IDS, params) if isinstance(e, Step)
        ]
    list(mixed.with_adapter(1).generate(IDS, params))
    assert next(iter(mixed.with_adapter(1).generate(IDS, params))).reused >= len(IDS) - 1, "by the same it is"
